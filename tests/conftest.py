import os
import shutil
import signal
from importlib.metadata import version
from pathlib import Path

# Before JAX is imported: several CPU devices, strict types and ranks, so that a careless promotion fails here first.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
# Compiled programs are shared by the processes of the tests and kept for the next run, apart from the user's own.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / "build" / "test-programs"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# Matrices are small here: threads that wait for each other slow their products down. It counts in workers and commands,
# which start later; in this process plugins of pytest have imported NumPy already.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import pytest
from hypothesis import settings
from jaxtyping import install_import_hook
from parity import SOURCES, Published

# The first example of a property compiles, which no deadline foresees.
settings.register_profile("elt_zoo", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("elt_zoo")

# Users get the shape check on public functions; tests get it on every function.
with install_import_hook("elt_zoo", "beartype.beartype"):
    import elt_zoo  # noqa: F401

# Most of the time of these tests goes into compiling: XLA's slow passes are left out.
_COMPILE_FAST = " --xla_backend_optimization_level=0"
if version("jaxlib").startswith("0.10."):
    _COMPILE_FAST += " --xla_cpu_use_fusion_emitters=false"  # later ones know no such flag
_PROGRAMS, _LARGEST = Path(__file__).parents[1] / "build" / "test-programs", 2**30
# The files that take longest, longest first. Begun first, none of them is still going on when all others have ended.
_LONGEST = (
    "test_notebooks.py",
    "test_docs.py",
    "test_distributed.py",
    "test_commands.py",
    "test_evaluation.py",
    "test_runs_on_files.py",
    "test_reproduce.py",
    "test_moving_digits.py",
    "test_interruptions.py",
    "test_split_states.py",
    "test_looped.py",
    "test_fetch.py",
    "test_vq_training.py",
)
_MAPS, _MAPS_ALLOWED = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")


def pytest_configure(config):
    # Before the first array: that is when XLA reads its flags.
    if not config.getoption("optimized"):
        os.environ["XLA_FLAGS"] += _COMPILE_FAST
    config.option.loadscopereorder = False  # files come in the order of `pytest_collection_modifyitems`
    first = "PYTEST_XDIST_WORKER" not in os.environ
    if first and _PROGRAMS.is_dir() and sum(file.stat().st_size for file in _PROGRAMS.iterdir()) > _LARGEST:
        shutil.rmtree(_PROGRAMS)  # JAX's own bound would lock and read the whole folder for every program


def pytest_collection_modifyitems(items):
    order = {name: index for index, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


def pytest_addoption(parser):
    parser.addoption("--no-skips", action="store_true", help="a skipped test fails, unless it is marked `optional`")
    parser.addoption("--optimized", action="store_true", help="compile as users do, to fast programs: slower tests")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session):
    """With `--no-skips` the run fails for what it skipped, whole modules included."""
    result = yield
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if session.config.getoption("no_skips") and reporter is not None:
        # Reports of whole modules have no keywords.
        reports = reporter.stats.get("skipped", [])
        skipped = [report for report in reports if "optional" not in getattr(report, "keywords", ())]
        for report in skipped:
            reporter.write_line(f"SKIPPED, but --no-skips: {report.nodeid}: {report.longrepr[2]}", red=True)
        if skipped and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
    return result


@pytest.fixture(scope="session", params=SOURCES)
def published(request, tmp_path_factory):
    """`published(name)` gives the folder of a published network's weights, and the network's inputs and outputs."""
    return Published(SOURCES[request.param], tmp_path_factory.mktemp)


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Drops compiled programs between modules once they are many: each keeps about ten pieces of memory mapped, and
    when a process has no more of them to give (65,530 by default on Linux) the compiler aborts it.
    """
    yield
    if _MAPS.exists() and _MAPS.read_text().count("\n") > int(_MAPS_ALLOWED.read_text()) // 4:
        jax.clear_caches()


@pytest.fixture
def interruptible():
    """Ctrl-C interrupts, here and in commands that a test starts. A shell's background jobs ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
