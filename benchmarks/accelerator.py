"""What a GPU or TPU does with the models: one command, about eight minutes, resumable part by part.

    python benchmarks/accelerator.py                    # writes results/accelerator-<device>.json and .md
    python benchmarks/accelerator.py --minutes 8        # begins nothing after eight minutes; run it again to go on
    python benchmarks/accelerator.py --only Training    # this part alone
    python benchmarks/accelerator.py --small            # the same parts with small models, on any machine

Parts, each a table:

- **Values**: predictions of all exits, the loss and the norm of the gradient of a training step, and whole samples, in
  float32 and in bfloat16, beside a CPU in float32.
- **Attention**: every kernel that the device has, at 257 tokens and heads of 48 and 72: its values and gradients in
  bfloat16 beside a CPU in float32, and the time and memory of a training step with it.
- **Training**: milliseconds of an ILSD step in bfloat16 with every rematerialisation, the share of the device's peak
  (model FLOP utilisation), and the memory that the program takes beside what `elt_zoo.profile` estimates.
- **Sampling**: the paper's looped models beside unique depth of equal compute, batch 8.
- **Latency**: one forward pass of one example, beside the time that reading the weights takes.
- **ILSD**: its step over the vanilla step.
- **PyTorch**: the training step in bfloat16 of two layers in four loops beside the same network in PyTorch, eager and
  compiled, with its fused attention. Only where PyTorch is installed and sees the device.
- **Operations**: what takes longest in a step, as JAX's profiler sees it.
- **A real training**: the digits for a minute.

A batch that does not fit in memory is halved until it does. What was measured is never measured again without
`--again`. It needs no network, and JAX 0.10 or newer; where packages are missing, carry them as wheels
(`pip download elt_zoo -d wheels` on a machine of the same kind, then `pip install --no-index -f wheels elt_zoo`).
"""

import argparse
import dataclasses
import importlib.util
import json
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from timing import seconds

from elt_zoo import ElasticModel, Generator, ILSDLoss, Remat, load
from elt_zoo.data import Batch, digits_to_pixels, load_digits
from elt_zoo.families import ModelConfig, preset
from elt_zoo.models import BatchedPredict
from elt_zoo.nn import AttentionDevice, AttentionKernel, SelfAttention, with_attention
from elt_zoo.objectives import AbstractObjective, VanillaLoss
from elt_zoo.profile import environment, peak_flops, profile
from elt_zoo.recipes import takes_tokens
from elt_zoo.storage import write_json
from elt_zoo.training import OptimizerConfig, Precision, TrainState, jit_step, make_optimizer, make_train_step

ROOT = Path(__file__).parents[1]
ROUNDS = 5
BFLOAT16 = Precision(jnp.bfloat16)
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.1}
"""Of the largest difference, over the largest value."""

PARTS = ("Values", "Attention", "Training", "Sampling", "Latency", "ILSD", "PyTorch", "Operations", "A real training")

Row = dict[str, Any]


class Case(NamedTuple):
    """One row of a table: what it is called, and how it is measured."""

    part: str
    name: str
    measure: Callable[[], Row]


# Values.


def predictions(model: ElasticModel, config: ModelConfig, device: Any, precision: Precision) -> np.ndarray:
    """Of all exits for one batch."""
    labels = jnp.arange(8) % 10
    corrupted = config.corruption(label_drop=0.0)(*_examples(config, 8), key=jax.random.key(1))
    inputs = jax.device_put(precision.cast_inputs(corrupted.inputs), device)
    placed, labels = jax.device_put((precision.cast(model), labels), device)

    def every_exit(model: ElasticModel, *inputs: Any) -> Any:
        return jax.vmap(lambda *one: model.trajectory(*one, loops=config.max_loops))(*inputs)

    with jax.default_matmul_precision("highest"):
        return np.asarray(eqx.filter_jit(every_exit)(placed, *inputs), np.float32)


