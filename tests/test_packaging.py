"""What the package promises besides its functions: directions of imports, declared dependencies, documented names."""

import ast
import importlib
import re
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

import elt_zoo

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "elt_zoo"
ROOMS = sorted(
    path.stem
    for path in PACKAGE.iterdir()
    if not path.name.startswith("_") and (path.suffix == ".py" or (path / "__init__.py").exists())
)
# Private modules that every room may use.
SHARED = ("_checks", "_optional", "_platform", "_version")
# Import name → name of the distribution, where they differ.
DISTRIBUTIONS = {"sklearn": "scikit-learn", "orbax": "orbax-checkpoint"}


def _files(room):
    path = PACKAGE / room
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


def _imports(file):
    """Absolute names of all modules that a file imports, also inside functions."""
    package = ["elt_zoo", *file.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            if base == ["elt_zoo"]:
                yield from (f"elt_zoo.{alias.name}" for alias in node.names)
            else:
                yield ".".join(base)


def _documented_rooms():
    page = (ROOT / "docs" / "architecture.md").read_text()
    table = page.split("<!-- rooms:")[1].split("<!-- end of rooms -->")[0]
    rows = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("| `")]
    return {re.findall(r"`(\w+)`", row[0])[0]: set(re.findall(r"`(\w+)`", row[2])) for row in rows}


def test_the_architecture_page_lists_every_room():
    assert sorted(_documented_rooms()) == ROOMS


def test_the_documented_directions_have_no_cycle():
    rooms, placed = _documented_rooms(), set()
    while len(placed) < len(rooms):
        free = {room for room, below in rooms.items() if room not in placed and below <= placed}
        assert free, f"a cycle among {sorted(set(rooms) - placed)}"
        placed |= free


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_what_the_architecture_page_says(room):
    used = set()
    for file in _files(room):
        for name in _imports(file):
            assert name != "elt_zoo", f"{file.relative_to(ROOT)} imports the top level, which stands above all rooms"
            if name.startswith("elt_zoo."):
                used.add(name.split(".")[1])
    assert used - {room, *SHARED} == _documented_rooms()[room]


def test_every_third_party_import_is_a_declared_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + project["optional-dependencies"]["hub"]
    declared = {re.match(r"[\w.-]+", line)[0].lower() for line in lines}
    imported = {name.split(".")[0] for file in PACKAGE.rglob("*.py") for name in _imports(file)}
    third_party = imported - {"elt_zoo"} - set(sys.stdlib_module_names)
    # JAX imports filelock, only where its cache of programs has a bound; the commands set one.
    assert {DISTRIBUTIONS.get(name, name) for name in third_party} == declared - {"filelock"}


def test_there_are_no_star_imports():
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            assert not (isinstance(node, ast.ImportFrom) and node.names[0].name == "*"), file


def test_types_ship_with_the_package():
    assert (PACKAGE / "py.typed").exists()


def test_private_helpers_have_one_way_out():
    """A package's public names are those of its `__init__`. Only the package itself, and the packages inside it, import
    its private files.
    """
    for file in PACKAGE.rglob("*.py"):
        here = ".".join(["elt_zoo", *file.relative_to(PACKAGE).parts[:-1]])
        for name in _imports(file):
            owner, private, _ = name.partition("._")
            if name.startswith("elt_zoo.") and private and name not in {f"elt_zoo.{module}" for module in SHARED}:
                inside = owner != "elt_zoo" and f"{here}.".startswith(f"{owner}.")
                assert inside, f"{file.relative_to(ROOT)} imports {name}"


def _floors(room):
    """The packages inside a room."""
    return sorted(path.parent.name for path in (PACKAGE / room).glob("*/__init__.py"))


@pytest.mark.parametrize("room", [room for room in ROOMS if _floors(room)])
def test_packages_inside_a_room_stand_on_its_files_and_not_on_each_other(room):
    floors = _floors(room)
    for file in _files(room):
        here = file.relative_to(PACKAGE / room).parts[:-1]
        if file == PACKAGE / room / "__init__.py":
            continue
        used = {name.split(".")[2] for name in _imports(file) if name.startswith(f"elt_zoo.{room}.")}
        assert used & set(floors) <= set(here), f"{file.relative_to(ROOT)} imports {used & set(floors)}"


