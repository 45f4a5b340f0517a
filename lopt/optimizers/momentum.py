"""The update rule: from an update network and a spec to a learned optimizer, and from its theta to an optax transform.

"Universal Neural Functionals" (NeurIPS 2024), section 5.3, equation 8:

    W <- W - alpha (m^{g0} + beta f(W, grad, {m^{gi}}, t)),        m^g <- g m^g + grad

with alpha, beta and g0 meta-learned together with f. beta = 0 leaves SGD with momentum, whose alpha and g0 are meta-learned alike.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lopt.features.paper import MOMENTUM_DECAYS, weight_features
from lopt.networks.update import NetworkConfig, Sizes, UNFConfig, UpdateNetwork
from lopt.symmetry.spec import PyTree, WeightSpec, named_leaves

FLOAT32 = jnp.dtype(jnp.float32)


class LearnedOptimizer(NamedTuple):
    """An optimizer with meta-parameters.

    Attributes:
      init: `init(key) -> theta`, a plain dict of float32 arrays.
      opt_fn: `opt_fn(theta) -> optax.GradientTransformationExtraArgs`; its `update` needs `params`.
      scalars: `scalars(theta) -> {name: value}`, the readable hyperparameters in theta, for logs.
    """

    init: Callable[[jax.Array], PyTree]
    opt_fn: Callable[[PyTree], optax.GradientTransformationExtraArgs]
    scalars: Callable[[PyTree], dict[str, jax.Array]]


class MomentumState(NamedTuple):
    """State of the learned transform; it never holds params.

    Attributes:
      count: inner steps done, int32 [].
      momentum: m^{g0}, pytree like params, float32.
      momenta: m^{gi} that f sees, leaves [6, *shape], float32 or as asked for; None without f.
    """

    count: jax.Array
    momentum: PyTree
    momenta: PyTree


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Base of the learned optimizers' configs: the scalars of the update rule that all share."""

    alpha: float = 0.1
    """Step size alpha before meta-training."""
    g0: float = 0.9
    """Decay g0 of the momentum before meta-training, in [0, 1)."""

    def make(self, spec: WeightSpec, sizes: Sizes = None) -> LearnedOptimizer:
        """Build the optimizer for the weight spaces of a spec; `sizes` as for `NetworkConfig.make`."""
        raise NotImplementedError(f"{type(self).__name__} does not define make()")


@dataclasses.dataclass(frozen=True)
class LearnedSGDMConfig(OptimizerConfig):
    """SGD with momentum whose step size and decay are meta-learned: the rule with beta = 0."""

    def make(self, spec: WeightSpec, sizes: Sizes = None) -> LearnedOptimizer:
        return learned_optimizer(None, alpha=self.alpha, g0=self.g0, beta=0.0)


@dataclasses.dataclass(frozen=True)
class LearnedMomentumConfig(OptimizerConfig):
    """The paper's rule: momentum plus beta times an update network f."""

    beta: float = 0.001
    """Weight beta of f before meta-training (the paper: 0.001; 0.01 learns sooner)."""
    network: NetworkConfig = UNFConfig()
    """The update network f."""
    momenta_dtype: Literal["float32", "bfloat16"] = "float32"
    """How the six momenta that f sees are kept between steps: bfloat16 takes 16 bytes of state a weight instead of 28, but what adds
    less than a 256th to a momentum is lost, which the slow ones notice."""

    def make(self, spec: WeightSpec, sizes: Sizes = None) -> LearnedOptimizer:
        network, dtype = self.network.make(spec, sizes), jnp.dtype(self.momenta_dtype)
        return learned_optimizer(network, alpha=self.alpha, g0=self.g0, beta=self.beta, momenta_dtype=dtype)


def learned_optimizer(
    network: UpdateNetwork | None, *, alpha: float, g0: float, beta: float, momenta_dtype: jnp.dtype = FLOAT32
) -> LearnedOptimizer:
    """The learned optimizer W <- W - alpha (m^{g0} + beta f).

    Args:
      network: f, or None for learned SGD with momentum (then beta is not in theta).
      alpha: initial step size.
      g0: initial decay of the momentum.
      beta: initial weight of f.
      momenta_dtype: in which the momenta that f sees are kept between steps; all is computed in float32.

    Returns:
      A `LearnedOptimizer` with theta `{"alpha": [], "g0": [], "beta": [], "network": theta of f}`.

    Raises:
      ValueError: if alpha is not positive or g0 is outside [0, 1).
    """
    if not alpha > 0:
        raise ValueError(f"alpha must be positive, got {alpha}")
    if not 0 <= g0 < 1:
        raise ValueError(f"g0 must lie in [0, 1), got {g0}")

    def init(key: jax.Array) -> PyTree:
        theta = {"alpha": jnp.float32(alpha), "g0": jnp.float32(g0)}
        if network is not None:
            theta |= {"beta": jnp.float32(beta), "network": network.init(key)}
        return theta

    def opt_fn(theta: PyTree) -> optax.GradientTransformationExtraArgs:
        return _transform(network, theta, momenta_dtype)

    def scalars(theta: PyTree) -> dict[str, jax.Array]:
        return {name: theta[name] for name in ("alpha", "beta", "g0") if name in theta}

    return LearnedOptimizer(init, opt_fn, scalars)


def _transform(network: UpdateNetwork | None, theta: PyTree, momenta_dtype: jnp.dtype) -> optax.GradientTransformationExtraArgs:
    def init_fn(params: PyTree) -> MomentumState:
        momentum = jax.tree.map(lambda w: jnp.zeros(jnp.shape(w), jnp.float32), params)
        momenta = None
        if network is not None:
            momenta = jax.tree.map(lambda w: jnp.zeros((len(MOMENTUM_DECAYS), *jnp.shape(w)), momenta_dtype), params)
        return MomentumState(jnp.zeros((), jnp.int32), momentum, momenta)

    def update_fn(
        updates: PyTree, state: PyTree, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, MomentumState]:
        del extra_args
        if params is None:
            raise ValueError("a learned optimizer sees the weights: call update(grads, state, params)")
        grads = updates
        momentum = jax.tree.map(lambda m, g: theta["g0"] * m + g.astype(jnp.float32), state.momentum, grads)
        step, momenta = momentum, None
        if network is not None:
            momenta = jax.tree.map(_decay_momenta, state.momenta, grads)
            with jax.named_scope("features"):
                features = weight_features(params, grads, momenta, state.count)
            f = network.apply(theta["network"], features)
            f_tree = jax.tree.unflatten(jax.tree.structure(momentum), [f[path] for path, _ in named_leaves(momentum)])
            step = jax.tree.map(lambda m, f: m + theta["beta"] * f, momentum, f_tree)
            momenta = jax.tree.map(lambda m: m.astype(momenta_dtype), momenta)
        updates = jax.tree.map(lambda d, w: (-theta["alpha"] * d).astype(w.dtype), step, params)
        return updates, MomentumState(jnp.asarray(optax.safe_increment(state.count)), momentum, momenta)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _decay_momenta(momenta: jax.Array, grad: jax.Array) -> jax.Array:
    decays = jnp.reshape(jnp.asarray(MOMENTUM_DECAYS, jnp.float32), (-1,) + (1,) * grad.ndim)
    return decays * momenta.astype(jnp.float32) + jnp.broadcast_to(grad.astype(jnp.float32)[None], momenta.shape)
