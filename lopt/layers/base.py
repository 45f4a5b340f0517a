"""What every layer on weight spaces is: a pair of pure functions, and the shapes its features have."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

PyTree = Any
Features = Mapping[str, jax.Array]  # leaf path -> [*leaf.shape, C]


class Layer(NamedTuple):
    """A map between weight-space features as `(init, apply)`.

    Attributes:
      init: `init(key) -> theta`, a dict of arrays.
      apply: `apply(theta, features) -> features`, leaf path -> [*leaf.shape, C].
    """

    init: Callable[[jax.Array], PyTree]
    apply: Callable[[PyTree, Features], dict[str, jax.Array]]