def gradient(model: ElasticModel, config: ModelConfig, device: Any, precision: Precision) -> np.ndarray:
    """The loss and the norm of the gradient of one training step."""
    optimizer = make_optimizer(OptimizerConfig.digits(total_steps=10))
    step = make_train_step(optimizer, _ilsd(config), config.corruption(), total_steps=10, precision=precision)
    state = TrainState.create(model, optimizer, key=jax.random.key(2))
    with jax.default_matmul_precision("highest"), jax.default_device(device):
        state, metrics = eqx.filter_jit(step)(jax.device_put(state, device), Batch(*_examples(config, 8)))
        return np.asarray([metrics["loss"], metrics["gradient_norm"]], np.float32)


def samples(generator: Generator, device: Any, precision: Precision) -> np.ndarray:
    cast = dataclasses.replace(generator, model=precision.cast(generator.model))
    labels, sampler = jnp.arange(20) % 10, generator.sampler()
    with jax.default_matmul_precision("highest"), jax.default_device(device):
        model = jax.device_put(cast.model, device)
        drawn = sampler(BatchedPredict(model), labels, loops=generator.config.max_loops, key=jax.random.key(3))
        return np.asarray(drawn, np.float32)


def values(name: str, what: str, dtype: str) -> Row:
    """The largest difference from a CPU in float32."""
    generator = load(name)
    model, config = generator.model, generator.config
    here, cpu = jax.devices()[0], jax.devices("cpu")[0]

    def result(device: Any, precision: Precision) -> np.ndarray:
        if what == "samples":
            return samples(generator, device, precision)
        compute = predictions if what == "exits" else gradient
        return compute(model, config, device, precision)

    ours, right = result(here, Precision(jnp.dtype(dtype))), result(cpu, Precision())
    if what == "samples" and takes_tokens(config):
        return {"tokens that differ": round(float(np.mean(ours != right)), 4)}
    difference = float(np.abs(ours - right).max() / np.abs(right).max())
    # A sample is the end of many steps, each of which passes on the differences of the last.
    within = {} if what == "samples" else {"within": difference <= TOLERANCES[dtype]}
    return {"largest difference": float(f"{difference:.3g}"), **within}


def kernels() -> list[AttentionKernel]:
    """What can compute attention on this device."""
    fused = {"cuda": AttentionKernel.CUDNN, "tpu": AttentionKernel.PALLAS}.get(AttentionDevice.here().platform)
    return [AttentionKernel.XLA] if fused is None else [AttentionKernel.XLA, fused]


def attention_values(tokens: int, head_dim: int, kernel: AttentionKernel) -> Row:
    """The largest differences of attention and its gradient in bfloat16 from a CPU in float32, of the same numbers."""
    rounded = BFLOAT16.cast(SelfAttention(4 * head_dim, 4, key=jax.random.key(0)))
    x, weight = jax.random.normal(jax.random.key(1), (2, 8, tokens, 4 * head_dim), jnp.bfloat16)

    def results(dtype: Any, kernel: AttentionKernel) -> list[np.ndarray]:
        module = with_attention(Precision(dtype).cast(rounded), kernel)

        def total(given: Any, weight: Any) -> Any:
            module, x = given
            attended = jax.vmap(module)(x)
            return jnp.sum(attended.astype(jnp.float32) * weight.astype(jnp.float32)), attended

        found = eqx.filter_jit(eqx.filter_grad(total, has_aux=True))((module, x.astype(dtype)), weight)
        return [np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(eqx.filter(found, eqx.is_array))]

    ours = results(jnp.bfloat16, kernel)
    cpu = jax.devices("cpu")[0]
    rounded, x, weight = jax.device_put((rounded, x, weight), cpu)
    with jax.default_matmul_precision("highest"), jax.default_device(cpu):
        right = results(jnp.float32, AttentionKernel.XLA)
    pairs = zip(ours, right, strict=True)
    largest = max(float(np.abs(one - other).max() / np.abs(other).max()) for one, other in pairs)
    return {"largest difference": float(f"{largest:.3g}"), "within": largest <= TOLERANCES["bfloat16"]}


