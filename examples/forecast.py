"""Forecast a real series with loops: a family of its own in one file, trained with ILSD and measured at every exit.

    pip install 'elt_zoo[examples]'
    python examples/forecast.py

The series is the weekly CO₂ at Mauna Loa, 1958 to 2001, which comes with statsmodels. Three years, in patches of a
quarter, go in; quantiles of the next year come out. The elastic model of two layers and four loops is compared with as
many unique layers as it applies (eight), with the same two layers without loops, and with last year's values.

Then: does it tell how wrong a forecast will be if the exits disagree about it? The rank correlation is that with the
error against what came, alone and beyond what the width of the forecast's own interval tells. Its interval comes from
resampling whole years, as windows of neighbouring weeks are nearly the same.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from scipy.stats import rankdata

from elt_zoo import ElasticModel, ILSDLoss
from elt_zoo.commands import run
from elt_zoo.corruption import AbstractCorruption, Corrupted
from elt_zoo.data import ArraySource, training_batches
from elt_zoo.diagnostics import AbstractExits, ExitColumn
from elt_zoo.families import ModelConfig, SamplerSettings
from elt_zoo.nn import LayerNorm, Linear, PreNormLayer
from elt_zoo.objectives import AbstractLoss, VanillaLoss
from elt_zoo.sampling import AbstractGuidance, AbstractSampler
from elt_zoo.training import OptimizerConfig, TrainState, fit, jit_step, make_optimizer, make_train_step

PATCH, PAST, FUTURE = 13, 156, 52
QUANTILES = (0.1, 0.5, 0.9)
SPLIT = "1987-01-01"
"""Forecasts from then on are the held-out ones."""
UNIT = 5.0
"""Parts per million that are 1 to the network."""


class ForecastHead(eqx.Module):
    """The past in, in patches; quantiles of the future out, from tokens of its own that know only their place."""

    patches: Linear
    places: Array
    norm: LayerNorm
    out: Linear

    def __init__(self, dim: int, *, key: Array):
        keys = jax.random.split(key, 3)
        self.patches = Linear(PATCH, dim, key=keys[0])
        self.places = 0.02 * jax.random.normal(keys[1], ((PAST + FUTURE) // PATCH, dim))
        self.norm = LayerNorm(dim, eps=1e-6)
        self.out = Linear(dim, PATCH * len(QUANTILES), key=keys[2])

    def embed(self, past: Array, label: Array, *, key: Array | None = None) -> tuple[Array, None]:
        known = jax.vmap(self.patches)(jnp.reshape(past, (-1, PATCH)))
        return self.places.at[: len(known)].add(known), None

    def __call__(self, state: Array, conditioning: None, /) -> Array:
        future = state[PAST // PATCH :]
        return jnp.reshape(jax.vmap(self.out)(jax.vmap(self.norm)(future)), (FUTURE, len(QUANTILES)))


class HideTheFuture(AbstractCorruption):
    """What the network sees of a window, and what it must forecast."""

    def __call__(self, examples: Array, labels: Array, *, key: Array) -> Corrupted:
        return Corrupted((examples[:, :PAST], labels), examples[:, PAST:], jnp.ones(len(labels)))


class PinballLoss(AbstractLoss):
    """The loss whose best forecasts are the quantiles: an error costs q where too low and 1 − q where too high."""

    def __call__(self, prediction: Array, target: Array) -> Array:
        error, quantile = target[:, None] - prediction, jnp.asarray(QUANTILES)[None]
        return jnp.mean(jnp.maximum(quantile * error, (quantile - 1.0) * error))

    def distillation(self, student: Array, teacher: Array, target: Array) -> Array:
        """The squared difference. The absolute one, several times as large as the loss, drowns it: exits then agree,
        and none of them forecasts.
        """
        return jnp.mean(jnp.square(student - teacher))


class Reveal(AbstractSampler):
    """One step: the known past, with the median of the forecast after it. It starts from windows (`initial`)."""

    steps: int = eqx.field(static=True, default=1)
    null_label: int | None = eqx.field(static=True, default=None)
    guidance: AbstractGuidance | None = None

    def init(self, labels: Array, key: Array, initial: Array | None) -> Array:
        if initial is None:
            raise ValueError("A forecast needs the past: give windows as `initial`; their future is not read.")
        return initial

    def inputs(self, state: Array, now: Array) -> tuple[Array]:
        return (state[:, :PAST],)

    def step(self, state: Array, prediction: Array, now: Array, key: Array) -> Array:
        return jnp.concatenate([state[:, :PAST], prediction[:, :, QUANTILES.index(0.5)]], axis=1)

    def output(self, state: Array) -> Array:
        return state


class ForecastExits(AbstractExits):
    """The loss of every exit."""

    share_of: ClassVar[str] = "windows"
    count: Array
    losses: Array

    def columns(self) -> list[ExitColumn]:
        return [ExitColumn("loss", "pinball loss", self.losses / self.count, ".4f")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForecastConfig(ModelConfig):
    """The family: all parts that a forecaster is made of."""

    family: ClassVar[str] = "forecast"

    @property
    def num_tokens(self) -> int:
        return (PAST + FUTURE) // PATCH

    @property
    def example(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((PAST + FUTURE,), jnp.float32)

    def build(self, *, key: Array) -> ElasticModel:
        head_key, trunk_key = jax.random.split(key)
        trunk = self.trunk(PreNormLayer, key=trunk_key)
        return ElasticModel(ForecastHead(self.dim, key=head_key), trunk, max_loops=self.max_loops)

    def corruption(self, *, label_drop: float = 0.0) -> AbstractCorruption:
        return HideTheFuture()

    def loss(self) -> PinballLoss:
        return PinballLoss()

    def sampler_settings(self) -> SamplerSettings:
        return SamplerSettings(steps=1)

    def sampler(self, settings: SamplerSettings | None = None) -> AbstractSampler:
        return Reveal()

    def compare_exits(
        self, model: ElasticModel, corruption: Any, examples: Any, labels: Any, *, loops: int, settings=None, key: Any
    ) -> ForecastExits:
        inputs, target, _ = corruption(examples, labels, key=key)
        forecasts = jax.vmap(functools.partial(model.trajectory, loops=loops))(*inputs)
        losses = jax.vmap(lambda exits, target: jax.vmap(lambda one: PinballLoss()(one, target))(exits))
        return ForecastExits(jnp.asarray(float(len(labels))), jnp.sum(losses(forecasts, target), axis=0))


def windows() -> tuple[np.ndarray, np.ndarray]:
    """Training and held-out windows, a week apart, each against the last value of its past. No target is in both."""
    from statsmodels.datasets import co2

    data: Any = co2.load_pandas().data
    series = data["co2"].interpolate()
    length = PAST + FUTURE
    values = np.lib.stride_tricks.sliding_window_view(series.to_numpy(np.float32), length)
    values = (values - values[:, PAST - 1 : PAST]) / UNIT
    first, last = series.index[PAST : PAST + len(values)], series.index[length - 1 :]
    return values[last < SPLIT], values[first >= SPLIT]


def train(config: ModelConfig, data: np.ndarray, options: "ForecastOptions", step: Any, seed: int) -> ElasticModel:
    """A model of one seed, its parameters averaged."""
    model_key, train_key = jax.random.split(jax.random.key(seed))
    optimizer = make_optimizer(OptimizerConfig.digits(total_steps=options.steps, learning_rate=options.learning_rate))
    state = TrainState.create(config.build(key=model_key), optimizer, key=train_key)
    source = ArraySource(data, np.zeros(len(data), np.int32))
    batches = training_batches(source, batch_size=options.batch_size, seed=seed)
    return fit(state, step, batches, total_steps=options.steps, log_every=options.steps).state.ema


def make_step(config: ModelConfig, options: "ForecastOptions") -> Any:
    """One training step for all seeds: with ILSD where there are loops."""
    loss, loops = PinballLoss(), config.max_loops
    objective = VanillaLoss(loss, max_loops=1) if loops == 1 else ILSDLoss(loss, loss.distillation, max_loops=loops)
    optimizer = make_optimizer(OptimizerConfig.digits(total_steps=options.steps, learning_rate=options.learning_rate))
    corruption = config.corruption()
    return jit_step(make_train_step(optimizer, objective, corruption, total_steps=options.steps, ema_decay=0.99))


@eqx.filter_jit
def forecasts(model: ElasticModel, past: Array, loops: int) -> Array:
    """Of every window and exit 1 to `loops`: (windows, exits, weeks, quantiles)."""
    labels = jnp.zeros(len(past), jnp.int32)
    return jax.vmap(functools.partial(model.trajectory, loops=loops))(past, labels)


def pinball(forecast: np.ndarray, future: np.ndarray) -> np.ndarray:
    """The loss of every window in parts per million."""
    error, quantile = future[..., None] - forecast, np.asarray(QUANTILES)
    return UNIT * np.maximum(quantile * error, (quantile - 1.0) * error).mean(axis=(1, 2))


def naive(train: np.ndarray, heldout: np.ndarray, *, growth: bool) -> np.ndarray:
    """Last year's values, with last year's growth if asked for, amid the quantiles of their errors in training."""

    def point(data: np.ndarray) -> np.ndarray:
        year = data[:, PAST - FUTURE : PAST]
        return year + (data[:, PAST - 1 : PAST] - data[:, PAST - 1 - FUTURE : PAST - FUTURE] if growth else 0.0)

    errors = np.quantile(train[:, PAST:] - point(train), QUANTILES, axis=0).T
    return point(heldout)[..., None] + errors


def correlation(one: np.ndarray, other: np.ndarray, given: np.ndarray | None = None) -> float:
    """Spearman's rank correlation, of what the ranks of `given` leave unexplained if there are any."""
    one, other = rankdata(one), rankdata(other)
    if given is not None:
        terms = np.stack([np.ones(len(given)), rankdata(given)], axis=1)
        one, other = (each - terms @ np.linalg.lstsq(terms, each)[0] for each in (one, other))
    return float(np.corrcoef(one, other)[0, 1])


