"""A family that the library does not know: denoising of short series, with a head, corruption, loss and sampler of its
own. It is trained, resumed, sampled, measured, profiled, diagnosed, saved and loaded like those of the library.
"""

import csv
import dataclasses
import functools
import json
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from elt_zoo import ElasticModel, load
from elt_zoo.corruption import AbstractCorruption, Corrupted
from elt_zoo.data import ArraySource, Batch
from elt_zoo.diagnostics import AbstractExits, ExitColumn
from elt_zoo.evaluation import (
    Evaluator,
    ReportOptions,
    SamplePlan,
    evaluate_grid,
    grid,
    report_loops,
    report_run,
    watch,
)
from elt_zoo.families import ModelConfig, SamplerSettings
from elt_zoo.metrics import AbstractExtractor, Features, set_statistics
from elt_zoo.nn import LabelEmbedding, LayerNorm, Linear, PreNormLayer, SwiGLU
from elt_zoo.objectives import AbstractLoss
from elt_zoo.profile import profile
from elt_zoo.recipes import Representation, Run, TrainingOptions, make_task, train
from elt_zoo.sampling import AbstractGuidance, AbstractSampler, ConstantGuidance
from elt_zoo.storage import WeightsError


class SeriesHead(eqx.Module):
    """A noisy series, the share of noise and a class in; the clean series out."""

    values: Linear
    places: Array
    classes: LabelEmbedding
    norm: LayerNorm
    out: Linear

    def __init__(self, dim, length, num_classes, *, key):
        keys = jax.random.split(key, 4)
        self.values = Linear(2, dim, key=keys[0])
        self.places = 0.02 * jax.random.normal(keys[1], (length, dim))
        self.classes = LabelEmbedding(num_classes, dim, key=keys[2])
        self.norm = LayerNorm(dim, eps=1e-6)
        self.out = Linear(dim, 1, key=keys[3])

    def embed(self, series, noise, label, *, key=None):
        both = jnp.stack([series, jnp.full_like(series, noise)], axis=-1)
        return jax.vmap(self.values)(both) + self.places + self.classes(label)[None], None

    def __call__(self, state, conditioning, /):
        return jax.vmap(self.out)(jax.vmap(self.norm)(state))[:, 0]


class Blend(AbstractCorruption):
    """A share of noise, a share of the series."""

    null_label: int = eqx.field(static=True)
    label_drop: float = eqx.field(static=True)

    def __call__(self, examples, labels, *, key):
        share_key, noise_key, drop_key = jax.random.split(key, 3)
        share = jax.random.uniform(share_key, labels.shape)
        noise = jax.random.normal(noise_key, examples.shape)
        dropped = jax.random.bernoulli(drop_key, self.label_drop, labels.shape)
        labels = jnp.where(dropped, jnp.asarray(self.null_label, labels.dtype), labels)
        blended = (1.0 - share[:, None]) * examples + share[:, None] * noise
        return Corrupted((blended, share, labels), examples, jnp.ones(len(labels)))


class Distance(AbstractLoss):
    """Mean squared distance."""

    def __call__(self, prediction, target):
        return jnp.mean(jnp.square(prediction - target))

    def distillation(self, student, teacher, target):
        return jnp.mean(jnp.square(student - teacher))


class Walk(AbstractSampler):
    """From noise to the predicted series, in equal steps of the share of noise."""

    length: int = eqx.field(static=True)
    steps: int = eqx.field(static=True)
    null_label: int | None = eqx.field(static=True)
    guidance: AbstractGuidance | None = None

    def init(self, labels, key, initial):
        return jax.random.normal(key, (len(labels), self.length)) if initial is None else initial

    def table(self):
        ends = jnp.linspace(1.0, 0.0, self.steps + 1)
        return ends[:-1], ends[1:]

    def inputs(self, state, now):
        return state, jnp.full(len(state), now[0])

    def step(self, state, prediction, now, key):
        return prediction + (state - prediction) * now[1] / now[0]

    def output(self, state):
        return state


