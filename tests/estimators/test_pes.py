"""How the particles of an evolution-strategies estimator live: pairs, staggered starts, resets, divergence, devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopt.benchmarks import quadratic
from lopt.estimators.base import PARTICLES
from lopt.estimators.nres import NRESConfig
from lopt.estimators.particles import particle_mesh
from lopt.estimators.pes import PESConfig
from lopt.task.base import Task
from lopt.unroll import UnrollConfig, make_unroll


def quadratic_task():
    return quadratic.quadratic_task(spread=0.0)


def make(task=None, mesh=None, kind=PESConfig, sigma=0.1, **unroll):
    task, optimizer = task or quadratic_task(), quadratic.gradient_descent()
    config = UnrollConfig(**{"horizon": 6, "truncation": 2, "meta_loss": "mean", **unroll})
    estimator = kind(particles=4, sigma=sigma).make(make_unroll(config, task, optimizer), mesh or particle_mesh(4))
    theta = optimizer.init(jax.random.key(0))
    state = jax.jit(estimator.init)(jax.random.key(1), theta)
    step = jax.jit(lambda key, state: estimator.step(key, theta, task.datasets, state))
    return estimator, state, step


def test_antithetic_pairs_start_alike_and_part():
    _, state, step = make(stagger=False)
    np.testing.assert_array_equal(state.members.inner.params["w"], np.ones((4, 2)))
    _, state, _ = step(jax.random.key(2), state)
    w = np.asarray(state.members.inner.params["w"])
    assert np.all(w[:, 0] != w[:, 1])
    assert len(np.unique(w)) == 8


def test_staggered_starts_spread_the_resets():
    _, state, step = make(stagger=True)
    np.testing.assert_array_equal(state.clock.horizon, [6, 6, 4, 2])
    finished = []
    for i in range(6):
        _, state, info = step(jax.random.key(i), state)
        finished.append(int(info["finished"]))
    assert finished == [1, 1, 2, 1, 1, 2]
    np.testing.assert_array_equal(state.clock.horizon, [6, 6, 6, 6])


def test_a_finished_particle_starts_anew():
    _, state, step = make(stagger=False)
    for i in range(3):
        assert np.all(np.asarray(state.clock.step) == 2 * i)
        _, state, info = step(jax.random.key(i), state)
    np.testing.assert_array_equal(state.members.inner.params["w"], np.ones((4, 2)))
    np.testing.assert_array_equal(state.accumulator, np.zeros((4, 3)))
    np.testing.assert_array_equal(state.clock.step, np.zeros(4))
    assert int(info["finished"]) == 4
    assert np.isfinite(info["final_loss"])


def test_a_diverged_particle_is_counted_and_reset_with_its_partner():
    """Below w = -1 the loss is NaN; starting one member there must reset the pair, and it alone."""
    task = quadratic_task()
    loss = lambda p, k, b: jnp.where(p["w"] < -1, jnp.float32(jnp.nan), task.loss(p, k, b))  # noqa: E731
    _, state, step = make(task=Task(**{**task.__dict__, "loss": loss}), stagger=False)
    w = state.members.inner.params["w"].at[2, 1].set(-2.0)
    members = state.members._replace(inner=state.members.inner._replace(params={"w": w}))
    state = state._replace(members=members)
    gradient, state, info = step(jax.random.key(0), state)
    assert (int(info["diverged"]), int(info["nonfinite"]), int(info["finished"])) == (1, 2, 0)
    assert not info["all_diverged"]
    assert np.isfinite(gradient["rate"])
    np.testing.assert_array_equal(state.members.inner.params["w"][2], [1, 1])
    np.testing.assert_array_equal(state.clock.step, [2, 2, 0, 2])
    np.testing.assert_array_equal(np.asarray(state.accumulator)[:, 0] != 0, [True, True, False, True])


def test_noise_is_fresh_in_every_window_of_pes_and_the_same_in_those_of_nres():
    for kind, same in ((PESConfig, False), (NRESConfig, True)):
        _, state, step = make(kind=kind, stagger=False)
        noises = []
        for i in range(4):
            _, state, _ = step(jax.random.key(i), state)
            noises.append(np.asarray(state.epsilon))
        assert np.array_equal(noises[0], noises[1]) == same
        assert np.array_equal(noises[1], noises[2]) == same
        assert not np.array_equal(noises[2], noises[3]), "a new training has new noise"


def test_losses_above_the_cap_are_counted():
    _, state, step = make(loss_cap=0.45, stagger=False, sigma=0.01)  # the first loss is 0.5, the second 0.41 or so
    _, _, info = step(jax.random.key(0), state)
    assert (int(info["capped"]), int(info["nonfinite"]), int(info["diverged"])) == (8, 0, 0)


def test_results_do_not_depend_on_the_number_of_devices():
    devices = jax.devices()
    assert len(devices) == 2
    results = []
    for count in (1, 2):
        mesh = jax.make_mesh((count,), (PARTICLES,), devices=devices[:count], axis_types=(jax.sharding.AxisType.Auto,))
        _, state, step = make(mesh=mesh)
        gradient, state, _ = step(jax.random.key(3), jax.device_get(state))
        results.append((gradient, state))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *results)


def test_the_mesh_takes_as_many_devices_as_divide_the_particles():
    assert [particle_mesh(particles).size for particles in (1, 3, 4)] == [1, 1, 2]


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="sigma must be positive"):
        PESConfig(sigma=0.0)
    with pytest.raises(ValueError, match="3 particles cannot be split over 2 devices"):
        PESConfig(3).make(make_unroll(UnrollConfig(), quadratic_task(), quadratic.gradient_descent()), particle_mesh(2))
