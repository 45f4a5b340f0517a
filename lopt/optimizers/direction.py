"""The direction rule: the network gives a direction, normalised per tensor; rate, schedule and decay are the user's.

    d = normalise(f + b normalise(n)),        W <- W - rate d,        for vectors W <- W - c rate d

After Celo2 (arXiv 2602.19142): the update of a tensor has root mean square one, matrices may be orthogonalised before by
Newton-Schulz. The scale of a loss, and so of gradients, does not matter where the features do not show it. What a normalised direction
cannot say is how far vectors (biases, scales) are to go beside matrices: c is learned.
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lopt.features.base import Context
from lopt.layers.kernels import ffi as native
from lopt.optimizers.base import ByPath, RuleConfig
from lopt.optimizers.gated import scaled
from lopt.optimizers.muon import from_matrices, has_window, orthogonalized, sides_of
from lopt.optimizers.nominals import AdamNominal, NominalConfig, NoNominal
from lopt.optimizers.scalars import positive, read_positive
from lopt.optimizers.schedules import Shape, shape_factor
from lopt.symmetry.spec import PyTree, WeightSpec

EPS = 1e-9  # added to the mean square of a direction


class _Kind(NamedTuple):
    """What is known of a tensor when tracing: hashable.

    Attributes:
      axes: over which its direction has a root mean square.
      rank: how many axes it has.
      size: that root mean square.
      learned: for vectors and scalars, that is multiplied by what the rule has learned.
    """

    axes: tuple[int, ...]
    rank: int
    size: float
    learned: bool

    @property
    def lies_apart(self) -> bool:
        """Whether what is normalised lies one behind the other in memory."""
        return self.axes == tuple(range(self.rank - len(self.axes), self.rank))


class _Leaf(NamedTuple):
    """Of a tensor what the network gives, [outputs, *shape], and the nominal step, [*shape], where there is one."""

    f: jax.Array
    nominal: jax.Array | None


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _by_kernel(kinds: tuple[_Kind, ...], scalars: jax.Array, leaves: list[_Leaf]) -> list[jax.Array]:
    """`_by_xla` in one call, of tensors whose matrices lie apart."""
    tensors = []
    for kind, (f, nominal) in zip(kinds, leaves, strict=True):
        assert nominal is not None
        matrices = math.prod(nominal.shape[: kind.rank - len(kind.axes)])
        tensors.append(native.Directed(f, nominal, matrices, kind.size, kind.learned))
    return native.direction_call(scalars, tensors, EPS)


@_by_kernel.defjvp
def _by_kernel_jvp(kinds: tuple[_Kind, ...], primals: Any, tangents: Any) -> Any:
    return jax.jvp(partial(_by_xla, kinds), primals, tangents)


def _by_xla(kinds: tuple[_Kind, ...], scalars: jax.Array, leaves: list[_Leaf]) -> list[jax.Array]:
    """The definition: directions, of the weight of the nominal step and the multiple of the rate for vectors."""
    pairs = zip(kinds, leaves, strict=True)
    return [_finished(kind, scalars, _corrected(kind, scalars, leaf), leaf) for kind, leaf in pairs]


def _corrected(kind: _Kind, scalars: jax.Array, leaf: _Leaf) -> jax.Array:
    """The nominal step, normalised, scaled where the network says so, and corrected."""
    if leaf.nominal is None:
        return leaf.f[0]
    step = scalars[0] * _normalized(kind, leaf.nominal)
    return leaf.f[0] + (scaled(step, leaf.f[1]) if len(leaf.f) > 1 else step)


def _finished(kind: _Kind, scalars: jax.Array, step: jax.Array, leaf: _Leaf) -> jax.Array:
    """A step with the root mean square that its tensor's direction has."""
    found = (kind.size * scalars[1] if kind.learned else kind.size) * _normalized(kind, step)
    if leaf.nominal is None:
        return found
    # What has had no gradient yet has no direction: it would be f's of zeros, at full size.
    return jnp.where(jnp.any(leaf.nominal != 0), found, jnp.zeros_like(found))


def _normalized(kind: _Kind, x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=kind.axes, keepdims=True) + EPS) if x.size else x