# Speed and memory.


def step_of(
    config: ModelConfig,
    batch: int,
    objective: AbstractObjective,
    attention: AttentionKernel = AttentionKernel.AUTO,
) -> tuple[Any, Any, Batch]:
    """A training step in bfloat16, to be compiled, its state and its batch."""
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-4, total_steps=1000, clip_norm=1.0))
    make = make_train_step(
        optimizer, objective, config.corruption(), total_steps=1000, precision=BFLOAT16, attention=attention
    )
    state = eqx.filter_jit(lambda key: TrainState.create(config.build(key=key), optimizer, key=key))(jax.random.key(0))
    examples = Batch(*_examples(config, batch))
    arrays, static = eqx.partition(state, eqx.is_array)

    def step(arrays: Any, batch: Batch) -> Any:
        state, metrics = make(eqx.combine(arrays, static), batch)
        return eqx.filter(state, eqx.is_array), metrics["loss"]

    return jax.jit(step, donate_argnums=0), arrays, examples


def training(
    config: ModelConfig,
    batch: int,
    objective: AbstractObjective | None = None,
    attention: AttentionKernel = AttentionKernel.AUTO,
) -> Row:
    """One training step in bfloat16: its time, utilisation and memory."""
    objective = _ilsd(config) if objective is None else objective
    step, arrays, examples = step_of(config, batch, objective, attention)
    started = time.perf_counter()
    compiled = step.lower(arrays, examples).compile()
    compiling = time.perf_counter() - started
    times = []
    for _ in range(ROUNDS + 1):
        started = time.perf_counter()
        arrays, loss = compiled(arrays, examples)
        jax.block_until_ready(loss)
        times.append(time.perf_counter() - started)
    counted = profile(config, batch=batch, dtype=jnp.bfloat16, attention=attention)
    took, memory = float(np.median(times[1:])), compiled.memory_analysis()
    flops = batch * counted.training_flops(exits=2 if isinstance(objective, ILSDLoss) else 1) / took
    peak = peak_flops(jax.devices()[0].device_kind)
    return {
        "batch": batch,
        "attention": "" if counted.attention is None else str(counted.attention.kernel),
        "ms a step": round(1e3 * took, 2),
        "examples a second": round(batch / took, 1),
        "TFLOP/s": round(flops / 1e12, 3),
        "MFU": "" if peak is None else round(flops / peak, 3),
        "MiB of temporaries": "" if memory is None else round(memory.temp_size_in_bytes / 2**20, 2),
        "estimated": round(counted.training_activation_bytes() / 2**20, 2),
        "seconds to compile": round(compiling, 1),
    }


