"""The direction rule: the network gives a direction, normalised per tensor; rate, schedule and decay are the user's.

    d = normalise(f + b normalise(n)),        W <- W - rate d,        for vectors W <- W - c rate d

After Celo2 (arXiv 2602.19142): the update of a tensor has root mean square one, matrices may be orthogonalised before by
Newton-Schulz. The scale of a loss, and so of gradients, does not matter where the features do not show it. What a normalised direction
cannot say is how far vectors (biases, scales) are to go beside matrices: c is learned.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from lopt.features.base import Context
from lopt.optimizers.base import ByPath, RuleConfig
from lopt.optimizers.gated import scaled
from lopt.optimizers.muon import from_matrices, has_window, is_matrix, orthogonalized, sides_of
from lopt.optimizers.nominals import AdamNominal, NominalConfig, NoNominal
from lopt.optimizers.scalars import positive, read_positive
from lopt.optimizers.schedules import Shape, shape_factor
from lopt.symmetry.spec import PyTree

EPS = 1e-9  # added to the mean square of a direction


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

    def make_nominal(self, theta: PyTree) -> optax.GradientTransformation:
        return self.nominal.make(theta.get("nominal", {}))

    def direction(self, theta: PyTree, f: ByPath, n: ByPath, context: Context) -> dict[str, jax.Array]:
        steps = {path: x[0] for path, x in f.items()}
        if "nominal" in theta:
            weight = read_positive(theta["nominal_weight"])
            nominal = {path: weight * self._normalized(n[path], path, context) for path in steps}
            if self.gated:
                nominal = {path: scaled(x, f[path][1]) for path, x in nominal.items()}
            steps = {path: x + nominal[path] for path, x in steps.items()}
        if self.orthogonalize:
            orthogonal = orthogonalized(steps, context.spec)
            steps |= {path: from_matrices(x, sides, steps[path].shape) for path, (x, sides) in orthogonal.items()}
        vectors = read_positive(theta["vectors"])
        found = {
            path: (self._scale(x, path, context) if is_matrix(x) else vectors) * self._normalized(x, path, context)
            for path, x in steps.items()
        }
        if "nominal" in theta:  # what has had no gradient yet has no direction: it would be f's of zeros, at full size
            found = {path: jnp.where(jnp.any(n[path] != 0), x, jnp.zeros_like(x)) for path, x in found.items()}
        return found

    def _scale(self, x: jax.Array, path: str, context: Context) -> float:
        if self.scale == "one":
            return 1.0
        rows = sides_of(x.shape, path, context.spec).rows
        channels = rows[-1:] if has_window(x.shape) else rows
        return max(math.prod(x.shape[axis] for axis in channels), 1) ** -0.5

    def _normalized(self, x: jax.Array, path: str, context: Context) -> jax.Array:
        axes = tuple(range(x.ndim))
        if self.over == "matrix" and is_matrix(x):
            sides = sides_of(x.shape, path, context.spec)
            axes = (*sides.rows, *sides.columns)
        return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=axes, keepdims=True) + EPS) if x.size else x

    def size(self, theta: PyTree, context: Context) -> jax.Array:
        return self.learning_rate * shape_factor(self.rate_schedule, context, "the schedule of the rate")

    def scalars(self, theta: PyTree) -> dict[str, jax.Array]:
        found = {name: read_positive(theta[name]) for name in ("vectors", "nominal_weight") if name in theta}
        return found | self.nominal.scalars(theta.get("nominal", {}))
