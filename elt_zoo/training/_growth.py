import dataclasses

from ..objectives import AbstractObjective
from ._optimizer import OptimizerConfig, Rewarming


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopGrowth:
    """Trains with few loops first and with all of them later.

    The first stage costs fewer loops, and the shared layers learn to be useful before they are repeated more often.
    What grows is the objective's `max_loops`; the model is the same from the first step to the last, and so is the
    state of its optimiser. At the change the learning rate warms up again. Its own schedule, and the objective's
    progress, run over both stages.

    Deep models grow like this by stacking layers, in several stages
    ([2409.19044](https://arxiv.org/abs/2409.19044)). The paper of ELT trains with L_max from the start.

    **Fields:**

    - `start_loops`: L_max of the first stage, at least 1.
    - `until`: the share of the steps that it lasts, in (0, 1).
    - `rewarming`: the share of the steps, in [0, 1], over which the rate warms up again, but at least one step.
    - `rewarming_start`: the factor of the rate at the first step with all loops, in [0, 1]; 1 for no second warm-up.

    **Raises:** `ValueError` for values outside their range.
    """

    start_loops: int
    until: float = 0.5
    rewarming: float = 0.02
    rewarming_start: float = 0.1

    def __post_init__(self):
        checks = {
            "start_loops": self.start_loops >= 1,
            "until": 0.0 < self.until < 1.0,
            "rewarming": 0.0 <= self.rewarming <= 1.0,
            "rewarming_start": 0.0 <= self.rewarming_start <= 1.0,
        }
        wrong = [f"{name}={getattr(self, name)}" for name, good in checks.items() if not good]
        if wrong:
            raise ValueError(
                f"`LoopGrowth` got {', '.join(wrong)}: it starts with at least 1 loop, changes after a share of the "
                "steps in (0, 1), and the share and the factor of its warm-up are in [0, 1]."
            )

    def change(self, total_steps: int) -> int:
        """How many of a run's steps the first stage has: each stage has at least one.

        **Raises:** `ValueError` for fewer than 2 steps.
        """
        if total_steps < 2:
            raise ValueError(
                f"`LoopGrowth` has two stages, and a run of {total_steps} step(s) has no room for both. Use at least 2."
            )
        return min(max(round(self.until * total_steps), 1), total_steps - 1)

    def stages(self, objective: AbstractObjective, *, total_steps: int) -> dict[int, AbstractObjective]:
        """What to train for, by the number of steps taken when the stage ends: first the same objective with
        `start_loops`, then the objective itself.

        Train one stage after the other, each with a step of its own. Its program is compiled at its first step, and a
        resumed run passes over the stages that it has completed:

            for end, stage in growth.stages(objective, total_steps=steps).items():
                step = jit_step(make_train_step(optimizer, stage, corruption, total_steps=steps))
                state = fit(state, step, batches, total_steps=end).state

        **Arguments:** `objective`: whose constructor takes all of its fields by name, as those of elt_zoo do;
        `total_steps`: of the run.

        **Raises:** `ValueError` if the objective has no more loops than `start_loops` or refuses so few, and as
        `change`.
        """
        if self.start_loops >= objective.max_loops:
            raise ValueError(
                f"`LoopGrowth(start_loops={self.start_loops})` must start with fewer loops than the "
                f"{objective.max_loops} that it grows to."
            )
        first = dataclasses.replace(objective, max_loops=self.start_loops)
        return {self.change(total_steps): first, total_steps: objective}

    def rewarmed(self, config: OptimizerConfig) -> OptimizerConfig:
        """The optimiser of a run whose rate warms up again after the change."""
        steps = config.total_steps
        rewarming = Rewarming(
            after=self.change(steps), steps=max(round(self.rewarming * steps), 1), start=self.rewarming_start
        )
        return dataclasses.replace(config, rewarming=rewarming)
