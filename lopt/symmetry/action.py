"""How a group element moves one weight, in numpy or in JAX."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lopt.symmetry.notation import Factor, SpecError

GroupElement = Mapping[str, Any]  # name -> permutation [n] of int; of a nested name, one for each index of its owner: [owners, n]


def move_leaf(
    xp: Any, leaf: Any, factors: Sequence[Factor], owners: Sequence[int | None], sizes: Mapping[str, int], element: GroupElement
) -> Any:
    """The leaf with its entries moved: nested names first, within each index of their owners, then the others.

    Args:
      xp: numpy or jax.numpy.
      leaf: array; returned as it is, whatever it is, if the element moves none of its axes.
      factors: of all its axes, composed ones expanded.
      owners: for each factor the position of the one that it is nested in.
      sizes: of the names.
      element: name -> permutation; names left out stay in place.
    """
    moved = [position for position, factor in enumerate(factors) if factor.name in element]
    if not moved:
        return leaf
    expanded = xp.reshape(leaf, [sizes[factor.name] for factor in factors])
    for position in sorted(moved, key=lambda position: owners[position] is None):
        order, owner = xp.asarray(element[factors[position].name]), owners[position]
        if owner is None:
            expanded = xp.take(expanded, order, axis=position)
        else:
            shape = [size if axis in (owner, position) else 1 for axis, size in enumerate(expanded.shape)]
            rows = xp.reshape(order if owner < position else order.T, shape)
            expanded = xp.take_along_axis(expanded, rows, axis=position)
    return xp.reshape(expanded, np.shape(leaf))


def check_element(element: GroupElement, sizes: Mapping[str, int], nested: Mapping[str, str]) -> None:
    """Raise `SpecError` unless every entry is a permutation of its name's size, or a row of them for each index of its owner."""
    for name, permutation in element.items():
        if name not in sizes:
            raise SpecError(f"the group element has '{name}', which no axis is named after; the names are {list(sizes)}")
        shape, each = (sizes[name],), ""
        if name in nested:
            shape = (sizes[nested[name]], sizes[name])
            each = f" for each of the {shape[0]} indices of '{nested[name]}'"
        given = np.asarray(permutation)
        if given.shape != shape or not np.array_equal(np.sort(given, axis=-1), np.broadcast_to(np.arange(shape[-1]), shape)):
            raise SpecError(f"the group element's '{name}' is not a permutation of {sizes[name]} indices{each}: {permutation}")
