"""Persistent Evolution Strategies: an unbiased meta-gradient from truncated unrolls.

Vicol, Metz, Sohl-Dickstein, "Unbiased Gradient Estimation in Unrolled Computation Graphs with Persistent Evolution Strategies"
(ICML 2021), equation 9 and Algorithm 2, with antithetic pairs: a fresh perturbation in every window, and the sum of all of them since
the inner training started as direction. It is GPES (`lopt.estimators.gpes`) with a reuse of one window. Its variance grows with the
number of windows.
"""

import dataclasses

from jax.sharding import Mesh

from lopt.estimators.base import Estimator
from lopt.estimators.evolution import EvolutionConfig
from lopt.estimators.gpes import gpes
from lopt.unroll import Unroll


@dataclasses.dataclass(frozen=True)
class PESConfig(EvolutionConfig):
    """Persistent evolution strategies (the paper): new noise in every window, without bias; its variance grows with their number."""

    def make(self, unroll: Unroll, mesh: Mesh | None = None) -> Estimator:
        return gpes(self, unroll.config.truncation, unroll, mesh)
