"""A noisy quadratic whose meta-gradients are known: SGD of learning rate theta on `c (w - b)^2 / 2`, b = s or -s.

With rate r the second moment of the weight goes as `m <- (1 - c r)^2 m + (c r s)^2`, from m = 1, and the expected loss is
`c (m + s^2) / 2`. The rate may differ from window to window, as perturbations do.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from lopt.benchmarks.quadratic import RATE, SPREAD, gradient_descent, quadratic_task
from lopt.unroll import make_unroll


def expected_losses(rates: jax.Array, truncation: int, moment=1.0, curvature=1.0, spread=SPREAD):
    """Expected loss of every step, [T], and the second moment at the beginning of each window, for a rate a window, [W]."""
    losses, moments = [], []
    for rate in rates:
        moments.append(moment)
        for _ in range(truncation):
            losses.append(0.5 * curvature * (moment + spread**2))
            moment = (1 - curvature * rate) ** 2 * moment + (curvature * rate * spread) ** 2
    return jnp.stack(losses), jnp.stack([jnp.asarray(m) for m in moments])


def meta_loss(kind: str, losses: jax.Array, last: int) -> jax.Array:
    return {"final": losses[-1], "mean": jnp.mean(losses), "last": jnp.mean(losses[-last:])}[kind]


def grid(sigma: float, count: int):
    """Nodes [n, count] and weights [n] of the Gauss-Hermite product rule for `count` normal numbers."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(12)
    weights = weights / weights.sum()
    points = np.asarray(list(itertools.product(nodes, repeat=count)))
    return jnp.asarray(sigma * points), jnp.asarray([np.prod(w) for w in itertools.product(weights, repeat=count)])


def smoothed_gradient(kind, windows, truncation, sigma, segments, last=3):
    """d/dtheta of the meta-loss, smoothed over one perturbation for each segment of windows; `segments` [W] says which."""
    points, weights = grid(sigma, max(segments) + 1)

    def objective(theta):
        def at(point):
            losses, _ = expected_losses(theta + point[np.asarray(segments)], truncation)
            return meta_loss(kind, losses, last)

        return jnp.sum(weights * jax.vmap(at)(points))

    return float(jax.grad(objective)(jnp.float32(RATE)))


def truncated_gradient(kind, windows, truncation, sigma, last=3):
    """Every window's smoothed gradient with the weights at its beginning held fixed: what truncation estimates, sigma 0 for backprop."""
    points, weights = grid(sigma, 1)
    horizon = windows * truncation
    _, moments = expected_losses(jnp.full(windows, RATE), truncation)

    def share(theta, window):
        losses = jax.vmap(lambda point: expected_losses(theta + point, truncation, moments[window])[0])(points)
        steps = window * truncation + np.arange(truncation)
        count = {"final": 1, "mean": horizon, "last": last}[kind]
        return jnp.sum(weights * jnp.sum(losses * jnp.asarray(steps >= horizon - count, jnp.float32)[None], axis=1)) / count

    return float(sum(jax.grad(share)(jnp.float32(RATE), window) for window in range(windows)))


def sample_gradients(config, unroll, trainings=100, part="rate", task=None):
    """Gradients averaged over the windows of an inner training, so that every window counts equally: [trainings]."""
    task, optimizer = task or quadratic_task(), gradient_descent()
    estimator = config.make(make_unroll(unroll, task, optimizer))
    windows = estimator.outer_steps

    @jax.jit
    def run(key):
        theta = optimizer.init(key)

        def step(state, key):
            gradient, state, _ = estimator.step(key, theta, task.datasets, state)
            return state, gradient[part]

        return jax.lax.scan(step, estimator.init(key, theta), jax.random.split(key, trainings * windows))[1]

    found = np.asarray(run(jax.random.key(0)), np.float64)
    return found.reshape(trainings, windows, *found.shape[1:]).mean(axis=1)
