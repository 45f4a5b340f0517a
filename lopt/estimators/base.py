"""What every meta-gradient estimator is: a pair of pure functions over the particles it keeps."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from lopt.optimizers.momentum import LearnedOptimizer
from lopt.symmetry.spec import PyTree
from lopt.task.base import Datasets, Problem

PARTICLES = "particles"  # the mesh axis that particles are sharded over


class Estimator(NamedTuple):
    """An estimator of the gradient of the meta-loss with respect to theta.

    Attributes:
      init: `init(key, theta) -> state`, fresh particles.
      step: `step(key, theta, datasets, state) -> (gradient, state, info)`; one window of every particle. `datasets` is an argument,
        not closed over, so that the data are not constants of the compiled program. `info` is a dict of scalars.
      inner_steps: inner training steps that one `step` takes, all members of all particles counted.
      outer_steps: steps in which an inner training of the longest horizon passes: T / K, or 1 where each is a whole one.
    """

    init: Callable[[jax.Array, PyTree], PyTree]
    step: Callable[[jax.Array, PyTree, Datasets, PyTree], tuple[PyTree, PyTree, dict[str, jax.Array]]]
    inner_steps: int
    outer_steps: int = 1


@dataclasses.dataclass(frozen=True)
class EstimatorConfig:
    """Base of the estimators' configs."""

    particles: int = 16
    """P, inner trainings (antithetic pairs, where the estimator has them) kept in parallel (the paper: 16)."""

    def make(self, problem: Problem, optimizer: LearnedOptimizer, mesh: Mesh) -> Estimator:
        """Build the estimator, its particles sharded over the mesh."""
        raise NotImplementedError(f"{type(self).__name__} does not define make()")
