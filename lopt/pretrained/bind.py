"""From theta to the learned optimizer for somebody's weights.

What sees every weight alone fits anything. What sees weights together is made for a spec: coefficients that are shared by role for any
spec, others for that of the weights that they were trained for, under whatever names (`lopt.symmetry.match`).
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lopt.features.base import Features, WeightFeatures
from lopt.layers.step import Accumulators
from lopt.networks.update import DeepSetsConfig, NetworkConfig, Sizes, UNFConfig, UpdateNetwork
from lopt.optimizers.base import LearnedOptimizer, OptimizerConfig, RuleConfig
from lopt.optimizers.config import LearnedOptimizerConfig
from lopt.optimizers.leaves import plain_path, weights_of
from lopt.pretrained.card import BY_ROLE, CardError, check_theta, inputs_of
from lopt.symmetry.match import match_leaves
from lopt.symmetry.spec import Factor, PyTree, SpecError, WeightSpec, is_under, named_leaves

# So many times the inputs that were seen are far more. Of an MLP of 128 units on FashionMNIST (235 batches of 128, raw pixels) all four
# shipped optimizers are below adam(1e-3) at 196 inputs, 2 to 3 times what they have seen; none is at 784, unless its steps are scaled down.
_FAR = 4


class Trained(NamedTuple):
    """A trained optimizer before it is bound to anybody's weights.

    Attributes:
      name: the shipped one's, or the directory.
      config: of the learned optimizer.
      theta: its meta-parameters.
      specs: of the weights that it was trained on; called only where they are needed, as a run must load its tasks for them.
      where: the file or run that theta is from, for messages.
      inputs: the most inputs of a weight that it was seen to work on (`lopt.pretrained.card.inputs_of`); None where nobody says.
    """

    name: str
    config: OptimizerConfig
    theta: PyTree
    specs: Callable[[], tuple[WeightSpec, ...]]
    where: str
    inputs: int | None = None


def _network(config: OptimizerConfig) -> NetworkConfig | None:
    return getattr(config, "network", None)


def needs_spec(config: OptimizerConfig) -> bool:
    """Whether an optimizer sees weights together in a way that depends on the spec, or its rule cannot do without."""
    network, rule = _network(config), rule_of(config)
    return (network is not None and network.needs_spec) or (rule is not None and rule.fan_in)


def reads_spec(config: OptimizerConfig) -> bool:
    """Whether a spec makes a difference to an optimizer: it needs one, or its rule reads which axes are inputs and outputs."""
    rule = rule_of(config)
    return needs_spec(config) or (rule is not None and rule.reads_spec)


def needs_sizes(config: OptimizerConfig) -> bool:
    """Whether theta depends on the sizes of axes."""
    network = _network(config)
    return network is not None and network.needs_sizes


def _by_role(config: OptimizerConfig) -> bool:
    network = _network(config)
    return network is not None and network.by_role


def rule_of(config: OptimizerConfig) -> RuleConfig | None:
    """The rule of an optimizer; None for one that is not made of rule, features and network."""
    parts = config.parts
    return parts.rule if isinstance(parts, LearnedOptimizerConfig) else None


def transform(trained: Trained, spec: WeightSpec | None, *, direction: bool = False) -> optax.GradientTransformationExtraArgs:
    """The optax transform for the weights of a spec.

    Args:
      trained: config and theta.
      spec: of the weights; None where `needs_spec` says so.
      direction: what `LearnedOptimizer.scale_by` gives, rather than `opt_fn`.

    Raises:
      CardError, SpecError: as `bind`; where `needs_sizes` says so by `init`, when params are first seen.

    Warns:
      UserWarning: by `init`, once, if a weight has far more inputs than any that theta was seen to work on, and the step size is theta's.
    """
    return _warning_of_sizes(_bound(trained, spec, direction), trained)


def _bound(trained: Trained, spec: WeightSpec | None, direction: bool) -> optax.GradientTransformationExtraArgs:
    if spec is None or not reads_spec(trained.config):
        return _made(bind(trained, None), trained, direction)
    if needs_sizes(trained.config):
        return _once_sizes_are_known(trained, spec, direction)
    return _for_what_is_trained(_checked(_made(bind(trained, spec), trained, direction), spec), trained, spec, direction)


def _warning_of_sizes(tx: optax.GradientTransformationExtraArgs, trained: Trained) -> optax.GradientTransformationExtraArgs:
    rule = rule_of(trained.config)
    if trained.inputs is None or (rule is not None and rule.needs_rate):  # the rate, and so the size of a step, is the user's
        return tx
    most, said = _FAR * trained.inputs, False

    def init(params: PyTree) -> Any:
        nonlocal said
        shapes = {path: leaf.shape for path, leaf in _shapes(params).items()}
        far = [path for path in shapes if inputs_of(shapes[path]) > most]
        if far and not said:
            said = True  # of several inits, and of one that is traced again
            worst = max(far, key=lambda path: inputs_of(shapes[path]))
            warnings.warn(
                f"'{trained.name}' was seen to work on weights of at most {trained.inputs:,} inputs, but '{worst}' {list(shapes[worst])} "
                f"has up to {inputs_of(shapes[worst]):,}: there its steps may be far too large, which no loss that falls at first tells. "
                "Scale them down, optax.chain(lopt.load(...), optax.scale_by_schedule(optax.cosine_decay_schedule(0.3, steps))), try 1, "
                "0.3 and 0.1, and compare with optax.adam",
                UserWarning,
                stacklevel=2,
            )
        return tx.init(params)

    return optax.GradientTransformationExtraArgs(init, tx.update)


def _made(learned: LearnedOptimizer, trained: Trained, direction: bool) -> optax.GradientTransformationExtraArgs:
    if not direction:
        return learned.opt_fn(trained.theta)
    if learned.scale_by is None:
        raise CardError(f"'{trained.name}' is of a kind that gives no direction alone: use lopt.load")
    return learned.scale_by(trained.theta)


def bind(trained: Trained, spec: WeightSpec | None, params: PyTree = None) -> LearnedOptimizer:
    """The learned optimizer for the weights of a spec, of which its theta is known to be one.

    Args:
      trained: config and theta.
      spec: of the weights; None where `needs_spec` says so.
      params: pytree of arrays or shapes, where `needs_sizes` says so.

    Raises:
      CardError: naming the leaf of theta that does not fit.
      SpecError: if `params` are not what the spec describes, or it cannot be told which leaf plays which part.

    Warns:
      UserWarning: if coefficients are shared by role, and most roles of this spec were never trained on.
    """
    if spec is None or not reads_spec(trained.config):
        learned = trained.config.make(WeightSpec(()))
        check_theta(trained.theta, learned, trained.where, by_role=False)
        return learned
    config, sizes, plain = trained.config, None, _plain(spec)
    network = _network(config)
    if network is None or not network.needs_spec:  # it is the rule that reads the spec
        learned = config.make(plain)
        check_theta(trained.theta, learned, trained.where, by_role=False)
        return learned
    known, names = (plain, {path: path for path in plain.paths}) if network.by_role else _find_known(trained, plain)
    if network.needs_sizes:
        sizes = known.sizes({names[plain_path(path)]: leaf for path, leaf in named_leaves(params)})
    renamed = _Renamed(network=network, spec=known, names=tuple(names.items()))
    learned = dataclasses.replace(config, **{"network": renamed}).make(plain, sizes)
    by_role = _by_role(trained.config)
    check_theta(trained.theta, learned, trained.where, by_role=by_role)
    if by_role:
        _warn_of_roles(trained, learned)
    return learned


def _warn_of_roles(trained: Trained, learned: LearnedOptimizer) -> None:
    wanted, known = (
        {path for path, _ in named_leaves(theta) if is_under(path, BY_ROLE)}
        for theta in (jax.eval_shape(learned.init, jax.random.key(0)), trained.theta)
    )
    if 2 * len(wanted & known) < len(wanted):
        warnings.warn(
            f"'{trained.name}' knows {len(wanted & known)} of the {len(wanted)} relations between these weights; the others, which were "
            "in none of the networks that it was trained on, add nothing to its updates",
            UserWarning,
            stacklevel=4,
        )


def _find_known(trained: Trained, spec: WeightSpec) -> tuple[WeightSpec, dict[str, str]]:
    """The spec among those that theta was trained for that is this one but for names, and its leaf for each of this one's."""
    found = trained.specs()
    for known in found:
        names = match_leaves(spec, known)
        if names is not None:
            return _with_sizes(known, spec, names), names
    listing = "\nor\n".join(str(known) for known in found)
    raise CardError(
        f"{trained.where}: its coefficients are not shared by role, so this theta is compatible only with networks like the one it was "
        f"trained on, of any widths:\n{listing}\nbut the spec is\n{spec}\n(infer the spec of the weights alone, as of "
        "equinox.filter(model, equinox.is_inexact_array))"
    )


