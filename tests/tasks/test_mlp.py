"""The MLP task: what it computes, and which specs of it are wrong; test_all_tasks.py has what every task promises."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lopt.symmetry.spec import WeightSpec
from tasks.mlp import MLPConfig, mlp, mlp_spec
from tests.tasks.common import Mover, general, make, shapes


@pytest.fixture(scope="module")
def task():
    return make("mlp")


@pytest.fixture(scope="module")
def many(task):
    """Fresh params of eight particles, keys 0 ... 7, stacked."""
    return jax.jit(jax.vmap(task.init))(jnp.stack([jax.random.key(seed) for seed in range(8)]))


@pytest.fixture(scope="module")
def fresh(many):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[0], many)


def test_the_model_of_the_paper(task, fresh):
    assert shapes(fresh) == {"dense0": {"kernel": (64, 32), "bias": (32,)}, "dense1": {"kernel": (32, 10), "bias": (10,)}}
    assert {type(fresh), type(fresh["dense0"])} == {dict}
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype(jnp.float32)}
    assert sum(leaf.size for leaf in jax.tree.leaves(fresh)) == 2410
    assert shapes(task.param_shapes()) == shapes(fresh)
    assert task.name == "digits8_mlp_32"


def test_fresh_params(fresh):
    for layer, fan_in in (("dense0", 64), ("dense1", 32)):
        assert not fresh[layer]["bias"].any()
        assert float(np.std(fresh[layer]["kernel"])) == pytest.approx(fan_in**-0.5, rel=0.15)


def test_default_weights_are_those_of_flax(fresh):
    rngs = nnx.Rngs(params=jax.random.key(0))
    for layer, sizes in (("dense0", (64, 32)), ("dense1", (32, 10))):
        np.testing.assert_array_equal(fresh[layer]["kernel"], nnx.Linear(*sizes, rngs=rngs).kernel[...])


def test_every_key_gives_its_own_params(task, many):
    alone = jax.jit(task.init)(jax.random.key(3))
    jax.tree.map(lambda stacked, leaf: np.testing.assert_allclose(stacked[3], leaf, rtol=1e-6), many, alone)
    for layer in many.values():
        assert len(np.unique(np.asarray(layer["kernel"])[:, 0, 0])) == 8


def reference_loss(params, batch, scale, activation=lambda x: np.maximum(x, 0)):
    """The loss in float64, written out."""
    hidden = np.asarray(batch["image"], np.float64).reshape(len(batch["image"]), -1) / scale
    for index in range(len(params)):
        layer = params[f"dense{index}"]
        hidden = hidden @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"], np.float64)
        hidden = activation(hidden) if index < len(params) - 1 else hidden
    labels = np.asarray(batch["label"])
    losses = np.log(np.exp(hidden).sum(1)) - hidden[np.arange(len(labels)), labels]
    return losses.mean(), (hidden.argmax(1) == labels).mean()


@pytest.mark.parametrize("hidden", [(), (32,), (16, 24, 8)], ids=str)
def test_loss_and_accuracy_equal_the_formula(hidden):
    task = make("mlp", hidden=hidden)
    params, batch, key = general(task), task.datasets.test.all(), jax.random.key(0)
    loss, accuracy = reference_loss(params, batch, 16)
    computed, metrics = jax.jit(lambda *inputs: (task.loss(*inputs), task.metrics(*inputs)))(params, key, batch)
    assert computed.dtype == jnp.float32
    assert float(computed) == pytest.approx(loss, rel=1e-5)
    assert float(metrics["accuracy"]) == pytest.approx(accuracy, abs=1e-6)


def test_another_activation_and_scale_of_fresh_kernels(fresh):
    task = make("mlp", activation="tanh", init_scale=2.0)
    params, batch, key = general(task), task.datasets.test.all(), jax.random.key(0)
    assert float(jax.jit(task.loss)(params, key, batch)) == pytest.approx(reference_loss(params, batch, 16, np.tanh)[0], rel=1e-5)
    for layer, kernels in jax.jit(task.init)(jax.random.key(0)).items():
        np.testing.assert_allclose(kernels["kernel"], 2 * fresh[layer]["kernel"], rtol=1e-5)


def test_a_fresh_model_predicts_nothing_yet(task, many):
    losses = jax.jit(jax.vmap(task.loss, in_axes=(0, None, None)))(many, jax.random.key(0), task.datasets.train.all())
    assert task.initial_loss == math.log(10)
    assert float(losses.mean()) == pytest.approx(task.initial_loss, abs=0.2)


WRONG = {
    "pixels permuted": {"dense0": {"kernel": "pixels hidden0", "bias": "hidden0"}},
    "classes permuted": {"dense2": {"kernel": "hidden1 classes", "bias": "classes"}},
    "first bias free": {"dense0": {"kernel": "pixels! hidden0", "bias": "free"}},
    "second bias free": {"dense1": {"kernel": "hidden0 hidden1", "bias": "free"}},
    "second kernel's rows free": {"dense1": {"kernel": "free hidden1", "bias": "hidden1"}},
    "last kernel's rows free": {"dense2": {"kernel": "free classes!", "bias": "classes!"}},
    "second kernel's rows tied to the other layer": {"dense1": {"kernel": "hidden1 hidden1", "bias": "hidden1"}},
    "layers exchanged": {"dense1": {"kernel": "hidden1 hidden0", "bias": "hidden0"}},
    "first bias tied to the other layer": {"dense0": {"kernel": "pixels! hidden0", "bias": "hidden1"}},
}
TRUE = {
    "dense0": {"kernel": "pixels! hidden0", "bias": "hidden0"},
    "dense1": {"kernel": "hidden0 hidden1", "bias": "hidden1"},
    "dense2": {"kernel": "hidden1 classes!", "bias": "classes!"},
}


def test_the_spec_in_full():
    assert mlp_spec(2) == WeightSpec.parse(TRUE)


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_a_wrong_spec_is_found_out(change):
    task = make("mlp", hidden=(12, 12))  # of one size, so that layers can be confused
    assert Mover(task).change(WeightSpec.parse({**TRUE, **change}), seed=0) > 1e-4


def test_the_relaxed_spec_of_the_paper_is_not_true(task):
    assert Mover(task).change(task.spec.relax(), seed=0) > 1e-4


def test_the_module_leaves_only_its_arithmetic():
    init, apply = mlp((64, 32, 16, 10))

    def plain(params, inputs):
        hidden = inputs
        for index in range(3):
            layer = params[f"dense{index}"]
            hidden = hidden @ layer["kernel"] + layer["bias"][None]
            hidden = jax.nn.relu(hidden) if index < 2 else hidden
        return hidden

    def instructions(function):
        program = jax.jit(function).lower(jax.eval_shape(init, jax.random.key(0)), jnp.zeros((8, 64))).compile().as_text()
        return sorted(re.findall(r" = \S+ ([a-z-]+)\(", program))

    assert len(instructions(plain)) > 3
    assert instructions(apply) == instructions(plain)


def test_one_trace_serves_all_steps(task, fresh):
    traces = []

    @jax.jit
    def step(params, key, datasets):
        traces.append(1)
        gradient = jax.grad(task.loss)(params, key, datasets.train.batch(key))
        return jax.tree.map(lambda weight, slope: weight - 0.1 * slope, params, gradient)

    params = fresh
    for index in range(3):
        params = step(params, jax.random.key(index), task.datasets)
    assert len(traces) == 1


def test_a_smaller_image_makes_a_smaller_model():
    task = make("mlp", image_size=4, hidden=(6,), batch_size=5, split_seed=2)
    assert shapes(task.param_shapes())["dense0"]["kernel"] == (16, 6)
    assert task.datasets.train.batch(jax.random.key(0))["image"].shape == (5, 4, 4)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"dataset": "imagenet"}, "unknown image data set 'imagenet'; the known ones are digits, fashion_mnist, mnist"),
        ({"image_size": 28}, "image_size must be from 1 to 8 for 'digits', not 28"),
        ({"image_size": 0}, "MLPConfig.image_size must be an integer of at least 1, not 0"),
        ({"image_size": 8.0}, "MLPConfig.image_size must be an integer of at least 1, not 8.0"),
        ({"batch_size": -1}, "MLPConfig.batch_size must be an integer of at least 1, not -1"),
        ({"batch_size": True}, "MLPConfig.batch_size must be an integer of at least 1, not True"),
        ({"hidden": (32, 0)}, "MLPConfig.hidden[1] must be an integer of at least 1, not 0"),
        ({"hidden": ("32",)}, "MLPConfig.hidden[0] must be an integer of at least 1, not '32'"),
        ({"hidden": [32]}, "MLPConfig.hidden must be a tuple of integers such as (32,), not [32]"),
        ({"activation": "step"}, "MLPConfig.activation must be one of relu, gelu, silu, elu, tanh, sigmoid, not 'step'"),
        ({"init_scale": 0.0}, "MLPConfig.init_scale must be a positive number, not 0.0"),
        ({"init_scale": math.inf}, "MLPConfig.init_scale must be a positive number, not inf"),
        ({"split_seed": -1}, "MLPConfig.split_seed must be an integer of at least 0, not -1"),
    ],
)
def test_bad_settings_are_named(settings, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        MLPConfig(**settings)


def test_a_config_is_a_value():
    assert MLPConfig() == MLPConfig(hidden=(32,))
    assert hash(MLPConfig()) == hash(MLPConfig())
    with pytest.raises(dataclasses.FrozenInstanceError):
        MLPConfig().hidden = (1,)  # type: ignore[misc]
