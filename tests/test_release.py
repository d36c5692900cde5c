"""What a release needs: one address in all files, one version, and distributions that hold what they should."""

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SOURCE, DOCUMENTATION = PROJECT["urls"]["Source"], PROJECT["urls"]["Documentation"]
OWNER, NAME = SOURCE.removeprefix("https://github.com/").split("/")
COLAB = f"https://colab.research.google.com/github/{OWNER}/{NAME}"
RAW = f"https://raw.githubusercontent.com/{OWNER}/{NAME}"
# Anything that looks like an address of this project, whoever it belongs to.
_ADDRESS = re.compile(
    r"https?://(?:github\.com|colab\.research\.google\.com/github|raw\.githubusercontent\.com)/[\w.-]+/elt[_-]zoo\b|https?://[\w-]+\.github\.io/elt[_-]zoo\b"
)
_LINK = re.compile(r"\]\(([^)\s]+)\)|<(?:img|a|source)\b[^>]*?\b(?:src|srcset|href)=\"([^\"\s]+)\"")
_CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
FOLDERS = (
    *(".ci", ".github", "benchmarks", "docs", "elt_zoo", "examples", "notebooks", "pictures", "reproduction", "tests"),
)


def _files():
    """What belongs to the repository: the files of its folders and those beside them, without what runs leave."""
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    files += [ROOT / name for name in ("mkdocs.yml", "pyproject.toml", "LICENSE", "CITATION.cff", *_pages())]
    return sorted(path for path in files if path.is_file() and "__pycache__" not in path.parts)


def _pages():
    return ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")


def _text(path):
    return path.read_text() if path.suffix in {".md", ".py", ".toml", ".yml", ".cff", ".html", ".svg", ".ipynb"} else ""


def test_every_address_of_the_project_is_the_one_of_pyproject():
    expected = {SOURCE, RAW, COLAB, DOCUMENTATION.rstrip("/")}
    found = {(path, address) for path in _files() for address in _ADDRESS.findall(_text(path))}
    assert {address for _, address in found} == expected, [pair for pair in found if pair[1] not in expected]


def test_the_sites_and_citations_address_is_the_one_of_pyproject():
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (site["site_url"], site["repo_url"]) == (DOCUMENTATION, SOURCE)
    assert (citation["url"], citation["repository-code"]) == (DOCUMENTATION, SOURCE)
    assert citation["license"] == PROJECT["license"]


def test_the_changelog_and_the_citation_have_the_version():
    changelog = (ROOT / "CHANGELOG.md").read_text()
    version, date = re.findall(r"^## \[(\d[^\]]*)\] - (\d{4}-\d\d-\d\d)$", changelog, re.MULTILINE)[0]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert version == PROJECT["version"] == str(citation["version"])
    assert date == str(citation["date-released"])
    assert f"[Unreleased]: {SOURCE}/compare/v{version}...HEAD\n" in changelog
    for heading in re.findall(r"^## \[(\d[^\]]*)\]", changelog, re.MULTILINE):
        assert f"\n[{heading}]: {SOURCE}/" in changelog


def test_headings_of_the_changelog_are_those_of_keep_a_changelog():
    headings = re.findall(r"^### (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert set(headings) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_workflows_test_every_python_that_is_declared():
    declared = [line.split(" :: ")[-1] for line in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", line)]
    for name in ("ci.yml", "release.yml"):
        jobs = yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text())["jobs"]
        matrices = [job["strategy"]["matrix"]["python"] for job in jobs.values() if "strategy" in job]
        assert matrices == [declared], name


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", folder], cwd=ROOT, check=True, capture_output=True
    )
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


def test_the_wheel_holds_the_package_and_nothing_else(distributions):
    with zipfile.ZipFile(distributions[0]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == {str(path.relative_to(ROOT)) for path in _files() if ROOT / "elt_zoo" in path.parents}


def test_the_sdist_holds_the_repository(distributions):
    with tarfile.open(distributions[1]) as sdist:
        names = {member.name.split("/", 1)[1] for member in sdist.getmembers() if member.isfile()}
    hidden = {".gitignore", ".pre-commit-config.yaml"}
    assert names - {"PKG-INFO"} == {str(path.relative_to(ROOT)) for path in _files()} | hidden


def test_the_package_index_shows_readme_with_links_that_work_there(distributions):
    with zipfile.ZipFile(distributions[0]) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = Parser().parsestr(wheel.read(name).decode())
    shown, readme = metadata.get_payload(), (ROOT / "README.md").read_text()
    assert isinstance(shown, str)
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert _CODE.findall(shown) == _CODE.findall(readme), "the substitutions changed code"
    links = [target for pair in _LINK.findall(_CODE.sub("", shown)) for target in pair if target]
    assert links
    assert [target for target in links if not target.startswith(("https://", "#", "mailto:"))] == []
    version = PROJECT["version"]
    for target in links:
        for base in (f"{SOURCE}/blob/v{version}/", f"{RAW}/v{version}/"):
            if target.startswith(base):
                assert (ROOT / target.removeprefix(base).split("#")[0]).exists(), target
    pictures = re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", shown)
    assert pictures and all(not picture.startswith(f"{SOURCE}/blob/") for picture in pictures)