def _with_sizes(known: WeightSpec, spec: WeightSpec, names: Mapping[str, str]) -> WeightSpec:
    """`known` with the sizes that `spec` was given for the factors of its axes, as these weights may have others."""
    given, sizes = dict(spec.known_sizes), {}
    for path in spec.paths:
        ours, theirs = spec.all_factors(path), known.all_factors(names[path])
        if len(ours) == len(theirs):
            sizes |= {other.name: given[one.name] for one, other in zip(ours, theirs, strict=True) if one.name in given}
    return dataclasses.replace(known, known_sizes=tuple(sorted(sizes.items())))


def _plain(spec: WeightSpec) -> WeightSpec:
    return dataclasses.replace(spec, leaves=tuple((plain_path(path), axes) for path, axes in spec.leaves))


@dataclasses.dataclass(frozen=True)
class _Renamed(NetworkConfig):
    """A network for weights that are called otherwise than in the spec that it is made for."""

    network: NetworkConfig = UNFConfig()
    spec: WeightSpec = dataclasses.field(default=WeightSpec(()))
    """That it is made for."""
    names: tuple[tuple[str, str], ...] = ()
    """Path of a leaf, and its path in the spec."""

    def make(self, spec: WeightSpec, features: Features, outputs: int, sizes: Sizes = None) -> UpdateNetwork:
        names = dict(self.names)

        @functools.cache
        def made(spec: WeightSpec) -> UpdateNetwork:
            return self.network.make(spec, features, outputs, sizes)

        network = made(self.spec)

        def renamed(by_path: Mapping[str, Any]) -> dict[str, Any]:
            return {names[plain_path(path)]: x for path, x in by_path.items()}

        def back(found: Mapping[str, Any], paths: Iterable[str]) -> dict[str, Any]:
            return {path: found[names[plain_path(path)]] for path in paths}

        def known(seen: WeightFeatures) -> tuple[UpdateNetwork, WeightFeatures]:
            channels, tensors, raw = map(renamed, (seen.channels, seen.tensors, seen.raw or {}))
            found = made(_of_weights(self.spec, {**channels, **raw}))
            return found, seen._replace(channels=channels, tensors=tensors, raw=raw or None)

        def apply(theta: PyTree, seen: WeightFeatures) -> dict[str, jax.Array]:
            network, features = known(seen)
            return back(network.apply(theta, features), seen.channels)

        def computes(theta: PyTree, shapes: Mapping[str, tuple[int, ...]]) -> set[str]:
            by_name = renamed(shapes)
            found = made(_of_weights(self.spec, by_name)).computes(theta, by_name)
            return {path for path in shapes if names[plain_path(path)] in found}

        def apply_raw(theta: PyTree, seen: WeightFeatures) -> tuple[dict[str, jax.Array], dict[str, Accumulators]]:
            network, features = known(seen)
            assert network.apply_raw is not None  # as it computes some itself
            out, moved = network.apply_raw(theta, features)
            return back(out, [*seen.channels, *(seen.raw or {})]), back(moved, seen.raw or {})

        return UpdateNetwork(network.init, apply, computes, apply_raw)


