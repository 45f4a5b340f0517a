"""Factored second moments: averages of squared gradients over rows and over columns, instead of one for every weight.

Shazeer and Stern, "Adafactor" (ICML 2018), as Metz et al., "Practical tradeoffs between memory, compute, and performance in learned
optimizers" (CoLLAs 2022), make features of them. Of a tensor of any rank the two largest axes are factored; a vector keeps its own v.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lopt.features.base import Accumulator, Kind, Leaf, bias_correction, moving_average
from lopt.features.momenta import momentum, read_momentum
from lopt.layers.digest import Channel
from lopt.layers.kernels.program import Form, Kept, factored_axes

_FLOOR = 1e-9  # of what is under a root
_EPS = {"gradient": 1e-9, "momenta": 1e-6}  # added to v of a vector
_SIDE_EPS = 1e-8  # added to rows and columns


def factored_moment(decay: float) -> dict[str, Accumulator]:
    """Row and column averages of squared gradients with this decay, or v of a vector, by its name."""

    def init(w: jax.Array) -> dict[str, jax.Array]:
        axes = factored_axes(jnp.shape(w))
        if axes is None:
            return {"row": jnp.zeros_like(w, jnp.float32), "column": jnp.zeros((), jnp.float32)}
        return {
            name: jnp.zeros(np.delete(jnp.shape(w), gone), jnp.float32)
            for name, gone in zip(("column", "row"), axes, strict=True)
        }

    def update(old: dict[str, jax.Array], g: jax.Array) -> dict[str, jax.Array]:
        squared = jnp.square(g) + 1e-30
        axes = factored_axes(g.shape)
        if axes is None:
            return {"row": moving_average(decay, old["row"], squared), "column": old["column"]}
        means = {name: jnp.mean(squared, axis=gone) for name, gone in zip(("column", "row"), axes, strict=True)}
        return {name: moving_average(decay, old[name], means[name]) for name in ("row", "column")}

    return {f"factored {decay:g}": Accumulator(init, update, Kept("factored", decay))}


@dataclasses.dataclass(frozen=True)
class _Factored(Kind):
    """What reads factored second moments."""

    decays: tuple[float, ...] = (0.9, 0.99, 0.999)
    """Decays of the factored second moments, in [0, 1)."""
    bias_correction: bool = False
    """Divide averages by 1 - d^t."""

    def __post_init__(self) -> None:
        if not all(0 <= decay < 1 for decay in self.decays):
            raise ValueError(f"decays of factored second moments must lie in [0, 1), got {self.decays}")

    def accumulators(self) -> dict[str, Accumulator]:
        return {name: found for decay in self.decays for name, found in factored_moment(decay).items()}

    def rows_and_columns(self, leaf: Leaf, decay: float) -> tuple[jax.Array, jax.Array]:
        """Averages over the largest axis and over the second largest, with these axes of size 1; v twice for a vector."""
        kept, axes = leaf.kept[f"factored {decay:g}"], factored_axes(leaf.gradient.shape)
        correction = bias_correction(decay, leaf.context.count) if self.bias_correction else jnp.float32(1)
        if axes is None:
            return kept["row"] / correction, kept["row"] / correction
        return jnp.expand_dims(kept["row"] / correction, axes[1]), jnp.expand_dims(kept["column"] / correction, axes[0])

    def factors(self, leaf: Leaf, decay: float, vector_eps: float) -> tuple[jax.Array, ...]:
        """What a gradient is multiplied with to be divided by the root of its factored second moment."""
        rows, columns = self.rows_and_columns(leaf, decay)
        axes = factored_axes(leaf.gradient.shape)
        if axes is None:
            return (jax.lax.rsqrt(jnp.maximum(rows + jnp.float32(vector_eps), _FLOOR)),)
        mean = jnp.mean(rows, axis=axes[0], keepdims=True)
        return jax.lax.rsqrt(jnp.maximum(rows / (mean + 1e-9), _FLOOR)), jax.lax.rsqrt(jnp.maximum(columns, _FLOOR))


def _times(x: jax.Array, factors: Sequence[jax.Array]) -> jax.Array:
    for factor in factors:
        x = x * jnp.broadcast_to(factor, x.shape)
    return x


@dataclasses.dataclass(frozen=True)
class FactoredGradient(_Factored):
    """g over the root of its factored second moment: Adafactor's step."""

    def channels(self, normal: Channel) -> tuple[Channel, ...]:
        return tuple(normal._replace(name=f"gradient / root of factored {decay:g}") for decay in self.decays)

    def per_weight(self, leaf: Leaf) -> Sequence[jax.Array]:
        return [_times(leaf.gradient, self.factors(leaf, decay, _EPS["gradient"])) for decay in self.decays]

    def forms(self) -> Sequence[Form]:
        return [Form("gradient", "", f"factored {decay:g}", _EPS["gradient"], self.bias_correction) for decay in self.decays]


@dataclasses.dataclass(frozen=True)
class FactoredMomenta(_Factored):
    """Momenta over the root of the factored second moment of the same place in the list."""

    momenta: tuple[float, ...] = (0.9, 0.99, 0.999)
    """Decays of the momenta, as many as `decays`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.momenta) != len(self.decays):
            raise ValueError(
                f"each momentum has its factored second moment: got {len(self.momenta)} and {len(self.decays)} decays"
            )

    def accumulators(self) -> dict[str, Accumulator]:
        return super().accumulators() | {name: found for decay in self.momenta for name, found in momentum(decay).items()}

    def channels(self, normal: Channel) -> tuple[Channel, ...]:
        pairs = zip(self.momenta, self.decays, strict=True)
        return tuple(normal._replace(name=f"momentum {m:g} / root of factored {decay:g}") for m, decay in pairs)

    def per_weight(self, leaf: Leaf) -> Sequence[jax.Array]:
        pairs = zip(self.momenta, self.decays, strict=True)
        momenta = ((read_momentum(leaf, m, self.bias_correction), decay) for m, decay in pairs)
        return [_times(x, self.factors(leaf, decay, _EPS["momenta"])) for x, decay in momenta]

    def forms(self) -> Sequence[Form]:
        pairs = zip(self.momenta, self.decays, strict=True)
        return [Form("kept", f"momentum {m:g}", f"factored {d:g}", _EPS["momenta"], self.bias_correction) for m, d in pairs]


@dataclasses.dataclass(frozen=True)
class FactoredMoments(_Factored):
    """The row averages, then the column averages, then 1 / root of each: 4 channels a decay, broadcast over the tensor."""

    def channels(self, normal: Channel) -> tuple[Channel, ...]:
        names = ("rows {:g}", "columns {:g}", "1 / root of rows {:g}", "1 / root of columns {:g}")
        return tuple(normal._replace(name=name.format(decay)) for name in names for decay in self.decays)

    def per_weight(self, leaf: Leaf) -> Sequence[jax.Array]:
        found = [self.rows_and_columns(leaf, decay) for decay in self.decays]
        sides = [[rows for rows, _ in found], [columns for _, columns in found]]
        plain = [x for side in sides for x in side]
        return [jnp.broadcast_to(x, leaf.gradient.shape) for x in (*plain, *(jax.lax.rsqrt(x + _SIDE_EPS) for x in plain))]

    def forms(self) -> Sequence[Form]:
        sources = ("rows", "columns", "root of rows", "root of columns")
        return [
            Form(source, f"factored {decay:g}", eps=_SIDE_EPS, corrected=self.bias_correction)
            for source in sources
            for decay in self.decays
        ]
