"""What an optimizer is told in an inner training: the loss of the step, and how many steps its own training has."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lopt.benchmarks.quadratic import quadratic_task
from lopt.estimators.pes import PESConfig
from lopt.estimators.truncated_es import TruncatedESConfig
from lopt.evaluation.rollout import seed_keys, train_fn
from lopt.optimizers.momentum import LearnedOptimizer
from lopt.task.base import Task
from lopt.unroll import Clock, UnrollConfig, make_unroll

TASK = quadratic_task()


def listening(update):
    """A learned optimizer whose updates are those of `update(w, g, value, num_steps)`."""

    def update_fn(grads, state, params, *, value, num_steps):
        return jax.tree.map(lambda w, g: update(w, g, value, jnp.asarray(num_steps).astype(jnp.float32)), params, grads), state

    transform = optax.GradientTransformationExtraArgs(optax.init_empty_state, update_fn)
    return LearnedOptimizer(lambda key: {"rate": jnp.float32(0.1)}, lambda theta: transform, lambda theta: {})


def step_of(w, g, value, num_steps):
    return -0.3 * g * (value + 1 / num_steps)


@pytest.mark.parametrize(("step", "horizon"), [(0, 4), (4, 12)])
def test_of_the_loss_and_of_the_horizon_of_the_clock(step, horizon):
    """The trajectory is that of a plain loop in NumPy, whose steps depend on both."""
    unroll = make_unroll(UnrollConfig(horizon=12, truncation=4, meta_loss="mean"), TASK, listening(step_of))
    window = unroll.window(jax.random.key(2), TASK.datasets, ())
    clock = Clock(jnp.int32(step), jnp.int32(horizon), jnp.int32(0))
    after, losses = jax.jit(unroll.run)({}, unroll.start(jax.random.key(1), {}), window, clock)
    w, expected = 1.0, []
    for b in np.asarray(window.batches["b"])[:, 0]:
        expected.append(0.5 * (w - b) ** 2)
        w += step_of(w, w - b, expected[-1], horizon)
    np.testing.assert_allclose(after.inner.params["w"], w, rtol=1e-5)
    np.testing.assert_allclose(losses.mean, np.mean(expected), rtol=1e-5)


ITS_WEIGHT = Task(
    name="its weight",
    init=lambda key: {"w": jnp.zeros(())},
    loss=lambda params, key, batch: params["w"] + 0.0 * batch["b"][0],
    spec=TASK.spec,
    datasets=TASK.datasets,
    initial_loss=1.0,
)


@pytest.mark.parametrize(
    ("estimator", "settings"),
    [
        (PESConfig, {"stagger": True}),
        (PESConfig, {"horizons": "log_uniform"}),
        pytest.param(PESConfig, {"stagger": False}, marks=pytest.mark.slow),
        pytest.param(TruncatedESConfig, {"stagger": True}, marks=pytest.mark.slow),
    ],
    ids=lambda x: getattr(x, "__name__", str(x)),
)
def test_each_particle_of_its_own_horizon(estimator, settings):
    """The weight becomes num_steps at every step, so a window's losses are those of its clock: 0 at the start, else the horizon."""
    optimizer = listening(lambda w, g, value, num_steps: num_steps - w)
    config = UnrollConfig(horizon=8, truncation=2, meta_loss="mean", loss_cap=np.inf, **settings)
    estimator = estimator(particles=4).make(make_unroll(config, ITS_WEIGHT, optimizer))
    theta, seen = optimizer.init(jax.random.key(0)), set()
    state, step = jax.jit(estimator.init)(jax.random.key(1), theta), jax.jit(estimator.step)
    for index in range(5):
        horizon, began = np.asarray(state.clock.horizon), np.asarray(state.clock.step) == 0
        seen |= set(horizon.tolist())
        _, state, info = step(jax.random.key(index), theta, TASK.datasets, state)
        np.testing.assert_allclose(info["meta_loss"], np.mean(np.where(began, horizon / 2, horizon)), rtol=1e-6)
        w = np.asarray(state.members.inner.params["w"] if hasattr(state, "members") else state.training.inner.params["w"])
        told = np.where(np.asarray(state.clock.step) == 0, 0, horizon)
        np.testing.assert_array_equal(w, np.broadcast_to(told[:, None], w.shape) if w.ndim == 2 else told)
    assert len(seen) == 1 if settings == {"stagger": False} else len(seen) > 2


def test_in_an_evaluation_of_its_length():
    optimizer = listening(lambda w, g, value, num_steps: num_steps - w)
    trained, _ = train_fn(ITS_WEIGHT, optimizer.opt_fn, 7)(jnp.float32(0), seed_keys(jax.random.key(0), 2), TASK.datasets)
    np.testing.assert_array_equal(trained.params["w"], [7, 7])
