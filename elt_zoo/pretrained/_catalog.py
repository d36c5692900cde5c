import dataclasses
import enum
import hashlib
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from ..storage import WeightsError
from ._licence import LicenceWarning


class Status(enum.StrEnum):
    """`AVAILABLE`: published by its authors. `OURS`: ships with this library. `NEVER_RELEASED`: described in a paper,
    but there is no file to load.
    """

    AVAILABLE = "available"
    OURS = "ours"
    NEVER_RELEASED = "never released"


@dataclasses.dataclass(frozen=True)
class PublishedFile:
    """One file of published weights. Size in bytes and SHA-256 are `None` where nobody has published them."""

    name: str
    size: int | None = None
    sha256: str | None = None


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights that somebody trained, whether or not one can have them.

    **Fields:**

    - `network`: what they are the weights of.
    - `status`: whether they can be had.
    - `loader`: the function that reads them; empty if there are none.
    - `licence`: of the weights; `restricted` if it limits who may use them for what.
    - `source`: where they live.
    - `repository`, `revision`: on the Hugging Face hub, pinned; `None` if they are not there.
    - `files`: what to fetch.
    - `note`: what to know before use.
    """

    network: str
    status: Status
    loader: str
    licence: str
    source: str
    restricted: bool = False
    repository: str | None = None
    revision: str | None = None
    files: tuple[PublishedFile, ...] = ()
    note: str = ""


_HUB = "https://huggingface.co"
_MASKGIT = "https://storage.googleapis.com/maskgit-public/checkpoints"
_NON_COMMERCIAL = "CC-BY-NC 4.0"


def _maskgit(kind: str, size: int) -> Weights:
    tokenizer = kind == "tokenizer"
    return Weights(
        network=f"MaskGIT {'VQGAN' if tokenizer else 'transformer'}, ImageNet {size}",
        status=Status.AVAILABLE,
        loader="load_maskgit_vqgan" if tokenizer else "load_maskgit",
        licence="Apache-2.0",
        source=f"{_MASKGIT}/{kind}_imagenet{size}_checkpoint",
        files=(PublishedFile(f"{kind}_imagenet{size}_checkpoint"),),
        note="" if tokenizer else "No null class, so no guidance without fine-tuning.",
    )


def _vae(kind: str, sha256: str | None, revision: str) -> Weights:
    repository = f"stabilityai/sd-vae-ft-{kind}"
    return Weights(
        network=f"Stable Diffusion autoencoder, {kind.upper()} fine-tune",
        status=Status.AVAILABLE,
        loader="load_autoencoder_kl",
        licence="MIT",
        source=f"{_HUB}/{repository}",
        repository=repository,
        revision=revision,
        files=(
            PublishedFile("config.json"),
            PublishedFile("diffusion_pytorch_model.safetensors", 334_643_276, sha256),
        ),
        note="DiT's FID was measured with it." if kind == "ema" else "Smoother images than the EMA fine-tune.",
    )


def catalog() -> Mapping[str, Weights]:
    """Every set of weights around this project that we know of, by name: where it lives, its licence, and whether it
    can be had at all. [`fetch`][elt_zoo.pretrained.fetch] downloads those on the Hugging Face hub.
    """
    table = {
        "digits-dit": Weights(
            "Elastic DiT 2N×4L on handwritten digits", Status.OURS, "load", "Apache-2.0", "in this package"
        ),
        "digits-maskgit": Weights(
            "Elastic MaskGIT 1N×4L on handwritten digits", Status.OURS, "load", "Apache-2.0", "in this package"
        ),
        "elt": Weights(
            "Elastic Looped Transformers (2604.09168), all sizes",
            Status.NEVER_RELEASED,
            "",
            "",
            "https://arxiv.org/abs/2604.09168",
            note="Neither code nor weights were published.",
        ),
    }
    for size in (256, 512):
        table[f"maskgit-vqgan-imagenet-{size}"] = _maskgit("tokenizer", size)
        table[f"maskgit-imagenet-{size}"] = _maskgit("maskgit", size)
    table["maskgit-vqgan-imagenet-256-torch"] = Weights(
        network="MaskGIT VQGAN, ImageNet 256, ported to PyTorch",
        status=Status.AVAILABLE,
        loader="load_maskgit_vqgan",
        licence="Apache-2.0",
        source=f"{_HUB}/fun-research/TiTok/blob/main/maskgit-vqgan-imagenet-f16-256.bin",
        files=(PublishedFile("maskgit-vqgan-imagenet-f16-256.bin"),),
        note="The same numbers as the Flax file.",
    )
    for size in (256, 512):
        table[f"dit-xl-2-{size}"] = Weights(
            network=f"DiT-XL/2, ImageNet {size}",
            status=Status.AVAILABLE,
            loader="load_dit",
            licence=_NON_COMMERCIAL,
            restricted=True,
            source=f"https://dl.fbaipublicfiles.com/DiT/models/DiT-XL-2-{size}x{size}.pt",
            files=(PublishedFile(f"DiT-XL-2-{size}x{size}.pt"),),
        )
    table["dit-xl-2-256-diffusers"] = Weights(
        network="DiT-XL/2, ImageNet 256, under diffusers' names",
        status=Status.AVAILABLE,
        loader="load_dit",
        licence=_NON_COMMERCIAL,
        restricted=True,
        source=f"{_HUB}/facebook/DiT-XL-2-256",
        repository="facebook/DiT-XL-2-256",
        revision="eab87f77abd5aef071a632f08807fbaab0b704d0",
        files=(
            PublishedFile("transformer/config.json"),
            PublishedFile("transformer/diffusion_pytorch_model.bin"),
        ),
        note="Loaded as the original function, not as diffusers' slightly different one.",
    )
    table["sd-vae-ft-mse"] = _vae(
        "mse",
        "a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815",
        "31f26fdeee1355a5c34592e401dd41e45d25a493",
    )
    table["sd-vae-ft-ema"] = _vae("ema", None, "f04b2c4b98319346dad8c65879f680b1997b204a")
    table["sd-v1-4-vae"] = Weights(
        network="Stable Diffusion v1.4 autoencoder",
        status=Status.AVAILABLE,
        loader="load_autoencoder_kl",
        licence="CreativeML OpenRAIL-M",
        restricted=True,
        source=f"{_HUB}/CompVis/stable-diffusion-v1-4/tree/main/vae",
        files=(PublishedFile("config.json"), PublishedFile("diffusion_pytorch_model.safetensors")),
        note="The licence forbids some uses.",
    )
    table["inception-fid"] = Weights(
        network="Inception-v3 of the Fréchet Inception distance, ported to PyTorch",
        status=Status.AVAILABLE,
        loader="load_inception",
        licence="Apache-2.0",
        source="https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights",
        files=(PublishedFile("pt_inception-2015-12-05-6726825d.pth"),),
        note="Not torchvision's Inception, which gives other distances.",
    )
    table["i3d-kinetics"] = Weights(
        network="I3D on Kinetics-400, RGB stream, ported to PyTorch",
        status=Status.AVAILABLE,
        loader="load_i3d",
        licence="MIT",
        source="https://github.com/hassony2/kinetics_i3d_pytorch",
        files=(PublishedFile("model_rgb.pth"),),
        note="Converted from DeepMind's kinetics-i3d (Apache-2.0).",
    )
    table["magvit"] = Weights(
        network="MAGVIT 3D-VQ and transformer, all data sets",
        status=Status.NEVER_RELEASED,
        loader="",
        licence="",
        source="https://github.com/google-research/magvit/issues/16",
        note="Train your own; `inflate` starts it from an image model of the same widths.",
    )
    return MappingProxyType(table)


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
            f"`{weights.loader}`. Licence: {weights.licence}."
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
                f"to `{weights.loader}`."
            ) from error
        _check(Path(path), file)
        paths.append(Path(path))
    if weights.restricted:
        warnings.warn(f"{name} is licensed {weights.licence}: {weights.source}", LicenceWarning, stacklevel=2)
    return paths[0] if len(paths) == 1 else paths[0].parent


def _check(path: Path, file: PublishedFile) -> None:
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        raise WeightsError(f"{path} has {size} bytes, but {file.size} were published. Delete it and fetch it again.")
    if file.sha256 is not None:
        with path.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
        if found != file.sha256:
            raise WeightsError(
                f"{path} has the SHA-256 {found}, but {file.sha256} was published. Delete it and fetch it again."
            )
