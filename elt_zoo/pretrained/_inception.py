import os

import equinox as eqx
import jax

from ..metrics import InceptionV3, inception_names
from ._assemble import assemble
from ._read import read_tensors


def load_inception(path: str | os.PathLike) -> InceptionV3:
    """Reads the Inception-v3 of the Fréchet Inception distance under pytorch-fid's names
    (`pt_inception-2015-12-05-6726825d.pth`, or the same as safetensors).

    **Arguments:** `path`: a file.

    **Returns:** the network, float32.

    **Raises:** `FileNotFoundError` if there is no such file; [`WeightsError`][elt_zoo.pretrained.WeightsError] if it is
    damaged or of another network, torchvision's Inception among them.
    """
    file = read_tensors(path)
    # Counters of training steps, which inference does not need.
    file = file.replacing({name: None for name in file if name.endswith(".num_batches_tracked")})
    abstract = eqx.filter_eval_shape(InceptionV3, key=jax.random.key(0))
    return assemble(abstract, inception_names(), file)
