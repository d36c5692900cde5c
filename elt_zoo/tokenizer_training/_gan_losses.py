"""The non-saturating logistic losses of generator and discriminator (1406.2661), and two penalties."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import checked


@checked
def generator_loss(fake: Float[Array, " batch"]) -> Float[Array, ""]:
    """Mean −log σ(D(x̂)). Batched. **Arguments:** `fake`: logits of reconstructions."""
    return jnp.mean(jax.nn.softplus(-fake))


@checked
def discriminator_loss(real: Float[Array, " batch"], fake: Float[Array, " batch"]) -> Float[Array, ""]:
    """Mean −log σ(D(x)) − log(1 − σ(D(x̂))). Batched. **Arguments:** `real`, `fake`: logits of both."""
    return jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(fake))


@checked
def r1_penalty(
    discriminator: Callable[[Float[Array, "*shape"]], Float[Array, ""]], real: Float[Array, "batch *shape"]
) -> Float[Array, ""]:
    """Half the mean squared norm of the logit's gradient at real examples (1801.04406, equation 9, for γ = 1). Batched.

    **Arguments:** `discriminator`: of one example; `real`: examples.
    """
    gradients = jax.vmap(jax.grad(discriminator))(real)
    return 0.5 * jnp.sum(jnp.square(gradients)) / real.shape[0]


@checked
def lecam_penalty(
    real: Float[Array, " batch"],
    fake: Float[Array, " batch"],
    *,
    mean_real: Float[Array, ""],
    mean_fake: Float[Array, ""],
) -> Float[Array, ""]:
    """LeCam regularisation (2104.03310): mean (D(x) − α_F)² + mean (α_R − D(x̂))², each only where the logit is beyond
    the other side's average, as its authors' code and MAGVIT's have it and the paper's equation does not. Batched.

    **Arguments:** `real`, `fake`: logits; `mean_real`, `mean_fake`: α_R and α_F, moving averages of them.
    """
    return jnp.mean(jnp.square(jax.nn.relu(real - mean_fake))) + jnp.mean(jnp.square(jax.nn.relu(mean_real - fake)))
