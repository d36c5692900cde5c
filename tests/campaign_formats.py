"""Every format that the library reads: how a sound file is made, how it is read, and what its readers may raise."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from image_files import encode, smooth
from made_up import evaluate_made_up, small_generator
from shard_files import token_plan
from shard_files import write as write_shards
from test_checkpoints import POSITION, RUN, abstract, at_step
from test_readers import TENSORS, WRITERS
from video_files import frames_of, write_frames

from elt_zoo import load, save
from elt_zoo.data import (
    DataError,
    ImageTransform,
    ShardedTokens,
    UnreadableExample,
    Visit,
    decode_image,
    image_tar,
)
from elt_zoo.data.videos._decode import probe_video, read_frames
from elt_zoo.data.videos._index import index_videos
from elt_zoo.evaluation import CellStore
from elt_zoo.metrics import GaussianStatistics, SetStatistics, load_statistics, read_images
from elt_zoo.storage import WeightsError, read_json, read_tensors, write_safetensors
from elt_zoo.tokenizers import PatchCodebook, load_tokenizer, save_tokenizer
from elt_zoo.training import CheckpointError, Checkpoints


class Format(NamedTuple):
    """A format of files in a folder.

    **Fields:** `write`, `read`: of the folder; `errors`: that readers may raise; `checksum`: whether everything that is
    read is under one, so that no other values may come out; `mutated`: which files are damaged, by relative path.
    """

    write: Callable[[Path], Any]
    read: Callable[[Path], Any]
    errors: tuple[type[Exception], ...]
    checksum: bool = False
    mutated: Callable[[Path], bool] = lambda path: True


def values_of(tree: Any) -> Any:
    """Arrays as bytes, so that two trees compare by what is in them."""
    leaves, structure = jax.tree.flatten(tree)
    arrays = [leaf if isinstance(leaf, (str, bytes, type(None))) else np.asarray(leaf) for leaf in leaves]
    plain = [(leaf.dtype.str, leaf.shape, leaf.tobytes()) if isinstance(leaf, np.ndarray) else leaf for leaf in arrays]
    return plain, str(structure)


def _tensors(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        file = read_tensors(folder / name)
        return {key: file[key] for key in sorted(file)}

    return read


def _contents(name: str) -> Callable[[Path], Any]:
    """The tensors without their names, which no checksum of a zip file covers."""

    def read(folder: Path) -> Any:
        file = read_tensors(folder / name)
        return sorted((array.dtype.str, array.shape, array.tobytes()) for array in map(np.asarray, file.values()))

    return read


def _model(folder: Path) -> Any:
    generator = load(folder)
    return (
        eqx.filter(generator.model, eqx.is_array),
        repr((generator.config, generator.settings, sorted(generator.metadata.items()))),
    )


def _without_description(folder: Path) -> None:
    save(folder, small_generator(1))
    tensors = dict(read_tensors(folder / "model.safetensors"))
    write_safetensors(folder / "model.safetensors", tensors)


def _tokenizer(folder: Path) -> Any:
    tokenizer = load_tokenizer(folder)
    return eqx.filter(tokenizer, eqx.is_array), str(tokenizer)


def _write_tokenizer(folder: Path) -> None:
    codes: Any = np.arange(64, dtype=np.float32).reshape(16, 4)
    save_tokenizer(folder, PatchCodebook(codes, (8, 8, 1), 2))


def _statistics(folder: Path) -> Any:
    read = load_statistics(folder / "real.npz")
    return read.pool.mean, read.pool.covariance, read.pool.extractor, str(read.pool.count), read.features


def _write_statistics(folder: Path) -> None:
    pool = GaussianStatistics(5, np.arange(3.0), np.eye(3), "mine")
    SetStatistics(pool, features=np.ones((5, 3), np.float32)).save(folder / "real.npz")


def _image(name: str) -> Callable[[Path], Any]:
    return lambda folder: decode_image((folder / name).read_bytes())


def _clip(folder: Path) -> Any:
    info = probe_video(folder / "clip.avi")
    return read_frames(folder / "clip.avi", info, start=min(5, info.frames - 1), count=1)


def _write_archive(folder: Path) -> None:
    with tarfile.open(folder / "images.tar", "w") as archive:
        for number in range(4):
            data = encode(smooth(24, 20, seed=number))
            entry = tarfile.TarInfo(f"class{number % 2}/{number}.jpg")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def _archive(folder: Path) -> Any:
    source = image_tar(folder / "images.tar", ImageTransform(16))
    return [source.read(Visit(number)) for number in range(len(source))], source.class_names


def _indexed_archive(folder: Path) -> None:
    _write_archive(folder)
    _archive(folder)


def _write_shards(folder: Path) -> None:
    write_shards(folder / "shards", token_plan())


def _shards(folder: Path) -> Any:
    source = ShardedTokens(folder / "shards")
    return source.read_batch([Visit(number) for number in range(len(source))]), source.class_names


def _videos(folder: Path) -> Any:
    return [str(entry) for entry in index_videos(folder, ["clip.avi"])]


def _write_clip(folder: Path) -> None:
    write_frames(folder / "clip.avi", frames_of(0, 12))


def _write_indexed_clip(folder: Path) -> None:
    _write_clip(folder)
    _videos(folder)


def _write_checkpoints(folder: Path) -> None:
    with Checkpoints(folder / "run", RUN) as checkpoints:
        for step in (1, 2):
            checkpoints.save(at_step(step), POSITION)


def _checkpoint(folder: Path) -> Any:
    checkpoints = Checkpoints(folder / "run", RUN)
    state, position = checkpoints.restore(abstract())
    checkpoints.close()
    return state.model, state.ema, state.optimizer_state, state.step, jax.random.key_data(state.key), str(position)


def _cells(folder: Path) -> Any:
    store = CellStore(folder, read_json(folder / "protocol.json"))
    return [str(sorted(result.items())) for result in store.read()]


_WEIGHTS, _DATA = (WeightsError,), (DataError, UnreadableExample)

FORMATS: dict[str, Format] = {
    "safetensors": Format(lambda folder: WRITERS["safetensors"](folder / "x", TENSORS), _tensors("x"), _WEIGHTS),
    "npz": Format(lambda folder: WRITERS["npz"](folder / "x.npz", TENSORS), _contents("x.npz"), _WEIGHTS, True),
    "msgpack": Format(lambda folder: WRITERS["msgpack"](folder / "x", TENSORS), _tensors("x"), _WEIGHTS),
    "torch zip": Format(lambda folder: WRITERS["torch"](folder / "x", TENSORS), _tensors("x"), _WEIGHTS, True),
    "model": Format(
        lambda folder: save(folder, small_generator(1)),
        _model,
        (WeightsError,),
        True,
        lambda path: path.name == "model.safetensors",
    ),
    "config.json": Format(_without_description, _model, _WEIGHTS, False, lambda path: path.name == "config.json"),
    "tokenizer": Format(_write_tokenizer, _tokenizer, _WEIGHTS, True, lambda path: path.name == "model.safetensors"),
    "statistics": Format(_write_statistics, _statistics, (ValueError,)),
    "images npz": Format(
        lambda folder: np.savez(folder / "x.npz", np.zeros((4, 8, 8, 3), np.uint8)),
        lambda folder: np.concatenate(list(read_images(folder / "x.npz"))),
        (ValueError,),
    ),
    "JPEG": Format(lambda folder: (folder / "x").write_bytes(encode(smooth())), _image("x"), (UnreadableExample,)),
    "PNG": Format(
        lambda folder: (folder / "x").write_bytes(encode(smooth(), "PNG")), _image("x"), (UnreadableExample,)
    ),
    "clip": Format(_write_clip, _clip, (UnreadableExample,)),
    "tar": Format(_write_archive, _archive, _DATA),
    "tar index": Format(_indexed_archive, _archive, _DATA, True, lambda path: path.suffix == ".npz"),
    "shards": Format(_write_shards, _shards, _DATA, True, lambda path: path.suffix == ".array_record"),
    "shard index": Format(_write_shards, _shards, _DATA, False, lambda path: path.name == "index.json"),
    "video index": Format(_write_indexed_clip, _videos, _DATA, False, lambda path: path.suffix == ".json"),
    "checkpoint": Format(
        _write_checkpoints, _checkpoint, (CheckpointError,), True, lambda path: path.parts[:3] == ("run", "steps", "2")
    ),
    "run.json": Format(
        _write_checkpoints, _checkpoint, (CheckpointError, ValueError), False, lambda path: path.name == "run.json"
    ),
    "cells": Format(
        lambda folder: evaluate_made_up(folder, ("1", "2")),
        _cells,
        (ValueError,),
        False,
        lambda path: path.parent.name == "cells",
    ),
}
