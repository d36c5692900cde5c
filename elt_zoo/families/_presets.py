import difflib
from collections.abc import Mapping
from types import MappingProxyType

from ..corruption import Prediction
from ._config import ModelConfig
from ._diffusion import DiTConfig, NoiseSchedule
from ._masked import MaskGITConfig

# The paper's scales (2604.09168): width and attention heads; the MLP is four times as wide. The heads of G are not
# stated.
_SCALES = {"B": (768, 12), "L": (1024, 16), "XL": (1152, 16), "H": (1280, 16), "G": (1536, 16)}
# Transformers of DiT (2212.09748): layers, width, heads.
_DIT_SCALES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
_ELT_MASKGIT = {"B": ((6, 2),), "L": ((8, 3), (12, 2)), "XL": ((7, 4),), "H": ((8, 4),), "G": ((8, 4),)}
_ELT_DIT = ((1, 32), (4, 8), (8, 4), (16, 2))


def _maskgit(scale: str, num_layers: int, max_loops: int) -> MaskGITConfig:
    dim, num_heads = _SCALES[scale]
    # ImageNet 256 through the MaskGIT VQGAN.
    return MaskGITConfig(
        dim=dim,
        num_layers=num_layers,
        max_loops=max_loops,
        num_heads=num_heads,
        num_classes=1000,
        grid=(16, 16),
        codebook_size=1024,
        pre_norm=False,
        dropout=0.1,
    )


def _video(num_layers: int, max_loops: int) -> MaskGITConfig:
    # UCF-101 through the MAGVIT 3D-VQ: 16 frames of 128 × 128 pixels are 4 × 16 × 16 tokens.
    dim, num_heads = _SCALES["L"]
    return MaskGITConfig(
        dim=dim,
        num_layers=num_layers,
        max_loops=max_loops,
        num_heads=num_heads,
        num_classes=101,
        grid=(4, 16, 16),
        codebook_size=1024,
        pre_norm=False,
        dropout=0.1,
    )


def _elt_dit(num_layers: int, max_loops: int) -> DiTConfig:
    # The paper's table of sizes is not public. Its parameter counts fit layers of 16·d² at d = 2048, of which attention
    # and MLP are 12·d², plus the class table; adaLN from a conditioning vector of two thirds of the width makes up the
    # rest.
    return DiTConfig(
        dim=2048,
        num_layers=num_layers,
        max_loops=max_loops,
        num_heads=16,
        num_classes=1000,
        shape=(32, 32, 4),
        patch_size=2,
        conditioning_dim=1360,
    )


def _dit(scale: str, patch_size: int) -> DiTConfig:
    num_layers, dim, num_heads = _DIT_SCALES[scale]
    return DiTConfig(
        dim=dim,
        num_layers=num_layers,
        max_loops=1,
        num_heads=num_heads,
        num_classes=1000,
        shape=(32, 32, 4),
        patch_size=patch_size,
        prediction=Prediction.EPSILON,
        learned_variance=True,
        noise_schedule=NoiseSchedule.LINEAR_BETA,
    )


def _all() -> Mapping[str, ModelConfig]:
    table: dict[str, ModelConfig] = {
        "digits-dit": DiTConfig(
            dim=64, num_layers=2, max_loops=4, num_heads=4, num_classes=10, reinjection=0.5, shape=(8, 8, 1)
        ),
        "digits-maskgit": MaskGITConfig(
            dim=64, num_layers=1, max_loops=4, num_heads=4, num_classes=10, grid=(4, 4), codebook_size=128
        ),
        "digits-maskgit-pixels": MaskGITConfig(
            dim=64, num_layers=1, max_loops=4, num_heads=4, num_classes=10, grid=(8, 8), codebook_size=17
        ),
        "mnist-dit": DiTConfig(
            dim=64, num_layers=2, max_loops=4, num_heads=2, num_classes=10, reinjection=0.5, shape=(14, 14, 1)
        ),
        "cifar10-dit": DiTConfig(
            dim=128, num_layers=2, max_loops=4, num_heads=4, num_classes=10, reinjection=0.5, shape=(16, 16, 3)
        ),
        "cifar10-maskgit": MaskGITConfig(
            dim=128, num_layers=2, max_loops=4, num_heads=4, num_classes=10, grid=(8, 8), codebook_size=512
        ),
        "moving-digits": MaskGITConfig(
            dim=64, num_layers=2, max_loops=4, num_heads=4, num_classes=10, grid=(4, 3, 3), codebook_size=512
        ),
        "tiny-dit": DiTConfig(
            dim=128, num_layers=2, max_loops=4, num_heads=4, num_classes=1000, shape=(32, 32, 3), patch_size=4
        ),
        "tiny-maskgit": MaskGITConfig(
            dim=128, num_layers=2, max_loops=4, num_heads=4, num_classes=1000, grid=(8, 8), codebook_size=256
        ),
        "tiny-ucf101": MaskGITConfig(
            dim=64, num_layers=2, max_loops=4, num_heads=2, num_classes=101, grid=(4, 4, 4), codebook_size=128
        ),
    }
    for scale, sizes in _ELT_MASKGIT.items():
        for num_layers, max_loops in sizes:
            table[f"elt-{scale}-{num_layers}Nx{max_loops}L"] = _maskgit(scale, num_layers, max_loops)
        depth = sizes[0][0] * sizes[0][1]
        table[f"maskgit-{scale}-{depth}"] = _maskgit(scale, depth, 1)
    table["elt-ucf101-6Nx4L"] = _video(6, 4)
    table["magvit-L-24"] = _video(24, 1)
    for num_layers, max_loops in _ELT_DIT:
        table[f"elt-dit-{num_layers}Nx{max_loops}L"] = _elt_dit(num_layers, max_loops)
    for depth in (16, 32):
        table[f"dit-2048-{depth}"] = _elt_dit(depth, 1)
    for scale in _DIT_SCALES:
        for patch_size in (2, 4, 8):
            table[f"dit-{scale}-{patch_size}"] = _dit(scale, patch_size)
    return MappingProxyType(table)


def preset_names() -> tuple[str, ...]:
    """The names that [`preset`][elt_zoo.families.preset] knows."""
    return tuple(_all())


def preset(name: str) -> ModelConfig:
    """The config of a published or small model, to build, to read, or to change with `dataclasses.replace`.

    `elt-…` are the paper's looped models (2604.09168), `maskgit-…`, `magvit-…` and `dit-2048-…` their unique-depth
    baselines, `dit-S-2` to `dit-XL-8` the original DiT models (2212.09748), `digits-…`, `mnist-dit`, `cifar10-dit` and
    `cifar10-maskgit` (16 × 16 pixels), `moving-digits` and `tiny-…` (images of 32 × 32 pixels, short clips) the small
    ones that train in minutes on a CPU.

    **Raises:** `ValueError` for an unknown name, with the nearest ones.
    """
    table = _all()
    if name not in table:
        near = difflib.get_close_matches(name, table, n=3, cutoff=0.4)
        hint = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise ValueError(f"Unknown preset {name!r}. {hint}Known presets: {', '.join(table)}.")
    return table[name]
