"""Inner training as a scan: the same as a plain loop, and meta-losses that add up."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lopt.optimizer import LearnedOptimizer, LearnedSGDMConfig
from lopt.unroll import Clock, UnrollConfig, advance, first_clock, make_unroll
from tasks.mlp import MLPConfig


@pytest.fixture(scope="module")
def task():
    return MLPConfig(hidden=(4,), batch_size=8).make()


def test_a_window_is_a_plain_training_loop(task):
    optimizer = LearnedSGDMConfig(alpha=0.1, g0=0.5).make(task.spec)
    unroll = make_unroll(UnrollConfig(horizon=4, truncation=4), task, optimizer)
    theta = optimizer.init(jax.random.key(0))
    state = unroll.start(jax.random.key(1), theta)
    window = unroll.window(jax.random.key(2), task.datasets, ())
    after, losses = jax.jit(unroll.run)(theta, state, window)

    params, reference = state.params, optax.sgd(0.1, momentum=0.5)
    reference_state = reference.init(params)
    for t in range(4):
        batch = jax.tree.map(lambda x: x[t], window.batches)  # noqa: B023
        loss, grads = jax.value_and_grad(task.loss)(params, window.keys[t], batch)
        np.testing.assert_allclose(losses[t], loss, rtol=1e-5)
        updates, reference_state = reference.update(grads, reference_state, params)
        params = optax.apply_updates(params, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), after.params, params)


def test_batches_come_from_the_training_split_and_differ(task):
    unroll = make_unroll(UnrollConfig(horizon=4, truncation=4), task, LearnedSGDMConfig().make(task.spec))
    batches = unroll.window(jax.random.key(0), task.datasets, ()).batches
    train = {image.tobytes() for image in np.asarray(task.datasets.train.arrays["image"])}
    images = np.asarray(batches["image"])
    assert images.shape[:2] == (4, 8)
    assert all(image.tobytes() in train for image in images.reshape(32, *images.shape[2:]))
    assert len({batch.tobytes() for batch in images}) == 4


def losses_of(config, losses, step, horizon, task=None):
    task = task or MLPConfig(hidden=(4,)).make()
    unroll = make_unroll(config, task, LearnedOptimizer(lambda k: {}, lambda t: optax.identity(), lambda t: {}))
    return unroll.losses(jnp.asarray(losses, jnp.float32), Clock(jnp.int32(step), jnp.int32(horizon)))


def test_shares_of_the_windows_average_to_the_meta_loss(task):
    losses = np.asarray([2.0, 1.5, 1.0, 0.5, 0.25, 0.125])
    for kind, expected in (("mean", losses.mean()), ("final", losses[-1])):
        config = UnrollConfig(horizon=6, truncation=2, meta_loss=kind)
        shares = [float(losses_of(config, losses[i : i + 2], i, 6, task).meta_loss) for i in (0, 2, 4)]
        np.testing.assert_allclose(np.mean(shares), expected, rtol=1e-6)


def test_caps_are_counted_and_nothing_is_silent(task):
    cap = 1.5 * np.log(10)
    out = losses_of(UnrollConfig(horizon=4, truncation=4, meta_loss="mean"), [1.0, 100.0, np.nan, np.inf], 0, 4, task)
    assert (int(out.capped), int(out.nonfinite)) == (1, 2)
    np.testing.assert_allclose(out.mean, (1 + 3 * cap) / 4, rtol=1e-6)
    out = losses_of(UnrollConfig(horizon=4, truncation=4, meta_loss="mean", loss_cap=np.inf), [1.0, 100.0, 2.0, 3.0], 0, 4, task)
    np.testing.assert_allclose(out.meta_loss, 26.5, rtol=1e-6)


def test_clocks_run_restart_and_are_staggered():
    config = UnrollConfig(horizon=8, truncation=2)
    first = [int(first_clock(config, jnp.int32(i), 4).horizon) for i in range(4)]
    assert first == [8, 6, 4, 2]
    assert [int(first_clock(config, jnp.int32(i), 16).horizon) for i in range(16)] == [8] * 4 + [6] * 4 + [4] * 4 + [2] * 4
    clock, restart = advance(config, Clock(jnp.int32(2), jnp.int32(4)), jnp.bool(False))
    assert (int(clock.step), int(clock.horizon), bool(restart)) == (0, 8, True)
    clock, restart = advance(config, Clock(jnp.int32(2), jnp.int32(8)), jnp.bool(False))
    assert (int(clock.step), int(clock.horizon), bool(restart)) == (4, 8, False)
    clock, restart = advance(config, Clock(jnp.int32(2), jnp.int32(8)), jnp.bool(True))
    assert (int(clock.step), int(clock.horizon), bool(restart)) == (0, 8, True)
