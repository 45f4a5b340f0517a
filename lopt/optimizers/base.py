"""What a learned optimizer is made of: a rule, the features that its network sees, and the network; each knows nothing of the others.

A rule makes the step of every weight of what the network f and a nominal transform n give, a direction and a size for all:

    W <- W - size (direction(f, n) + decay W)
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lopt.features.base import Context, Features
from lopt.networks.update import Sizes, UpdateNetwork, update_and_apply
from lopt.optimizers.leaves import pair, plain_path, weights_of
from lopt.optimizers.scalars import positive, read_positive
from lopt.optimizers.sharding import boxed_like, init_like, on_any_mesh, placed_like, unboxed
from lopt.symmetry.spec import PyTree, WeightSpec, named_leaves

ByPath = Mapping[str, jax.Array]


class LearnedOptimizer(NamedTuple):
    """An optimizer with meta-parameters.

    Attributes:
      init: `init(key) -> theta`, a plain dict of float32 arrays.
      opt_fn: `opt_fn(theta) -> optax.GradientTransformationExtraArgs`; its `update` needs `params`, and takes `value=` (the loss) and
        `num_steps=` (of the whole training).
      scalars: `scalars(theta) -> {name: value}`, the readable hyperparameters in theta, for logs.
      scale_by: `scale_by(theta)`: the step without its sign; without a size too, where that is the user's. To be chained as
        `optax.scale_by_adam` is.
    """

    init: Callable[[jax.Array], PyTree]
    opt_fn: Callable[[PyTree], optax.GradientTransformationExtraArgs]
    scalars: Callable[[PyTree], dict[str, jax.Array]]
    scale_by: Callable[[PyTree], optax.GradientTransformationExtraArgs] | None = None


class OptimizerState(NamedTuple):
    """State of the learned transform; it never holds params. Leaves are shaped like params, or have some of their axes left out.

    Attributes:
      count: inner steps done, int32 [].
      nominal: of the nominal transform.
      features: what the network's features keep of past gradients; None without a network.
    """

    count: jax.Array
    nominal: PyTree
    features: PyTree


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Base of what makes a learned optimizer."""

    def make(self, spec: WeightSpec, sizes: Sizes = None) -> LearnedOptimizer:
        """Build the optimizer for the weight spaces of a spec; `sizes` as for `NetworkConfig.make`."""
        raise NotImplementedError(f"{type(self).__name__} does not define make()")

    @property
    def parts(self) -> "OptimizerConfig":
        """The same as rule, features and network, where it is made of these."""
        return self

    def left_to_xla(self, spec: WeightSpec, sizes: Sizes = None) -> str:
        """Why the kernel in C++ does not compute f on the weights of a spec; "" where it does, or there is no f."""
        return "" if self.parts is self else self.parts.left_to_xla(spec, sizes)


@dataclasses.dataclass(frozen=True)
class RuleConfig:
    """How a step is made of what the network and a nominal transform give."""

    relative: bool = False
    """Multiply the step of a tensor by the root mean square of the tensor (at least 1e-3)."""
    weight_decay: float = 0.0
    """Decoupled decay lambda: the direction gains lambda W. 0: none."""
    learn_weight_decay: bool = False
    """Make lambda part of theta; weight_decay is then what it starts from."""
    fan_in: bool = False
    """Divide the step of hidden layers, whose inputs and outputs may both be permuted, by their number of inputs (muLO): then theta
    carries over to other widths. Needs the spec of the weights."""

    @property
    def outputs(self) -> int:
        """Numbers per weight that the rule wants of f; 0: it has no network."""
        raise NotImplementedError(f"{type(self).__name__} does not define outputs")

    @property
    def network_start(self) -> float:
        """Of their usual size: coefficients of f's last layer before meta-training."""
        return 1.0

    @property
    def needs_num_steps(self) -> bool:
        """Whether the rule must know how many steps the training has."""
        return False

    @property
    def needs_rate(self) -> bool:
        """Whether the user gives the learning rate, as for a direction."""
        return False

    @property
    def reads_spec(self) -> bool:
        """Whether it makes another step where the spec of the weights is known; `fan_in` cannot do without."""
        return self.fan_in

    @property
    def decays(self) -> bool:
        """Whether weights decay; a decay that is traced, as by `optax.inject_hyperparams`, may be any."""
        return self.learn_weight_decay or not (isinstance(self.weight_decay, float | int) and self.weight_decay == 0)

    def init(self) -> PyTree:
        """Its own part of theta: scalars, in forms that stay in range."""
        raise NotImplementedError(f"{type(self).__name__} does not define init()")

    def make_nominal(self, theta: PyTree, spec: WeightSpec) -> optax.GradientTransformation:
        """The nominal transform n, float32, of the weights of a spec, which has no leaves where it is not known."""
        raise NotImplementedError(f"{type(self).__name__} does not define make_nominal()")

    def direction(self, theta: PyTree, f: ByPath, n: ByPath, context: Context) -> dict[str, jax.Array]:
        """The direction of every weight: leaf path -> [*leaf.shape] from f, [outputs, *leaf.shape], and n, [*leaf.shape]."""
        raise NotImplementedError(f"{type(self).__name__} does not define direction()")

    def size(self, theta: PyTree, context: Context) -> jax.Array:
        """What the direction is multiplied with, []; positive."""
        raise NotImplementedError(f"{type(self).__name__} does not define size()")

    def scalars(self, theta: PyTree) -> dict[str, jax.Array]:
        """Its scalars, readable."""
        raise NotImplementedError(f"{type(self).__name__} does not define scalars()")


