import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import checked
from ..corruption import DiffusionTarget, Prediction
from ._loss import AbstractLoss


class SigmoidWeightedMSE(AbstractLoss):
    r"""Mean squared error of one example under the sigmoid weighting (2303.00848; 2410.19324).

    In terms of ε the weight is $w_\epsilon = (-\mathrm{d}\log\mathrm{snr}/\mathrm{d}t)\,\sigma(b - \log\mathrm{snr})$.
    An error in x0 counts `snr` times as much, an error in v `α²` times: the same loss, whatever the network predicts.
    The mean is over all entries. Of a prediction with learned variance the first half of the channels counts; this loss
    leaves the variance alone.
    """

    prediction: Prediction = eqx.field(static=True)
    bias: float = eqx.field(static=True, default=0.0)

    @checked
    def __call__(self, prediction: Float[Array, "*out"], target: DiffusionTarget) -> Float[Array, ""]:
        """**Arguments:** `prediction`: the network's output, channels last; `target`. **Returns:** w(t) · mean squared
        error.
        """
        return self._weight(target) * _mean_square(prediction, target.value)

    @checked
    def distillation(
        self, student: Float[Array, "*out"], teacher: Float[Array, "*out"], target: DiffusionTarget
    ) -> Float[Array, ""]:
        """The same w(t) times the mean squared difference of student and teacher (2604.09168)."""
        return self._weight(target) * _mean_square(student, teacher[..., : target.value.shape[-1]])

    def _weight(self, target: DiffusionTarget) -> Float[Array, ""]:
        log_snr = target.log_snr.astype(jnp.float32)
        weight = target.log_snr_rate.astype(jnp.float32) * jax.nn.sigmoid(self.bias - log_snr)
        match self.prediction:
            case Prediction.EPSILON:
                return weight
            case Prediction.V:
                return weight * jax.nn.sigmoid(log_snr)
            case Prediction.X0:
                return weight * jnp.exp(log_snr)


def _mean_square(prediction: Float[Array, "*out"], value: Float[Array, "*shape"]) -> Float[Array, ""]:
    difference = prediction[..., : value.shape[-1]].astype(jnp.float32) - value.astype(jnp.float32)
    return jnp.mean(jnp.square(difference))
