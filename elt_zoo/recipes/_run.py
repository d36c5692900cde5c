import dataclasses
from pathlib import Path
from typing import Any

import jax

from ..objectives import AbstractObjective, DeepSupervisionLoss, ILSDLoss, RandomDepthLoss, VanillaLoss
from ..profile import Profile, profile
from ..sharding import Layout, make_mesh
from ..training import OptimizerConfig
from ._open import DIGITS, MOVING_DIGITS
from ._options import MeshOptions, ObjectiveName, Recipe, TrainingOptions
from ._task import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One training run: what, on what, how and where.

    **Fields:** `options`, `recipe`: the knobs; `task`: model and data; `folder`: where everything goes.
    """

    options: TrainingOptions
    recipe: Recipe
    task: Task
    folder: Path

    @classmethod
    def of(cls, options: TrainingOptions, task: Task) -> "Run":
        """The run that the options describe, in `options.out` or a folder named after what it is."""
        family, data = task.config.family, Path(task.data).resolve().name
        folder = options.out or Path("runs") / f"{data}-{family}-{options.objective}"
        return cls(options=options, recipe=Recipe.of(options, task.config, task.data), task=task, folder=folder)

    @property
    def objectives(self) -> tuple[ObjectiveName, ...]:
        """What to train for: the objective, and on the small data of the library the vanilla baseline beside it."""
        objective = self.options.objective
        compared = self.options.compare and self.task.data in (DIGITS, MOVING_DIGITS)
        return (objective, "vanilla") if compared and objective != "vanilla" else (objective,)

    @property
    def layout(self) -> Layout | None:
        """How a training lies on several devices; `None` where it has one.

        **Raises:** `ValueError` for a mesh that does not fit the devices.
        """
        options = self.options
        # Two runs at once have a device each; several processes, or a mesh that was asked for, take one after another.
        alone = len(self.objectives) == 1 or jax.process_count() > 1 or options.mesh != MeshOptions()
        mesh = make_mesh(options.mesh.data, options.mesh.fsdp)
        return Layout(mesh, options.mesh.gather) if mesh.size > 1 and alone else None

    @property
    def devices(self) -> list[Any]:
        """The devices of one training."""
        layout = self.layout
        return jax.devices()[:1] if layout is None else layout.mesh.devices.flatten().tolist()

    @property
    def costs(self) -> Profile:
        """What the model costs, with the run's batch, precision and attention on the devices here.

        **Raises:** `ValueError` for a mesh or an attention kernel that these devices do not have.
        """
        options, layout = self.options, self.layout
        return profile(
            self.task.config,
            batch=options.batch_size,
            steps=self.task.settings.steps,
            guidance=self.task.settings.guidance != 1.0,
            dtype=options.precision,
            attention=options.attention,
            mesh=None if layout is None else layout.mesh,
        )

    @property
    def computing(self) -> str:
        """One line: the devices of a training, its precision, and which kernel computes attention, and why."""
        devices, attention = self.devices, self.costs.attention
        said = f"Computing in {self.options.precision} on {len(devices)} × {devices[0].device_kind}"
        return said if attention is None else f"{said}; attention: {attention}"

    @property
    def optimizer(self) -> OptimizerConfig:
        """The recipe's optimiser, whose rate warms up again where the loops grow."""
        config, growth = self.recipe.optimizer(self.task.config), self.options.growth
        return config if growth is None else growth.rewarmed(config)

    def stages(self, name: ObjectiveName) -> dict[int, AbstractObjective]:
        """What an objective's training is for, by the step at which it changes or ends: one objective, or before it the
        same with fewer loops.

        **Raises:** `ValueError` for an objective that the model's loops do not allow, and for loops that cannot grow as
        the options say.
        """
        objective, steps, growth = make_objective(name, self), self.recipe.steps, self.options.growth
        if growth is None:
            return {steps: objective}
        try:
            return growth.stages(objective, total_steps=steps)
        except ValueError as error:
            raise ValueError(f"`--grow-from {growth.start_loops}`: {error}") from None

    def config(self, objective: ObjectiveName) -> dict[str, Any]:
        """What two runs must share for one to resume the other: everything but what is known not to matter."""
        return {
            "objective": objective,
            "model": self.task.config.to_dict(),
            **self.options.defining(),
            **dataclasses.asdict(self.recipe),
            "optimizer": str(self.recipe.kind),
            **self.task.described,
        }


def make_objective(name: ObjectiveName, run: Run) -> AbstractObjective:
    """The objective of a run, by its name.

    **Raises:** `ValueError` for one that the model's loops do not allow.
    """
    loss, max_loops, options = run.task.config.loss(), run.task.config.max_loops, run.options
    sampled = {"max_loops": max_loops, "min_loops": options.min_loops, "per_example": options.per_example}
    match name:
        case "ilsd":
            return ILSDLoss(loss, loss.distillation, student_weight=run.recipe.student_weight, **sampled)
        case "vanilla":
            return VanillaLoss(loss, max_loops=max_loops)
        case "deep_supervision":
            return DeepSupervisionLoss(loss, max_loops=max_loops)
        case "random_depth":
            return RandomDepthLoss(loss, **sampled)
