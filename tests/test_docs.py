"""The Python blocks of the pages run, in order, each page in one namespace."""

import enum
import importlib
import inspect
import re
from pathlib import Path

import jax
import pytest
from mktestdocs import check_md_file

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# They train or fit something, or compile much.
SLOW = {"anytime.md", "getting-started.md", "diagnostics.md", "digits.md", "evaluation.md", "loopify.md"}
_BLOCK = re.compile(r"^```python$", re.MULTILINE)


def _parameters():
    for page in PAGES:
        if _BLOCK.search(page.read_text()):
            marks = [pytest.mark.slow, pytest.mark.optimized] if page.name in SLOW else []
            yield pytest.param(page, id=str(page.relative_to(ROOT)), marks=marks)


@pytest.mark.parametrize("page", list(_parameters()))
def test_the_python_blocks_of_a_page_run(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # for what they write
    # Readers have JAX's defaults, and the tests' strictness is meant for the library and not for what they type.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        check_md_file(fpath=page, memory=True)


# Of these rooms users construct every concrete class, except for results and for what needs published weights.
CONSTRUCTED = ("looped", "heads", "models", "objectives", "corruption", "sampling", "families", "generator", "metrics")
OTHERS = {
    *("SamplerSettings", "TrainingDefaults", "DigitsQuality", "MovingDigitsQuality", "Evaluation", "SetStatistics"),
    *("I3D", "I3DExtractor", "VideoProtocol", "InceptionV3", "InceptionExtractor"),
}


def _concrete(value):
    if not isinstance(value, type) or inspect.isabstract(value) or getattr(value, "_is_protocol", False):
        return False
    return not issubclass(value, enum.Enum | BaseException) and not hasattr(value, "_fields")


@pytest.mark.parametrize("room", CONSTRUCTED)
def test_a_class_that_users_construct_has_an_example_on_its_page(room):
    module = importlib.import_module(f"elt_zoo.{room}")
    page = (ROOT / "docs" / "api" / f"{room}.md").read_text()
    examples = "\n".join(re.findall(r"^```python$(.*?)^```$", page, re.MULTILINE | re.DOTALL))
    classes = {name for name, value in vars(module).items() if not name.startswith("_") and _concrete(value)}
    missing = {name for name in classes - OTHERS if not re.search(rf"\b{name}(\.\w+)?\(", examples)}
    assert classes and not missing, f"without an example: {sorted(missing)}"


def test_every_page_is_in_the_navigation_and_every_entry_exists():
    entries = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text()))
    # Those below `reproduction` are tables that a page includes.
    tables = set((ROOT / "docs" / "reproduction").glob("*.md"))
    pages = {str(page.relative_to(ROOT / "docs")) for page in {*(ROOT / "docs").rglob("*.md")} - tables}
    assert entries == pages


def test_links_between_files_of_the_repository_exist():
    link = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"):
        missing = [target for target in link.findall(page.read_text()) if not (ROOT / target).exists()]
        assert not missing, f"{page.name} links to {missing}"
