"""Damaged files of every format: each is refused by name and soon, or read as it was."""

import contextlib
import json
import os
import pickle
import random
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from campaign_children import in_child
from campaign_formats import FORMATS, Format, values_of
from campaign_tally import Tally

LIMIT_SECONDS = 5.0
_WARM_SECONDS = 120.0


def mutate(count: int, seed: int, tally: Tally, folder: Path, *, only: Sequence[str] | None = None) -> None:
    """Reads as many damaged files, in turn of every format."""
    names = list(FORMATS if only is None else only)
    for place, name in enumerate(names):
        share = range(place, count, len(names))
        _one_format(name, len(share), f"{seed}/{name}", tally, folder / name.replace(" ", "-"))


def _one_format(name: str, count: int, seed: str, tally: Tally, folder: Path) -> None:
    kind, whole, work, log = FORMATS[name], folder / "whole", folder / "work", folder / "log"
    whole.mkdir(parents=True)
    made = in_child(lambda: kind.write(whole))
    if made.problem is not None:
        raise RuntimeError(f"{name}: {made.problem}")
    files = sorted(file for file in whole.rglob("*") if file.is_file() and kind.mutated(file.relative_to(whole)))
    done = 0
    while done < count:
        begun = done

        def read_many(first: int = begun) -> None:
            """Until one of them ends this process."""
            with log.open("ab") as outcomes:
                expected = pickle.dumps(values_of(kind.read(whole)))
                for number in range(first, count):
                    rng = random.Random(f"{seed}/{number}")
                    _damage(rng, whole, work, rng.choice(files).relative_to(whole))
                    signal.setitimer(signal.ITIMER_REAL, LIMIT_SECONDS)
                    outcome = _outcome(kind, work, expected)
                    signal.setitimer(signal.ITIMER_REAL, _WARM_SECONDS)
                    outcomes.write(json.dumps(outcome).encode() + b"\n")
                    outcomes.flush()

        log.unlink(missing_ok=True)
        ended = in_child(read_many, limit=_WARM_SECONDS)
        lines = log.read_text().splitlines() if log.exists() else []
        for number, line in enumerate(lines, start=begun):
            outcome, fault = json.loads(line)
            if fault is not None:
                kept = folder / str(number)
                rng = random.Random(f"{seed}/{number}")
                _damage(rng, whole, kept, rng.choice(files).relative_to(whole))
                fault = f"{fault} (file: {kept})"
            tally.add(name, outcome, fault)
        done += len(lines)
        if ended.signal:
            hung = ended.signal == signal.SIGALRM
            tally.add(name, fault=f"number {done} {'hangs' if hung else f'dies of signal {ended.signal}'}: {seed}")
            shutil.copytree(work, folder / str(done), dirs_exist_ok=True)
            done += 1
        elif ended.problem is not None:
            raise RuntimeError(f"{name}: {ended.problem}")


def _outcome(kind: Format, work: Path, expected: bytes) -> tuple[str, str | None]:
    """What became of a damaged file, and what is wrong with that."""
    try:
        found = pickle.dumps(values_of(kind.read(work)))
    except kind.errors as error:
        text = str(error)
        return "refused", None if text else "an error without a word"
    except Exception as error:
        return "raw error", f"{type(error).__name__}: {error}"
    if found == expected:
        return "equal", None
    return "different", "read as something else without a word, in spite of its checksum" if kind.checksum else None


def _damage(rng: random.Random, whole: Path, work: Path, file: Path) -> None:
    """Copies a folder, and damages one of its files one to three times."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(whole, work)
    content = (work / file).read_bytes()
    if file.suffix == ".json" and rng.random() < 0.5:
        content = json.dumps(_changed(rng, json.loads(content))).encode()
    else:
        for _ in range(rng.randint(1, 3)):
            content = rng.choice(_MUTATIONS)(rng, content)
    (work / file).write_bytes(content)
    # Indexes remember when a file was written; only its content is to differ.
    for path in work.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            times = (whole / path.relative_to(work)).stat()
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def _range(rng: random.Random, content: bytes) -> tuple[int, int]:
    start = rng.randrange(len(content) + 1)
    return start, min(len(content), start + rng.choice([1, 4, 16, 64, 256, 4096]))


def _flip(rng: random.Random, content: bytes) -> bytes:
    if not content:
        return content
    place = rng.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]


def _truncate(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _insert(rng: random.Random, content: bytes) -> bytes:
    start, end = _range(rng, content)
    return content[:start] + rng.randbytes(end - start) + content[start:]


def _remove(rng: random.Random, content: bytes) -> bytes:
    start, end = _range(rng, content)
    return content[:start] + content[end:]


def _duplicate(rng: random.Random, content: bytes) -> bytes:
    start, end = _range(rng, content)
    return content[:end] + content[start:]


def _zero(rng: random.Random, content: bytes) -> bytes:
    start, end = _range(rng, content)
    return content[:start] + bytes(end - start) + content[end:]


def _swap(rng: random.Random, content: bytes) -> bytes:
    places = sorted([*_range(rng, content), *_range(rng, content)])
    a, b, c, d = places
    return content[:a] + content[c:d] + content[b:c] + content[a:b] + content[d:]


_MUTATIONS: list[Callable[[random.Random, bytes], bytes]] = [
    _flip,
    _flip,
    _truncate,
    _insert,
    _remove,
    _duplicate,
    _zero,
    _swap,
]
_ODD = [None, True, -1, 0, 1.5, 10**9, 2**70, float("nan"), 1e308, "", "x", [], {}, [1], {"a": 1}]


def _changed(rng: random.Random, tree: Any) -> Any:
    """Puts something odd in the place of one value, or drops it."""
    if isinstance(tree, (dict, list)) and tree and rng.random() < 0.9:
        copy: Any = tree.copy()
        key = rng.choice(list(tree) if isinstance(tree, dict) else range(len(tree)))
        if rng.random() < 0.1:
            del copy[key]
        else:
            copy[key] = _changed(rng, tree[key])
        return copy
    return rng.choice(_ODD)