@dataclasses.dataclass(frozen=True)
class DirectionRule(RuleConfig):
    """A direction for every tensor, of root mean square one; learning rate, its schedule and weight decay are the user's.

    W <- W - rate normalise(f + b normalise(n)): f is what the network gives for each weight, n the step of a hand-designed optimizer
    (`nominal`), b its learned weight. With f = 0 it is that optimizer, with a root mean square of one for every tensor. A tensor stays
    where n is zero all over it, as before its first gradient.
    """

    nominal: NominalConfig = AdamNominal()
    """The step n that f corrects: momentum, adam, nadam, muon or none."""
    nominal_weight: float = 1.0
    """Weight b of the nominal step before meta-training."""
    gated: bool = False
    """The network also scales the nominal step of each weight: f + b n exp(g), g its second output, clipped to [-8, 4]."""
    vectors: float = 1.0
    """Learned multiple of the rate for vectors and scalars, before meta-training."""
    orthogonalize: bool = False
    """Orthogonalise matrices, as Muon does, before they are normalised."""
    over: Literal["tensor", "matrix"] = "tensor"
    """What has root mean square one: a tensor, or each of its matrices: inputs x outputs where the spec says which axes these are,
    otherwise the last two axes (Celo2), and of a convolution all."""
    scale: Literal["one", "inputs"] = "one"
    """Root mean square of a matrix's direction: one (Celo2), or one over the root of the number of its inputs, as Muon's: then a rate
    carries over to other widths. Of a convolution these are its channels, without the window."""
    learning_rate: float = 0.01
    """The rate during meta-training. Whoever uses the optimizer gives a rate of their own, for which this is the default."""
    rate_schedule: Shape = "constant"
    """The schedule of the rate during meta-training; a cosine needs num_steps."""

    @property
    def outputs(self) -> int:
        return 2 if self.gated else 1

    @property
    def network_start(self) -> float:
        return 1.0 if isinstance(self.nominal, NoNominal) else 0.1

    @property
    def needs_rate(self) -> bool:
        return True

    @property
    def reads_spec(self) -> bool:
        return (
            super().reads_spec or self.nominal.reads_spec or self.orthogonalize or self.over == "matrix" or self.scale == "inputs"
        )

    def init(self) -> PyTree:
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.gated and isinstance(self.nominal, NoNominal):
            raise ValueError("gated scales the nominal step, and nominal is none")
        own = {"vectors": positive(self.vectors, "vectors")}
        if isinstance(self.nominal, NoNominal):
            return own
        return {**own, "nominal_weight": positive(self.nominal_weight, "nominal_weight"), "nominal": self.nominal.init()}

    def make_nominal(self, theta: PyTree, spec: WeightSpec) -> optax.GradientTransformation:
        return self.nominal.make(theta.get("nominal", {}), spec)

    def direction(self, theta: PyTree, f: ByPath, n: ByPath, context: Context) -> dict[str, jax.Array]:
        has_nominal = "nominal" in theta
        kinds = {path: self._kind(x.shape[1:], path, context) for path, x in f.items()}
        weight = read_positive(theta["nominal_weight"]) if has_nominal else jnp.float32(0)
        scalars = jnp.stack([weight, read_positive(theta["vectors"])])
        leaves = {path: _Leaf(x, n[path] if has_nominal else None) for path, x in f.items()}

        def is_served(path: str) -> bool:
            whole = has_nominal and not self.orthogonalize and kinds[path].lies_apart
            return whole and native.is_computed(jax.tree.leaves(leaves[path]))

        def by_kernel(paths: list[str]) -> list[jax.Array]:
            return _by_kernel(tuple(kinds[path] for path in paths), scalars, [leaves[path] for path in paths])

        def by_xla(paths: list[str]) -> list[jax.Array]:
            steps = {path: _corrected(kinds[path], scalars, leaves[path]) for path in paths}
            if self.orthogonalize:
                orthogonal = orthogonalized(steps, context.spec)
                steps |= {path: from_matrices(x, sides, steps[path].shape) for path, (x, sides) in orthogonal.items()}
            return [_finished(kinds[path], scalars, steps[path], leaves[path]) for path in paths]

        return dict(zip(f, native.divided(list(f), is_served, by_kernel, by_xla), strict=True))

    def _kind(self, shape: Sequence[int], path: str, context: Context) -> _Kind:
        axes, rank = tuple(range(len(shape))), len(shape)
        if rank < 2:
            return _Kind(axes, rank, 1.0, learned=True)
        sides, size = sides_of(shape, path, context.spec), 1.0
        if self.over == "matrix":
            axes = tuple(sorted((*sides.rows, *sides.columns)))
        if self.scale == "inputs":
            channels = sides.rows[-1:] if has_window(shape) else sides.rows
            size = max(math.prod(shape[axis] for axis in channels), 1) ** -0.5
        return _Kind(axes, rank, size, learned=False)

    def size(self, theta: PyTree, context: Context) -> jax.Array:
        return self.learning_rate * shape_factor(self.rate_schedule, context, "the schedule of the rate")

    def scalars(self, theta: PyTree) -> dict[str, jax.Array]:
        found = {name: read_positive(theta[name]) for name in ("vectors", "nominal_weight") if name in theta}
        return found | self.nominal.scalars(theta.get("nominal", {}))
