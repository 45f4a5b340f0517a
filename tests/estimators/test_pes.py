"""PES against the exact gradient of the smoothed, unrolled objective, on a problem where it is known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lopt.estimators.base import PARTICLES
from lopt.estimators.pes import PESConfig, pes
from lopt.optimizer import LearnedOptimizer
from lopt.symmetry.spec import WeightSpec
from lopt.task import ArraySplit, Datasets, Task
from lopt.trainer import particle_mesh
from lopt.unroll import UnrollConfig


def quadratic_task(curvature=1.0):
    """loss(w) = curvature w^2 / 2 from w = 1, whatever the batch."""
    split = ArraySplit({"x": jnp.zeros((1, 1))}, batch_size=1)
    return Task(
        name="quadratic",
        init=lambda key: {"w": jnp.ones(())},
        loss=lambda params, key, batch: 0.5 * curvature * jnp.square(params["w"]),
        spec=WeightSpec.parse({"w": ""}),
        datasets=Datasets(split, split, split, split),
        initial_loss=1.0,
    )


def gradient_descent():
    """theta is the learning rate: w_t = (1 - lr curvature)^t, so the meta-loss is a polynomial in theta."""
    return LearnedOptimizer(
        init=lambda key: {"lr": jnp.float32(0.3)},
        opt_fn=lambda theta: optax.with_extra_args_support(optax.sgd(theta["lr"])),
        scalars=lambda theta: theta,
    )


def smoothed_gradient(meta_loss, horizon, truncation, sigma, theta=0.3):
    """d/dtheta of E over the perturbations of every window of the meta-loss: a normal vector, by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    weights = weights / weights.sum()
    windows = horizon // truncation

    def objective(theta):
        # Each window multiplies w^2 by an independent factor: the expectation of products is a product of expectations.
        rate = theta + sigma * jnp.asarray(nodes)
        square, total = 1.0, []
        for _ in range(windows):
            for step in range(truncation):
                total.append(0.5 * square * jnp.sum(jnp.asarray(weights) * (1 - rate) ** (2 * step)))
            square = square * jnp.sum(jnp.asarray(weights) * (1 - rate) ** (2 * truncation))
        return total[-1] if meta_loss == "final" else sum(total) / horizon

    return float(jax.grad(objective)(jnp.float32(theta)))


def sample_gradients(meta_loss, horizon=6, truncation=2, sigma=0.1, particles=1000, steps=30, accumulate=True):
    """Gradients averaged over whole inner trainings, so that every window counts equally: [trainings]."""
    config = PESConfig(
        particles, sigma, UnrollConfig(horizon, truncation, meta_loss, loss_cap=float("inf"), stagger=False), batched=True
    )
    task, optimizer = quadratic_task(), gradient_descent()
    estimator = pes(config, task, optimizer, particle_mesh(particles))

    @jax.jit
    def run(key):
        theta = optimizer.init(key)

        def step(state, key):
            if not accumulate:
                state = state._replace(accumulator=jnp.zeros_like(state.accumulator))
            gradient, state, _ = estimator.step(key, theta, task.datasets, state)
            return state, gradient["lr"]

        return jax.lax.scan(step, estimator.init(key, theta), jax.random.split(key, steps * horizon // truncation))[1]

    return np.asarray(run(jax.random.key(0))).reshape(steps, -1).mean(axis=1)


@pytest.mark.parametrize("meta_loss", ["mean", "final"])
def test_mean_gradient_is_the_exact_one(meta_loss):
    samples = sample_gradients(meta_loss)
    error = samples.std(ddof=1) / np.sqrt(len(samples))
    exact = smoothed_gradient(meta_loss, horizon=6, truncation=2, sigma=0.1)
    assert error < 0.05 * abs(exact), "too noisy to tell anything"
    assert abs(samples.mean() - exact) < 3 * error


@pytest.mark.parametrize("meta_loss", ["mean", "final"])
def test_without_the_accumulator_windows_are_biased(meta_loss):
    """Truncated ES forgets what earlier windows did: exactly the bias that the accumulator removes."""
    samples = sample_gradients(meta_loss, accumulate=False)
    error = samples.std(ddof=1) / np.sqrt(len(samples))
    exact = smoothed_gradient(meta_loss, horizon=6, truncation=2, sigma=0.1)
    assert abs(samples.mean() - exact) > 10 * error
    assert abs(samples.mean()) < abs(exact)


def make(task=None, mesh=None, **unroll):
    task, optimizer = task or quadratic_task(), gradient_descent()
    config = PESConfig(4, 0.1, UnrollConfig(**{"horizon": 6, "truncation": 2, "meta_loss": "mean", **unroll}))
    estimator = pes(config, task, optimizer, mesh or particle_mesh(4))
    theta = optimizer.init(jax.random.key(0))
    state = jax.jit(estimator.init)(jax.random.key(1), theta)
    step = jax.jit(lambda key, state: estimator.step(key, theta, task.datasets, state))
    return estimator, state, step


def test_antithetic_pairs_start_alike_and_part():
    _, state, step = make(stagger=False)
    np.testing.assert_array_equal(state.inner.params["w"], np.ones((4, 2)))
    _, state, _ = step(jax.random.key(2), state)
    w = np.asarray(state.inner.params["w"])
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
    np.testing.assert_array_equal(state.inner.params["w"], np.ones((4, 2)))
    np.testing.assert_array_equal(state.accumulator, np.zeros((4, 1)))
    np.testing.assert_array_equal(state.clock.step, np.zeros(4))
    assert int(info["finished"]) == 4
    assert np.isfinite(info["final_loss"])


def test_a_diverged_particle_is_counted_and_reset_with_its_partner():
    """Below w = -1 the loss is NaN; starting one member there must reset the pair, and it alone."""
    task = quadratic_task()
    loss = lambda p, k, b: jnp.where(p["w"] < -1, jnp.float32(jnp.nan), task.loss(p, k, b))  # noqa: E731
    _, state, step = make(task=Task(**{**task.__dict__, "loss": loss}), stagger=False)
    w = state.inner.params["w"].at[2, 1].set(-2.0)
    state = state._replace(inner=state.inner._replace(params={"w": w}))
    gradient, state, info = step(jax.random.key(0), state)
    assert (int(info["diverged"]), int(info["nonfinite"]), int(info["finished"])) == (1, 2, 0)
    assert not info["all_diverged"]
    assert np.isfinite(gradient["lr"])
    np.testing.assert_array_equal(state.inner.params["w"][2], [1, 1])
    np.testing.assert_array_equal(state.clock.step, [2, 2, 0, 2])
    np.testing.assert_array_equal(np.asarray(state.accumulator)[:, 0] != 0, [True, True, False, True])


def test_losses_above_the_cap_are_counted():
    _, state, step = make(loss_cap=0.4, stagger=False)  # the first loss is 0.5, the second 0.245 or so
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
    with pytest.raises(ValueError, match="multiple of truncation=50, got 120"):
        UnrollConfig(horizon=120)
    with pytest.raises(ValueError, match="sigma must be positive"):
        PESConfig(sigma=0.0)
    with pytest.raises(ValueError, match="meta_loss must be"):
        UnrollConfig(meta_loss="best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="3 particles cannot be split over 2 devices"):
        pes(PESConfig(3), quadratic_task(), gradient_descent(), particle_mesh(2))
