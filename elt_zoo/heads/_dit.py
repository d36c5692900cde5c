import einops
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .._checks import checked
from ..corruption import Prediction
from ..nn import LabelEmbedding, LayerNorm, Linear, TimestepEmbedding, modulate, sincos_positions

# Arrays and their tokens, by the number of axes beside channels. The last letter p marks the size of a patch.
_ARRAYS = {2: "(height hp) (width wp) channels", 3: "(frames fp) (height hp) (width wp) channels"}
_TOKENS = {2: "(height width) (hp wp channels)", 3: "(frames height width) (fp hp wp channels)"}


class DiTHead(eqx.Module):
    """Both ends of diffusion with transformers: a noisy array, a time and a class in, the prediction out (DiT,
    [2212.09748](https://arxiv.org/abs/2212.09748)).

    Tokens are a linear map of patches plus fixed sine-cosine positions. The conditioning vector of the trunk's adaLN
    layers is the sum of a time and a class embedding. The prediction is adaLN and a linear map of the state, with the
    patches put back in place.
    """

    patch_embedding: Linear
    time_embedding: TimestepEmbedding
    label_embedding: LabelEmbedding
    modulation: Linear
    state_norm: LayerNorm
    out: Linear
    shape: tuple[int, ...] = eqx.field(static=True)
    patch_size: tuple[int, ...] = eqx.field(static=True)
    prediction: Prediction = eqx.field(static=True)
    learned_variance: bool = eqx.field(static=True)
    num_classes: int = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        *,
        shape: tuple[int, ...],
        patch_size: int | tuple[int, ...],
        num_classes: int,
        prediction: Prediction = Prediction.V,
        learned_variance: bool = False,
        conditioning_dim: int | None = None,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `dim`: width of the trunk, even.
        - `shape`: the arrays to denoise, channels last: (height, width, channels) or (frames, height, width, channels).
        - `patch_size`: pixels of a patch along every axis, or one number per axis; it divides the array.
        - `num_classes`: number of classes; label `num_classes` is the null class.
        - `prediction`: what the network's output means; samplers and losses read it from here.
        - `learned_variance`: append as many channels again for the variance interpolation v of improved DDPM
          ([2102.09672](https://arxiv.org/abs/2102.09672)).
        - `conditioning_dim`: width of the conditioning vector, `dim` by default.
        - `key`: PRNG key.

        **Raises:** `ValueError` if the array has neither two nor three axes beside channels, or patches do not divide
        it.
        """
        axes = len(shape) - 1
        patch_size = (patch_size,) * axes if isinstance(patch_size, int) else tuple(patch_size)
        if axes not in (2, 3):
            raise ValueError(
                f"`DiTHead(shape={shape})` needs (height, width, channels) or (frames, height, width, channels)."
            )
        divides = len(patch_size) == axes and all(
            p > 0 and size % p == 0 for size, p in zip(shape[:-1], patch_size, strict=True)
        )
        if not divides:
            raise ValueError(
                f"`DiTHead(shape={shape}, patch_size={patch_size})`: patches must divide the array along each of its "
                f"{axes} axes {shape[:-1]}."
            )
        conditioning_dim = dim if conditioning_dim is None else conditioning_dim
        zeros = jax.nn.initializers.zeros
        patch_key, time_key, label_key = jax.random.split(key, 3)
        patch_values = shape[-1]
        for p in patch_size:
            patch_values *= p
        self.patch_embedding = Linear(patch_values, dim, key=patch_key)
        self.time_embedding = TimestepEmbedding(conditioning_dim, key=time_key)
        self.label_embedding = LabelEmbedding(num_classes, conditioning_dim, key=label_key)
        # Zero so that the model starts by predicting zero, as DiT.
        self.modulation = Linear(conditioning_dim, 2 * dim, init=zeros, key=key)
        self.state_norm = LayerNorm(dim, eps=1e-6, affine=False)
        self.out = Linear(dim, patch_values * (1 + learned_variance), init=zeros, key=key)
        self.shape = tuple(shape)
        self.patch_size = patch_size
        self.prediction = Prediction(prediction)
        self.learned_variance = learned_variance
        self.num_classes = num_classes

    @property
    def null_label(self) -> int:
        """The label that stands for no class."""
        return self.num_classes

    @property
    def grid(self) -> tuple[int, ...]:
        """Patches along each axis."""
        return tuple(size // p for size, p in zip(self.shape[:-1], self.patch_size, strict=True))

    @checked
    def embed(
        self,
        x: Float[Array, "*shape"],
        time: Float[Array, ""],
        label: Int[Array, ""],
        *,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "tokens dim"], Float[Array, " conditioning_dim"]]:
        """**Arguments:**

        - `x`: noisy array of the head's `shape`, channels last.
        - `time`: in [0, 1]; index/1000 for a 1000-step chain.
        - `label`: class in [0, num_classes].
        - `key`: not used: nothing here is random.

        **Returns:** tokens in row-major order and the conditioning vector.

        **Raises:** `ValueError` for another shape or a label out of range; where the label is traced, the
        conditioning is NaN instead.
        """
        if x.shape != self.shape:
            raise ValueError(
                f"`DiTHead.embed` got an array of shape {x.shape}, but this head was built for {self.shape}. "
                "Pass one example at a time (`jax.vmap` for a batch), channels last."
            )
        x = x.astype(self.patch_embedding.weight.dtype)
        axes = len(self.grid)
        patches = einops.rearrange(x, f"{_ARRAYS[axes]} -> {_TOKENS[axes]}", **self._sizes())
        tokens = self.patch_embedding(patches)
        tokens = tokens + jnp.asarray(sincos_positions(self.grid, tokens.shape[1]), tokens.dtype)
        return tokens, self.time_embedding(time) + self.label_embedding(label)

    @checked
    def __call__(
        self, state: Float[Array, "tokens dim"], conditioning: Float[Array, " conditioning_dim"]
    ) -> Float[Array, "*shape"]:
        """**Arguments:** `state`: the trunk's state at any exit; `conditioning`: what `embed` returned.

        **Returns:** array of the head's `shape`, with twice the channels if the variance is learned (prediction first).
        """
        shift, scale = jnp.split(self.modulation(jax.nn.silu(conditioning)), 2)
        patches = self.out(modulate(self.state_norm(state), shift, scale))
        axes = len(self.grid)
        return einops.rearrange(patches, f"{_TOKENS[axes]} -> {_ARRAYS[axes]}", **self._sizes())

    def _sizes(self) -> dict[str, int]:
        """The lengths of the patterns' axes: patches along each, and pixels of a patch."""
        axes = len(self.grid)
        names = [*("frames", "height", "width")[-axes:], *("fp", "hp", "wp")[-axes:]]
        return dict(zip(names, (*self.grid, *self.patch_size), strict=True))
