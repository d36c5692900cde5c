"""Our networks beside diffusers on PyTorch: same random weights, same inputs, the same CPU cores.

    pip install -e '.[parity]'
    python benchmarks/networks.py --csv networks.csv

Encodes and decodes images of 256 × 256 pixels with the Stable Diffusion autoencoder and runs a DiT-B/2. Weights are
saved by diffusers and read by our loaders; the outputs are compared too (its DiT is a slightly different function).
Requirement: at least 1.2 times as fast.
"""

import argparse
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from diffusers.models import AutoencoderKL, DiTTransformer2DModel  # pyright: ignore[reportMissingImports]
from timing import compare, header, show, write_csv

from elt_zoo.models import BatchedPredict
from elt_zoo.pretrained import load_autoencoder_kl, load_dit
from elt_zoo.profile import environment

SD_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
    "sample_size": 256,
}
DIT_B_2 = {
    "num_attention_heads": 12,
    "attention_head_dim": 64,
    "num_layers": 12,
    "in_channels": 4,
    "out_channels": 8,
    "sample_size": 32,
    "patch_size": 2,
    "num_embeds_ada_norm": 1000,
}


def as_torch(array: np.ndarray) -> torch.Tensor:
    """Channels first."""
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def pair(ours: Callable, theirs: Callable) -> tuple[Callable, Callable, float]:
    """Both calls, and by how much their results differ."""
    with torch.inference_mode():
        expected = theirs().numpy().transpose(0, 2, 3, 1)
    difference = float(np.linalg.norm(np.asarray(ours()) - expected) / np.linalg.norm(expected))

    def timed() -> None:
        with torch.inference_mode():
            theirs()

    return ours, timed, difference


def cases(batch: int, folder: Path) -> dict[str, Callable[[], tuple[Callable, Callable, float]]]:
    rng = np.random.default_rng(0)
    torch.manual_seed(0)

    def autoencoder() -> tuple:
        model = AutoencoderKL(**SD_VAE).eval()
        model.save_pretrained(folder / "vae")
        return load_autoencoder_kl(folder / "vae"), model

    def encode() -> tuple:
        ours, theirs = autoencoder()
        image = rng.uniform(-1, 1, (batch, 256, 256, 3)).astype(np.float32)
        call = eqx.filter_jit(lambda model, image: jax.vmap(model.encode)(image)[0])
        return pair(
            functools.partial(call, ours, jnp.asarray(image)),
            functools.partial(lambda image: theirs.encode(image).latent_dist.mean, as_torch(image)),
        )

    def decode() -> tuple:
        ours, theirs = autoencoder()
        latents = rng.standard_normal((batch, 32, 32, 4)).astype(np.float32)
        call = eqx.filter_jit(lambda model, latents: jax.vmap(model.decode)(latents))
        return pair(
            functools.partial(call, ours, jnp.asarray(ours.config.scaling_factor * latents)),
            functools.partial(lambda latents: theirs.decode(latents).sample, as_torch(latents)),
        )

    def dit() -> tuple:
        theirs = DiTTransformer2DModel(**DIT_B_2).eval()
        # Its gates start at zero; random ones make all of it count.
        for parameter in theirs.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        embedding = theirs.transformer_blocks[0].norm1.emb.state_dict()
        for block in theirs.transformer_blocks:
            block.norm1.emb.load_state_dict(embedding)
        theirs.save_pretrained(folder / "dit")
        ours = BatchedPredict(load_dit(folder / "dit").model.unstacked())
        x = rng.standard_normal((batch, 32, 32, 4)).astype(np.float32)
        time, labels = rng.integers(0, 1000, batch), rng.integers(0, 1000, batch)
        call = eqx.filter_jit(lambda model, *inputs: model(*inputs, loops=1))
        ours_call = functools.partial(
            call, ours, jnp.asarray(x), jnp.asarray(time / 1000, jnp.float32), jnp.asarray(labels, jnp.int32)
        )
        inputs = {"timestep": torch.from_numpy(time), "class_labels": torch.from_numpy(labels)}
        return pair(ours_call, functools.partial(lambda x: theirs(x, **inputs).sample, as_torch(x)))

    return {"autoencoder, encode 256²": encode, "autoencoder, decode 256²": decode, "DiT-B/2 forward": dit}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--csv", type=Path, help="also write the table here")
    arguments = parser.parse_args()
    versions = f"torch {torch.__version__} on {torch.get_num_threads()} threads"
    print(f"{environment()}; {versions}; batch {arguments.batch}, medians of {arguments.rounds} rounds")
    header("elt_zoo", "diffusers")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, make in cases(arguments.batch, Path(folder)).items():
            ours, theirs, difference = make()
            row = compare(ours, theirs, rounds=arguments.rounds)
            show(name, row)
            print(f"{'':34}relative difference of the outputs {difference:.1e}")
            case = {"case": f"{name}, batch {arguments.batch}", "baseline": versions, "difference": difference}
            rows.append({**case, **row})
    write_csv(arguments.csv, rows)


if __name__ == "__main__":
    main()
