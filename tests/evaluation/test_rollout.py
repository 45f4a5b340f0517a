"""Inner trainings of frozen optimizers: plain loops, whose seeds, data and measurements are what they are said to be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopt.evaluation.race import measured_steps
from lopt.evaluation.rollout import metrics_fn, race_fn, seed_keys, train_fn
from tests.evaluation.problems import needs_value, quadratic, sgd


def test_training_is_a_plain_loop_over_steps_for_each_seed():
    task, rate, steps, seeds = quadratic(0.7, noise=0.5), jnp.float32(0.3), 6, 3  # three seeds on two devices
    keys = seed_keys(jax.random.key(3), seeds)
    trained, losses = train_fn(task, needs_value, steps)(rate, keys, task.datasets)
    tests = metrics_fn(task)(None, (trained, keys), task.datasets)
    assert losses.shape == (seeds, steps)
    for seed in range(seeds):
        init_key, run_key, _ = jax.random.split(keys[seed], 3)
        w = np.asarray(task.init(init_key)["w"])
        for t in range(steps):
            batch_key, _ = jax.random.split(jax.random.fold_in(run_key, t))
            x = np.asarray(task.datasets.train.batch(batch_key)["x"])
            loss = 0.35 * np.mean(np.sum((w - x) ** 2, axis=1))
            np.testing.assert_allclose(losses[seed, t], loss, rtol=1e-5)
            w = w - 0.3 * loss * 0.7 * (w - np.mean(x, axis=0))
        np.testing.assert_allclose(trained.params["w"][seed], w, rtol=1e-4)
        x = np.asarray(task.datasets.test.arrays["x"])  # the whole split
        np.testing.assert_allclose(tests["loss"][seed], 0.35 * np.mean(np.sum((w - x) ** 2, axis=1)), rtol=1e-4)
        np.testing.assert_allclose(tests["distance"][seed], np.linalg.norm(w), rtol=1e-4)


def test_a_seed_does_not_depend_on_how_many_there_are():
    few, many = (np.asarray(jax.random.key_data(seed_keys(jax.random.key(3), K))) for K in (3, 5))
    np.testing.assert_array_equal(few, many[:3])
    assert len(np.unique(many, axis=0)) == 5


def test_held_out_data_are_looked_at_on_the_way():
    task, rate, seeds, batches, at = quadratic(0.7, noise=0.5), jnp.float32(0.3), 3, 5, [0, 1, 4, 6]
    keys = seed_keys(jax.random.key(3), seeds)
    trained, losses, measured = race_fn(task, sgd, 6, at, batches)(rate, keys, task.datasets)
    same, expected = train_fn(task, sgd, 6)(rate, keys, task.datasets)
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    np.testing.assert_allclose(trained.params["w"], same.params["w"], rtol=1e-6)
    assert {name: values.shape for name, values in measured.items()} == {"loss": (seeds, 4), "distance": (seeds, 4)}
    for index, steps in enumerate(at):
        w = task.init(jax.random.split(keys[1], 3)[0])["w"]
        if steps:
            w = train_fn(task, sgd, steps)(rate, keys, task.datasets)[0].params["w"][1]
        np.testing.assert_allclose(measured["distance"][1, index], np.linalg.norm(w), rtol=1e-5)
        x = np.asarray(task.datasets.outer_valid.arrays["x"])
        whole = 0.35 * np.mean(np.sum((np.asarray(w) - x) ** 2, axis=1))
        assert measured["loss"][1, index] == pytest.approx(whole, rel=0.3)  # 20 of 64 examples
    for bad in ([], [0, 5], [0, 3, 3, 6], [-1, 6]):
        with pytest.raises(ValueError, match="rising numbers of steps"):
            race_fn(task, sgd, 6, bad, 1)


@pytest.mark.parametrize(("steps", "count"), [(1, 1), (7, 12), (300, 12), (5000, 3)])
def test_measurements_are_at_logarithmic_and_linear_steps(steps, count):
    at = measured_steps(steps, count)
    assert at == sorted(set(at))
    assert (at[0], at[-1]) == (0, steps)
    assert len(at) <= 2 * count + 1
    assert 1 in at


def test_data_are_an_argument_of_the_program():
    task, other = quadratic(1.0, noise=0.5), quadratic(1.0, noise=0.5, seed=1)
    train, metrics, keys = train_fn(task, sgd, 5), metrics_fn(task), seed_keys(jax.random.key(0), 2)
    trained, losses = train(jnp.float32(0.1), keys, task.datasets)
    assert not np.allclose(losses, train(jnp.float32(0.1), keys, other.datasets)[1])
    large = quadratic(1.0, noise=0.5, examples=100_000)
    assert len(train.lower(jnp.float32(0.1), keys, large.datasets).as_text()) < 100_000
    tests = metrics(None, (trained, keys), task.datasets), metrics(None, (trained, keys), other.datasets)
    assert not np.allclose(tests[0]["loss"], tests[1]["loss"])
