"""The rule of small_fc: a direction times the exponential of a magnitude, both of the network, and no nominal step.

    W <- W - step f0 exp(exponent f1)

Metz et al., "Practical tradeoffs between memory, compute, and performance in learned optimizers" (CoLLAs 2022), equation 1.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from lopt.features.base import Context
from lopt.optimizers.base import ByPath, RuleConfig
from lopt.optimizers.nominals import NoNominal
from lopt.symmetry.spec import PyTree, WeightSpec


@dataclasses.dataclass(frozen=True)
class MagnitudeRule(RuleConfig):
    """A step made by the network alone, as in small_fc: a direction times the exponential of a magnitude.

    W <- W - step f0 exp(exponent f1): f0 and f1 are what the network gives for each weight.
    """

    step: float = 1e-3
    """Multiple of the direction; fixed."""
    exponent: float = 1e-3
    """Multiple of the magnitude; fixed."""

    @property
    def outputs(self) -> int:
        return 2

    def init(self) -> PyTree:
        if not self.step > 0:
            raise ValueError(f"step must be positive, got {self.step}")
        return {}

    def make_nominal(self, theta: PyTree, spec: WeightSpec) -> optax.GradientTransformation:
        return NoNominal().make({}, spec)

    def direction(self, theta: PyTree, f: ByPath, n: ByPath, context: Context) -> dict[str, jax.Array]:
        return {path: x[0] * jnp.exp(self.exponent * x[1]) for path, x in f.items()}

    def size(self, theta: PyTree, context: Context) -> jax.Array:
        return jnp.float32(self.step)

    def scalars(self, theta: PyTree) -> dict[str, jax.Array]:
        return {}