def _checked(tx: optax.GradientTransformationExtraArgs, spec: WeightSpec) -> optax.GradientTransformationExtraArgs:
    """The transform, whose `init` says which leaf of the params the spec does not describe."""

    def init(params: PyTree) -> Any:
        _check_weights(spec, params)
        return tx.init(params)

    return optax.GradientTransformationExtraArgs(init, tx.update)


def trained_part(spec: WeightSpec, paths: Collection[str]) -> WeightSpec:
    """The symmetry that is left where only some of the weights are trained: frozen ones are data, which tie down what they share.

    Args:
      spec: of all weights.
      paths: of those that are trained.

    Example:
      >>> spec = WeightSpec.parse({"w0": "in! a", "w1": "a b", "w2": "b out!"})
      >>> print(trained_part(spec, ["w0", "w1"]))
      w0  in! a
      w1  a b!
    """
    frozen = {factor.name for path in spec.paths if path not in paths for factor in spec.all_factors(path)}

    def tied(factor: Factor) -> Factor:
        return dataclasses.replace(factor, fixed=True, owner=None) if factor.name in frozen else factor

    left = WeightSpec(tuple(leaf for leaf in spec.with_factors(tied).leaves if leaf[0] in paths))
    return dataclasses.replace(left, known_sizes=tuple((name, size) for name, size in spec.known_sizes if name in left.names))


