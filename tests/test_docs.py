"""The Python blocks of the pages run, in order, each page in one namespace."""

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
