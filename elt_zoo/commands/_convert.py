import dataclasses
from pathlib import Path
from typing import Literal

from ..families import Retrofit, loopify
from ..generator import save
from ..pretrained import (
    catalog,
    fetch,
    load_autoencoder_kl,
    load_dit,
    load_maskgit,
    load_maskgit_vqgan,
    load_vq3d,
)
from ..storage import refuse_to_overwrite, require_writable_folder
from ..tokenizers import save_tokenizer

TOKENIZERS = {
    "maskgit-vqgan": load_maskgit_vqgan,
    "autoencoder-kl": load_autoencoder_kl,
    "vq3d": load_vq3d,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertOptions:
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

    def __post_init__(self):
        for name in ("num_heads", "latent_size", "num_classes", "loop_layers"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"`--{name.replace('_', '-')} {value}` must be at least 1.")
        if self.kind in TOKENIZERS and self.loop_layers is not None:
            raise ValueError(f"`--loop-layers {self.loop_layers}`: a {self.kind} has no layers to loop.")


def convert(options: ConvertOptions) -> None:
    """`elt-zoo convert`."""
    require_writable_folder(options.out)
    refuse_to_overwrite(options.out)
    path = Path(options.weights)
    if not path.exists() and options.weights in catalog():
        path = fetch(options.weights)
    if options.kind in TOKENIZERS:
        save_tokenizer(options.out, TOKENIZERS[options.kind](path), metadata={"source": options.weights})
        print(f"Saved in {options.out}.")
        return
    if options.kind == "dit":
        loaded = load_dit(path, num_heads=options.num_heads, latent_size=options.latent_size)
    else:
        loaded = load_maskgit(path, num_classes=options.num_classes)
    if options.loop_layers is not None:
        model, config = loopify(loaded.model, loaded.config, num_layers=options.loop_layers, retrofit=options.retrofit)
        loaded = dataclasses.replace(loaded, model=model, config=config)
    metadata = {"source": options.weights, "kind": options.kind}
    save(options.out, dataclasses.replace(loaded, metadata=metadata), overwrite=False)
    sizes = loaded.config
    print(f"Saved {sizes.num_layers}N × {sizes.max_loops}L, width {sizes.dim}, in {options.out}.")
