import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import checked
from ..corruption import MaskedTarget
from ._loss import AbstractLoss


class MaskedCrossEntropy(AbstractLoss):
    """Cross-entropy summed over the masked positions of one example, in nats (MaskGIT, 2202.04200, equation 1).

    The ground-truth loss compares with the true ids, softened by label smoothing; `distillation` compares with the
    teacher's whole softmax at the same positions. The sums of a batch are divided by its number of masked positions in
    [`batch_loss`][elt_zoo.training.batch_loss].
    """

    label_smoothing: float = eqx.field(static=True, default=0.0)

    def __check_init__(self):
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(f"`MaskedCrossEntropy(label_smoothing={self.label_smoothing})` must be in [0, 1).")

    @checked
    def __call__(self, logits: Float[Array, "*grid codebook"], target: MaskedTarget) -> Float[Array, ""]:
        """**Arguments:** `logits` over the codebook; `target`: ids in [0, codebook) and mask, both of the shape `grid`.

        **Returns:** the sum over masked positions of −(1 − s)·log p(id) − s·mean(log p), with s the label smoothing.
        """
        logits = logits.astype(jnp.float32)
        # A mask and not an index: the derivative of indexing is a scatter, several times slower on a CPU.
        chosen = jax.nn.one_hot(target.ids, logits.shape[-1], dtype=bool)
        expected = jnp.sum(jnp.where(chosen, logits, jnp.zeros_like(logits)), axis=-1)
        if self.label_smoothing > 0.0:
            smoothing = self.label_smoothing
            expected = (1.0 - smoothing) * expected + smoothing * jnp.mean(logits, axis=-1)
        loss = jax.nn.logsumexp(logits, axis=-1) - expected
        return jnp.sum(jnp.where(target.mask, loss, jnp.zeros_like(loss)))

    @checked
    def distillation(
        self,
        student: Float[Array, "*grid codebook"],
        teacher: Float[Array, "*grid codebook"],
        target: MaskedTarget,
    ) -> Float[Array, ""]:
        """Cross-entropy of the student against the teacher's softmax, summed over the masked positions (2604.09168).

        The caller decides whether gradients reach the teacher; [`ILSDLoss`][elt_zoo.ILSDLoss] stops them.
        """
        student = student.astype(jnp.float32)
        expected = jnp.sum(jax.nn.softmax(teacher.astype(jnp.float32)) * student, axis=-1)
        loss = jax.nn.logsumexp(student, axis=-1) - expected
        return jnp.sum(jnp.where(target.mask, loss, jnp.zeros_like(loss)))