class SeriesExits(AbstractExits):
    share_of: ClassVar[str] = "series"
    count: Array
    errors: Array

    def columns(self):
        return [ExitColumn("error", "mean error", self.errors / self.count, ".3f")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeriesConfig(ModelConfig):
    """Series of `length` numbers."""

    family: ClassVar[str] = "series"
    length: int

    @property
    def num_tokens(self):
        return self.length

    @property
    def example(self):
        return jax.ShapeDtypeStruct((self.length,), jnp.float32)

    def build(self, *, key):
        head_key, trunk_key = jax.random.split(key)
        head = SeriesHead(self.dim, self.length, self.num_classes, key=head_key)
        return ElasticModel(head, self.trunk(PreNormLayer, key=trunk_key), max_loops=self.max_loops)

    def corruption(self, *, label_drop=0.0):
        return Blend(self.null_label, label_drop)

    def loss(self):
        return Distance()

    def sampler_settings(self):
        return SamplerSettings(steps=3)

    def sampler(self, settings=None):
        settings = self.sampler_settings() if settings is None else settings
        guidance = None if settings.guidance == 1.0 else ConstantGuidance(settings.guidance)
        return Walk(length=self.length, steps=settings.steps, null_label=self.null_label, guidance=guidance)

    def compare_exits(self, model, corruption, examples, labels, *, loops, settings=None, key):
        inputs, target, _ = corruption(examples, labels, key=key)
        predicted = jax.vmap(functools.partial(model.trajectory, loops=loops))(*inputs)
        errors = jnp.mean(jnp.square(predicted - target[:, None]), axis=2)
        return SeriesExits(jnp.asarray(float(len(labels))), jnp.sum(errors, axis=0))

    def decode(self, sample, tokenizer):
        """A picture of the series: a column for each number."""
        return jnp.broadcast_to(jnp.clip(sample, -1.0, 1.0)[None, :, None], (4, self.length, 1))


class Columns(AbstractExtractor):
    """The series themselves, read from their pictures."""

    name, num_features, distance = "columns of pictures", 8, "distance of series"

    def __call__(self, examples):
        return Features(np.asarray(examples, np.float64)[:, 0, :, 0])


def series(count, seed):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    waves = np.sin((1 + labels[:, None]) * np.linspace(0.0, 3.0, 8) + rng.uniform(-0.3, 0.3, (count, 1)))
    return 0.9 * waves.astype(np.float32), labels.astype(np.int32)


@pytest.fixture(scope="module")
def task():
    config = SeriesConfig(dim=16, num_layers=1, max_loops=2, num_heads=2, num_classes=1, length=8)
    return make_task(config, ArraySource(*series(64, 0)), Batch(*series(20, 1)), Representation(), data="series")


@pytest.fixture(scope="module")
def trained(task, tmp_path_factory):
    """A run of four steps, stopped after two."""
    folder = tmp_path_factory.mktemp("series") / "run"
    options = TrainingOptions(
        out=folder, steps=2, batch_size=8, checkpoint_every=2, log_every=1, evaluate_every=2, compare=False
    )
    for steps in (2, 4):
        run = Run.of(dataclasses.replace(options, steps=steps), task)
        results = train(run, on_evaluate=watch(run))
    report_run(run, results, ReportOptions(samples=6, heldout_batch=20))
    return folder, results["ilsd"].model


def test_its_sizes_follow_the_data(task):
    assert task.config.num_classes == 3 and task.settings == SamplerSettings(steps=3)
    with pytest.raises(ValueError, match=r"examples float32\[8\] cannot take data of float32\[5\]"):
        task.config.fit_to(jax.ShapeDtypeStruct((5,), jnp.float32), num_classes=3)


def test_its_layers_have_the_options_that_need_no_grid(task):
    other = dataclasses.replace(task.config, rms_norm=True, qk_norm=True, swiglu=True)
    layers = eqx.filter_eval_shape(other.build, key=jax.random.key(0)).trunk.layers
    assert isinstance(layers.mlp, SwiGLU) and layers.attention.query_norm.weight.shape == (1, 8)
    with pytest.raises(ValueError, match=r"`SeriesConfig\(rotary=True\)`: this family does not say where"):
        dataclasses.replace(task.config, rotary=True).build(key=jax.random.key(0))


@pytest.mark.slow
def test_it_trains_and_resumes_with_reports_on_the_way(trained):
    folder, _ = trained
    assert [row["step"] for row in rows_of(folder / "metrics-ilsd.csv")] == ["1", "2", "3", "4"]
    assert [row["step"] for row in rows_of(folder / "heldout-ilsd.csv")] == ["2", "4"]
    assert (folder / "progress" / "ilsd-4.png").exists()
    assert [row["loops"] for row in rows_of(folder / "quality.csv")] == ["1", "2", "3", "4"]
    assert json.loads((folder / "summary.json").read_text())["model"]["family"] == "series"


@pytest.mark.slow
def test_it_is_saved_loaded_and_sampled(trained):
    folder, model = trained
    with pytest.raises(WeightsError, match="of the family 'series'"):
        load(folder / "model")
    generator = load(folder / "model", family=SeriesConfig)
    assert eqx.tree_equal(generator.model, jax.device_put(model, jax.devices()[0])) and generator.settings.steps == 3
    pictures = generator.sample([0, 2, 1], loops=2, guidance=2.0, key=jax.random.key(0))
    assert pictures.shape == (3, 4, 8, 1) and np.isfinite(pictures).all()


@pytest.mark.slow
def test_it_is_measured_over_a_grid(trained, tmp_path):
    generator = load(trained[0] / "model", family=SeriesConfig)
    extractor = Columns()
    real = np.asarray(jax.vmap(lambda one: generator.decode(one))(series(64, 0)[0]))
    evaluator = Evaluator(
        extractor=extractor,
        reference=set_statistics(extractor, [real]),
        distance=extractor.distance,
        card={"name": extractor.name, "reference": "64 series"},
        allow_few=False,
    )
    with pytest.raises(ValueError, match="`--samples 8` are too few for a covariance of 8 features"):
        evaluator.check(8)
    plan = SamplePlan(samples=12, batch_size=6, devices=1)
    cells = grid(("1", "1-2"), (2,), (1.0,))
    table = evaluate_grid(generator, cells, evaluator, plan, tmp_path / "grid", name="series")
    assert "distance of series" in table
    assert [row["loops"] for row in rows_of(tmp_path / "grid" / "results.csv")] == ["1", "1-2"]


@pytest.mark.slow
def test_its_loops_are_diagnosed(trained, tmp_path):
    generator = load(trained[0] / "model", family=SeriesConfig)
    heldout = ArraySource(*series(20, 1))
    counts = {"examples": 20, "copies": 1, "batch_size": 20, "seed": 0}
    text = report_loops(tmp_path / "loops", generator, heldout=heldout, **counts)
    assert "mean error" in text and "Past L_max the loss changes by" in text
    assert [row["exit"] for row in rows_of(tmp_path / "loops" / "exits.csv")] == ["1", "2", "3", "4"]


def test_its_costs_are_counted(task):
    costs = profile(task.config, batch=8, steps=3)
    model = task.config.build(key=jax.random.key(0))
    assert costs.parameters == sum(leaf.size for leaf in jax.tree.leaves(model))


def rows_of(path):
    return list(csv.DictReader(path.read_text().splitlines()))
