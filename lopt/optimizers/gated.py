"""The gated rule: a nominal step, scaled and corrected by the network, times a learned schedule.

    W <- W - alpha s(t) (n exp(f1) + beta f0)

With f = 0 it is Adam, Muon or momentum with the schedule s. f1 is clipped to [-8, 4].
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from lopt.features.base import Context
from lopt.optimizers.base import ByPath, RuleConfig
from lopt.optimizers.nominals import AdamNominal, NominalConfig
from lopt.optimizers.scalars import positive, read_positive
from lopt.optimizers.schedules import ScheduleConfig
from lopt.symmetry.spec import PyTree, WeightSpec


def scaled(n: jax.Array, exponent: jax.Array) -> jax.Array:
    """n exp(exponent), the exponent clipped to [-8, 4]."""
    return n * jnp.exp(jnp.clip(exponent, -8.0, 4.0))


@dataclasses.dataclass(frozen=True)
class NominalRule(RuleConfig):
    """The step of a hand-designed optimizer whose hyperparameters and schedule are learned; no network.

    W <- W - alpha s(t) n: n is the step (`nominal`), s(t) the schedule, alpha the step size.
    """

    nominal: NominalConfig = AdamNominal()
    """The step n: momentum, adam, nadam, muon or none."""
    alpha: float = 0.01
    """Step size alpha before meta-training."""
    schedule: ScheduleConfig = ScheduleConfig()
    """The learned schedule s."""

    @property
    def outputs(self) -> int:
        return 0

    @property
    def needs_num_steps(self) -> bool:
        return self.schedule.needs_num_steps

    @property
    def reads_spec(self) -> bool:
        return super().reads_spec or self.nominal.reads_spec

    def init(self) -> PyTree:
        return {"alpha": positive(self.alpha, "alpha"), "nominal": self.nominal.init(), "schedule": self.schedule.init()}

    def make_nominal(self, theta: PyTree, spec: WeightSpec) -> optax.GradientTransformation:
        return self.nominal.make(theta["nominal"], spec)

    def direction(self, theta: PyTree, f: ByPath, n: ByPath, context: Context) -> dict[str, jax.Array]:
        return dict(n)

    def size(self, theta: PyTree, context: Context) -> jax.Array:
        return read_positive(theta["alpha"]) * self.schedule.factor(theta["schedule"], context, "the rule's schedule")

    def scalars(self, theta: PyTree) -> dict[str, jax.Array]:
        found = {name: read_positive(theta[name]) for name in ("alpha", "beta") if name in theta}
        return found | self.nominal.scalars(theta["nominal"])


@dataclasses.dataclass(frozen=True)
class GatedRule(NominalRule):
    """The step of a hand-designed optimizer, scaled and corrected by the network, at a learned schedule.

    W <- W - alpha s(t) (n exp(f1) + beta f0): n is the step (`nominal`), f0 and f1 are what the network gives for each weight, s(t) is
    the schedule. Where f is 0, what is left is the hand-designed optimizer.
    """

    beta: float = 0.1
    """Weight beta of f0 before meta-training."""

    @property
    def outputs(self) -> int:
        return 2

    @property
    def network_start(self) -> float:
        return 0.1

    def init(self) -> PyTree:
        return {**super().init(), "beta": positive(self.beta, "beta")}

    def direction(self, theta: PyTree, f: ByPath, n: ByPath, context: Context) -> dict[str, jax.Array]:
        beta = read_positive(theta["beta"])
        return {path: scaled(x, f[path][1]) + beta * f[path][0] for path, x in n.items()}
