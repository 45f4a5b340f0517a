"""The weight itself and its gradient."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from lopt.features.base import Kind, Leaf
from lopt.layers.digest import Channel
from lopt.layers.kernels.program import Form


@dataclasses.dataclass(frozen=True)
class Value(Kind):
    """w."""

    def channels(self, normal: Channel) -> tuple[Channel, ...]:
        return (normal._replace(name="value"),)

    def per_weight(self, leaf: Leaf) -> Sequence[jax.Array]:
        return (leaf.value,)

    def forms(self) -> Sequence[Form]:
        return (Form("value"),)


@dataclasses.dataclass(frozen=True)
class Gradient(Kind):
    """g, or g clipped: then what is left is where it is large, and its sign."""

    clip: float = math.inf
    """Largest absolute value (`inf`: not clipped)."""

    def channels(self, normal: Channel) -> tuple[Channel, ...]:
        name = "gradient" if math.isinf(self.clip) else f"gradient clipped to {self.clip:g}"
        return (normal._replace(name=name, clip=min(self.clip, normal.clip)),)

    def per_weight(self, leaf: Leaf) -> Sequence[jax.Array]:
        return (leaf.gradient,)

    def forms(self) -> Sequence[Form]:
        return (Form("gradient"),)


@dataclasses.dataclass(frozen=True)
class TensorSize(Kind):
    """Per tensor: how large it and its gradient are, and how many weights it has, as logarithms over 10.

    What normalised channels do not show. The gradient's is not invariant to the scale of the loss.
    """

    def num_tensor_channels(self) -> int:
        return 3

    def per_tensor(self, leaf: Leaf) -> jax.Array:
        rms = [jnp.sqrt(jnp.mean(jnp.square(x)) + 1e-20) if x.size else jnp.float32(1) for x in (leaf.value, leaf.gradient)]
        return jnp.stack([*(jnp.log(x) / 10 for x in rms), jnp.float32(math.log(max(leaf.value.size, 1)) / 10)])