def operations(config: ModelConfig, batch: int) -> Row:
    """The operations of the compiled step that take longest, as JAX's profiler sees them."""
    step, arrays, examples = step_of(config, batch, _ilsd(config))
    arrays, loss = step(arrays, examples)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(ROUNDS):
                arrays, loss = step(arrays, examples)
            jax.block_until_ready(loss)
        planes = list(jax.profiler.ProfileData.from_file(str(next(Path(folder).rglob("*.xplane.pb")))).planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    lines = [line for plane in devices or planes for line in plane.lines if devices or line.name.startswith("tf_XLA")]
    times: Counter[str] = Counter()
    for line in lines:
        for event in line.events:
            if "Execut" not in event.name:  # what waits for the others, on CPUs
                times[event.name] += event.duration_ns
    longest = enumerate(times.most_common(6), 1)
    return {"batch": batch} | {str(place): f"{name[:60]}, {ns / 1e6 / ROUNDS:.2f} ms" for place, (name, ns) in longest}


def ilsd_over_vanilla(config: ModelConfig, batch: int) -> Row:
    ours, vanilla = (
        training(config, batch),
        training(config, batch, VanillaLoss(config.loss(), max_loops=config.max_loops)),
    )
    if ours["batch"] != vanilla["batch"]:
        raise MemoryError("only one of the two fits")
    return {"batch": batch, "ILSD": ours["ms a step"], "vanilla": vanilla["ms a step"]} | {
        "ratio": round(ours["ms a step"] / vanilla["ms a step"], 3)
    }


def pytorch_device() -> str | None:
    """The device of PyTorch that JAX's programs run on, if PyTorch is here and sees it."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch  # pyright: ignore[reportMissingImports]

    platform = AttentionDevice.here().platform
    if platform == "cpu":
        return "cpu"
    return "cuda" if platform in ("cuda", "rocm") and torch.cuda.is_available() else None


def beside_pytorch(family: str, width: int, tokens: int, batch: int, device: str) -> Row:
    """One training step in bfloat16 beside PyTorch's. Both compute the same; the losses are compared."""
    from training import config_of, corrupted_batch, difference, our_step, their_step

    config = config_of(family, width, tokens)
    examples, corrupted = corrupted_batch(config, batch)
    ours = our_step(config, examples, corrupted, precision=BFLOAT16)
    row: Row = {"batch": batch}
    times = {}
    for name, compiled in (("eager", False), ("compiled", True)):
        theirs = their_step(config, corrupted, compiled=compiled, device=device, bfloat16=True)
        if not times:
            row["difference of loss and norm"] = float(f"{difference(ours(), theirs()):.2g}")
            times["ours"] = _median_ms(ours)
        times[name] = _median_ms(theirs)
    row |= {"ms": times["ours"], "ms, PyTorch": times["eager"], "ms, torch.compile": times["compiled"]}
    return row | {
        "PyTorch over ours": round(times["eager"] / times["ours"], 2),
        "torch.compile over ours": round(times["compiled"] / times["ours"], 2),
    }


def _median_ms(step: Callable[[], dict[str, Any]]) -> float:
    """Of a step that has compiled in its first two calls. Reading its loss waits for all that it computes."""
    times = []
    for _ in range(ROUNDS + 2):
        started = time.perf_counter()
        float(step()["loss"])
        times.append(time.perf_counter() - started)
    return round(1e3 * float(np.median(times[2:])), 3)


def sampling(config: ModelConfig, batch: int) -> Row:
    """Whole samples, without the tokenizer."""
    model = BFLOAT16.cast(eqx.filter_jit(config.build)(key=jax.random.key(0)))
    sampler = config.sampler(config.sampler_settings())
    labels = jnp.zeros(batch, jnp.int32)

    def draw() -> Any:
        return sampler(BatchedPredict(model), labels, loops=config.max_loops, key=jax.random.key(1))

    seconds(draw)  # compiles
    took = float(np.median([seconds(draw) for _ in range(3)]))
    parameters = profile(config).parameters
    return {
        "batch": batch,
        "parameters, millions": round(parameters / 1e6, 1),
        "steps": sampler.steps,
        "samples a second": round(batch / took, 3),
    }


def latency(config: ModelConfig) -> Row:
    """One forward pass of one example, and one reading of the weights."""
    model = BFLOAT16.cast(eqx.filter_jit(config.build)(key=jax.random.key(0)))
    one = config.example_inputs(jnp.bfloat16)
    inputs = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), one)
    forward = eqx.filter_jit(lambda model, inputs: model(*inputs, loops=config.max_loops))
    read = jax.jit(lambda leaves: sum(jnp.sum(leaf, dtype=jnp.float32) for leaf in leaves))
    leaves = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
    seconds(lambda: forward(model, inputs))
    seconds(lambda: read(leaves))
    took = float(np.median([seconds(lambda: forward(model, inputs)) for _ in range(20)]))
    reading = float(np.median([seconds(lambda: read(leaves)) for _ in range(20)]))
    megabytes = sum(leaf.nbytes for leaf in leaves) / 1e6
    return {
        "weights, MB": round(megabytes, 1),
        "ms": round(1e3 * took, 3),
        "ms to read the weights once": round(1e3 * reading, 3),
    }


