import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ...storage import read_json, write_json
from .._source import UnreadableExample
from ._decode import VideoInfo, probe_video

_LOGGER = logging.getLogger("elt_zoo.data")
_CACHE_NAME = ".elt_zoo_videos.json"
_VERSION = 1


def index_videos(
    root: str | os.PathLike,
    files: Sequence[str],
    *,
    cache: str | os.PathLike | None = None,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[VideoInfo | str]:
    """Probes each video once, and keeps the results in a file. Later calls probe only files that are new, or whose size
    or modification time has changed.

    **Arguments:**

    - `root`, `files`: a folder, and paths of videos below it.
    - `cache`: the file that keeps the results. Default: `.elt_zoo_videos.json` in `root`, or in the user's cache folder
      (`$XDG_CACHE_HOME/elt_zoo`) if `root` cannot be written to.
    - `workers`: threads. Default: one for each core.
    - `on_progress`: called with the number of videos probed, and of those to probe.

    **Returns:** for each file the properties of the video, or the reason why it cannot be read.
    """
    root = Path(root)
    cache = _default_cache(root) if cache is None else Path(cache)
    known = _load(cache)
    stamps = dict(zip(files, map(_stamp, (root / file for file in files)), strict=True))
    stale = [file for file, stamp in stamps.items() if known.get(file, {}).get("stamp") != stamp]
    if not stale:
        return [_decode_entry(known[file]) for file in files]
    _LOGGER.info("reading the lengths of %d new or changed videos in %s", len(stale), root)
    try:
        with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
            results = pool.map(_probe, (root / file for file in stale))
            for done, (file, entry) in enumerate(zip(stale, results, strict=True), start=1):
                known[file] = {"stamp": stamps[file], **entry}
                if on_progress is not None:
                    on_progress(done, len(stale))
    finally:  # An interrupted scan goes on where it was.
        _save(cache, known)
    return [_decode_entry(known[file]) for file in files]


def _stamp(path: Path) -> list[int]:
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def _probe(path: Path) -> dict[str, Any]:
    try:
        info = probe_video(path)
    except UnreadableExample as error:
        return {"problem": str(error)}
    times = info.times
    return info._asdict() | {
        "times": {"range": [times.start, times.stop, times.step]} if isinstance(times, range) else times
    }


def _decode_entry(entry: dict[str, Any]) -> VideoInfo | str:
    if "problem" in entry:
        return entry["problem"]
    times = entry["times"]
    entry = entry | {"times": range(*times["range"]) if isinstance(times, dict) else times}
    return VideoInfo(**{field: entry[field] for field in VideoInfo._fields})


def _default_cache(root: Path) -> Path:
    if os.access(root, os.W_OK):
        return root / _CACHE_NAME
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "elt_zoo" / f"videos-{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]}.json"


def _load(cache: Path) -> dict[str, dict[str, Any]]:
    """Returns the entries of a cache file, or none if it is missing, damaged or of another version."""
    try:
        content = read_json(cache)
        if content["version"] != _VERSION:
            return {}
        for entry in content["videos"].values():
            _decode_entry(entry)
        return content["videos"]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        _LOGGER.warning("the index of videos %s is damaged (%s) and is written again", cache, error)
        return {}


def _save(cache: Path, known: dict[str, dict[str, Any]]) -> None:
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_json(cache, {"version": _VERSION, "videos": known}, indent=None)
    except OSError as error:
        _LOGGER.warning("the index of videos could not be kept in %s (%s); the next start scans again", cache, error)
