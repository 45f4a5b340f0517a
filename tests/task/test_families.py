"""Families: what is drawn is drawn as said, and the tasks it makes are the tasks they should be."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopt.config import ConfigError, from_dict, to_dict
from lopt.symmetry import WeightSpec
from lopt.task.base import Datasets
from lopt.task.families import (
    FamilyConfig,
    MixtureConfig,
    mixture,
    reparametrize,
    vary_batch_size,
    vary_examples,
    vary_init_scale,
    vary_input_scale,
)
from lopt.task.splits import BatchSplit
from tasks.mlp import MLPConfig

KEY = jax.random.key(5)


@pytest.fixture(scope="module")
def task():
    return MLPConfig(hidden=(4,), batch_size=8).make()


@pytest.fixture(scope="module")
def batch(task):
    return task.datasets.train.batch(KEY)


def drawn(family, count=400):
    return jax.jit(jax.vmap(family.sample))(jax.random.split(KEY, count))


def assert_trees_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), a, b)


def assert_log_uniform(values, low, high):
    values = np.log(np.asarray(values)).ravel() - np.log(low)
    share = values / np.log(high / low)
    assert -1e-5 < share.min() < 0.05
    assert 0.95 < share.max() < 1 + 1e-5
    assert np.histogram(share, 4, (0, 1 + 1e-5))[0].min() > 0.18 * len(share)


def test_the_initial_weights_are_scaled(task, batch):
    family = vary_init_scale(task, (0.1, 10.0))
    assert_log_uniform(drawn(family)["init_scale"], 0.1, 10.0)
    start = family.start(KEY)
    assert_trees_close(start.params, jax.tree.map(lambda w: w * start.variant["init_scale"], task.init(KEY)))
    one = family.task_fn(start.variant)
    assert one.loss(start.params, KEY, batch) == task.loss(start.params, KEY, batch)
    assert one.metrics(start.params, KEY, batch) == task.metrics(start.params, KEY, batch)
    assert (family.name, family.spec) == ("digits8_mlp_4_init_scale", task.spec)


def test_the_inputs_are_scaled(task, batch):
    family = vary_input_scale(task, "image", (0.5, 2.0))
    assert_log_uniform(drawn(family)["input_scale"], 0.5, 2.0)
    start = family.start(KEY)
    scaled = {**batch, "image": batch["image"].astype(jnp.float32) * start.variant["input_scale"]}
    one = family.task_fn(start.variant)
    np.testing.assert_allclose(one.loss(start.params, KEY, batch), task.loss(start.params, KEY, scaled), rtol=1e-6)
    np.testing.assert_allclose(
        one.metrics(start.params, KEY, batch)["accuracy"], task.metrics(start.params, KEY, scaled)["accuracy"]
    )
    assert_trees_close(start.params, task.init(KEY))
    with pytest.raises(ValueError, match=r"have no array 'x' to scale; they have \['image', 'label'\]"):
        vary_input_scale(task, "x", (0.5, 2.0))


def test_each_inner_training_has_examples_of_its_own(task):
    family = vary_examples(task, 5)
    index = np.asarray(drawn(family, 50)["examples"])
    assert index.shape == (50, 5)
    assert all(len(set(row)) == 5 for row in index)
    assert len(np.unique(index)) > 200  # of 1,257
    variant = family.sample(KEY)
    seen = family.view(variant, task.datasets)
    np.testing.assert_array_equal(seen.train.arrays["image"], task.datasets.train.arrays["image"][variant["examples"]])
    assert seen.train.batch(KEY)["image"].shape == (8, 8, 8)
    assert (seen.test, seen.inner_valid) == (task.datasets.test, task.datasets.inner_valid)
    with pytest.raises(ValueError, match="from 1 to the 1257 training examples"):
        vary_examples(task, 2000)
    others = dataclasses.replace(task, datasets=Datasets(*[BatchSplit({"x": jnp.zeros((2, 3))}, 2)] * 4))
    with pytest.raises(ValueError, match="in a BatchSplit"):
        vary_examples(others, 1)


def test_batch_sizes_are_drawn(task):
    family = vary_batch_size(task, (2, 8))
    sizes = np.asarray(drawn(family)["batch_size"])
    assert set(sizes) == {2, 8}
    assert 0.4 < np.mean(sizes == 2) < 0.6


def test_a_smaller_batch_has_the_loss_and_gradient_of_its_examples(task, batch):
    """Though it keeps its rows, so that all sizes are one program."""
    family, params = vary_batch_size(task, (2,)), task.init(KEY)
    seen = family.view(family.sample(KEY), task.datasets)
    repeated = seen.train.batch(KEY)
    assert jax.tree.map(jnp.shape, repeated) == jax.tree.map(jnp.shape, batch)
    first = {name: array[:2] for name, array in batch.items()}
    of_two, of_eight = (jax.value_and_grad(task.loss)(params, KEY, one) for one in (first, repeated))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), of_two, of_eight)
    assert (seen.test, seen.train.batch_size) == (task.datasets.test, 8)
    np.testing.assert_array_equal(seen.train.all()["image"], task.datasets.train.all()["image"])
    for sizes in ((), (3,), (0,), (16,)):
        with pytest.raises(ValueError, match="must be divisors of its batch_size 8"):
            vary_batch_size(task, sizes)


def test_reparametrized_weights_compute_the_same(task, batch):
    family = reparametrize(task)
    for seed in range(3):
        variant, params, state = family.start(jax.random.key(seed))
        assert state == ()
        one, original = family.task_fn(variant), task.init(jax.random.key(seed))
        np.testing.assert_allclose(one.loss(params, KEY, batch), task.loss(original, KEY, batch), rtol=1e-4)
        assert one.metrics(params, KEY, batch) == task.metrics(original, KEY, batch)
        scales = jax.tree.unflatten(jax.tree.structure(params), list(variant["reparametrized"]))
        assert_trees_close(params, jax.tree.map(lambda w, s: w / s, original, scales))
        grads, expected = jax.grad(one.loss)(params, KEY, batch), jax.grad(task.loss)(original, KEY, batch)
        jax.tree.map(lambda g, e, s: np.testing.assert_allclose(g, e * s, rtol=1e-3, atol=1e-6 * s), grads, expected, scales)


def test_scales_are_drawn_by_level_and_range(task):
    scales = {
        level: drawn(reparametrize(task, (level,), ((0.01, 100.0),)))["reparametrized"] for level in ("global", "tensor", "none")
    }
    assert scales["tensor"].shape == (400, 4)  # four tensors
    assert_log_uniform(scales["tensor"], 0.01, 100.0)
    assert abs(np.corrcoef(np.log(np.asarray(scales["tensor"])).T) - np.eye(4)).max() < 0.2
    assert_log_uniform(scales["global"][:, 0], 0.01, 100.0)
    assert np.all(np.asarray(scales["global"]) == np.asarray(scales["global"])[:, :1])
    assert np.all(np.asarray(scales["none"]) == 1)
    both = np.asarray(drawn(reparametrize(task, scales=((0.5, 0.5), (2.0, 2.0))))["reparametrized"])
    shares = [np.mean(np.all(np.isclose(both, value), axis=1)) for value in (0.5, 1.0, 2.0)]
    np.testing.assert_allclose(shares, [1 / 3] * 3, atol=0.08)


def test_reparametrized_tasks_keep_their_spec(task, batch):
    """The reason that there is no scale for each single weight."""
    family = reparametrize(task, ("tensor",), ((0.1, 10.0),))
    variant, params, _ = family.start(KEY)
    params = jax.tree.map(lambda w: w + jax.random.normal(KEY, w.shape), params)
    moved = family.spec.permute(params, family.spec.sample(jax.random.key(1), params))
    one = family.task_fn(variant)
    np.testing.assert_allclose(one.loss(moved, KEY, batch), one.loss(params, KEY, batch), rtol=1e-4)


def test_wrappers_can_be_wrapped(task, batch):
    family = reparametrize(vary_init_scale(vary_examples(task, 5), (2.0, 2.0)), ("global",), ((4.0, 4.0),))
    start = family.start(KEY)
    assert_trees_close(start.params, jax.tree.map(lambda w: w * 2 / 4, task.init(KEY)))
    assert family.view(start.variant, task.datasets).train.num_examples == 5
    np.testing.assert_allclose(
        family.task_fn(start.variant).loss(start.params, KEY, batch),
        task.loss(jax.tree.map(lambda w: w * 2, task.init(KEY)), KEY, batch),
        rtol=1e-5,
    )


@pytest.mark.parametrize("scale", [(0.0, 1.0), (2.0, 1.0), (1.0,), (1.0, np.inf), (-1.0, 1.0)])
def test_ranges_that_make_no_sense_are_refused(task, scale):
    for make in (lambda: vary_init_scale(task, scale), lambda: reparametrize(task, scales=(scale,))):
        with pytest.raises(ValueError, match="must be a range"):
            make()


def test_unknown_levels_are_refused(task):
    for levels in (("parameter",), ()):
        with pytest.raises(ValueError, match="levels must be some of"):
            reparametrize(task, levels)


def test_a_config_makes_a_family_and_can_be_saved():
    config = FamilyConfig(
        MLPConfig(hidden=(4,), batch_size=8), init_scale=(0.5, 2.0), input_scale=(0.5, 2.0), examples=7, reparametrize=True
    )
    assert from_dict(to_dict(config)) == config
    family = config.make()
    assert family.name == "digits8_mlp_4_examples_input_scale_init_scale_reparametrized"
    assert isinstance(family.spec, WeightSpec)
    always = FamilyConfig(
        MLPConfig(hidden=(4,), batch_size=8), reparametrize=True, levels=("global",), scales=((0.5, 0.5),), batch_sizes=(4,)
    )
    assert from_dict(to_dict(always)) == always
    assert always.make().name == "digits8_mlp_4_batch_size_reparametrized"
    np.testing.assert_allclose(always.make().sample(KEY)["reparametrized"], 0.5)
    old = {name: value for name, value in to_dict(config).items() if name not in ("batch_sizes", "levels", "scales")}
    assert from_dict(old) == config  # files written before these fields
    plain = FamilyConfig(MLPConfig(hidden=(4,))).make()
    assert plain.sample(KEY) == ()
    with pytest.raises(ConfigError, match="examples"):
        to_dict(dataclasses.replace(config, examples="many"))


def test_problems_of_a_mixture_count_by_weight(task):
    other = MLPConfig(hidden=(5,)).make()
    mixed = mixture([task, vary_init_scale(task, (0.5, 2.0)), other], [1, 2, 5])
    assert mixed.probabilities == (0.125, 0.25, 0.625)
    assert mixture([task, other]).probabilities == (0.5, 0.5)


def test_mixtures_that_make_no_sense_are_refused(task):
    for problems, weights, message in (
        ([], None, "needs problems"),
        ([task, task], None, "of different names"),
        ([task], [1.0, 2.0], "a positive weight for each"),
        ([task], [0.0], "a positive weight for each"),
    ):
        with pytest.raises(ValueError, match=message):
            mixture(problems, weights)


def test_a_mixture_is_a_config_too():
    config = MixtureConfig((MLPConfig(hidden=(4,)), FamilyConfig(MLPConfig(hidden=(5,)), reparametrize=True)), (1.0, 3.0))
    assert from_dict(to_dict(config)) == config
    mixed = config.make()
    assert [problem.name for problem in mixed.problems] == ["digits8_mlp_4", "digits8_mlp_5_reparametrized"]
    assert mixed.probabilities == (0.25, 0.75)
