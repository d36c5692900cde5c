import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from ..families import ModelConfig, SamplerSettings
from ..models import CachedPredict, ElasticModel
from ..sampling import AbstractGuidance, AbstractSampler, LoopBudget, Loops, Predict, total_loops
from ..sharding import data_mesh, replicate, shard_batch
from ..tokenizers import Tokenizer
from ._clock import Clock
from ._exit_guidance import ExitGuidance, ExitGuidedPredict
from ._planner import Planner
from ._settled_exit import EarlyExitPredict, SettledExit

_LARGEST_BATCH = 64

SampleProgress = Callable[[int, int], None]
"""Called as `progress(done, total)` after every batch, in samples."""


@dataclasses.dataclass(frozen=True)
class Generator:
    """A model with all that it takes to sample it: class labels in, pixels out, with any number of loops.

    **Fields:**

    - `model`, `config`: the model and the config of its family.
    - `tokenizer`: what turns samples into pixels: the tokenizer of a masked model, the autoencoder of one of latents;
      `None` for a model of pixels.
    - `settings`: how it is sampled unless a call says otherwise; default the family's
      [`sampler_settings`][elt_zoo.families.ModelConfig].
    - `metadata`: anything of JSON's types, saved along: the training, the scores, the source.
    - `planner`: what chooses steps and loops for a time, such as that of
      [`make_planner`][elt_zoo.anytime.make_planner]; default none. It is not saved along.

    **Raises:** `ValueError` for the planner of another generator.
    """

    model: ElasticModel
    config: ModelConfig
    tokenizer: Tokenizer | None = None
    settings: SamplerSettings = None  # pyright: ignore[reportAssignmentType]  (filled in below)
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    planner: Planner | None = dataclasses.field(default=None, repr=False)

    def __post_init__(self):
        if self.settings is None:
            object.__setattr__(self, "settings", self.config.sampler_settings())
        if self.planner is not None:
            self.planner.check(self)

    def sampler(self, *, steps: int | None = None, guidance: float | AbstractGuidance | None = None) -> AbstractSampler:
        """The generator's sampler, with other steps or guidance if they are given.

        **Arguments:** `steps`: sampling steps; `guidance`: the scale (1 is none), or a schedule of it; default those of
        `settings`.

        **Raises:** `ValueError` for steps that the sampler cannot take.
        """
        given: dict[str, Any] = {} if steps is None else {"steps": steps}
        if guidance is not None and not isinstance(guidance, AbstractGuidance):
            given["guidance"] = float(guidance)
        sampler = self.config.sampler(dataclasses.replace(self.settings, **given))
        if isinstance(guidance, AbstractGuidance):
            sampler = eqx.tree_at(
                lambda sampler: sampler.guidance, sampler, guidance, is_leaf=lambda leaf: leaf is None
            )
        return sampler

    def sample(
        self,
        labels: Int[Array, " count"] | Sequence[int] | np.ndarray,
        *,
        key: PRNGKeyArray | Key[Array, " count"],
        loops: Loops | None = None,
        steps: int | None = None,
        guidance: float | AbstractGuidance | None = None,
        exit_guidance: ExitGuidance | None = None,
        exit_rule: SettledExit | None = None,
        batch_size: int | None = None,
        milliseconds: float | None = None,
        deadline: bool = False,
        mesh: Mesh | None = None,
        progress: SampleProgress | None = None,
    ) -> Float[np.ndarray, "count *pixels"]:
        """Samples one picture, or clip, for each label.

        The labels are cut into batches of one size and the last is filled up, so that one program serves any number of
        labels, all loop counts and all scales of guidance; other steps compile another.

        **Arguments:**

        - `labels`: classes in [0, num_classes], where `num_classes` stands for no class.
        - `key`: PRNG key. The same key gives the same pictures, whatever the batch is filled up with. Or a key for each
          label (`jax.random.split`): then a picture depends on its own label and key alone, up to rounding, and not on
          the others nor on the batch.
        - `loops`: L, in any form that a sampler takes: a count, a count for each step, or a
          [`LoopBudget`][elt_zoo.sampling.LoopBudget] for the branches of guidance; default the `max_loops` of the
          config. After the first step a count may be 0: such a step takes over what the loops of the last one added,
          see [`CachedPredict`][elt_zoo.models.CachedPredict].
        - `steps`, `guidance`: as for [`sampler`][elt_zoo.Generator.sampler].
        - `exit_guidance`: guidance by an early exit, alone or with the other; default none.
        - `exit_rule`: instead of `loops`: each example leaves the loops of each step once the rule holds, after two
          loops at least and `max_loops` at most; default none.
        - `batch_size`: samples at a time; default the next power of two, 64 at most.
        - `milliseconds`: for the whole call, instead of loops, steps and guidance: the `planner` chooses them, and of
          its batch sizes, unless one is given, the smallest that holds all labels, or else the largest.
        - `deadline`: with `milliseconds`: watch the clock on the way, and make the last step come early where the time
          would not suffice for all. The first such call of a number of steps compiles, and is late.
        - `mesh`: devices that share every batch, see [`data_mesh`][elt_zoo.sharding.data_mesh]; default the first
          device alone.
        - `progress`: called as `progress(done, total)` after every batch.

        **Returns:** pixels in [−1, 1], float32, channels last.

        **Raises:** `ValueError` for no labels, labels out of range, loops or steps that the sampler cannot take, a
        missing tokenizer, an exit rule with loops or guidance by an exit, guidance by an exit with a step of no loops,
        milliseconds without a planner, with other choices, or too few for any plan, a deadline without milliseconds or
        with a key for each label, or other than one key or as many as labels;
        `FloatingPointError` for samples that are not finite.
        """
        batches = self.batches(
            labels,
            key=key,
            loops=loops,
            steps=steps,
            guidance=guidance,
            exit_guidance=exit_guidance,
            exit_rule=exit_rule,
            batch_size=batch_size,
            milliseconds=milliseconds,
            deadline=deadline,
            mesh=mesh,
        )
        total, done, pictures = len(labels), 0, []
        for pixels in batches:
            pictures.append(pixels)
            done += len(pixels)
            if progress is not None:
                progress(done, total)
        return np.concatenate(pictures)

    def batches(
        self,
        labels: Int[Array, " count"] | Sequence[int] | np.ndarray,
        *,
        key: PRNGKeyArray | Key[Array, " count"],
        loops: Loops | None = None,
        steps: int | None = None,
        guidance: float | AbstractGuidance | None = None,
        exit_guidance: ExitGuidance | None = None,
        exit_rule: SettledExit | None = None,
        batch_size: int | None = None,
        milliseconds: float | None = None,
        deadline: bool = False,
        mesh: Mesh | None = None,
        first_batch: int = 0,
    ) -> Iterator[Float[np.ndarray, "batch *pixels"]]:
        """What [`sample`][elt_zoo.Generator.sample] returns, a batch at a time. Batch b depends on the key, on b and on
        `batch_size` alone.

        **Arguments:** as for `sample`; `first_batch`: leave out the batches before it, such as those of other
        processes.
        """
        if first_batch < 0:
            raise ValueError(f"`first_batch={first_batch}` must be 0 or more.")
        clock = None
        labels = self._checked_labels(labels)
        if _is_one_each(key) and key.shape != labels.shape:
            raise ValueError(f"`key` holds {key.size} keys for {len(labels)} labels: give one key, or one for each.")
        if deadline and milliseconds is None:
            raise ValueError("`deadline=True` needs the time that is left: give `milliseconds` too.")
        if deadline and _is_one_each(key):
            raise ValueError("`deadline=True` takes one key for all labels, not one for each.")
        if milliseconds is not None:
            given = {"loops": loops, "steps": steps, "guidance": guidance, "mesh": mesh}
            given |= {"exit_guidance": exit_guidance, "exit_rule": exit_rule}
            if chosen := [name for name, value in given.items() if value is not None]:
                raise ValueError(
                    f"`milliseconds={milliseconds}` and `{chosen[0]}` cannot both be given: the planner chooses loops, "
                    "steps and guidance, for one device."
                )
            planner, batch_size = self._batch_of_plans(len(labels), batch_size)
            plan = planner.plan(milliseconds / -(-len(labels) // batch_size), batch=batch_size)
            loops, steps, guidance = plan.budget, plan.steps, plan.guidance
            if deadline:
                clock = Clock(milliseconds / 1e3, batches=-(-len(labels) // batch_size))
        elif exit_rule is not None and (loops is not None or exit_guidance is not None):
            other = "loops" if loops is not None else "exit_guidance"
            raise ValueError(f"`exit_rule` and `{other}` cannot both be given: the rule decides the loops.")
        sampler = self.sampler(steps=steps, guidance=guidance)
        _ = self.pixels  # refuses a missing tokenizer before any work
        network = self._on_first_device if mesh is None else replicate(self._network, mesh)
        mesh = _first_device() if mesh is None else mesh
        size = _batch_size(len(labels), mesh.size) if batch_size is None else batch_size
        if size < 1 or size % mesh.size:
            raise ValueError(f"`batch_size={size}` must be a positive multiple of the {mesh.size} device(s).")
        loops = self.config.max_loops if loops is None else loops
        total_loops(loops, sampler.steps, guidance=sampler.guidance)  # refuses wrong counts before any work
        by_exit = exit_rule if exit_guidance is None else exit_guidance
        if exit_guidance is not None and any(np.min(count) < 1 for count in jax.tree.leaves(loops)):
            raise ValueError(
                "`loops` has a step of 0 loops, and `exit_guidance` needs loops at every step: leave one out."
            )
        sampler, budget, key, by_exit = replicate((sampler, _traced(loops), key, by_exit), mesh)
        return self._drawn(sampler, (*network, by_exit), labels, budget, key, size, mesh, clock, first_batch)

    def _batch_of_plans(self, count: int, batch_size: int | None) -> tuple[Planner, int]:
        """The planner, and the batch size for so many labels."""
        if self.planner is None:
            raise ValueError(
                "`milliseconds` needs a planner, which has measured this machine: `planner = "
                "elt_zoo.anytime.make_planner(generator)`, then `dataclasses.replace(generator, planner=planner)`."
            )
        batches = self.planner.batches
        if batch_size is None:
            batch_size = next((size for size in batches if size >= count), batches[-1])
        if batch_size < 1:
            raise ValueError(f"`batch_size={batch_size}` must be at least 1.")
        return self.planner, batch_size

    def _drawn(
        self,
        sampler: AbstractSampler,
        network: Any,
        labels: np.ndarray,
        loops: Loops,
        key: Any,
        batch_size: int,
        mesh: Mesh,
        clock: Clock | None,
        first_batch: int,
    ) -> Iterator[np.ndarray]:
        for number, start in enumerate(range(first_batch * batch_size, len(labels), batch_size), first_batch):
            part = labels[start : start + batch_size]
            filled = np.arange(start, start + batch_size)
            filled[len(part) :] = start
            placed = shard_batch(jnp.asarray(labels[filled]), mesh)
            noise = shard_batch(_chosen(key, filled), mesh) if _is_one_each(key) else jax.random.fold_in(key, number)
            draw = _draw if clock is None else functools.partial(_draw_until, clock, number)
            pixels = np.asarray(draw(self.config, sampler, network, placed, loops, noise))
            finite = np.isfinite(pixels[: len(part)]).reshape(len(part), -1).all(axis=1)
            if not finite.all():
                raise FloatingPointError(
                    f"{np.sum(~finite)} of {len(part)} samples hold values that are not finite. Look for non-finite "
                    "weights, or guidance that is too strong for the model."
                )
            yield pixels[: len(part)]

    def decode(self, sample: Array) -> Float[Array, "*pixels"]:
        """One sample of the sampler → pixels in [−1, 1].

        **Raises:** `ValueError` if a tokenizer is missing.
        """
        return self.config.decode(sample, self.tokenizer)

    @functools.cached_property
    def pixels(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of one picture or clip. **Raises:** `ValueError` if a tokenizer is missing."""
        return eqx.filter_eval_shape(self.decode, self.config.example)

    @property
    def _network(self) -> Any:
        """All that is on the devices when samples are drawn."""
        return self.model, self.tokenizer

    @functools.cached_property
    def _on_first_device(self) -> Any:
        # Placing every array takes longer than a step of a small model.
        return replicate(self._network, _first_device())

    def _checked_labels(self, labels: Any) -> np.ndarray:
        labels, classes = np.asarray(labels), self.config.num_classes
        if labels.ndim != 1 or len(labels) == 0 or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                f"`labels` must be a list of classes, such as [0, 1], not {labels.dtype}{list(labels.shape)}."
            )
        wrong = labels[(labels < 0) | (labels > classes)]
        if len(wrong):
            raise ValueError(
                f"`labels` holds {wrong[0]}, but this generator knows the classes 0 to {classes - 1}, and {classes} "
                "for no class."
            )
        return labels.astype(np.int32)


def _first_device() -> Mesh:
    return data_mesh(jax.local_devices()[:1])


def _batch_size(count: int, devices: int) -> int:
    """The next power of two of samples for every device, so that few programs are compiled, and no large batch."""
    each = 2 ** math.ceil(math.log2(-(-count // devices)))
    return devices * min(each, max(_LARGEST_BATCH // devices, 1))


def _is_one_each(key: Any) -> bool:
    """Whether there is a key for each label."""
    return jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim > 0


def _chosen(keys: Any, indices: np.ndarray) -> Any:
    """Some of the keys. Taking all of them takes longer than a step of a small model."""
    return keys if len(indices) == len(keys) else keys[indices]


def _traced(loops: Loops) -> Loops:
    """Counts as arrays, which share one program."""
    if isinstance(loops, LoopBudget):
        return LoopBudget(_traced_count(loops.conditional), _traced_count(loops.unconditional))
    return _traced_count(loops)


def _traced_count(loops: Any) -> Any:
    return jnp.asarray(loops, jnp.int32) if isinstance(loops, int | np.integer) else loops


@eqx.filter_jit
def _draw(config: ModelConfig, sampler: AbstractSampler, network: Any, labels: Array, loops: Loops, key: Any) -> Array:
    """Everything is an argument: one program for all labels, loops and scales of equal steps and batch."""
    predict = _predict(config, sampler, network)
    if _is_one_each(key):
        # Each is a batch of its own, so that its noise is too.
        samples = jax.vmap(lambda label, key: sampler(predict, label[None], loops=loops, key=key)[0])(labels, key)
    else:
        samples = sampler(predict, labels, loops=loops, key=key)
    return _decode(config, samples, network)


def _draw_until(
    clock: Clock,
    number: int,
    config: ModelConfig,
    sampler: AbstractSampler,
    network: Any,
    labels: Array,
    loops: Loops,
    key: PRNGKeyArray,
) -> Array:
    """The same in parts, between which the clock decides how many steps are left."""
    watch = clock.batch(number, sampler.steps)
    samples, _ = sampler.until(_predict(config, sampler, network), labels, fits=watch, loops=loops, key=key)
    return _decode(config, samples, network)


def _predict(config: ModelConfig, sampler: AbstractSampler, network: Any) -> Predict:
    model, _, by_exit = network
    if by_exit is None:
        return CachedPredict(model)
    if isinstance(by_exit, SettledExit):
        return EarlyExitPredict(model, by_exit)
    return ExitGuidedPredict(model, by_exit, config.level, sampler.guide)


@eqx.filter_jit
def _decode(config: ModelConfig, samples: Array, network: Any) -> Array:
    return jax.vmap(lambda sample: config.decode(sample, network[1]))(samples)