def _for_what_is_trained(
    whole: optax.GradientTransformationExtraArgs, trained: Trained, spec: WeightSpec, direction: bool
) -> optax.GradientTransformationExtraArgs:
    """The transform, which also takes a part of the weights, as `optax.masked` and `optax.multi_transform` give it."""
    plain = _plain(spec)
    trainable = {path for path in plain.paths if any(not factor.fixed for factor in plain.all_factors(path))}

    @functools.cache
    def part(paths: frozenset[str]) -> optax.GradientTransformationExtraArgs:
        left = trained_part(plain, paths)
        try:
            return _checked(_made(bind(trained, left), trained, direction), left)
        except CardError as error:
            frozen = ", ".join(path for path in plain.paths if path not in paths)
            raise CardError(
                f"{error}\n(without {frozen}, which are not among the params: coefficients that are not shared by role are of all weights "
                "together, so such an optimizer cannot train a part of them)"
            ) from error

    def of(params: PyTree) -> optax.GradientTransformationExtraArgs:
        paths = frozenset(_shapes(params))
        return part(paths) if paths and paths < set(plain.paths) and not trainable <= paths else whole

    def update(updates: PyTree, state: Any, params: PyTree | None = None, **extra_args: Any) -> tuple[PyTree, Any]:
        return (whole if params is None else of(params)).update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(lambda params: of(params).init(params), update)


def _shapes(params: PyTree) -> dict[str, jax.ShapeDtypeStruct]:
    weights = named_leaves(weights_of(params))
    return {plain_path(path): jax.ShapeDtypeStruct(leaf.shape, jnp.float32) for path, leaf in weights}


def _of_weights(spec: WeightSpec, paths: Collection[str]) -> WeightSpec:
    """The spec of these leaves, where the others can be no weights: of a whole model it names functions and counters, all of it fixed."""
    others = [path for path in spec.paths if path not in paths]
    if any(not factor.fixed for path in others for factor in spec.factors(path)):
        return spec
    return dataclasses.replace(spec, leaves=tuple(leaf for leaf in spec.leaves if leaf[0] in paths)) if others else spec


def _check_weights(spec: WeightSpec, params: PyTree) -> None:
    """Raise `SpecError`, naming the leaf and what to do, unless the spec is of these weights."""
    shapes = _shapes(params)
    if not shapes:  # optax asks what a state is like with params that have no leaves
        return
    for path, leaf in named_leaves(params):
        if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise SpecError(
                f"leaf '{path}' is {leaf.dtype}, but where weights are seen together they are real: make its real and its imaginary part "
                "two leaves of the params, and infer the spec of these"
            )
    known = _of_weights(_plain(spec), shapes)
    missing = [path for path in known.paths if path not in shapes]
    if missing:
        raise SpecError(
            f"the spec does not match the params: no leaf for {missing}. If only a part of the params is trained (a partition, "
            "optax.masked), infer the spec of that part with the rest closed over: infer_spec(lambda trained, *batch: "
            "loss(combine(trained, frozen), *batch), trained, *batch)"
        )
    known.validate(shapes)


def _once_sizes_are_known(trained: Trained, spec: WeightSpec, direction: bool) -> optax.GradientTransformationExtraArgs:
    """For a theta that depends on sizes: the network is built when params are first seen, and kept."""

    @functools.cache
    def built(shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> optax.GradientTransformationExtraArgs:
        params = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes}
        return _made(bind(trained, spec, params), trained, direction)

    def of(params: PyTree) -> optax.GradientTransformationExtraArgs:
        shapes = _shapes(params)
        return built(tuple((path, leaf.shape) for path, leaf in shapes.items()))

    def init(params: PyTree) -> Any:
        _check_weights(spec, params)
        if not _shapes(params):
            config: Any = trained.config
            return dataclasses.replace(config, network=DeepSetsConfig()).make(spec).opt_fn(trained.theta).init(params)
        return of(params).init(params)

    def update(updates: PyTree, state: Any, params: PyTree | None = None, **extra_args: Any) -> tuple[PyTree, Any]:
        if params is None:
            raise ValueError("a learned optimizer sees the weights: call update(grads, state, params)")
        return of(params).update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(init, update)
