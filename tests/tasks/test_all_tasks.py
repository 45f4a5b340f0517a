"""What every task promises, in its default form and in others: a true spec, finite gradients, batches by key, metrics in range."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from lopt.evaluation.baselines import find_baseline
from lopt.evaluation.rollout import metrics_fn, seed_keys, train_fn
from lopt.symmetry import infer_spec
from lopt.symmetry.compare import same_group, without_single_indices
from lopt.symmetry.spec import named_leaves
from tasks.registry import task_configs
from tests.tasks.common import Mover, batch_of, freed, general, make, shapes

VARIATIONS: dict[str, list[dict[str, Any]]] = {
    "addition": [{"digits": 2, "hidden": 6, "batch_size": 16, "examples": 400}],
    "autoencoder": [{}, {"hidden": (), "latent": 5}, {"hidden": (7, 6), "latent": 3, "activation": "tanh", "init_scale": 1.5}],
    "mlp": [{}, {"hidden": ()}, {"hidden": (12, 12, 5), "activation": "tanh", "init_scale": 1.5}],
    "cnn": [{}, {"channels": (6,), "window": 2, "stride": 1}, {"channels": (4, 6, 5), "activation": "gelu", "init_scale": 0.7}],
    "gru": [{"hidden": (10,)}, {"hidden": (6, 5), "embedding": 7, "length": 5, "init_scale": 0.5, "tokenizer": "bytes"}],
    "resnet": [
        {"channels": (4, 6), "batch_size": 32},
        {"channels": (4,), "blocks": 2, "image_size": 4, "batch_size": 16, "normalization": "layer", "activation": "silu"},
    ],
    "rnn": [{}, {"hidden": (6, 5), "activation": "tanh", "embedding": 7, "length": 5, "init_scale": 0.5, "tokenizer": "bytes"}],
    "transformer": [
        {"width": 8, "head_width": 6, "mlp": 12},
        {"blocks": 1, "width": 6, "heads": 1, "head_width": 5, "mlp": 7, "activation": "relu", "length": 5},
        {"blocks": 1, "width": 6, "heads": 3, "head_width": 1, "mlp": 7, "init_scale": 0.5, "batch_size": 3},
    ],
    "vit": [
        {"width": 8, "heads": 2, "head_width": 6, "mlp": 12, "batch_size": 16},
        {"blocks": 1, "width": 6, "heads": 1, "patch": 4, "mlp": 7, "activation": "relu", "init_scale": 0.7, "batch_size": 16},
    ],
}
CASES = [(name, settings) for name, variations in VARIATIONS.items() for settings in variations]
# A constant added to all scores of a query changes none of its weights: the biases of keys do nothing.
INERT = "key/bias"


# Of what is large in its default form, for the tests of one form alone.
SMALLER = {
    "addition": {"digits": 2, "hidden": 32, "batch_size": 64, "examples": 5_000},
    "gru": {"hidden": (32,)},
    "resnet": {"channels": (4, 8), "batch_size": 64},
    "vit": {"width": 16, "blocks": 1, "batch_size": 64},
}


def id_of(case: Any) -> str:
    return case if isinstance(case, str) else "-".join(f"{k}={v}" for k, v in case.items()) or "default"


def _measure(name: str) -> str:
    return "squared_error" if name == "autoencoder" else "accuracy"


each_case = pytest.mark.parametrize(("name", "settings"), CASES, ids=id_of)
each_task = pytest.mark.parametrize("name", sorted(VARIATIONS))


def test_every_registered_task_is_here():
    assert sorted(task_configs()) == sorted(VARIATIONS)


@each_case
def test_the_spec_is_true_and_no_axis_more_can_be_freed(name, settings):
    task = make(name, **settings)
    task.spec.validate(task.param_shapes())
    mover, generator = Mover(task), np.random.default_rng(0)
    assert math.isfinite(mover.value)
    for seed in range(3):
        assert mover.change(task.spec, seed) < 1e-6 * max(1.0, mover.value)
    for what, moved in freed(task.spec, mover.params):
        if not moved[0][0].endswith(INERT):
            assert max(mover.change_of_places(moved, generator) for _ in range(3)) > 1e-4, f"{what} can be moved alone"


@each_case
def test_the_inferred_spec_is_the_one_written_by_hand(name, settings):
    task = make(name, **settings)
    params = jax.jit(task.init)(jax.random.key(0))
    inferred = infer_spec(task.loss, params, jax.random.key(1), batch_of(task))

    own, found = (without_single_indices(spec, params) for spec in (task.spec, inferred))
    assert same_group(own, found), f"inferred:\n{inferred}"


@each_case
def test_a_fresh_model(name, settings):
    """Its gradients are finite and reach every weight, it predicts little yet, and its metrics are in range."""
    task = make(name, **settings)

    @jax.jit
    def evaluate(key, batch):
        params = task.init(key)
        loss, gradient = jax.value_and_grad(task.loss)(params, key, batch)
        return params, loss, gradient, task.metrics(params, key, batch)

    params, loss, gradient, metrics = evaluate(jax.random.key(0), batch_of(task))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    assert shapes(params) == shapes(gradient) == shapes(task.param_shapes())
    for path, leaf in named_leaves(gradient):
        assert np.isfinite(leaf).all(), path
        assert np.any(leaf) or path.endswith(INERT), path
    assert loss.dtype == jnp.float32
    assert 0.3 * task.initial_loss < float(loss) < 2.5 * task.initial_loss
    assert 0.0 <= float(metrics[_measure(name)]) < 0.6
    for metric, value in metrics.items():
        assert (value.shape, value.dtype) == ((), jnp.float32), metric
        if metric.startswith("bits_per_"):
            assert float(value) == pytest.approx(float(loss) / math.log(2), rel=1e-5)


@each_task
def test_equal_predictions_have_the_initial_loss(name):
    task = make(name, **SMALLER.get(name, {}))
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), task.param_shapes())
    assert float(jax.jit(task.loss)(params, jax.random.key(0), batch_of(task))) == pytest.approx(task.initial_loss, rel=1e-5)


@each_task
def test_the_same_batches_for_the_same_key_whatever_the_device_count(name):
    datasets, keys = make(name, **SMALLER.get(name, {})).datasets.at(0), jax.random.split(jax.random.key(5), 4)
    for split in (datasets.train, datasets.inner_valid, datasets.outer_valid, datasets.test):
        alone = [split.batch(key) for key in keys]
        assert len(jax.devices()) > 1
        mesh = Mesh(np.array(jax.devices()), ("particles",))
        spread, everywhere = PartitionSpec("particles"), PartitionSpec()
        draw = jax.shard_map(
            lambda split, keys: jax.vmap(split.batch)(keys), mesh=mesh, in_specs=(everywhere, spread), out_specs=spread
        )
        together = jax.jit(draw)(split, keys)
        for index, batch in enumerate(alone):
            for field, array in batch.items():
                assert array.shape[0] == split.batch_size
                np.testing.assert_array_equal(array, together[field][index])
        assert any(np.any(alone[0][field] != alone[1][field]) for field in alone[0])


@each_task
def test_particles_may_be_mapped(name):
    task, key = make(name, **SMALLER.get(name, {})), jax.random.key(0)
    particles = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(general(task, seed) for seed in range(3)))

    @jax.jit
    def losses(particles, batch):
        one_by_one = jax.lax.map(lambda params: task.loss(params, key, batch), particles)
        return one_by_one, jax.vmap(lambda params: task.loss(params, key, batch))(particles)

    one_by_one, together = losses(particles, batch_of(task))
    np.testing.assert_allclose(together, one_by_one, rtol=1e-5)
    assert len(np.unique(together)) == 3


@each_task
def test_params_of_lower_precision(name):
    task, key = make(name, **SMALLER.get(name, {})), jax.random.key(0)
    params = general(task)
    step = jax.jit(jax.value_and_grad(task.loss))
    exact, _ = step(params, key, batch_of(task))
    loss, gradient = step(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params), key, batch_of(task))
    assert loss.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype(jnp.bfloat16)}
    assert float(loss) == pytest.approx(float(exact), rel=0.02)


# Adam at the best learning rate of half a decade's grid, on two seeds: (rate, steps, line).
LEARNS = {
    "addition": (0.01, 500, 1.3),
    "autoencoder": (0.032, 500, 0.28),
    "gru": (0.01, 500, 2.0),
    "resnet": (0.032, 100, 0.4),
    "mlp": (0.032, 300, 0.06),
    "cnn": (0.032, 200, 0.2),
    "rnn": (0.01, 500, 2.1),
    "transformer": (0.0032, 800, 2.6),
    "vit": (0.01, 300, 0.2),
}


ACCURACY = {
    "addition": 0.4,
    "mlp": 0.92,
    "cnn": 0.9,
    "gru": 0.42,
    "resnet": 0.85,
    "rnn": 0.35,
    "transformer": 0.2,
    "vit": 0.83,
}


@pytest.mark.slow
@each_task
def test_adam_learns_it(name):
    rate, steps, line = LEARNS[name]
    task = make(name, **SMALLER.get(name, {}))
    train = train_fn(task, find_baseline("adam").opt_fn, steps)
    trained, losses = train(jnp.float32(rate), seed_keys(jax.random.key(0), 2), task.datasets.at(0))
    assert losses[:, :5].mean() > 0.8 * task.initial_loss
    assert float(losses[:, -50:].mean(axis=1).max()) < line
    found = metrics_fn(task)(None, (trained, seed_keys(jax.random.key(0), 2)), task.datasets.at(0))
    if name == "autoencoder":
        assert float(found["squared_error"].max()) < 0.02
    else:
        assert float(found["accuracy"].min()) > ACCURACY[name]
