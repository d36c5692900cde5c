import dataclasses
import enum
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from .._checks import checked
from .._platform import target_devices

_CUDNN_CAPABILITY = (8, 0)
_CUDNN_HEAD_DIM = 128
_CUDNN_DTYPES = (jnp.bfloat16, jnp.float16)
_PALLAS_BLOCK = 128
_PALLAS_HEAD_DIM = 128
_PALLAS_TOKENS = 256
"""Fewer tokens can become four times as many operations when they fill blocks: 129 are padded to 256."""


class AttentionKernel(enum.StrEnum):
    """What computes attention. Values agree to the rounding of the dtype.

    | kernel | what it is | the scores of all pairs of tokens |
    |---|---|---|
    | `AUTO` | what [`attention_kernel`][elt_zoo.nn.attention_kernel] chooses | |
    | `XLA` | two matrix products with a softmax between them, everywhere | in memory, saved for the backward pass |
    | `CUDNN` | cuDNN's fused flash attention, on NVIDIA GPUs | never in memory |
    | `PALLAS` | JAX's splash attention, a Pallas kernel, on TPUs | never in memory |
    """

    AUTO = "auto"
    XLA = "xla"
    CUDNN = "cudnn"
    PALLAS = "pallas"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionDevice:
    """What the choice of a kernel needs to know of the device that a program runs on.

    **Fields:** `platform`: "cpu", "cuda", "rocm", "tpu" or another of JAX's; `capability`: compute capability of an
    NVIDIA GPU, such as (9, 0); `devices`: how many there are, in all processes.
    """

    platform: str
    capability: tuple[int, int] | None = None
    devices: int = 1

    @classmethod
    def here(cls) -> "AttentionDevice":
        """JAX's default device, which is `jax.default_device` where that is set; while a program is traced for other
        devices, as [`compile_step`][elt_zoo.profile.compile_step] does, those.
        """
        device: Any = getattr(jax.config, "jax_default_device")  # noqa: B009 - JAX does not declare its settings
        targets = target_devices()
        if targets:
            device = targets[0]
        elif device is None:
            device = jax.local_devices()[0]
        elif isinstance(device, str):
            device = jax.local_devices(backend=device)[0]
        platform, capability = device.platform, None
        if platform == "gpu":
            platform = "cuda" if "cuda" in device.client.platform_version else "rocm"
        if platform == "cuda":
            major, minor = str(device.compute_capability).split(".")
            capability = (int(major), int(minor))
        return cls(platform=platform, capability=capability, devices=len(targets) or jax.device_count(device.platform))


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionChoice:
    """Which kernel computes attention, and why. `str` of it is a sentence's worth of both.

    **Fields:**

    - `kernel`: never `AUTO`.
    - `reason`: in words.
    - `tokens`, `head_dim`: sizes of the sequence and of one head.
    - `padded_tokens`, `padded_head_dim`: those that the kernel computes with. Padding is masked and cut off again.
    """

    kernel: AttentionKernel
    reason: str
    tokens: int
    head_dim: int
    padded_tokens: int
    padded_head_dim: int

    @property
    def fused(self) -> bool:
        """Whether one kernel does all of it and never writes the scores to memory."""
        return self.kernel != AttentionKernel.XLA

    @property
    def padding(self) -> float:
        """Operations of the two matrix products that padding adds, over those without it; 0 is none."""
        return (self.padded_tokens / self.tokens) ** 2 * (self.padded_head_dim / self.head_dim) - 1.0

    def __str__(self) -> str:
        name = {"xla": "XLA", "cudnn": "cuDNN, fused", "pallas": "Pallas, fused"}[self.kernel]
        padded = [
            f"{what} {size} padded to {to}"
            for what, size, to in (
                ("tokens", self.tokens, self.padded_tokens),
                ("heads of", self.head_dim, self.padded_head_dim),
            )
            if size != to
        ]
        return f"{name} ({'; '.join([self.reason, *padded])})"