@pytest.mark.parametrize("room", [room for room in ROOMS if _floors(room)])
def test_a_room_offers_all_that_its_packages_offer(room):
    module = importlib.import_module(f"elt_zoo.{room}")
    for floor in _floors(room):
        inner = importlib.import_module(f"elt_zoo.{room}.{floor}")
        for name in _public_names(inner):
            assert getattr(module, name, None) is getattr(inner, name), f"elt_zoo.{room} lacks {name}"


def _public_names(module):
    """The names that a room offers: a package's re-exports, or what a module defines itself."""
    tree = ast.parse(Path(module.__file__).read_text())
    if Path(module.__file__).name == "__init__.py":
        names = [alias.asname for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    else:
        names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return [name for name in names if name and not name.startswith("_")]


def _directives():
    """`(page, dotted path)` of every name that an API page documents."""
    for page in sorted((ROOT / "docs" / "api").glob("*.md")):
        for path in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE):
            yield page.stem, path


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_is_on_its_page_once(room):
    module = importlib.import_module(f"elt_zoo.{room}")
    top = set(_public_names(elt_zoo))
    # The shortest way to import a name is the one that its page shows.
    short = {name for name in top if getattr(elt_zoo, name) is getattr(module, name, None)}
    expected = [f"elt_zoo.{name}" if name in short else f"elt_zoo.{room}.{name}" for name in _public_names(module)]
    assert sorted(path for page, path in _directives() if page == room) == sorted(expected)


def test_no_name_is_on_two_pages():
    counts = Counter(path for _, path in _directives())
    assert [path for path, count in counts.items() if count > 1] == []


def test_every_top_level_name_comes_from_a_room():
    offered = {name for room in ROOMS for name in _public_names(importlib.import_module(f"elt_zoo.{room}"))}
    assert set(_public_names(elt_zoo)) <= offered


def test_the_navigation_has_a_page_for_every_room():
    assert sorted(path.stem for path in (ROOT / "docs" / "api").glob("*.md") if path.stem != "index") == ROOMS


def test_the_version_is_a_release_or_a_development_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|(a|b|rc)\d+)?", version)


def test_every_public_name_has_a_docstring():
    missing = []
    for room in ROOMS:
        module = importlib.import_module(f"elt_zoo.{room}")
        for name in _public_names(module):
            value = getattr(module, name)
            # Constants and type aliases are documented by the string below them, which only the source shows.
            if (isinstance(value, type) or callable(value)) and not hasattr(value, "__args__") and not value.__doc__:
                missing.append(f"elt_zoo.{room}.{name}")
    assert missing == []


def _folder_imports(folder):
    """`(file, module)` of every import of the scripts in a folder."""
    for file in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                yield from ((file, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield file, "." * node.level + (node.module or "")


@pytest.mark.parametrize("folder", ["examples", "benchmarks", "pictures", "reproduction"])
def test_what_stands_on_the_package_imports_nothing_but_its_public_names(folder):
    siblings = {file.stem for file in (ROOT / folder).glob("*.py")}
    for file, module in _folder_imports(folder):
        parts = module.split(".")
        if parts[0] == "elt_zoo":
            assert not any(part.startswith("_") for part in parts), f"{file.name} imports {module}"
        elif folder == "examples":
            assert parts[0] not in siblings, f"{file.name} imports the example {module}"
        assert parts[0] not in {"examples", "benchmarks", "tests"}, f"{file.name} imports {module}"


def test_the_examples_are_thin():
    assert sum(len(file.read_text().splitlines()) for file in (ROOT / "examples").glob("*.py")) <= 1000


def test_no_test_reaches_an_example_or_a_benchmark_by_its_path():
    for file in sorted((ROOT / "tests").glob("test_*.py")):
        if file.name != Path(__file__).name:
            text = file.read_text()
            assert "sys.path" not in text and "syspath_prepend" not in text, file.name
