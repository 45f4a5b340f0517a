"""Momenta: averages of past gradients, m <- d m + (1 - d) g, or sums, m <- d m + g."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from lopt.features.base import Accumulator, Kind, Leaf, bias_correction, moving_average
from lopt.layers.digest import Channel
from lopt.layers.kernels.program import Form, Kept


def momentum(decay: float) -> dict[str, Accumulator]:
    """The average with this decay, by its name."""
    return {
        f"momentum {decay:g}": Accumulator(
            lambda w: {"m": jnp.zeros_like(w, jnp.float32)},
            lambda old, g: {"m": moving_average(decay, old["m"], g)},
            Kept("average", decay),
        )
    }


def momentum_sum(decay: float) -> dict[str, Accumulator]:
    """The sum with this decay, by its name."""
    return {
        f"momentum sum {decay:g}": Accumulator(
            lambda w: {"m": jnp.zeros_like(w, jnp.float32)},
            lambda old, g: {"m": jnp.float32(decay) * old["m"] + g},
            Kept("sum", decay),
        )
    }


def read_momentum(leaf: Leaf, decay: float, corrected: bool) -> jax.Array:
    """The average of a leaf, divided by 1 - decay^t if `corrected`."""
    m = leaf.kept[f"momentum {decay:g}"]["m"]
    return m / bias_correction(decay, leaf.context.count) if corrected else m


@dataclasses.dataclass(frozen=True)
class Momenta(Kind):
    """Momenta of several decays."""

    decays: tuple[float, ...] = (0.9, 0.99, 0.999)
    """Decays d, in [0, 1)."""
    sums: bool = False
    """m <- d m + g, the paper's equation, instead of averages: slow ones grow to 1 / (1 - d) gradients, and saturate under a clip."""
    bias_correction: bool = False
    """Divide averages by 1 - d^t, so that they are of the gradient's size from the first step."""

    def __post_init__(self) -> None:
        if not all(0 <= decay < 1 for decay in self.decays):
            raise ValueError(f"decays of momenta must lie in [0, 1), got {self.decays}")
        if self.sums and self.bias_correction:
            raise ValueError("sums of gradients have no bias to be corrected: give sums or bias_correction")

    def accumulators(self) -> dict[str, Accumulator]:
        make = momentum_sum if self.sums else momentum
        return {name: found for decay in self.decays for name, found in make(decay).items()}

    def channels(self, normal: Channel) -> tuple[Channel, ...]:
        return tuple(normal._replace(name=f"momentum {decay:g}") for decay in self.decays)

    def per_weight(self, leaf: Leaf) -> Sequence[jax.Array]:
        if self.sums:
            return [leaf.kept[f"momentum sum {decay:g}"]["m"] for decay in self.decays]
        return [read_momentum(leaf, decay, self.bias_correction) for decay in self.decays]

    def forms(self) -> Sequence[Form]:
        name = "momentum sum" if self.sums else "momentum"
        return [Form("kept", f"{name} {decay:g}", corrected=self.bias_correction) for decay in self.decays]