@checked
def attention_kernel(
    device: AttentionDevice,
    dtype: DTypeLike,
    tokens: int,
    head_dim: int,
    *,
    kernel: AttentionKernel = AttentionKernel.AUTO,
    split: bool = False,
) -> AttentionChoice:
    """Chooses what computes attention: a fused kernel where one is known to take the sizes, else XLA. A pure function.

    - **cuDNN** takes bfloat16 and float16, heads of at most 128 numbers, on NVIDIA GPUs from Ampere on (compute
      capability 8.0). Heads are padded to a multiple of 8 with zeros; an odd number of tokens, for which JAX has no
      backward pass, gets one more, which is masked.
    - **Pallas** takes bfloat16 and heads of at most 128 numbers, on TPUs. Tokens are padded to blocks of 128 and
      masked; below 256 tokens that costs too much. XLA cannot split the kernel over devices: with several, the program
      has to say that each computes its own examples, which the training step does.
    - In float32 XLA keeps the precision of the products that the caller asked JAX for.

    **Arguments:**

    - `device`: where the program will run, such as `AttentionDevice.here()`.
    - `dtype`: of queries, keys and values.
    - `tokens`, `head_dim`: sizes of the sequence and of one head, at least 1.
    - `kernel`: one to insist on. `PALLAS` then also takes fewer than 256 tokens.
    - `split`: whether the program says how its examples are split over the devices.

    **Returns:** the choice with its reason.

    **Raises:** `ValueError` if the kernel that is insisted on cannot be used, or a size is below 1.
    """
    if min(tokens, head_dim) < 1:
        raise ValueError(f"`attention_kernel(tokens={tokens}, head_dim={head_dim})`: each must be at least 1.")
    kernel, dtype = AttentionKernel(kernel), jnp.dtype(dtype)

    def choice(kernel: AttentionKernel, reason: str, *, token_block: int = 1, head_block: int = 1) -> AttentionChoice:
        return AttentionChoice(
            kernel=kernel,
            reason=reason,
            tokens=tokens,
            head_dim=head_dim,
            padded_tokens=_up_to(tokens, token_block),
            padded_head_dim=_up_to(head_dim, head_block),
        )

    if kernel == AttentionKernel.XLA:
        return choice(AttentionKernel.XLA, "as asked")
    fused = {"cuda": AttentionKernel.CUDNN, "tpu": AttentionKernel.PALLAS}.get(device.platform)
    insisted = kernel != AttentionKernel.AUTO
    if insisted and kernel != fused:
        raise ValueError(
            f"The attention kernel {kernel.value!r} needs {_NEEDS[kernel]}, and this program runs on "
            f"{device.platform!r}. Use 'auto' or 'xla'."
        )
    match fused:
        case AttentionKernel.CUDNN:
            refused = _refused_by_cudnn(device, dtype, head_dim)
        case AttentionKernel.PALLAS:
            refused = _refused_by_pallas(device, dtype, tokens, head_dim, split=split, insisted=insisted)
        case _:
            refused = f"there is no fused kernel for {_PLATFORMS.get(device.platform, device.platform)}"
    if fused is None or refused is not None:
        if insisted:
            raise ValueError(f"The attention kernel {kernel.value!r} cannot be used: {refused}. Use 'auto' or 'xla'.")
        return choice(AttentionKernel.XLA, str(refused))
    if fused == AttentionKernel.CUDNN:
        major, minor = device.capability or (0, 0)
        where = f"{dtype} on a GPU of compute capability {major}.{minor}"
        return choice(fused, where, token_block=2, head_block=8)
    return choice(fused, f"{dtype} on a TPU", token_block=_PALLAS_BLOCK)


_PLATFORMS = {"cpu": "CPUs", "rocm": "ROCm"}
_NEEDS = {AttentionKernel.CUDNN: "an NVIDIA GPU", AttentionKernel.PALLAS: "a TPU"}


def _refused_by_cudnn(device: AttentionDevice, dtype: Any, head_dim: int) -> str | None:
    if dtype not in _CUDNN_DTYPES:
        return f"cuDNN's fused kernel takes bfloat16 and float16, not {dtype}"
    if device.capability is None or device.capability < _CUDNN_CAPABILITY:
        said = "unknown" if device.capability is None else "{}.{}".format(*device.capability)
        return f"cuDNN's fused kernel needs compute capability 8.0, and that of this GPU is {said}"
    if head_dim > _CUDNN_HEAD_DIM:
        return f"cuDNN's fused kernel takes heads of at most {_CUDNN_HEAD_DIM} numbers, not {head_dim}"
    return None


def _refused_by_pallas(
    device: AttentionDevice, dtype: Any, tokens: int, head_dim: int, *, split: bool, insisted: bool
) -> str | None:
    if dtype != jnp.bfloat16:
        return f"the Pallas kernel is used in bfloat16, not in {dtype}"
    if head_dim > _PALLAS_HEAD_DIM:
        return f"the Pallas kernel is used for heads of at most {_PALLAS_HEAD_DIM} numbers, not {head_dim}"
    if tokens < _PALLAS_TOKENS and not insisted:
        return f"padding {tokens} tokens to blocks of {_PALLAS_BLOCK} would cost more than the Pallas kernel saves"
    if device.devices > 1 and not split:
        return f"XLA cannot split the Pallas kernel over the {device.devices} devices here"
    return None


def _up_to(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
