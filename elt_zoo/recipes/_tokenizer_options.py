import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

from ..tokenizers import Shortcut, VQ3DConfig, VQGANConfig
from ._checkpoint_options import CHECKPOINT_OPTIONS, CheckpointOptions
from ._open import DIGITS, MOVING_DIGITS


@dataclasses.dataclass(frozen=True)
class TokenizerOptions(CheckpointOptions):
    """The knobs of a tokenizer's training."""

    data: str = DIGITS
    """`digits`, `moving-digits`, `cifar10`, or the path of images or videos."""
    kind: Literal["image", "video"] | None = None
    """Default: video for moving digits, else images. `image` with moving digits trains on their frames."""
    preset: Literal["small", "paper"] = "small"
    """Sizes for a CPU, or those of the published networks."""
    codebook_size: int | None = None
    """K; default 128 (small) or 1,024."""
    inflate: Path | None = None
    """The folder of an image tokenizer to start a 3D-VQ from; it must have the same widths, blocks and codebook."""
    out: Path | None = None
    """Where the run goes; default `runs/tokenizer-<data>-<kind>`."""

    steps: int | None = None
    """Default 1,000 (images) or 600 (clips) for small sizes, else 100,000."""
    batch_size: int | None = None
    """Clips or images. Default 64 (images) or 16 (clips) for small sizes, else 128."""
    learning_rate: float | None = None
    """Default 5e-3 for small sizes, else 1e-4."""
    ema_decay: float | None = None
    """Default 0.98 for small sizes, else 0.999."""
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"

    codebook: Literal["ema", "gradient"] = "ema"
    """Codes are moving averages of their latents, or move by gradients."""
    commitment: float = 0.25
    code_decay: float = 0.95
    """Of the averages over batches."""
    revive_below: float = 0.03
    """Codes chosen by less than this share of their due are replaced."""

    l1: float = 0.0
    l2: float = 1.0
    perceptual: float = 0.0
    """Weight of the distance between Inception features; needs `--inception`."""
    inception: Path | None = None
    """Weights of the Inception network, `pt_inception-2015-12-05-6726825d.pth`."""
    adversarial: float = 0.0
    """Weight of the adversarial term, 0 for none; MAGVIT takes 0.1."""
    adversarial_start: int = 0
    """Step from which the discriminator plays."""
    r1: float = 0.0
    lecam: float = 0.001

    heldout: int = 320
    """Examples to measure quality on."""
    log_every: int = 25
    wandb: str | None = None
    """A project of Weights & Biases to send metrics to. Needs the extra `wandb`, and an account or
    WANDB_MODE=offline."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("codebook_size", "steps", "batch_size", "heldout", "log_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`--{name.replace('_', '-')} {value}` must be at least 1.")
        for name in ("seed", "adversarial_start"):
            if getattr(self, name) < 0:
                raise ValueError(f"`--{name.replace('_', '-')} {getattr(self, name)}` must be 0 or more.")
        for name in ("commitment", "revive_below", "l1", "l2", "perceptual", "adversarial", "r1", "lecam"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"`--{name.replace('_', '-')} {getattr(self, name)}` must be 0 or a positive number.")
        if self.l1 == self.l2 == self.perceptual == 0.0:
            raise ValueError("`--l1`, `--l2` and `--perceptual` are all 0: nothing says what a good picture is.")
        if self.learning_rate is not None and not 0.0 < self.learning_rate < 1e6:
            raise ValueError(f"`--learning-rate {self.learning_rate}` must be a positive number.")
        for name in ("ema_decay", "code_decay"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value < 1.0:
                raise ValueError(f"`--{name.replace('_', '-')} {value}` must be in [0, 1).")
        if self.inflate is not None and not self.video:
            raise ValueError("`--inflate` starts a 3D-VQ: train on clips, with `--kind video`.")
        if self.video and self.data == DIGITS:
            raise ValueError("`--kind video` needs clips: use `--data moving-digits`, or the path of videos.")
        if self.perceptual > 0.0 and self.inception is None:
            raise ValueError(f"`--perceptual {self.perceptual}` needs the network's weights, `--inception FILE`.")

    @property
    def video(self) -> bool:
        return self.data == MOVING_DIGITS if self.kind is None else self.kind == "video"

    @property
    def folder(self) -> Path:
        return self.out or Path("runs") / f"tokenizer-{Path(self.data).name}-{'video' if self.video else 'image'}"

    @property
    def network(self) -> VQGANConfig | VQ3DConfig:
        """Sizes of the tokenizer. The image network of clips has those that `inflate` asks for."""
        small, clips = self.preset == "small", self.data == MOVING_DIGITS
        if self.video:
            network = _SMALL_VIDEO if small else VQ3DConfig()
        elif clips:
            video = _SMALL_VIDEO if small else VQ3DConfig()
            network = VQGANConfig(
                image_size=video.shape[1],
                num_res_blocks=video.num_enc_res_blocks,
                shortcut=Shortcut.INPUT,
                **{name: getattr(video, name) for name in _SHARED},
            )
        else:
            network = VQGANConfig() if not small else _DIGITS_SIZES if self.data == DIGITS else _SMALL_IMAGE
        size = network.codebook_size if self.codebook_size is None else self.codebook_size
        return dataclasses.replace(network, codebook_size=size)

    @property
    def recipe(self) -> "TokenizerRecipe":
        """The knobs whose defaults depend on the data and the sizes."""
        if self.preset == "paper":
            default = TokenizerRecipe(steps=100_000, batch_size=128, learning_rate=1e-4, ema_decay=0.999)
        else:
            steps, batch_size = (_CLIP_STEPS, 16) if self.video or self.data == MOVING_DIGITS else (1000, 64)
            default = TokenizerRecipe(steps=steps, batch_size=batch_size, learning_rate=5e-3, ema_decay=0.98)
        given = {name: getattr(self, name) for name in dataclasses.asdict(default)}
        return dataclasses.replace(default, **{name: value for name, value in given.items() if value is not None})

    def defining(self) -> dict[str, Any]:
        """What two runs must share for one to resume the other: everything but what is known not to matter."""
        cosmetic = {"out", "heldout", "log_every", "wandb", *CHECKPOINT_OPTIONS}
        cosmetic |= {"coordinator", "processes", "process", "start_timeout"}
        knobs = {name: value for name, value in dataclasses.asdict(self).items() if name not in cosmetic}
        paths = {name: str(value) for name, value in knobs.items() if isinstance(value, Path)}
        return knobs | paths | dataclasses.asdict(self.recipe) | {"network": dataclasses.asdict(self.network)}


@dataclasses.dataclass(frozen=True)
class TokenizerRecipe:
    """What the options leave open until the data and the sizes are known."""

    steps: int
    batch_size: int
    learning_rate: float
    ema_decay: float


_SMALL_IMAGE = VQGANConfig(
    image_size=32,
    filters=16,
    channel_multipliers=(1, 2, 4),
    num_res_blocks=1,
    embedding_dim=16,
    codebook_size=128,
    groups=8,
    shortcut=Shortcut.INPUT,
)
_DIGITS_SIZES = dataclasses.replace(_SMALL_IMAGE, image_size=16)
_CLIP_STEPS = 600
_SMALL_VIDEO = VQ3DConfig(
    shape=(8, 12, 12),
    filters=8,
    channel_multipliers=(1, 2, 3),
    temporal_downsample=(True, False),
    num_enc_res_blocks=1,
    num_dec_res_blocks=1,
    embedding_dim=16,
    codebook_size=256,
    groups=8,
)
_SHARED = ("filters", "channel_multipliers", "embedding_dim", "codebook_size", "groups")