def learned_optimizer(
    rule: RuleConfig, features: Features | None, network: UpdateNetwork | None, spec: WeightSpec
) -> LearnedOptimizer:
    """The learned optimizer of a rule, features and a network.

    Args:
      rule: how a step is made.
      features: what the network sees; None without a network.
      network: f; None where the rule has no outputs.
      spec: of the weights; without leaves where only rules would read it that can do without.

    Returns:
      A `LearnedOptimizer` with theta `{scalars of the rule, "network": theta of f}`.

    Raises:
      ValueError: if the rule and the network do not go together, or a scalar is out of range.
    """
    if isinstance(rule.weight_decay, float | int) and rule.weight_decay < 0:
        raise ValueError(f"weight_decay must not be negative, got {rule.weight_decay}")
    own = rule.init()
    if rule.learn_weight_decay:
        own = {**own, "weight_decay": positive(rule.weight_decay, "weight_decay, where it is learned,")}

    def init(key: jax.Array) -> PyTree:
        theta = dict(own)
        if network is not None:
            theta["network"] = network.init(key)
            if rule.network_start != 1:
                theta["network"]["last"] = jax.tree.map(lambda x: rule.network_start * x, theta["network"]["last"])
        return theta

    def scalars(theta: PyTree) -> dict[str, jax.Array]:
        decayed = {"weight_decay": read_positive(theta["weight_decay"])} if rule.learn_weight_decay else {}
        return rule.scalars(theta) | decayed

    parts = _Parts(rule, features, network, spec)
    return LearnedOptimizer(
        init, lambda theta: _transform(parts, theta, whole=True), scalars, lambda theta: _transform(parts, theta, whole=False)
    )


class _Parts(NamedTuple):
    rule: RuleConfig
    features: Features | None
    network: UpdateNetwork | None
    spec: WeightSpec


def _transform(parts: _Parts, theta: PyTree, *, whole: bool) -> optax.GradientTransformationExtraArgs:
    """The transform; `whole`: with sign and size, as `optax.adam`, rather than as `optax.scale_by_adam`."""
    rule, features, network, spec = parts
    given, nominal_init = theta, rule.make_nominal(theta, spec).init

    def init_fn(params: PyTree) -> OptimizerState:
        weights = weights_of(params)
        return boxed_like(init_unboxed(unboxed(weights)), init_unboxed, weights)

    def init_unboxed(weights: PyTree) -> OptimizerState:
        kept = init_like(features.init, weights) if features is not None else None
        return OptimizerState(jnp.zeros((), jnp.int32), init_like(nominal_init, weights), kept)

    def update_fn(
        updates: PyTree, state: PyTree, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, OptimizerState]:
        if params is None:
            raise ValueError("a learned optimizer sees the weights: call update(grads, state, params)")
        found = pair(
            updates, params, lambda weights: jax.tree.structure(jax.eval_shape(init_fn, weights)) == jax.tree.structure(state)
        )
        known = {name: extra_args[name] for name in ("value", "num_steps") if extra_args.get(name) is not None}
        weights, state = unboxed(found.weights), unboxed(state)
        steps, state = on_any_mesh(step, (weights, state), unboxed(found.grads), state, weights, known, given)
        return found.updates(jax.tree.leaves(steps)), boxed_like(state, init_unboxed, found.weights)

    def step(grads: PyTree, state: PyTree, params: PyTree, known: dict[str, Any], theta: PyTree) -> tuple[PyTree, OptimizerState]:
        nominal = rule.make_nominal(theta, spec)
        context = Context(state.count, _float(known.get("value")), _float(known.get("num_steps")), spec)
        n, after = nominal.update(grads, state.nominal, params)
        f, kept = {}, None
        if features is not None and network is not None:
            f, kept = update_and_apply(features, network, theta["network"], grads, state.features, params, context)
        named = dict(named_leaves(params))
        steps = rule.direction(theta, f, dict(named_leaves(n)), context)
        steps = {path: _scaled(rule, spec, path, step, named[path]) for path, step in steps.items()}
        size = rule.size(theta, context) if whole or not rule.needs_rate else jnp.float32(1)
        if rule.decays:
            decay = read_positive(theta["weight_decay"]) if rule.learn_weight_decay else jnp.float32(rule.weight_decay)
            steps = {path: step + decay * named[path].astype(jnp.float32) for path, step in steps.items()}
        size = -size if whole else size
        found = [(size * steps[path]).astype(w.dtype) for path, w in named.items()]
        updates = jax.tree.map(placed_like, jax.tree.unflatten(jax.tree.structure(params), found), params)
        after = OptimizerState(jnp.asarray(optax.safe_increment(state.count)), after, kept)
        return updates, jax.tree.map(placed_like, after, state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _float(value: Any) -> jax.Array | None:
    return None if value is None else jnp.asarray(value).astype(jnp.float32)


def _scaled(rule: RuleConfig, spec: WeightSpec, path: str, step: jax.Array, w: jax.Array) -> jax.Array:
    """The direction of a tensor with the scales that every rule may have."""
    if rule.relative and w.size:
        step = step * jnp.maximum(jnp.sqrt(jnp.mean(jnp.square(w.astype(jnp.float32)))), 1e-3)
    if rule.fan_in:
        known = plain_path(path)
        if known not in spec.paths:
            raise ValueError(f"fan_in reads the spec of the weights, which has no leaf '{path}'")
        inputs, outputs = spec.sides(known)
        if all(any(not factor.fixed for axis in side for factor in spec.axis_factors(known, axis)) for side in (inputs, outputs)):
            step = step / math.prod(w.shape[axis] for axis in inputs)
    return step
