import dataclasses
import functools
import inspect
import json
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elt_zoo.families import DiTConfig, MaskGITConfig, config_from_dict, preset, preset_names
from elt_zoo.models import BatchedPredict, ElasticModel

KEY = jax.random.key(0)


@pytest.fixture(scope="module", params=["maskgit", "maskgit with adaLN", "dit"])
def model_and_inputs(request):
    if request.param != "dit":
        config = MaskGITConfig(
            dim=8,
            num_layers=2,
            max_loops=3,
            num_heads=2,
            num_classes=4,
            grid=(2, 2),
            codebook_size=5,
            ada_ln=request.param == "maskgit with adaLN",
        )
        inputs = (jnp.asarray([[0, 5], [5, 3]]), jnp.asarray(1))
    else:
        config = DiTConfig(dim=8, num_layers=2, max_loops=3, num_heads=2, num_classes=4, shape=(4, 4, 1))
        inputs = (jax.random.normal(KEY, (4, 4, 1)), jnp.asarray(0.4), jnp.asarray(1))
    model = config.build(key=KEY)
    # adaLN-zero starts as the identity with a zero output; move everything off zero.
    noise = lambda leaf: leaf + 0.1 * jax.random.normal(KEY, leaf.shape)  # noqa: E731
    return jax.tree.map(lambda leaf: noise(leaf) if eqx.is_inexact_array(leaf) else leaf, model), inputs


def test_all_exits_of_a_model_agree(model_and_inputs):
    model, inputs = model_and_inputs
    exits = model.trajectory(*inputs, loops=3)
    student, teacher = model.student_and_teacher(*inputs, student_loops=jnp.asarray(2), max_loops=3)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)  # noqa: E731
    close(student, exits[1])
    close(teacher, exits[2])
    close(model(*inputs, loops=2), exits[1])
    close(model(*inputs, loops=jnp.asarray(2)), exits[1])
    close(model(*inputs, loops=np.int64(2)), exits[1])
    close(model.at_exit(*inputs, loops=jnp.asarray(2), max_loops=3), exits[1])
    batch = [jnp.stack([leaf, leaf]) for leaf in inputs]
    close(BatchedPredict(model)(*batch, loops=2)[1], exits[1])
    assert not np.allclose(exits[0], exits[1])


@pytest.mark.parametrize("differentiable", [False, True])
def test_early_exit_by_a_rule_on_predictions_or_states(model_and_inputs, differentiable):
    model, inputs = model_and_inputs
    exits = model.trajectory(*inputs, loops=4)
    # Each prediction is known, so a rule can wait for one of them.
    third = lambda previous, now: jnp.allclose(now, exits[2], rtol=1e-3, atol=1e-4)  # noqa: E731
    options = {"max_loops": 4, "differentiable": differentiable}
    prediction, used = model.early_exit(*inputs, rule=third, **options)
    assert int(used) == 3
    np.testing.assert_allclose(prediction, exits[2], rtol=1e-4, atol=1e-5)
    second = lambda previous, now: jnp.allclose(previous, exits[0], rtol=1e-3, atol=1e-4)  # noqa: E731
    assert int(model.early_exit(*inputs, rule=second, min_loops=2, **options)[1]) == 2

    def on_states(previous, now):
        assert previous.shape == now.shape == model.head.embed(*inputs)[0].shape
        return jnp.asarray(False)

    prediction, used = model.early_exit(*inputs, rule=on_states, on_states=True, **options)
    assert int(used) == 4
    np.testing.assert_allclose(prediction, exits[3], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="needs 1 <= min_loops <= max_loops"):
        model.early_exit(*inputs, rule=third, max_loops=2, min_loops=3)


def test_early_exit_of_a_batch_gives_every_example_its_own(model_and_inputs):
    model, inputs = model_and_inputs
    batch = [jnp.stack([leaf, leaf]) for leaf in inputs]
    rule = lambda limit: lambda previous, now: jnp.max(jnp.abs(now)) >= limit  # noqa: E731
    limits = jnp.asarray([0.0, jnp.inf])
    run = jax.vmap(lambda limit, *one: model.early_exit(*one, rule=rule(limit), max_loops=3))
    predictions, used = run(limits, *batch)
    np.testing.assert_array_equal(used, [1, 3])
    np.testing.assert_allclose(
        predictions, model.trajectory(*inputs, loops=3)[jnp.asarray([0, 2])], rtol=1e-4, atol=1e-5
    )


def test_programs_never_call_the_host(model_and_inputs):
    """A callback to the host keeps a program out of JAX's persistent cache, and makes an accelerator wait."""
    model, inputs = model_and_inputs

    def run(inputs, loops):
        return model(*inputs, loops=loops), model.at_exit(*inputs, loops=loops, max_loops=3)

    assert "callback" not in str(jax.make_jaxpr(run)(inputs, jnp.asarray(2)))


def test_swapped_and_wrong_parts_are_refused(model_and_inputs):
    model, _ = model_and_inputs
    # The tests check the types of every call, and would be first to object; users meet the constructor itself.
    build = functools.partial(inspect.unwrap(ElasticModel.__init__), None, max_loops=2)
    with pytest.raises(TypeError, match=r"got a `LoopedTransformer` as head.*in this order. They are swapped"):
        build(model.trunk, model.head)
    with pytest.raises(TypeError, match=r"as trunk. It needs a head and a `LoopedTransformer`, in this order.$"):
        build(model.head, model.head)
    with pytest.raises(TypeError, match=r"got a `int` as head. It needs a module with the methods `embed`"):
        build(3, model.trunk)


