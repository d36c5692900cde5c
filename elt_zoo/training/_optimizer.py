import dataclasses
import enum
import math
from typing import Any

import equinox as eqx
import jax
import optax
import optax.contrib
from jaxtyping import PyTree

from ..looped import LoopedTransformer
from ..nn import Linear


class Decay(enum.StrEnum):
    """What the learning rate does after the warm-up: stay, or fall to zero along half a cosine."""

    CONSTANT = "constant"
    COSINE = "cosine"


class OptimizerKind(enum.StrEnum):
    """What turns gradients into updates.

    `ADAMW` is the paper's ([1711.05101](https://arxiv.org/abs/1711.05101)). `MUON` moves the weight matrices of the
    trunk along the orthogonalised average of their gradients, scaled to the size of AdamW's updates, so that AdamW's
    rates suit it ([2502.16982](https://arxiv.org/abs/2502.16982), section 2.2); AdamW does the rest.
    """

    ADAMW = "adamw"
    MUON = "muon"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rewarming:
    """A second warm-up, in the middle of a run whose network or data change there: a factor of the learning rate.

    It is 1 for the first `after` steps, `start` at the next one, and back at 1 after `steps` more, along a line.

    **Fields:** `after`: steps before it, at least 1; `steps`: its length, at least 1; `start`: where it begins, in
    [0, 1].

    **Raises:** `ValueError` for values outside their range.
    """

    after: int
    steps: int
    start: float = 0.1

    def __post_init__(self):
        if self.after < 1 or self.steps < 1 or not 0.0 <= self.start <= 1.0:
            raise ValueError(
                f"`Rewarming(after={self.after}, steps={self.steps}, start={self.start})`: both counts must be at "
                "least 1, and the factor in [0, 1]."
            )

    def factor(self) -> optax.Schedule:
        """The factor as a function of the step."""
        line = optax.linear_schedule(self.start, 1.0, self.steps)
        return optax.join_schedules([optax.constant_schedule(1.0), line], [self.after])


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, or Muon beside it, with warm-up, a schedule and clipping.

    **Fields:**

    - `kind`: the optimiser.
    - `learning_rate`: the peak.
    - `total_steps`: steps of the run, for the decay.
    - `warmup_steps`: steps of linear warm-up from 0.
    - `decay`: the schedule after it.
    - `rewarming`: a second warm-up, which multiplies the schedule; default none.
    - `b1`, `b2`: AdamW's averages.
    - `weight_decay`: decoupled decay, on the weights that [`decay_mask`][elt_zoo.training.decay_mask] names.
    - `clip_norm`: the largest global gradient norm; `None` for no clipping.

    **Raises:** `ValueError` for values outside their range.
    """

    kind: OptimizerKind = OptimizerKind.ADAMW
    learning_rate: float
    total_steps: int
    warmup_steps: int = 0
    decay: Decay = Decay.CONSTANT
    rewarming: Rewarming | None = None
    b1: float = 0.9
    b2: float = 0.999
    weight_decay: float = 0.0
    clip_norm: float | None = None

    def __post_init__(self):
        checks = {
            "learning_rate": 0.0 < self.learning_rate < math.inf,
            "total_steps": self.total_steps >= 1,
            "warmup_steps": 0 <= self.warmup_steps <= self.total_steps,
            "rewarming": self.rewarming is None or self.rewarming.after < self.total_steps,
            "b1": 0.0 <= self.b1 < 1.0,
            "b2": 0.0 <= self.b2 < 1.0,
            "weight_decay": 0.0 <= self.weight_decay < math.inf,
            "clip_norm": self.clip_norm is None or self.clip_norm > 0.0,
        }
        wrong = [f"{name}={getattr(self, name)}" for name, good in checks.items() if not good]
        if wrong:
            raise ValueError(
                f"`OptimizerConfig` got {', '.join(wrong)}: rates and counts must be positive, b1 and b2 in [0, 1), "
                f"and the warm-ups within the {self.total_steps} steps of the run."
            )
        if self.decay == Decay.COSINE and self.warmup_steps == self.total_steps:
            raise ValueError(
                f"`OptimizerConfig(decay='cosine', warmup_steps={self.warmup_steps}, total_steps={self.total_steps})` "
                "leaves no step for the cosine. Use a shorter warm-up or `Decay.CONSTANT`."
            )

    @classmethod
    def digits(cls, *, total_steps: int, learning_rate: float = 8e-3) -> "OptimizerConfig":
        """Small models on the digits: a high rate with a short warm-up, then a cosine to zero."""
        return cls(
            learning_rate=learning_rate,
            total_steps=total_steps,
            warmup_steps=min(50, total_steps // 10),
            decay=Decay.COSINE,
            b2=0.99,
            weight_decay=0.01,
            clip_norm=1.0,
        )

    def schedule(self) -> optax.Schedule:
        """Learning rate as a function of the step."""
        rate = self._without_rewarming()
        if self.rewarming is None:
            return rate
        factor = self.rewarming.factor()
        return lambda step: rate(step) * factor(step)

    def _without_rewarming(self) -> optax.Schedule:
        if self.decay == Decay.COSINE:
            return optax.warmup_cosine_decay_schedule(0.0, self.learning_rate, self.warmup_steps, self.total_steps)
        if self.warmup_steps == 0:
            return optax.constant_schedule(self.learning_rate)
        return optax.linear_schedule(0.0, self.learning_rate, self.warmup_steps)


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """The optax transformation of a config: clipping, then AdamW or Muon."""
    update = optax.adamw(
        config.schedule(), b1=config.b1, b2=config.b2, weight_decay=config.weight_decay, mask=decay_mask
    )
    if config.kind == OptimizerKind.MUON:
        muon = optax.contrib.muon(
            config.schedule(),
            weight_decay=config.weight_decay,
            # Of stacked layers (layers, out, in), each matrix by itself.
            muon_weight_dimension_numbers=optax.contrib.MuonDimensionNumbers(reduction_axis=2, output_axis=1),
            consistent_rms=_ADAMW_RMS,
        )
        update = optax.partition({OptimizerKind.MUON: muon, OptimizerKind.ADAMW: update}, _kinds)
    return update if config.clip_norm is None else optax.chain(optax.clip_by_global_norm(config.clip_norm), update)


# The root mean square that AdamW's updates have in practice, in units of the rate (2502.16982, equation 4).
_ADAMW_RMS = 0.2


def _kinds(model: PyTree) -> PyTree:
    """Muon for the weights of the trunk's linear maps, AdamW for all else: embeddings and heads gain nothing by it."""

    def trunk(node: Any) -> bool:
        return isinstance(node, LoopedTransformer)

    def kind(node: Any) -> PyTree:
        matrices = decay_mask(node) if trunk(node) else jax.tree.map(lambda _: False, node)
        return jax.tree.map(lambda matrix: OptimizerKind.MUON if matrix else OptimizerKind.ADAMW, matrices)

    return jax.tree.map(kind, model, is_leaf=trunk)


def decay_mask(model: PyTree) -> PyTree:
    """Marks what weight decay acts on: the weights of linear maps, and nothing else.

    Biases, norms, positions and embedding tables are left alone. The kind of module decides and not the number of axes,
    because the trunk stacks its layers: a bias there has two axes.
    """

    def mark(node):
        if isinstance(node, Linear | eqx.nn.Linear):
            return jax.tree.map(lambda leaf: leaf is node.weight, node)
        return False

    return jax.tree.map(mark, model, is_leaf=lambda node: isinstance(node, Linear | eqx.nn.Linear))
