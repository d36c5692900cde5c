import dataclasses

import equinox as eqx
import jax

from ..generator import Generator
from ..profile import environment
from ..storage import hash_arrays


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conditions:
    """What measurements of a generator hold for.

    **Fields:**

    - `machine`: processor, cores, and the versions of Python, JAX, Equinox and elt_zoo.
    - `device`: the kind of the device that samples.
    - `precision`: the dtypes of the model's parameters.
    - `model`: SHA-256 of the weights, the tokenizer, the config and the sampler's settings.
    """

    machine: str
    device: str
    precision: str
    model: str

    @classmethod
    def of(cls, generator: Generator) -> "Conditions":
        """Those of this process and a generator."""
        parameters = jax.tree.leaves(eqx.filter(generator.model, eqx.is_inexact_array))
        described = {"config": generator.config.to_dict(), "settings": dataclasses.asdict(generator.settings)}
        return cls(
            machine=environment(),
            device=jax.local_devices()[0].device_kind,
            precision=", ".join(sorted({leaf.dtype.name for leaf in parameters})),
            model=hash_arrays({"model": generator.model, "tokenizer": generator.tokenizer}, described),
        )

    def differences(self, other: "Conditions") -> list[str]:
        """What differs from others, a phrase for each field."""
        mine, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        return [
            f"its {name} is {_short(mine[name])}, not {_short(theirs[name])}"
            for name in mine
            if mine[name] != theirs[name]
        ]


def _short(value: str) -> str:
    return f"{value[:12]}…" if len(value) == 64 and " " not in value else value
