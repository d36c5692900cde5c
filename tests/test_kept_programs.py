"""The commands' cache of compiled programs."""

import contextlib
from pathlib import Path
from typing import Any

import jax
import pytest

from elt_zoo.commands._programs import keep_programs

CONFIG: Any = jax.config
SETTINGS = (
    "jax_enable_compilation_cache",
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
)


@contextlib.contextmanager
def settings(**changed):
    before = {name: getattr(CONFIG, name) for name in SETTINGS}
    try:
        for name, value in changed.items():
            CONFIG.update(name, value)
        yield
    finally:
        for name, value in before.items():
            CONFIG.update(name, value)


def test_programs_are_kept_in_the_users_cache_up_to_a_size(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with settings(jax_enable_compilation_cache=True, jax_compilation_cache_dir=None):
        keep_programs()
        folder = Path(str(CONFIG.jax_compilation_cache_dir))
        assert folder.is_dir() and folder.parent == tmp_path / "elt_zoo"
        assert CONFIG.jax_compilation_cache_max_size == 2**30


@pytest.mark.parametrize(("enabled", "folder"), [(False, None), (True, "/elsewhere")])
def test_the_settings_of_jax_come_first(tmp_path, monkeypatch, enabled, folder):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with settings(jax_enable_compilation_cache=enabled, jax_compilation_cache_dir=folder):
        keep_programs()
        assert CONFIG.jax_compilation_cache_dir == folder
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "elt_zoo").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with settings(jax_enable_compilation_cache=True, jax_compilation_cache_dir=None):
        keep_programs()
        assert CONFIG.jax_compilation_cache_dir is None
