import dataclasses
import enum
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..generator import load
from ..storage import PublishedFile, WeightsError
from ._dit import load_dit
from ._extractors import I3D_FILE, I3D_SOURCE, INCEPTION_FILE, INCEPTION_SOURCE, load_i3d, load_inception
from ._licence import LicenceWarning
from ._maskgit import load_maskgit
from ._tokenizers import load_autoencoder_kl, load_maskgit_vqgan


class Status(enum.StrEnum):
    """`AVAILABLE`: published by its authors. `OURS`: ships with this library. `NEVER_RELEASED`: described in a paper,
    but there is no file to load.
    """

    AVAILABLE = "available"
    OURS = "ours"
    NEVER_RELEASED = "never released"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights that somebody trained, whether or not one can have them.

    **Fields:**

    - `network`: the network that they belong to.
    - `status`: whether they can be had.
    - `source`: where they live.
    - `loader`: the function that reads them; `None` if there are none.
    - `licence`: of the weights, empty if there are none; `restricted` if it limits who may use them for what.
    - `repository`, `revision`: on the Hugging Face hub, pinned; `None` if they are not there.
    - `files`: what to fetch.
    - `note`: what to know before use.
    """

    network: str
    status: Status
    source: str
    loader: Callable[..., Any] | None = None
    licence: str = ""
    restricted: bool = False
    repository: str | None = None
    revision: str | None = None
    files: tuple[PublishedFile, ...] = ()
    note: str = ""


_HUB = "https://huggingface.co"
_MASKGIT = "https://storage.googleapis.com/maskgit-public/checkpoints"
_DIT = "https://dl.fbaipublicfiles.com/DiT/models"
_NON_COMMERCIAL = "CC-BY-NC 4.0"
_NO_NULL_CLASS = "No null class, so no guidance without fine-tuning."

_TABLE: dict[str, Weights] = {
    "digits-dit": Weights(
        network="Elastic DiT 2N×4L on handwritten digits",
        status=Status.OURS,
        source="in this package",
        loader=load,
        licence="Apache-2.0",
    ),
    "digits-maskgit": Weights(
        network="Elastic MaskGIT 1N×4L on handwritten digits",
        status=Status.OURS,
        source="in this package",
        loader=load,
        licence="Apache-2.0",
    ),
    "mnist-dit": Weights(
        network="Elastic DiT 2N×4L on MNIST, 14 × 14 pixels",
        status=Status.OURS,
        source="in this package",
        loader=load,
        licence="Apache-2.0",
    ),
    "cifar10-dit": Weights(
        network="Elastic DiT 2N×4L on CIFAR-10, 16 × 16 pixels in colour",
        status=Status.OURS,
        source="in this package",
        loader=load,
        licence="Apache-2.0",
    ),
    "cifar10-maskgit": Weights(
        network="Elastic MaskGIT 2N×4L on CIFAR-10, 16 × 16 pixels in colour",
        status=Status.OURS,
        source="in this package",
        loader=load,
        licence="Apache-2.0",
    ),
    "moving-digits": Weights(
        network="Elastic MaskGIT 2N×4L on clips of moving digits",
        status=Status.OURS,
        source="in this package",
        loader=load,
        licence="Apache-2.0",
    ),
    "elt": Weights(
        network="Elastic Looped Transformers (2604.09168), all sizes",
        status=Status.NEVER_RELEASED,
        source="https://arxiv.org/abs/2604.09168",
        note="Neither code nor weights were published.",
    ),
    "maskgit-vqgan-imagenet-256": Weights(
        network="MaskGIT VQGAN, ImageNet 256",
        status=Status.AVAILABLE,
        source=f"{_MASKGIT}/tokenizer_imagenet256_checkpoint",
        loader=load_maskgit_vqgan,
        licence="Apache-2.0",
        files=(PublishedFile("tokenizer_imagenet256_checkpoint"),),
    ),
    "maskgit-imagenet-256": Weights(
        network="MaskGIT transformer, ImageNet 256",
        status=Status.AVAILABLE,
        source=f"{_MASKGIT}/maskgit_imagenet256_checkpoint",
        loader=load_maskgit,
        licence="Apache-2.0",
        files=(PublishedFile("maskgit_imagenet256_checkpoint"),),
        note=_NO_NULL_CLASS,
    ),
    "maskgit-vqgan-imagenet-512": Weights(
        network="MaskGIT VQGAN, ImageNet 512",
        status=Status.AVAILABLE,
        source=f"{_MASKGIT}/tokenizer_imagenet512_checkpoint",
        loader=load_maskgit_vqgan,
        licence="Apache-2.0",
        files=(PublishedFile("tokenizer_imagenet512_checkpoint"),),
    ),
    "maskgit-imagenet-512": Weights(
        network="MaskGIT transformer, ImageNet 512",
        status=Status.AVAILABLE,
        source=f"{_MASKGIT}/maskgit_imagenet512_checkpoint",
        loader=load_maskgit,
        licence="Apache-2.0",
        files=(PublishedFile("maskgit_imagenet512_checkpoint"),),
        note=_NO_NULL_CLASS,
    ),
    "maskgit-vqgan-imagenet-256-torch": Weights(
        network="MaskGIT VQGAN, ImageNet 256, ported to PyTorch",
        status=Status.AVAILABLE,
        source=f"{_HUB}/fun-research/TiTok/blob/main/maskgit-vqgan-imagenet-f16-256.bin",
        loader=load_maskgit_vqgan,
        licence="Apache-2.0",
        files=(PublishedFile("maskgit-vqgan-imagenet-f16-256.bin"),),
        note="The same numbers as the Flax file.",
    ),
    "dit-xl-2-256": Weights(
        network="DiT-XL/2, ImageNet 256",
        status=Status.AVAILABLE,
        source=f"{_DIT}/DiT-XL-2-256x256.pt",
        loader=load_dit,
        licence=_NON_COMMERCIAL,
        restricted=True,
        files=(PublishedFile("DiT-XL-2-256x256.pt"),),
    ),
    "dit-xl-2-512": Weights(
        network="DiT-XL/2, ImageNet 512",
        status=Status.AVAILABLE,
        source=f"{_DIT}/DiT-XL-2-512x512.pt",
        loader=load_dit,
        licence=_NON_COMMERCIAL,
        restricted=True,
        files=(PublishedFile("DiT-XL-2-512x512.pt"),),
    ),
    "dit-xl-2-256-diffusers": Weights(
        network="DiT-XL/2, ImageNet 256, under diffusers' names",
        status=Status.AVAILABLE,
        source=f"{_HUB}/facebook/DiT-XL-2-256",
        loader=load_dit,
        licence=_NON_COMMERCIAL,
        restricted=True,
        repository="facebook/DiT-XL-2-256",
        revision="eab87f77abd5aef071a632f08807fbaab0b704d0",
        files=(
            PublishedFile("transformer/config.json"),
            PublishedFile("transformer/diffusion_pytorch_model.bin"),
        ),
        note="Loaded as the original function, not as diffusers' slightly different one.",
    ),
    "sd-vae-ft-mse": Weights(
        network="Stable Diffusion autoencoder, MSE fine-tune",
        status=Status.AVAILABLE,
        source=f"{_HUB}/stabilityai/sd-vae-ft-mse",
        loader=load_autoencoder_kl,
        licence="MIT",
        repository="stabilityai/sd-vae-ft-mse",
        revision="31f26fdeee1355a5c34592e401dd41e45d25a493",
        files=(
            PublishedFile("config.json"),
            PublishedFile(
                "diffusion_pytorch_model.safetensors",
                size=334_643_276,
                sha256="a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815",
            ),
        ),
        note="Smoother images than the EMA fine-tune.",
    ),
    "sd-vae-ft-ema": Weights(
        network="Stable Diffusion autoencoder, EMA fine-tune",
        status=Status.AVAILABLE,
        source=f"{_HUB}/stabilityai/sd-vae-ft-ema",
        loader=load_autoencoder_kl,
        licence="MIT",
        repository="stabilityai/sd-vae-ft-ema",
        revision="f04b2c4b98319346dad8c65879f680b1997b204a",
        files=(
            PublishedFile("config.json"),
            PublishedFile("diffusion_pytorch_model.safetensors", size=334_643_276),
        ),
        note="DiT's FID was measured with it.",
    ),
    "sd-v1-4-vae": Weights(
        network="Stable Diffusion v1.4 autoencoder",
        status=Status.AVAILABLE,
        source=f"{_HUB}/CompVis/stable-diffusion-v1-4/tree/main/vae",
        loader=load_autoencoder_kl,
        licence="CreativeML OpenRAIL-M",
        restricted=True,
        files=(PublishedFile("config.json"), PublishedFile("diffusion_pytorch_model.safetensors")),
        note="The licence forbids some uses.",
    ),
    "inception-fid": Weights(
        network="Inception-v3 of the Fréchet Inception distance, ported to PyTorch",
        status=Status.AVAILABLE,
        source=INCEPTION_SOURCE,
        loader=load_inception,
        licence="Apache-2.0",
        files=(PublishedFile(INCEPTION_FILE),),
        note="Not torchvision's Inception, which gives other distances.",
    ),
    "i3d-kinetics": Weights(
        network="I3D on Kinetics-400, RGB stream, ported to PyTorch",
        status=Status.AVAILABLE,
        source=I3D_SOURCE,
        loader=load_i3d,
        licence="MIT",
        files=(PublishedFile(I3D_FILE),),
        note="Converted from DeepMind's kinetics-i3d (Apache-2.0).",
    ),
    "magvit": Weights(
        network="MAGVIT 3D-VQ and transformer, all data sets",
        status=Status.NEVER_RELEASED,
        source="https://github.com/google-research/magvit/issues/16",
        note="Train your own; `inflate` starts it from an image model of the same widths.",
    ),
}


def catalog() -> Mapping[str, Weights]:
    """Every set of weights around this project that we know of, by name: where it lives, its licence, and whether it
    can be had at all. [`fetch`][elt_zoo.pretrained.fetch] downloads those on the Hugging Face hub.
    """
    return MappingProxyType(_TABLE)


def fetch(name: str, *, cache_dir: str | os.PathLike | None = None, local_files_only: bool = False) -> Path:
    """Downloads weights from the Hugging Face hub, once, at the pinned revision.

    It needs `pip install 'elt_zoo[hub]'` and keeps files in the hub's own cache, where interrupted downloads wait under
    another name until they are whole. Sizes and hashes are checked where they are known. `HF_HUB_OFFLINE=1` forbids the
    network. Local files need none of this: give their path to the loader.

    **Arguments:**

    - `name`: of [`catalog`][elt_zoo.pretrained.catalog].
    - `cache_dir`: instead of the hub's default.
    - `local_files_only`: take only what is in the cache already.

    **Returns:** the file, or the folder if there are several, as the loader takes it.

    **Raises:** `ValueError` for an unknown name, or for weights that are not on the hub, saying where they are;
    `ImportError` without the extra; `FileNotFoundError` if the file is not in the cache and may or can not be
    downloaded; [`WeightsError`][elt_zoo.storage.WeightsError] if a file is not what was published. It warns with
    [`LicenceWarning`][elt_zoo.pretrained.LicenceWarning] about a restrictive licence.
    """
    table = catalog()
    if name not in table:
        raise ValueError(f"Unknown weights {name!r}. Known are {', '.join(table)}.")
    weights = table[name]
    if weights.status == Status.NEVER_RELEASED:
        raise ValueError(f"{name}: these weights were never released. {weights.note}")
    if weights.status == Status.OURS:
        raise ValueError(f"{name} ships with the library: use `elt_zoo.load({name!r})`.")
    if weights.repository is None:
        raise ValueError(
            f"{name} is not fetched from here. Download it from {weights.source} and give its path to "
            f"`{_loader_name(weights)}`. Licence: {weights.licence}."
        )
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise ImportError("`fetch` needs the Hugging Face hub's client: pip install 'elt_zoo[hub]'.") from error
    paths = []
    for file in weights.files:
        try:
            path = hf_hub_download(
                weights.repository,
                file.name,
                revision=weights.revision,
                cache_dir=None if cache_dir is None else Path(cache_dir),
                local_files_only=local_files_only,
            )
        except Exception as error:  # The hub's client raises errors of three libraries.
            raise FileNotFoundError(
                f"{file.name} of {weights.repository} at {weights.revision} is not in the cache and could not be "
                f"downloaded ({type(error).__name__}: {error}). Or download it from {weights.source} and give its path "
                f"to `{_loader_name(weights)}`."
            ) from error
        if difference := file.difference(path):
            raise WeightsError(f"{path} {difference}. Delete it and fetch it again.")
        paths.append(Path(path))
    if weights.restricted:
        warnings.warn(f"{name} is licensed {weights.licence}: {weights.source}", LicenceWarning, stacklevel=2)
    return paths[0] if len(paths) == 1 else paths[0].parent


def _loader_name(weights: Weights) -> str:
    return getattr(weights.loader, "__name__", "")
