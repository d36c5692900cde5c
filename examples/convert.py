"""Convert published weights to a folder that `elt_zoo.load` reads, optionally as a looped model.

    python examples/convert.py --kind dit --weights DiT-XL-2-256x256.pt --out models/dit-xl-2
    python examples/convert.py --kind dit --weights DiT-XL-2-256x256.pt --loop-layers 7 --out models/dit-xl-2-7Nx4L
    python examples/convert.py --kind maskgit --weights maskgit_imagenet256_checkpoint --out models/maskgit

    python examples/convert.py --kind autoencoder-kl --weights sd-vae-ft-mse --out models/sd-vae

Tokenizers and autoencoders are read back with `elt_zoo.tokenizers.load_tokenizer`. Takes about as long as reading the
file. `--weights` may also be a name of `elt_zoo.pretrained.catalog()` that lives on
the Hugging Face hub.
"""

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

import elt_zoo
from elt_zoo.families import Retrofit, loopify
from elt_zoo.pretrained import (
    catalog,
    fetch,
    load_autoencoder_kl,
    load_dit,
    load_maskgit,
    load_maskgit_vqgan,
    load_vq3d,
)
from elt_zoo.storage import WeightsError
from elt_zoo.tokenizers import save_tokenizer

TOKENIZERS = {
    "maskgit-vqgan": load_maskgit_vqgan,
    "autoencoder-kl": load_autoencoder_kl,
    "vq3d": load_vq3d,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Convert published weights to a folder that `elt_zoo.load` reads, optionally as a looped model."""

    kind: Literal["dit", "maskgit", "maskgit-vqgan", "autoencoder-kl", "vq3d"]
    """The network that the weights are of."""
    weights: str
    """A file, a diffusers folder, or a name of the catalog."""
    out: Path
    """The folder to write; it must not hold a model yet."""
    num_heads: int | None = None
    """Attention heads of a DiT of unpublished size."""
    latent_size: int | None = None
    """Height and width of a DiT's latents, where the file does not tell."""
    num_classes: int = 1000
    """Classes in a MaskGIT's vocabulary."""
    loop_layers: int | None = None
    """Turn the model into one of so many shared layers, looped to the same depth."""
    retrofit: Retrofit = Retrofit.PICK
    """How shared layers are made from the deep model's."""
    keep_vectors: bool = False
    """Let every loop keep the biases that the deep model had at its place."""


def main(config: Config) -> None:
    path = Path(config.weights)
    if not path.exists() and config.weights in catalog():
        path = fetch(config.weights)
    if config.kind in TOKENIZERS:
        if config.loop_layers is not None:
            raise ValueError(f"--loop-layers {config.loop_layers}: a {config.kind} has no layers to loop.")
        save_tokenizer(config.out, TOKENIZERS[config.kind](path), metadata={"source": config.weights})
        print(f"Saved in {config.out}.")
        return
    if config.kind == "dit":
        loaded = load_dit(path, num_heads=config.num_heads, latent_size=config.latent_size)
    else:
        loaded = load_maskgit(path, num_classes=config.num_classes)
    model, sizes = loaded.model, loaded.config
    if config.loop_layers is not None:
        model, sizes = loopify(
            model, sizes, num_layers=config.loop_layers, retrofit=config.retrofit, keep_vectors=config.keep_vectors
        )
    elt_zoo.save(config.out, model, sizes, metadata={"source": config.weights, "kind": config.kind})
    print(f"Saved {sizes.num_layers}N × {sizes.max_loops}L, width {sizes.dim}, in {config.out}.")


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except (ValueError, FileNotFoundError, FileExistsError, WeightsError) as error:
        raise SystemExit(f"error: {error}") from None
