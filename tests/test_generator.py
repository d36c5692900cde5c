"""From a name to pictures: what a generator samples, and what is saved of it."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import run
from jaxtyping import Array

import elt_zoo.commands._sample
from elt_zoo import ElasticModel, load, save
from elt_zoo.families import DiTConfig, MaskGITConfig
from elt_zoo.generator import ExitGuidance, ExitGuidedPredict, bundled_names
from elt_zoo.heads import Head
from elt_zoo.models import BatchedPredict
from elt_zoo.sampling import ConstantGuidance, LoopBudget, constant_budget
from elt_zoo.storage import WeightsError
from elt_zoo.tokenizers import PatchCodebook

KEY = jax.random.key(0)
STEPS = 3


@pytest.fixture(scope="module", params=["digits-dit", "digits-maskgit"])
def generator(request):
    return load(request.param)


def test_bundled_names_are_those_of_images_and_clips():
    names = ("cifar10-dit", "cifar10-maskgit", "digits-dit", "digits-maskgit", "mnist-dit", "moving-digits")
    assert bundled_names() == names


def test_three_lines_give_the_pictures_of_the_command(generator, tmp_path, monkeypatch):
    saved = {}
    monkeypatch.setattr(
        elt_zoo.commands._sample, "save_grid", lambda path, pictures, labels, *, title: saved.update(pictures)
    )
    name = f"digits-{generator.config.family}"
    out = tmp_path / "samples.png"
    common = ("--labels", 3, 7, 7, "--loops", 2, "--steps", STEPS, "--seed", 0)
    finished = run("sample", "--model", name, *common, "--out", out)
    assert "L = 2: 3 samples, 2 loops a step" in finished.output
    images = load(name).sample([3, 7, 7], loops=2, steps=STEPS, key=KEY)
    assert images.shape == (3, 8, 8, 1) and images.dtype == np.float32 and np.abs(images).max() <= 1.0
    np.testing.assert_allclose(images, saved["L = 2"], atol=1e-5)
    assert np.abs(images[1] - images[2]).max() > 0.1  # the same class, another noise


def counting(generator):
    """The same generator, and a list that grows when its decoder is traced: by one in every call, which looks at the
    shapes first, and by one more where a program is compiled.
    """
    traced, kind = [], type(generator.config)

    class Counting(kind):
        def decode(self, sample, tokenizer):
            traced.append(None)
            return super().decode(sample, tokenizer)

    fields = {field.name: getattr(generator.config, field.name) for field in dataclasses.fields(kind)}
    return dataclasses.replace(generator, config=Counting(**fields)), traced


def test_one_program_serves_every_count_loops_and_scale(generator):
    generator, traced = counting(generator)
    compiled = []
    for labels, loops, guidance in [
        ([3, 7, 7], 2, 1.5),
        ([3], 2, 1.5),
        (range(9), 1, 1.5),
        (np.arange(4), 7, 0.0),
        (jnp.arange(2), np.int64(3), ConstantGuidance(3.0)),
    ]:
        before = len(traced)
        generator.sample(labels, loops=loops, guidance=guidance, steps=STEPS, batch_size=4, key=KEY)
        compiled.append(len(traced) - before > 1)
    assert compiled == [True, False, False, False, False]


def test_a_batch_that_is_filled_up_holds_the_same_pictures(generator):
    options = {"loops": 1, "steps": STEPS, "batch_size": 4, "key": KEY}
    told = []
    many = generator.sample(range(6), progress=lambda done, total: told.append((done, total)), **options)
    assert told == [(4, 6), (6, 6)]
    np.testing.assert_array_equal(generator.sample([0, 1, 2], **options), many[:3])
    parts = list(generator.batches(range(6), **options))
    assert [len(part) for part in parts] == [4, 2]
    np.testing.assert_array_equal(np.concatenate(parts), many)


def test_loops_come_in_every_form_of_a_sampler(generator):
    options = {"steps": STEPS, "guidance": 1.5, "key": KEY}
    expected = generator.sample([3, 7], loops=2, **options)
    for loops in (np.int32(2), jnp.asarray(2), constant_budget(2, STEPS), LoopBudget(2, jnp.asarray(2))):
        np.testing.assert_allclose(generator.sample([3, 7], loops=loops, **options), expected, atol=1e-5)
    most = generator.config.max_loops
    np.testing.assert_array_equal(
        generator.sample([3], steps=STEPS, key=KEY), generator.sample([3], loops=most, steps=STEPS, key=KEY)
    )


@pytest.mark.parametrize("kind", [DiTConfig, MaskGITConfig])
def test_an_early_exit_guides_where_the_level_allows_it(kind):
    sizes = {"dim": 16, "num_layers": 1, "max_loops": 3, "num_heads": 2, "num_classes": 3}
    own = {"shape": (4, 4, 1), "learned_variance": True} if kind is DiTConfig else {"grid": (2, 2), "codebook_size": 5}
    config = kind(**sizes, **own)
    # Layers that start as the identity would give the same prediction at every exit.
    model = jax.tree.map(
        lambda leaf: leaf + 0.2 * jax.random.normal(KEY, leaf.shape) if eqx.is_inexact_array(leaf) else leaf,
        config.build(key=KEY),
    )
    examples = jnp.zeros((4, *config.example.shape), config.example.dtype)
    inputs = config.corruption()(examples, jnp.arange(4) % 3, key=KEY).inputs
    levels = np.asarray(jax.vmap(config.level)(*inputs))
    ask = eqx.filter_jit(lambda predict, loops: predict(*inputs, loops=loops))

    def guided(loops, **options):
        predict = ExitGuidedPredict(model, ExitGuidance(2.0, **options), config.level, config.sampler().guide)
        return np.asarray(ask(predict, loops))

    one, three = (np.asarray(ask(BatchedPredict(model), jnp.asarray(loops))) for loops in (1, 3))
    expected = 2.0 * three - one
    if kind is DiTConfig:
        expected[..., 1:] = three[..., 1:]  # the variance is never guided
    for loops in (3, jnp.asarray(3)):
        np.testing.assert_allclose(guided(loops), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(guided(jnp.asarray(1)), one, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(guided(jnp.asarray(3), exit=5), three, rtol=1e-4, atol=1e-4)
    middle = np.sort(levels)[1:3]
    inside = (levels >= middle[0]) & (levels <= middle[1])
    assert 0 < inside.sum() < len(levels)
    some = guided(jnp.asarray(3), levels=tuple(float(level) for level in middle))
    np.testing.assert_allclose(some[inside], expected[inside], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(some[~inside], three[~inside], rtol=1e-4, atol=1e-4)


def test_guidance_by_an_exit_changes_pictures_and_one_program_serves_every_scale(generator):
    generator, traced = counting(generator)
    options = {"loops": 3, "steps": STEPS, "guidance": 1.5, "key": KEY}
    without = generator.sample([3, 7], **options)
    pictures = [
        generator.sample([3, 7], **options, exit_guidance=ExitGuidance(scale, exit=exit))
        for scale, exit in ((1.0, 1), (3.0, 1), (3.0, 3))
    ]
    assert len(traced) == 1 + 2  # for the shapes, and once for each of two programs
    np.testing.assert_allclose(pictures[0], without, atol=1e-4)
    np.testing.assert_allclose(pictures[2], without, atol=1e-4)
    if generator.config.family == "dit":
        assert np.abs(pictures[1] - without).max() > 1e-3
    with pytest.raises(ValueError, match=r"needs a finite scale, an exit of at least one loop, and levels from 0"):
        ExitGuidance(2.0, levels=(0.7, 0.2))
    refused = run("sample", "--exit-guidance", 2, "--guiding-exit", 0, check=False)
    assert refused.code == 2 and "exit of at least one loop" in refused.errors


def test_guidance_of_zero_is_the_model_without_a_class(generator):
    null = generator.config.null_label
    expected = generator.sample([null, null], guidance=1.0, loops=2, steps=STEPS, key=KEY)
    pictures = generator.sample([3, 7], guidance=0.0, loops=2, steps=STEPS, key=KEY)
    np.testing.assert_allclose(pictures, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": []}, "must be a list of classes"),
        ({"labels": np.asarray([[1]])}, "must be a list of classes"),
        ({"labels": np.asarray([1.5])}, "must be a list of classes"),
        ({"labels": [3, 11]}, "holds 11, but this generator knows the classes 0 to 9, and 10 for no class"),
        ({"labels": [-1]}, "holds -1"),
        ({"loops": 0}, "draws nothing"),
        ({"loops": True}, "is a bool"),
        ({"loops": 1.5}, "loops"),
        ({"steps": 0}, "steps=0"),
        ({"guidance": float("nan")}, "must be a finite number"),
        ({"batch_size": 0}, "must be a positive multiple"),
    ],
)
def test_what_cannot_be_sampled_is_refused(generator, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        generator.sample(**{"labels": [3], "steps": STEPS, "key": KEY, **options})


def test_a_generator_needs_the_tokenizer_that_it_was_trained_with():
    masked, diffusion = load("digits-maskgit"), load("digits-dit")
    with pytest.raises(ValueError, match="has no tokenizer to turn them into pixels"):
        dataclasses.replace(masked, tokenizer=None).sample([3], key=KEY)
    with pytest.raises(ValueError, match="cannot reveal 16 tokens"):
        masked.sample([3], steps=17, key=KEY)
    noise = np.random.default_rng(0).uniform(-1.0, 1.0, (8, 8, 8, 1)).astype(np.float32)
    other = PatchCodebook.fit(noise, codebook_size=4)
    with pytest.raises(ValueError, match="give the one that it was trained with"):
        dataclasses.replace(masked, tokenizer=other).sample([3], key=KEY)
    with pytest.raises(ValueError, match="give it an autoencoder or none"):
        dataclasses.replace(diffusion, tokenizer=masked.tokenizer).sample([3], key=KEY)
    latents = dataclasses.replace(diffusion, config=dataclasses.replace(diffusion.config, shape=(8, 8, 4)))
    with pytest.raises(ValueError, match="makes latents of 4 channels and has no autoencoder"):
        latents.sample([3], key=KEY)


class Brightened(eqx.Module):
    """A head that adds a parameter to what another one predicts."""

    inner: Head
    light: Array

    def embed(self, *inputs, key=None):
        return self.inner.embed(*inputs, key=key)

    def __call__(self, state, conditioning, /):
        return self.inner(state, conditioning) + self.light


@pytest.mark.parametrize("name", ["digits-dit", "digits-maskgit"])
def test_with_a_key_for_each_label_a_sample_depends_on_nothing_else(name):
    generator, keys = load(name), jax.random.split(KEY, 3)
    # The program of docs/serve.md, too.
    options: dict[str, Any] = {"loops": constant_budget(2, generator.settings.steps)}
    together = generator.sample([3, 7, 7], key=keys, batch_size=2, **options)
    assert np.abs(together[1] - together[2]).max() > 0.01
    for index, label in enumerate([3, 7, 7]):
        own = keys[index : index + 1]
        # The same program, filled up, gives the same bits.
        np.testing.assert_array_equal(generator.sample([label], key=own, batch_size=2, **options)[0], together[index])
    for labels, wrong in (([3, 7], keys), ([3], jax.random.split(KEY, 0))):
        with pytest.raises(ValueError, match=rf"`key` holds {len(wrong)} keys for {len(labels)} labels: give one key"):
            generator.sample(labels, key=wrong, **options)
    with pytest.raises(ValueError, match="`deadline=True` takes one key for all labels"):
        generator.sample([3, 7, 7], key=keys, milliseconds=10.0, deadline=True)


def test_a_model_with_a_head_of_ones_own_is_saved_and_loaded_with_a_skeleton(tmp_path):
    generator = load("digits-dit")

    def brightened(model):
        return ElasticModel(Brightened(model.head, jnp.asarray(0.2)), model.trunk, max_loops=model.max_loops)

    own = dataclasses.replace(generator, model=brightened(generator.model))
    with pytest.raises(ValueError, match=r"own_model=True.*\n\s+missing: "):
        save(tmp_path / "own", own)
    assert not (tmp_path / "own").exists()
    save(tmp_path / "own", own, own_model=True)
    with pytest.raises(WeightsError, match="pass `skeleton=`"):
        load(tmp_path / "own")
    skeleton = eqx.filter_eval_shape(lambda: brightened(generator.config.build(key=KEY)))
    again = load(tmp_path / "own", skeleton=skeleton)
    assert eqx.tree_equal(again.model, own.model)
    assert (again.config, again.settings, again.metadata) == (own.config, own.settings, own.metadata)
    options = {"loops": 1, "steps": STEPS, "key": KEY}
    picture = again.sample([3], **options)
    np.testing.assert_array_equal(picture, own.sample([3], **options))
    assert np.abs(picture - generator.sample([3], **options)).max() > 0.01
    with pytest.raises(WeightsError, match="unused"):
        load(tmp_path / "own", skeleton=generator.model)