def resampled(*series: np.ndarray, rounds: int = 1000) -> str:
    """The correlation, and where 95% of those lie that whole years, sampled with replacement, give."""
    rng, years = np.random.default_rng(0), -(-len(series[0]) // FUTURE)
    blocks = np.array_split(np.arange(len(series[0])), years)
    chosen = [np.concatenate([blocks[year] for year in rng.integers(years, size=years)]) for _ in range(rounds)]
    low, high = np.quantile([correlation(*(each[rows] for each in series)) for rows in chosen], (0.025, 0.975))
    return f"{correlation(*series):+.2f} ({low:+.2f} to {high:+.2f})"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForecastOptions:
    """Forecast the weekly CO₂ at Mauna Loa with an elastic model, and with what it is compared with."""

    seeds: int = 3
    steps: int = 600
    batch_size: int = 64
    learning_rate: float = 2e-3
    dim: int = 32
    num_layers: int = 2
    max_loops: int = 4

    def __post_init__(self):
        for name in ("seeds", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`--{name.replace('_', '-')} {getattr(self, name)}` must be at least 1.")
        if self.max_loops < 2:
            raise ValueError(f"`--max-loops {self.max_loops}` leaves no exit to compare: use at least 2.")


def forecast(options: ForecastOptions) -> None:
    """Trains, measures and prints."""
    known, heldout = windows()
    future = heldout[:, PAST:]
    sizes: dict[str, Any] = {"dim": options.dim, "num_layers": options.num_layers, "max_loops": options.max_loops}
    elastic = ForecastConfig(**sizes, num_heads=2, num_classes=1, scan_layers=True)
    rows: dict[str, list[np.ndarray]] = {
        "last year": [naive(known, heldout, growth=False)],
        "last year and its growth": [naive(known, heldout, growth=True)],
    }
    exits: list[np.ndarray] = []
    for config, name in (
        (elastic.unlooped(), f"{elastic.num_layers} layers, no loops"),
        (elastic.unique_depth(), f"{elastic.effective_depth} unique layers"),
        (elastic, f"{elastic.num_layers} layers, ILSD, L ="),
    ):
        step = make_step(config, options)
        for seed in range(options.seeds):
            model = train(config, known, options, step, seed)
            at_exits = np.asarray(forecasts(model, jnp.asarray(heldout[:, :PAST]), config.max_loops))
            if config is elastic:
                exits.append(at_exits)
                for loops in range(1, config.max_loops + 1):
                    rows.setdefault(f"{name} {loops}", []).append(at_exits[:, loops - 1])
            else:
                rows.setdefault(name, []).append(at_exits[:, 0])
    print(f"{len(known)} training windows, {len(heldout)} held-out ones; mean ± spread over {options.seeds} seed(s)\n")
    print("| forecast | pinball loss (ppm) | median's mean error (ppm) | in the 80% interval |\n|---|---|---|---|")
    for name, each in rows.items():
        losses = [pinball(forecast, future).mean() for forecast in each]
        errors = [UNIT * np.abs(forecast[..., 1] - future).mean() for forecast in each]
        inside = [np.mean((forecast[..., 0] <= future) & (future <= forecast[..., 2])) for forecast in each]
        print(f"| {name} | {_said(losses)} | {_said(errors)} | {np.mean(inside):.0%} |")
    print("\nRank correlation with the error of the forecast at L_max, and its 95% interval:\n")
    print("| seed | exits disagree | interval is wide | exits disagree, beyond the interval |\n|---|---|---|---|")
    for seed, at_exits in enumerate(exits):
        error = pinball(at_exits[:, -1], future)
        apart = np.abs(at_exits[:, :-1, :, 1] - at_exits[:, -1:, :, 1]).mean(axis=(1, 2))
        width = (at_exits[:, -1, :, 2] - at_exits[:, -1, :, 0]).mean(axis=1)
        print(f"| {seed} | {resampled(apart, error)} | {resampled(width, error)} | {resampled(apart, error, width)} |")


def _said(values: list[Any]) -> str:
    return f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")


if __name__ == "__main__":
    run(forecast, ForecastOptions, description=__doc__)
