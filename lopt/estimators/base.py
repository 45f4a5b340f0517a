"""What every meta-gradient estimator is: a pair of pure functions over the particles it keeps."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from lopt.config import operational
from lopt.symmetry.spec import PyTree
from lopt.task.base import Datasets
from lopt.unroll import Unroll, UnrollConfig

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
    """Base of the estimators' configs: how many inner trainings there are, not what they are of nor how long they last."""

    particles: int = 16
    """P, inner trainings (antithetic pairs, where the estimator has them) kept in parallel (the paper: 16)."""
    batched: bool | None = operational(None)
    """Compute a device's particles as one batch (True) or one after another (False); None: batched except on CPU."""

    def __post_init__(self) -> None:
        if self.particles < 1:
            raise ValueError(f"particles must be at least 1, got {self.particles}")

    def check(self, unroll: UnrollConfig) -> None:
        """Raise `ValueError`, naming the field, if the estimator cannot use such inner trainings."""

    def make(self, unroll: Unroll, mesh: Mesh | None = None) -> Estimator:
        """Build the estimator.

        Args:
          unroll: the inner trainings whose meta-loss is to become smaller, `lopt.unroll.make_unroll`.
          mesh: with the axis `particles`, over which they are sharded; its size divides their number. None: as many of the devices as do.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define make()")