def real_training(limit: float) -> Row:
    """The digits, as `elt-zoo train` would, for so many seconds after compilation."""
    config, total = preset("digits-dit"), 10**5
    optimizer = make_optimizer(OptimizerConfig(learning_rate=4e-3, total_steps=total, warmup_steps=50, clip_norm=1.0))
    step = jit_step(make_train_step(optimizer, _ilsd(config), config.corruption(), total_steps=total, ema_decay=0.99))
    state = TrainState.create(config.build(key=jax.random.key(0)), optimizer, key=jax.random.key(1))
    digits, rng, losses = load_digits("train"), np.random.default_rng(0), []
    pixels, started = digits_to_pixels(digits.images), None
    while started is None or time.perf_counter() - started < limit:
        rows = rng.integers(0, len(pixels), 64)
        state, metrics = step(state, Batch(pixels[rows], digits.labels[rows].astype(np.int32)))
        losses.append(metrics["teacher"])
        if started is None:
            jax.block_until_ready(losses)
            started = time.perf_counter()
    taken, values = time.perf_counter() - started, np.asarray(jnp.stack(losses))
    return {
        "steps": len(values) - 1,
        "steps a second": round((len(values) - 1) / taken, 1),
        "loss at L_max, first 50 steps": round(float(values[:50].mean()), 4),
        "last 50": round(float(values[-50:].mean()), 4),
        "updates skipped": int(state.skipped),
    }


def fitting(measure: Callable[[int], Row], batch: int) -> Row:
    """With the batch halved until it fits in memory."""
    while True:
        try:
            return measure(batch)
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or batch == 1:
                raise
            batch //= 2


def cases(small: bool, train_seconds: float) -> Iterator[Case]:
    for name in ("digits-dit", "digits-maskgit"):
        for dtype in TOLERANCES:
            for what in ("exits", "step", "samples"):
                yield Case("Values", f"{name}, {what}, {dtype}", lambda n=name, w=what, d=dtype: values(n, w, d))
    trained = ["digits-dit", "digits-maskgit"] if small else []
    trained += [] if small else ["elt-B-6Nx2L", "elt-L-8Nx3L", "elt-XL-7Nx4L", "elt-dit-8Nx4L", "dit-XL-2"]
    batch = 16 if small else 64
    for kernel in kernels():
        for head_dim in (48, 72):
            yield Case(
                "Attention",
                f"257 tokens, heads of {head_dim}, {kernel}",
                lambda d=head_dim, k=kernel: attention_values(257, d, k),
            )
        for name in trained if small else ("elt-B-6Nx2L", "elt-XL-7Nx4L", "elt-dit-8Nx4L"):
            config = preset(name)
            yield Case(
                "Attention",
                f"{name}, {kernel}",
                lambda c=config, k=kernel: fitting(lambda size: training(c, size, attention=k), batch),
            )
    for remat in (Remat.ELEMENTWISE, Remat.LAYER, Remat.LOOP, Remat.NONE):  # the default of every model first
        for name in trained:
            config = dataclasses.replace(preset(name), remat=remat)
            yield Case(
                "Training", f"{name}, remat {remat}", lambda c=config: fitting(lambda size: training(c, size), batch)
            )
    pairs = [("digits-maskgit", None)] if small else []
    if not small:
        pairs += [("elt-B-6Nx2L", "maskgit-B-12"), ("elt-L-8Nx3L", "maskgit-L-24")]
        pairs += [("elt-XL-7Nx4L", "maskgit-XL-28"), ("elt-H-8Nx4L", "maskgit-H-32")]
    for looped, unique in pairs:
        sides = {looped: preset(looped)}
        sides[unique or f"{looped}, unique depth"] = preset(unique) if unique else preset(looped).unique_depth()
        for name, config in sides.items():
            yield Case("Sampling", name, lambda c=config: fitting(lambda size: sampling(c, size), 8))
            yield Case("Latency", name, lambda c=config: latency(c))
    ilsd = trained[:1] if small else ["elt-B-6Nx2L"]
    for name in ilsd:
        config = preset(name)
        yield Case("ILSD", name, lambda c=config: fitting(lambda size: ilsd_over_vanilla(c, size), batch))
    sizes = [("dit", 64, 16, 16)] if small else [(each, 1024, 256, 64) for each in ("dit", "maskgit")]
    if (device := pytorch_device()) is not None:
        for family, width, tokens, size in sizes:
            yield Case(
                "PyTorch",
                f"{family}, width {width}, {tokens} tokens",
                lambda f=family, w=width, t=tokens, b=size: beside_pytorch(f, w, t, b, device),
            )
    for name in ilsd:
        config = preset(name)
        yield Case("Operations", name, lambda c=config: fitting(lambda size: operations(c, size), batch))
    yield Case("A real training", "digits-dit", lambda: real_training(train_seconds))


