"""Published networks and their outputs: `tests/fixtures`, and the originals where `ELT_ZOO_PARITY` is a folder."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from fixtures.rule import read_shapes, weights
from weight_files import nested, write_msgpack, write_npz, write_safetensors, write_torch_zip

SOURCES = {"repository": Path(__file__).parent / "fixtures"}
if "ELT_ZOO_PARITY" in os.environ:
    SOURCES["originals"] = Path(os.environ["ELT_ZOO_PARITY"])

Arrays = dict[str, np.ndarray]


class Published:
    """The fixtures of one source. Their weights are files such as users have, written here where a rule gives them."""

    def __init__(self, root: Path, scratch: Callable[[str], Path]):
        self.root, self.scratch = root, scratch
        self.folders: dict[str, Path] = {}

    def __call__(self, name: str) -> tuple[Path, Arrays]:
        """The folder that holds a network's weights, and the network's inputs and outputs."""
        io = self.arrays(name, "io.npz")
        if not (self.root / name / "parameter_names.txt").exists():
            return self.root / name, io
        config = self.config(name)
        if name == "inception_fid":
            rng = np.random.default_rng(config["input_seed"])
            io["image_uint8"] = rng.integers(0, 256, (3, 3, 96, 128)).astype(np.uint8)
        if name not in self.folders:
            self.folders[name] = self.scratch(name)
            shapes = read_shapes(self.root / name / "parameter_names.txt")
            tensors = weights(shapes, config.pop("weight_rule_seed"), config.pop("gain"))
            if "pos_embed" in io:  # a table, no weights
                tensors["pos_embed"] = io["pos_embed"]
            del config["input_seed"]
            (self.folders[name] / "config.json").write_text(json.dumps(config))
            WRITERS[name](self.folders[name], tensors)
        return self.folders[name], io

    def arrays(self, name: str, file: str) -> Arrays:
        return dict(np.load(self.root / name / file))

    def config(self, name: str) -> dict:
        return json.loads((self.root / name / "config.json").read_text())


def _flax(folder: Path, tensors: Arrays) -> None:
    write_msgpack(folder / "checkpoint.msgpack", nested(tensors))
    write_npz(folder / "weights.npz", tensors)


def _dit(folder: Path, tensors: Arrays) -> None:
    average = {name: value if name == "pos_embed" else np.float32(0.9) * value for name, value in tensors.items()}
    write_torch_zip(folder / "dit.pt", tensors)
    write_safetensors(folder / "dit.safetensors", tensors)
    write_torch_zip(folder / "train_checkpoint.pt", {"model": tensors, "ema": average, "opt": {}, "args": {}})


def _autoencoder(folder: Path, tensors: Arrays) -> None:
    write_safetensors(folder / "diffusion_pytorch_model.safetensors", tensors)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {
        re.sub(r"(?<=attentions\.0\.)(to_[qkv]|to_out\.0)(?=\.)", lambda match: old[match[1]], name): value
        for name, value in tensors.items()
    }
    write_safetensors(folder / "old_attention_names.safetensors", renamed)


WRITERS: dict[str, Callable[[Path, Arrays], None]] = {
    "autoencoder_kl_diffusers": _autoencoder,
    "dit_diffusers": lambda folder, tensors: write_safetensors(folder / "diffusion_pytorch_model.safetensors", tensors),
    "dit_facebook": _dit,
    "i3d": lambda folder, tensors: write_safetensors(folder / "weights.safetensors", tensors),
    "inception_fid": lambda folder, tensors: write_safetensors(folder / "weights.safetensors", tensors),
    "magvit_vq3d_flax": _flax,
    "maskgit_transformer_flax": _flax,
    "maskgit_vqgan_flax": _flax,
    "maskgit_vqgan_torch": lambda folder, tensors: write_torch_zip(folder / "pytorch_model.bin", tensors),
}


def relative_error(ours, theirs):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
