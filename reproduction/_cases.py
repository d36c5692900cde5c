"""What the reproduction trains: every model and objective that a question of the paper needs, on one data set."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from elt_zoo import ILSDLoss
from elt_zoo.objectives import AbstractLoss, AbstractObjective, DeepSupervisionLoss, RandomDepthLoss, VanillaLoss
from elt_zoo.training import LoopGrowth

FAMILIES = ("dit", "maskgit")
OBJECTIVES = ("ilsd", "vanilla", "deep_supervision", "random_depth")
# N and L_max of the looped model: those of the models that come with the library.
LOOPED = {"dit": (2, 4), "maskgit": (1, 4)}

CURRICULA: dict[str, optax.Schedule] = {
    "linear": optax.linear_schedule(1.0, 0.0, transition_steps=1),
    "linear over the first half": lambda progress: jnp.maximum(1.0 - 2.0 * progress, 0.0),
    "constant 1": optax.constant_schedule(1.0),
    "constant 0.5": optax.constant_schedule(0.5),
    "constant 0": optax.constant_schedule(0.0),
}
"""λ by training progress. The paper's is linear from 1 to 0; constant 1 never distils, constant 0 only distils."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One model to train, over seeds. `layers`: options of the layers that are on; `student_weight`: of the student in
    ILSD; `learning_rate`: the peak, or that of all runs; `grow_from`: loops in the first half of the steps, 0 for all
    of them from the start.
    """

    data: str
    family: str
    num_layers: int
    max_loops: int
    objective: str = "ilsd"
    curriculum: str = "linear"
    prelude: int = 0
    coda: int = 0
    residual_scale: float = 1.0
    reinjection: float = 0.0
    layers: tuple[str, ...] = ()
    student_weight: float = 1.0
    optimizer: str = "adamw"
    learning_rate: float | None = None
    grow_from: int = 0

    def __post_init__(self):
        object.__setattr__(self, "layers", tuple(self.layers))  # of which JSON makes a list

    @property
    def size(self) -> str:
        looped = f"{self.num_layers}N×{self.max_loops}L"
        return f"{self.prelude} + {looped} + {self.coda}" if self.prelude or self.coda else looped

    @property
    def sizes(self) -> dict[str, Any]:
        """Fields of the model's config."""
        return {
            "num_layers": self.num_layers,
            "max_loops": self.max_loops,
            "prelude": self.prelude,
            "coda": self.coda,
            "residual_scale": self.residual_scale,
            "reinjection": self.reinjection,
            **dict.fromkeys(self.layers, True),
        }

    @property
    def name(self) -> str:
        """For a folder."""
        looped = self.size.replace("×", "x").replace(" ", "")
        parts = [self.data, self.family, looped, self.objective]
        if self.curriculum != "linear":
            parts.append("lambda " + self.curriculum)
        if self.residual_scale != 1.0:
            parts.append(f"scale {self.residual_scale:g}")
        if self.reinjection:
            parts.append(f"reinjection {self.reinjection:g}")
        parts += self.layers
        if self.student_weight != 1.0:
            parts.append(f"student {self.student_weight:g}")
        if self.optimizer != "adamw":
            parts.append(self.optimizer)
        if self.learning_rate is not None:
            parts.append(f"rate {self.learning_rate:g}")
        if self.grow_from:
            parts.append(f"grown from {self.grow_from}")
        return "-".join(parts).replace(" ", "_")

    @property
    def cost(self) -> int:
        """Layers that a step goes through, more on the larger images: for the order of the runs."""
        depth = self.prelude + self.num_layers * self.max_loops + self.coda
        return depth * {"MNIST": 3, "CIFAR-10": 4}.get(self.data, 1)

    @property
    def growth(self) -> LoopGrowth | None:
        return LoopGrowth(start_loops=self.grow_from) if self.grow_from else None

    def make_objective(self, loss: AbstractLoss) -> AbstractObjective:
        curriculum = CURRICULA[self.curriculum]
        makers: dict[str, Callable[[], AbstractObjective]] = {
            "ilsd": lambda: ILSDLoss(
                loss,
                loss.distillation,
                max_loops=self.max_loops,
                curriculum=curriculum,
                student_weight=self.student_weight,
            ),
            "vanilla": lambda: VanillaLoss(loss, max_loops=self.max_loops),
            "deep_supervision": lambda: DeepSupervisionLoss(loss, max_loops=self.max_loops),
            "random_depth": lambda: RandomDepthLoss(loss, max_loops=self.max_loops),
        }
        return makers[self.objective]()


def exit_cases(data: str, family: str) -> list[Case]:
    """The looped model with every objective."""
    layers, loops = LOOPED[family]
    return [Case(data, family, layers, loops, objective) for objective in OBJECTIVES]


def depth_cases(data: str, family: str) -> list[Case]:
    """All N×L of one effective depth, looped ones with ILSD."""
    layers, loops = LOOPED[family]
    depth = layers * loops
    sizes = [(depth // each, each) for each in range(1, depth + 1) if depth % each == 0]
    return [Case(data, family, n, each, "ilsd" if each > 1 else "vanilla") for n, each in sizes]


def single_case(data: str, family: str) -> Case:
    """The layers of the looped model without looping."""
    return Case(data, family, LOOPED[family][0], 1, "vanilla")


def curriculum_cases(data: str, family: str) -> list[Case]:
    """ILSD with every schedule of λ."""
    layers, loops = LOOPED[family]
    return [Case(data, family, layers, loops, curriculum=name) for name in CURRICULA]


def all_cases(data: str) -> list[Case]:
    """Those of a data set, without repeats. MNIST's runs are long: it has the objectives, and the deep model."""
    cases: list[Case] = []
    for family in FAMILIES:
        depths = depth_cases(data, family)
        cases += exit_cases(data, family)
        if data == "digits":
            cases += [*depths, *curriculum_cases(data, family)]
        else:
            cases.append(depths[0])
        cases.append(single_case(data, family))
    return list(dict.fromkeys(cases))
