"""How noisy meta-gradient estimators are, by the number of windows that an inner training is cut into."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

from lopt.benchmarks.quadratic import GradientDescentConfig, quadratic_task
from lopt.estimators.base import EstimatorConfig
from lopt.estimators.full_backprop import FullBackpropConfig
from lopt.estimators.full_es import FullESConfig
from lopt.estimators.gpes import GPESConfig
from lopt.estimators.nres import NRESConfig
from lopt.estimators.pes import PESConfig
from lopt.estimators.truncated_backprop import TruncatedBackpropConfig
from lopt.estimators.truncated_es import TruncatedESConfig
from lopt.optimizers.momentum import OptimizerConfig
from lopt.task.base import Problem
from lopt.training.mixture import optimizer_of
from lopt.unroll import UnrollConfig, make_unroll

TRUNCATION = 10
CONFIGS: dict[str, EstimatorConfig] = {
    "pes": PESConfig(),
    "nres": NRESConfig(),
    "gpes": GPESConfig(reuse=4 * TRUNCATION),
    "full_es": FullESConfig(),
    "truncated_es": TruncatedESConfig(),
    "truncated_backprop": TruncatedBackpropConfig(),
    "full_backprop": FullBackpropConfig(),
}


def gradient_variances(
    names: Sequence[str],
    windows: Sequence[int],
    optimizer_config: OptimizerConfig,
    problem: Problem,
    trainings: int,
    **fields: Any,
) -> Iterator[dict[str, Any]]:
    """`gradient_variance` of estimators for the final meta-loss, by the number of windows of 10 steps.

    Args:
      names: of the estimators, keys of `CONFIGS`.
      windows: of an inner training.
      optimizer_config: whose theta the gradient is of.
      problem: a task, or a family.
      trainings: inner trainings of every particle.
      fields: of the estimators' configs, that replace theirs.
    """
    for count in windows:
        unroll = UnrollConfig(horizon=count * TRUNCATION, truncation=TRUNCATION, loss_cap=float("inf"))
        for name in names:
            config = dataclasses.replace(CONFIGS[name], **fields)
            found = gradient_variance(name, config, unroll, optimizer_config, problem, trainings=trainings)
            yield {"task": problem.name, **found}


def on_quadratic(names: Sequence[str], windows: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Variances for gradient descent on a noisy quadratic, which are cheap: 400 particles as one batch."""
    fields = {"particles": 400, "batched": True}
    return gradient_variances(names, windows, GradientDescentConfig(), quadratic_task(), trainings=50, **fields)


def gradient_variance(
    name: str,
    config: EstimatorConfig,
    unroll: UnrollConfig,
    optimizer_config: OptimizerConfig,
    problem: Problem,
    *,
    trainings: int = 10,
    seed: int = 0,
) -> dict[str, Any]:
    """The variance of one particle's estimate of the meta-gradient, theta held at its start.

    The estimate of a whole inner training is the mean over its windows; its variance is the trace of the covariance, from the spread
    of the means over P particles of several trainings, times P.

    Args:
      name: of the estimator, for the record.
      config: of the estimator.
      unroll: horizon and truncation; starts are not staggered.
      optimizer_config: whose theta the gradient is of.
      problem: a task, or a family.
      trainings: inner trainings of every particle.
      seed: of everything random.

    Returns:
      `estimator`, `windows`, `truncation`, `particles`, `trainings`, `variance`, `mean_norm2` (squared norm of the mean estimate, which
      contains variance / (P trainings) of noise).
    """
    unroll = dataclasses.replace(unroll, stagger=False)
    optimizer = optimizer_of(optimizer_config, problem)
    estimator = config.make(make_unroll(unroll, problem, optimizer))
    key = jax.random.key(seed)
    theta = jax.jit(optimizer.init)(jax.random.fold_in(key, 0))
    datasets = problem.datasets.at(0)

    @jax.jit
    def one_training(key, state, theta, datasets):
        def step(state, key):
            gradient, state, _ = estimator.step(key, theta, datasets, state)
            return state, ravel_pytree(gradient)[0]

        state, gradients = jax.lax.scan(step, state, jax.random.split(key, estimator.outer_steps))
        return state, gradients.mean(axis=0)

    state, found = jax.jit(estimator.init)(jax.random.fold_in(key, 1), theta), []
    for index in range(trainings):
        state, gradient = one_training(jax.random.fold_in(key, 2 + index), state, theta, datasets)
        found.append(np.asarray(gradient, np.float64))
    samples = np.stack(found)
    return {
        "estimator": name,
        "windows": unroll.windows,
        "truncation": unroll.truncation,
        "particles": config.particles,
        "trainings": trainings,
        "variance": float(config.particles * samples.var(axis=0, ddof=1).sum()),
        "mean_norm2": float(np.square(samples.mean(axis=0)).sum()),
    }
