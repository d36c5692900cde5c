import os
from pathlib import Path
from typing import TypeVar

import equinox as eqx
import jax

from ..metrics import I3D, InceptionV3
from ..storage import Placement, assemble, read_tensors
from ._extractor_names import i3d_names, inception_names

_Network = TypeVar("_Network")
INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"
INCEPTION_SOURCE = "https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights"
I3D_FILE = "model_rgb.pth"
I3D_SOURCE = "https://github.com/hassony2/kinetics_i3d_pytorch"


def load_inception(path: str | os.PathLike) -> InceptionV3:
    """Reads the Inception-v3 of the Fréchet Inception distance under pytorch-fid's names
    (`pt_inception-2015-12-05-6726825d.pth`, or the same as safetensors).

    **Arguments:** `path`: a file.

    **Returns:** the network, float32.

    **Raises:** `FileNotFoundError` if there is no such file, saying where to get it;
    [`WeightsError`][elt_zoo.storage.WeightsError] if it is damaged or of another network, torchvision's Inception
    among them.
    """
    abstract = eqx.filter_eval_shape(InceptionV3, key=jax.random.key(0))
    return _evaluator(path, abstract, inception_names(abstract), f"{INCEPTION_FILE} from {INCEPTION_SOURCE}")


def load_i3d(path: str | os.PathLike) -> I3D:
    """Reads the I3D of the Fréchet video distance under the names of hassony2/kinetics_i3d_pytorch (`model_rgb.pth`, or
    the same as safetensors).

    **Arguments:** `path`: a file.

    **Returns:** the network, float32.

    **Raises:** `FileNotFoundError` if there is no such file, saying where to get it;
    [`WeightsError`][elt_zoo.storage.WeightsError] if it is damaged or of another network.
    """
    abstract = eqx.filter_eval_shape(I3D, key=jax.random.key(0))
    return _evaluator(path, abstract, i3d_names(abstract), f"{I3D_FILE} from {I3D_SOURCE}")


def _evaluator(path: str | os.PathLike, abstract: _Network, rows: list[Placement], download: str) -> _Network:
    if not Path(path).exists():
        raise FileNotFoundError(f"There is no {path}. Download {download}.")
    file = read_tensors(path)
    # Counters of training steps, which inference does not need.
    file = file.replacing({name: None for name in file if name.endswith(".num_batches_tracked")})
    return assemble(abstract, rows, file)