def _ilsd(config: ModelConfig) -> AbstractObjective:
    loss = config.loss()
    if config.max_loops == 1:
        return VanillaLoss(loss, max_loops=1)
    return ILSDLoss(loss, loss.distillation, max_loops=config.max_loops)


def _examples(config: ModelConfig, batch: int) -> tuple[jax.Array, jax.Array]:
    shape, key = (batch, *config.example.shape), jax.random.key(0)
    labels = jnp.arange(batch, dtype=jnp.int32) % config.num_classes
    if takes_tokens(config):
        return jax.random.randint(key, shape, 0, getattr(config, "codebook_size"), jnp.int32), labels  # noqa: B009
    return jax.random.normal(key, shape), labels


def markdown(done: dict[str, dict[str, Row]], where: str) -> str:
    lines = []
    for part, rows in done.items():
        columns = list(dict.fromkeys(name for row in rows.values() for name in row))
        lines += [f"**{part}**", "", "| | " + " | ".join(columns) + " |", "|" + "---|" * (len(columns) + 1)]
        lines += [
            f"| {name} | " + " | ".join(str(row.get(column, "")) for column in columns) + " |"
            for name, row in rows.items()
        ]
        lines.append("")
    return "\n".join([*lines, f"{where}."]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="begin nothing after so many")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--train-seconds", type=float, default=60.0, help="of the real training")
    parser.add_argument("--small", action="store_true", help="small models, for any machine")
    parser.add_argument("--again", action="store_true", help="measure what is there too")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    if arguments.minutes <= 0.0 or arguments.train_seconds <= 0.0:
        parser.error("--minutes and --train-seconds must be positive.")
    where, deadline = environment(), time.perf_counter() + 60.0 * arguments.minutes
    device = re.sub(r"\W+", "-", jax.devices()[0].device_kind.lower()) + ("-small" if arguments.small else "")
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / f"accelerator-{device}.json"
    done: dict[str, dict[str, Row]] = json.loads(file.read_text())["parts"] if file.exists() else {}
    left = 0
    for case in cases(arguments.small, arguments.train_seconds):
        if case.part not in arguments.only or (case.name in done.get(case.part, {}) and not arguments.again):
            continue
        if time.perf_counter() > deadline:
            left += 1
            continue
        try:
            row = case.measure()
        except Exception as error:  # one model that a device cannot run says nothing of the others
            row = {"failed": re.sub(r"[|\s]+", " ", f"{type(error).__name__}: {error}")[:160]}
        done.setdefault(case.part, {})[case.name] = row
        write_json(file, {"environment": where, "parts": done})
        file.with_suffix(".md").write_text(markdown(done, where))
        print(f"{case.part}: {case.name}: {row}", flush=True)
        jax.clear_caches()
    print(f"{left} left: run it again." if left else f"All of it is in {file.with_suffix('.md')}.")


if __name__ == "__main__":
    main()
