"""The page to play with a generator, without a browser: what its views show, and how wrong use is said."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import run

from elt_zoo import load
from elt_zoo.anytime import PlanningData, loops_text, make_planner
from elt_zoo.demo import Choice, Studio, loop_views, make_page
from elt_zoo.demo._views import planned, plans
from elt_zoo.diagnostics import sampling_update_norms
from elt_zoo.families import DiTConfig, MaskGITConfig
from elt_zoo.models import BatchedPredict
from elt_zoo.profile import profile

STEPS, EXITS, COUNT = 3, 3, 2
CHOICE = Choice(label=3, loops=2, steps=STEPS, guidance=1.0, seed=5)


@pytest.fixture(scope="module", params=["digits-dit", "digits-maskgit"])
def studio(request):
    studio = Studio(load(request.param), count=COUNT)
    studio.loops = studio.loops[:EXITS]
    return studio


def test_samples_are_those_of_the_generator_and_sampled_once(studio):
    samples = studio.samples(CHOICE)
    expected = studio.generator.sample(
        [3, 3], loops=2, steps=STEPS, guidance=1.0, batch_size=COUNT, key=jax.random.key(5)
    )
    np.testing.assert_array_equal(samples.pixels, expected)
    assert samples.seconds > 0 and studio.samples(dataclasses.replace(CHOICE)) is samples
    every = studio.at_every_loop_count(CHOICE)
    assert len(every) == EXITS and every[1] is samples
    assert not np.array_equal(every[0].pixels, every[2].pixels)


def test_costs_are_those_of_profile(studio):
    expected = profile(studio.generator.config, loops=2, steps=STEPS, guidance=True)
    assert studio.costs(dataclasses.replace(CHOICE, guidance=2.0)) == expected


@pytest.mark.slow
def test_views_are_of_the_first_sample_and_every_exit_is_that_many_loops(studio):
    generator, views = studio.generator, studio.views(CHOICE)
    config, predict = generator.config, BatchedPredict(generator.model)
    sampler, labels = generator.sampler(steps=STEPS), jnp.full(COUNT, 3)
    call = {"loops": jnp.asarray(2), "key": jax.random.fold_in(jax.random.key(5), 0)}

    # Known before step k is what was sampled after step k − 1.
    after = sampler.trajectory(predict, labels, **call)[:, 0]
    known = [config.preview(sample, generator.tokenizer) for sample in after[:-1]]
    np.testing.assert_allclose(views.known[1:], np.stack(known), atol=1e-4)
    np.testing.assert_allclose(generator.decode(after[-1]), studio.samples(CHOICE).pixels[0], atol=1e-4)

    asked = sampler.step_inputs(predict, labels, **call)
    inputs = tuple(each[1, :1] for each in asked)
    guesses = [
        config.guess(predict(*inputs, labels[:1], loops=loops)[0], *(each[0] for each in inputs), labels[0])
        for loops in range(1, EXITS + 1)
    ]
    np.testing.assert_allclose(views.guesses[1], [generator.decode(guess) for guess in guesses], atol=1e-4)
    difference = np.asarray(guesses[1]) - np.asarray(guesses[0])
    masked = config.family == "maskgit"
    expected = np.mean(difference != 0) if masked else np.sqrt(np.mean(difference**2))
    np.testing.assert_allclose(views.changes[1, 0], expected, atol=1e-5)

    norms = sampling_update_norms(generator.model, sampler, labels, loops=EXITS, budget=call["loops"], key=call["key"])
    np.testing.assert_allclose(views.norms, norms.relative[:, 0], rtol=1e-3)


def test_an_unfinished_sample_is_grey_where_tokens_are_masked():
    generator = load("digits-maskgit")
    config = generator.config
    assert isinstance(config, MaskGITConfig)
    ids = jnp.arange(16).reshape(4, 4).at[1, 2].set(config.mask_id)
    pixels = config.preview(ids, generator.tokenizer)
    grey = np.zeros((8, 8), bool)
    grey[2:4, 4:6] = True
    assert np.all(pixels[grey] == 0.0)
    np.testing.assert_array_equal(pixels[~grey], generator.decode(jnp.where(ids == config.mask_id, 0, ids))[~grey])


def test_a_guess_of_the_true_prediction_is_the_clean_example(studio):
    config, key = studio.generator.config, jax.random.key(2)
    example = config.example
    if config.family == "maskgit":
        clean = jax.random.randint(key, (2, *example.shape), 0, config.codebook_size, jnp.int32)
        inputs = config.corruption()(clean, jnp.arange(2), key=key).inputs
        prediction = jax.nn.one_hot(clean, config.codebook_size)
    else:
        clean = jax.random.uniform(key, (2, *example.shape), minval=-1.0)
        corrupted = config.corruption()(clean, jnp.arange(2), key=key)
        inputs, prediction = corrupted.inputs, corrupted.target.value
    guesses = jax.vmap(config.guess)(prediction, *inputs)
    np.testing.assert_allclose(guesses, clean, atol=1e-4)


def test_a_family_without_guesses_says_so():
    class Silent(DiTConfig):
        def guess(self, prediction, *inputs):  # pyright: ignore[reportIncompatibleMethodOverride]
            return None

    generator = load("digits-dit")
    fields = {field.name: getattr(generator.config, field.name) for field in dataclasses.fields(DiTConfig)}
    generator = dataclasses.replace(generator, config=Silent(**fields))
    call = {"loops": 1, "exits": 1, "key": jax.random.key(0)}
    with pytest.raises(ValueError, match="Silent does not say what its predictions stand for: define `guess`"):
        loop_views(generator, generator.sampler(steps=1), jnp.zeros(1, jnp.int32), **call)


def test_plans_need_a_planner(studio):
    with pytest.raises(ValueError, match="`planned` needs a planner: call `measure` first"):
        studio.planned(CHOICE, 10.0)


@pytest.mark.slow
def test_the_page_shows_the_samples_of_the_plan_for_a_time():
    examples = np.random.default_rng(0).uniform(-1.0, 1.0, (20, 8, 8, 1)).astype(np.float32)
    data = PlanningData(
        examples=examples,
        labels=np.arange(20, dtype=np.int32) % 10,
        distance=lambda pixels, labels: float(np.mean(pixels) + 2.0),
        measure="brightness",
    )
    generator = load("digits-dit")
    planner = make_planner(generator, data, batches=(4,), steps=(2,), samples=10, repeats=2)
    studio = Studio(dataclasses.replace(generator, planner=planner), count=COUNT)
    assert studio.planned_batch == 4
    milliseconds = 2 * planner.frontier(batch=4)[-1].late_milliseconds
    plan, samples = studio.planned(CHOICE, milliseconds)
    assert plan == planner.plan(milliseconds, batch=4)
    expected = generator.sample(
        [3] * 4, loops=plan.budget, steps=plan.steps, guidance=plan.guidance, key=jax.random.key(5)
    )
    np.testing.assert_allclose(samples.pixels, expected, atol=1e-5)
    shown = planned(studio, CHOICE, milliseconds)
    assert f"{plan.steps} steps with these loops: {loops_text(plan.loops)}" in shown and shown.count("<img") == 4
    assert "<img" in plans(studio)
    with pytest.raises(ValueError, match="is below the fastest plan"):
        studio.planned(CHOICE, 1e-9)


def test_without_gradio_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match=r"This needs gradio, .*: pip install 'elt_zoo\[demo\]'"):
        make_page(Studio(load("digits-dit")), name="digits-dit")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--samples", 0), "`--samples 0` must be at least 1"),
        (("--port", 70_000), "`--port 70000` must be from 1 to 65535"),
        (("--model", "no-such-model"), "no-such-model"),
    ],
)
def test_wrong_options_are_said_in_one_line(arguments, said):
    finished = run("demo", *arguments, check=False)
    assert finished.code == 2 and said in finished.errors and finished.errors.count("\n") == 1
