"""The fixtures beside the tests, and the rule that gives their weights."""

from pathlib import Path

import numpy as np
import pytest
from fixtures.rule import stream, weights

pytest_plugins = ["pytester"]
FOLDER = Path(__file__).parent / "fixtures"


def test_the_rule_gives_the_numbers_that_fixtures_were_made_with():
    """NumPy may change how it turns bits into normal numbers; then every fixture has to be made again."""
    rng = stream(1, "encoder.conv_in.weight")
    np.testing.assert_allclose(rng.standard_normal(3, np.float32), [-0.1255087, -1.3271374, 0.6105945], rtol=1e-6)
    np.testing.assert_allclose(rng.random(3, np.float32), [0.58063465, 0.95937914, 0.46638805], rtol=1e-6)


def test_matrices_keep_the_scale_of_what_they_multiply():
    shapes = {"linear.weight": (300, 200), "query/kernel": (200, 4, 75), "conv/kernel": (3, 3, 50, 300)}
    scales = {name: float(np.std(value)) for name, value in weights(shapes, 0, 1.0).items()}
    assert scales == pytest.approx(
        {"linear.weight": 200**-0.5, "query/kernel": 200**-0.5, "conv/kernel": 450**-0.5}, rel=0.02
    )


def test_fixtures_are_small_and_each_has_its_script():
    for folder in (path for path in FOLDER.iterdir() if (path / "io.npz").exists()):
        size = sum(path.stat().st_size for path in folder.glob("*.*"))
        assert size < 200_000, f"{folder.name} holds {size} bytes"
        assert all((folder / name).exists() for name in ("reference.py", "config.json", "parameter_names.txt"))
        assert f"`{folder.name}`" in (FOLDER / "README.md").read_text()


@pytest.mark.parametrize(("option", "failed"), [((), False), (("--no-skips",), True)])
def test_skips_fail_where_they_are_forbidden(pytester, option, failed):
    hooks = (Path(__file__).parent / "conftest.py").read_text()
    start, end = hooks.index("def pytest_addoption"), hooks.index("@pytest.fixture")
    pytester.makeconftest("import pytest\n\n" + hooks[start:end])
    pytester.makeini("[pytest]\nmarkers = optional: may be skipped")
    pytester.makepyfile(
        test_module="import pytest\npytest.importorskip('no_such_module')",
        test_optional="import pytest\n@pytest.mark.optional\n@pytest.mark.skip\ndef test_it(): pass",
        test_passing="def test_it(): pass",
    )
    result = pytester.runpytest_inprocess(*option)
    result.assert_outcomes(passed=1, skipped=2)
    assert result.ret == (pytest.ExitCode.TESTS_FAILED if failed else pytest.ExitCode.OK)
    assert ("SKIPPED, but --no-skips: test_module.py" in result.stdout.str()) == failed
    assert "--no-skips: test_optional.py" not in result.stdout.str()
