"""Noise-Reuse Evolution Strategies: one perturbation for a whole inner training, in truncated unrolls.

Li et al., "Variance-Reduced Gradient Estimation via Noise-Reuse in Online Evolution Strategies" (NeurIPS 2023, arXiv 2304.12180); the
same as Vicol's "ES-Single" ("Low-Variance Gradient Estimation in Unrolled Computation Graphs with ES-Single", ICML 2023, arXiv
2304.11153). It is GPES (`lopt.estimators.gpes`) with a reuse of the whole horizon: what it estimates without bias is the gradient of
the meta-loss smoothed as full ES does, and its variance does not grow with the number of windows as that of PES does.
"""

import dataclasses

from jax.sharding import Mesh

from lopt.estimators.base import Estimator
from lopt.estimators.evolution import EvolutionConfig
from lopt.estimators.gpes import gpes
from lopt.unroll import Unroll


@dataclasses.dataclass(frozen=True)
class NRESConfig(EvolutionConfig):
    """Noise-reuse evolution strategies: one noise for a whole inner training, looked at in windows; without bias."""

    def make(self, unroll: Unroll, mesh: Mesh | None = None) -> Estimator:
        return gpes(self, None, unroll, mesh)
