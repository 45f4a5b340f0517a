"""Second moments, v <- d v + (1 - d) g^2, and what Adam makes of them: 1 / sqrt(v), momenta and gradient over sqrt(v)."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from lopt.features.base import Accumulator, Kind, Leaf, bias_correction, moving_average
from lopt.features.momenta import momentum, read_momentum
from lopt.layers.digest import Channel
from lopt.layers.kernels.program import Form, Kept


def second_moment(decay: float) -> dict[str, Accumulator]:
    """The average of squared gradients with this decay, by its name."""
    return {
        f"second moment {decay:g}": Accumulator(
            lambda w: {"v": jnp.zeros_like(w, jnp.float32)},
            lambda old, g: {"v": moving_average(decay, old["v"], jnp.square(g))},
            Kept("average of squares", decay),
        )
    }


def read_second_moment(leaf: Leaf, decay: float, corrected: bool) -> jax.Array:
    """The average of a leaf, divided by 1 - decay^t if `corrected`."""
    v = leaf.kept[f"second moment {decay:g}"]["v"]
    return v / bias_correction(decay, leaf.context.count) if corrected else v


@dataclasses.dataclass(frozen=True)
class _OfSecondMoment(Kind):
    """What reads one second moment."""

    decay: float = 0.999
    """Decay of the second moment, in [0, 1)."""
    bias_correction: bool = False
    """Divide averages by 1 - d^t."""
    eps: float = 1e-6
    """Added to v under the root."""

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"the decay of a second moment must lie in [0, 1), got {self.decay}")

    def accumulators(self) -> dict[str, Accumulator]:
        return second_moment(self.decay)

    def inverse_root(self, leaf: Leaf) -> jax.Array:
        """1 / sqrt(v + eps)."""
        return jax.lax.rsqrt(read_second_moment(leaf, self.decay, self.bias_correction) + jnp.float32(self.eps))

    def over_root(self, source: Literal["one", "gradient", "kept"], kept: str = "") -> Form:
        """A source times that."""
        return Form(source, kept, f"second moment {self.decay:g}", self.eps, self.bias_correction)


@dataclasses.dataclass(frozen=True)
class SecondMoment(_OfSecondMoment):
    """v."""

    def channels(self, normal: Channel) -> tuple[Channel, ...]:
        return (normal._replace(name=f"second moment {self.decay:g}"),)

    def per_weight(self, leaf: Leaf) -> Sequence[jax.Array]:
        return (read_second_moment(leaf, self.decay, self.bias_correction),)

    def forms(self) -> Sequence[Form]:
        return (Form("kept", f"second moment {self.decay:g}", corrected=self.bias_correction),)


@dataclasses.dataclass(frozen=True)
class InverseRoot(_OfSecondMoment):
    """1 / sqrt(v + eps)."""

    def channels(self, normal: Channel) -> tuple[Channel, ...]:
        return (normal._replace(name=f"1 / root of second moment {self.decay:g}"),)

    def per_weight(self, leaf: Leaf) -> Sequence[jax.Array]:
        return (self.inverse_root(leaf),)

    def forms(self) -> Sequence[Form]:
        return (self.over_root("one"),)


@dataclasses.dataclass(frozen=True)
class MomentaOverRoot(_OfSecondMoment):
    """m / sqrt(v + eps): the steps of Adam with several momenta."""

    momenta: tuple[float, ...] = (0.9, 0.99, 0.999)
    """Decays of the momenta."""

    def accumulators(self) -> dict[str, Accumulator]:
        return super().accumulators() | {name: found for decay in self.momenta for name, found in momentum(decay).items()}

    def channels(self, normal: Channel) -> tuple[Channel, ...]:
        return tuple(normal._replace(name=f"momentum {m:g} / root of second moment {self.decay:g}") for m in self.momenta)

    def per_weight(self, leaf: Leaf) -> Sequence[jax.Array]:
        root = self.inverse_root(leaf)
        return [read_momentum(leaf, decay, self.bias_correction) * root for decay in self.momenta]

    def forms(self) -> Sequence[Form]:
        return [self.over_root("kept", f"momentum {decay:g}") for decay in self.momenta]


@dataclasses.dataclass(frozen=True)
class GradientOverRoot(_OfSecondMoment):
    """g / sqrt(v + eps)."""

    def channels(self, normal: Channel) -> tuple[Channel, ...]:
        return (normal._replace(name=f"gradient / root of second moment {self.decay:g}"),)

    def per_weight(self, leaf: Leaf) -> Sequence[jax.Array]:
        return (leaf.gradient * self.inverse_root(leaf),)

    def forms(self) -> Sequence[Form]:
        return (self.over_root("gradient"),)