def test_a_model_needs_a_loop(model_and_inputs):
    model, _ = model_and_inputs
    with pytest.raises(ValueError, match="needs at least one loop"):
        ElasticModel(model.head, model.trunk, max_loops=0)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_builds_abstractly_and_survives_json(name):
    config = preset(name)
    model = eqx.filter_eval_shape(config.build, key=KEY)
    assert model.max_loops == config.max_loops
    assert config_from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_masked_model_with_adaln_is_conditioned_by_its_class():
    config = MaskGITConfig(
        dim=8,
        num_layers=1,
        max_loops=2,
        num_heads=2,
        num_classes=4,
        grid=(2, 2),
        codebook_size=5,
        ada_ln=True,
    )
    assert config.num_tokens == 4
    model = config.build(key=KEY)
    ids = jnp.full((2, 2), config.mask_id)
    guess = lambda model, label: model(ids, jnp.asarray(label), loops=2)  # noqa: E731
    # A new layer is the identity, whatever the class; a trained one is not.
    np.testing.assert_array_equal(guess(model, 1), guess(model, 3))
    weight = lambda model: model.trunk.layers.modulation.weight  # noqa: E731
    trained = eqx.tree_at(weight, model, 0.1 * jax.random.normal(KEY, weight(model).shape))
    assert np.abs(np.asarray(guess(trained, 1) - guess(trained, 3))).max() > 1e-3


def test_unique_depth_baseline_has_equal_compute():
    config = preset("elt-L-8Nx3L")
    baseline = config.unique_depth()
    assert (baseline.num_layers, baseline.max_loops) == (24, 1)
    assert baseline.effective_depth == config.effective_depth
    assert baseline == preset("maskgit-L-24")


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree) if hasattr(leaf, "size"))


# The paper's tables (2604.09168). Masked models are counted without embeddings and head.
@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("elt-L-8Nx3L", 101),
        ("elt-L-12Nx2L", 152),
        ("elt-XL-7Nx4L", 111),
        ("maskgit-L-24", 303),
        ("maskgit-XL-28", 446),
        ("elt-ucf101-6Nx4L", 76),
        ("magvit-L-24", 306),
    ],
)
def test_masked_presets_have_the_papers_parameter_counts(name, millions):
    model = eqx.filter_eval_shape(preset(name).build, key=KEY)
    assert count(model.trunk) == pytest.approx(millions * 1e6, rel=0.02)


# ELT-DiT is counted with its class table. The last two are given to two digits only.
@pytest.mark.parametrize(
    ("name", "stated", "tolerance"),
    [
        ("elt-dit-1Nx32L", 69e6, 0.02),
        ("elt-dit-4Nx8L", 271e6, 0.02),
        ("elt-dit-8Nx4L", 539e6, 0.02),
        ("elt-dit-16Nx2L", 1.1e9, 0.05 / 1.1),
        ("dit-2048-32", 2.1e9, 0.05 / 2.1),
    ],
)
def test_diffusion_presets_have_the_papers_parameter_counts(name, stated, tolerance):
    model = eqx.filter_eval_shape(preset(name).build, key=KEY)
    assert count(model.trunk) + count(model.head.label_embedding) == pytest.approx(stated, rel=tolerance)


def test_dit_xl_has_the_original_parameter_count():
    model = eqx.filter_eval_shape(preset("dit-XL-2").build, key=KEY)
    assert count(model) == 674_834_720


def test_training_defaults_are_the_papers():
    base, huge, video, diffusion = [
        preset(name).training_defaults() for name in ("elt-B-6Nx2L", "elt-H-8Nx4L", "elt-ucf101-6Nx4L", "elt-dit-8Nx4L")
    ]
    assert (base.b1, base.b2, base.weight_decay, base.learning_rate, base.steps) == (0.9, 0.96, 0.045, 1e-4, 675_000)
    assert huge.weight_decay == pytest.approx(5 * 0.045) and video.steps == 200_000
    assert (diffusion.b1, diffusion.b2, diffusion.weight_decay) == (0.9, 0.99, 0.01)
    assert (diffusion.learning_rate, diffusion.steps) == (1e-4, 500_000)


def test_unknown_names_and_broken_configs_are_explained():
    with pytest.raises(ValueError, match=r"Unknown preset 'elt-L-8N3L'. Did you mean 'elt-L-8Nx3L'"):
        preset("elt-L-8N3L")
    values = preset("digits-dit").to_dict()
    with pytest.raises(ValueError, match=r"missing: dim; unknown: 'width'"):
        config_from_dict({k: v for k, v in values.items() if k != "dim"} | {"width": 3})
    # An option that is gone may be off; on, it made another model.
    assert config_from_dict(values | {"num_loop_deltas": 0, "loop_embedding": False}) == preset("digits-dit")
    with pytest.raises(ValueError, match=r"unknown: 'loop_embedding'"):
        config_from_dict(values | {"loop_embedding": True})
    with pytest.raises(ValueError, match="of the family 'gan'; known are"):
        config_from_dict(values | {"family": "gan"})
    config = preset("digits-maskgit")
    for change, text in [
        ({"num_heads": 5}, "heads must divide"),
        ({"dropout": 1.0}, "dropout"),
        ({"max_loops": 0}, "max_loops=0"),
        ({"prelude": -1}, r"prelude=-1, coda=0\)` must be numbers of layers"),
        ({"coda": 2000}, "from 0 to 1,024"),
        ({"residual_scale": 0.0}, r"must be in \(0, 1\]"),
        ({"residual_scale": math.nan}, r"must be in \(0, 1\]"),
        ({"reinjection": 1.0}, r"must be in \[0, 1\)"),
        ({"residual_scale": 0.5, "pre_norm": False}, "post-norm branch undoes a scale"),
        ({"ada_ln": True, "pre_norm": False}, "layers with adaLN are pre-norm"),
    ]:
        with pytest.raises(ValueError, match=text):
            dataclasses.replace(config, **change)
