"""The paper's rule: momentum plus beta times an update network f; and SGD with momentum, which is beta = 0.

"Universal Neural Functionals" (NeurIPS 2024), section 5.3, equation 8:

    W <- W - alpha (m^{g0} + beta f(W, grad, {m^{gi}}, t)),        m^g <- g m^g + grad

with alpha, beta and g0 meta-learned together with f, as they are: theta is that of the paper.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from lopt.features.base import Context, StateDtype
from lopt.features.presets import PaperFeatures
from lopt.networks.update import NetworkConfig, Sizes, UNFConfig
from lopt.optimizers.base import ByPath, LearnedOptimizer, OptimizerConfig, RuleConfig
from lopt.optimizers.config import LearnedOptimizerConfig
from lopt.symmetry.spec import PyTree, WeightSpec


@dataclasses.dataclass(frozen=True)
class SGDMRule(RuleConfig):
    """SGD with momentum whose step size and decay are meta-learned; no network.

    m <- g0 m + gradient, W <- W - alpha m.
    """

    alpha: float = 0.1
    """Step size alpha before meta-training."""
    g0: float = 0.9
    """Decay g0 of the momentum before meta-training, in [0, 1)."""

    @property
    def outputs(self) -> int:
        return 0

    def init(self) -> PyTree:
        if not self.alpha > 0:
            raise ValueError(f"alpha must be positive, got {self.alpha}")
        if not 0 <= self.g0 < 1:
            raise ValueError(f"g0 must lie in [0, 1), got {self.g0}")
        return {"alpha": jnp.float32(self.alpha), "g0": jnp.float32(self.g0)}

    def make_nominal(self, theta: PyTree, spec: WeightSpec) -> optax.GradientTransformation:
        return optax.trace(theta["g0"], accumulator_dtype=jnp.float32)

    def direction(self, theta: PyTree, f: ByPath, n: ByPath, context: Context) -> dict[str, jax.Array]:
        return dict(n)

    def size(self, theta: PyTree, context: Context) -> jax.Array:
        return theta["alpha"]

    def scalars(self, theta: PyTree) -> dict[str, jax.Array]:
        return {name: theta[name] for name in ("alpha", "beta", "g0") if name in theta}


@dataclasses.dataclass(frozen=True)
class MomentumRule(SGDMRule):
    """The paper's rule: SGD with momentum, to which the network adds a correction for every weight.

    m <- g0 m + gradient, W <- W - alpha (m + beta f): f is what the network gives; alpha, beta and g0 are learned too.
    """

    beta: float = 0.001
    """Weight beta of f before meta-training (the paper: 0.001; 0.01 learns sooner)."""
    start: float = 1.0
    """Of their usual size: coefficients of f's last layer before meta-training. From 1, f is noise, and beta may be driven to 0, where
    f cannot learn; from 0.1, beta may begin at 0.1."""

    @property
    def outputs(self) -> int:
        return 1

    @property
    def network_start(self) -> float:
        return self.start

    def init(self) -> PyTree:
        if self.start < 0:
            raise ValueError(f"start must not be negative, got {self.start}")
        return {**super().init(), "beta": jnp.float32(self.beta)}

    def direction(self, theta: PyTree, f: ByPath, n: ByPath, context: Context) -> dict[str, jax.Array]:
        return {path: m + theta["beta"] * f[path][0] for path, m in n.items()}


@dataclasses.dataclass(frozen=True)
class LearnedSGDMConfig(OptimizerConfig):
    """SGD with momentum whose step size and decay are meta-learned: a learned optimizer of the rule `SGDMRule` alone."""

    alpha: float = 0.1
    """Step size alpha before meta-training."""
    g0: float = 0.9
    """Decay g0 of the momentum before meta-training, in [0, 1)."""

    @property
    def parts(self) -> LearnedOptimizerConfig:
        return LearnedOptimizerConfig(SGDMRule(alpha=self.alpha, g0=self.g0), None, None)

    def make(self, spec: WeightSpec, sizes: Sizes = None) -> LearnedOptimizer:
        return self.parts.make(spec, sizes)


@dataclasses.dataclass(frozen=True)
class LearnedMomentumConfig(OptimizerConfig):
    """The paper's optimizer: the rule `MomentumRule`, the features `PaperFeatures`, and any update network."""

    alpha: float = 0.1
    """Step size alpha before meta-training."""
    g0: float = 0.9
    """Decay g0 of the momentum before meta-training, in [0, 1)."""
    beta: float = 0.001
    """Weight beta of f before meta-training (the paper: 0.001; 0.01 learns sooner)."""
    start: float = 1.0
    """Of their usual size: coefficients of f's last layer before meta-training. From 1, f is noise, and beta may be driven to 0, where
    f cannot learn; from 0.1, beta may begin at 0.1."""
    network: NetworkConfig = UNFConfig(terms=None)
    """The update network f."""
    momenta_dtype: StateDtype = "float32"
    """How the six momenta that f sees are kept between steps: bfloat16 takes 16 bytes of state per weight instead of 28, but what adds
    less than a 256th to a momentum is lost, which the slow ones notice."""

    @property
    def parts(self) -> LearnedOptimizerConfig:
        rule = MomentumRule(alpha=self.alpha, g0=self.g0, beta=self.beta, start=self.start)
        return LearnedOptimizerConfig(rule, PaperFeatures(state_dtype=self.momenta_dtype), self.network)

    def make(self, spec: WeightSpec, sizes: Sizes = None) -> LearnedOptimizer:
        return self.parts.make(spec, sizes)
