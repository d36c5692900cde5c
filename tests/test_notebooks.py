"""The notebooks run from top to bottom as a reader runs them, and open in Colab from this project's address."""

import os
import re
import tomllib
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
SOURCE = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Source"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
_COLAB = (
    f"https://colab.research.google.com/{SOURCE.removeprefix('https://').replace('github.com', 'github')}/blob/main/"
)


def _names(path):
    return path.stem


@pytest.mark.slow
@pytest.mark.optimized
@pytest.mark.parametrize("path", NOTEBOOKS, ids=_names)
def test_a_notebook_runs_from_top_to_bottom(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    # Readers have JAX's defaults and one device. The cell that installs the package is tagged to be skipped.
    own = ("XLA_FLAGS", "JAX_NUMPY_DTYPE_PROMOTION", "JAX_NUMPY_RANK_PROMOTION")
    environment = {name: value for name, value in os.environ.items() if name not in own}
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env=environment)
    pictures = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert len(pictures) >= 2


@pytest.mark.parametrize("path", NOTEBOOKS, ids=_names)
def test_a_notebook_is_stored_clean_and_says_where_it_opens(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert prose[0].startswith("# ") and f"({_COLAB}notebooks/{path.name})" in prose[0]
    assert code[0].source == f'%pip install -q "elt_zoo[examples] @ git+{SOURCE}"'
    assert code[0].metadata.tags == ["skip-execution"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert not any(re.search(r"\belt_zoo[\w.]*\._", cell.source) for cell in code)  # public names alone
    assert all("skip-execution" not in cell.metadata.get("tags", ()) for cell in code[1:])


def test_every_notebook_has_its_links_on_the_page():
    page = (ROOT / "docs" / "notebooks.md").read_text()
    assert set(re.findall(re.escape(_COLAB) + r"notebooks/(\w+)\.ipynb", page)) == {path.stem for path in NOTEBOOKS}
    assert set(re.findall(re.escape(f"{SOURCE}/blob/main/") + r"notebooks/(\w+)\.ipynb", page)) == set(
        map(_names, NOTEBOOKS)
    )
