"""Whether two specs describe the same symmetry, whatever they call its permutations."""

import dataclasses

from lopt.symmetry.spec import WeightSpec


def numbered(spec: WeightSpec) -> WeightSpec:
    """The spec with its names numbered in the order in which they are read: `n0`, `n1`, ...

    Example:
      >>> print(numbered(WeightSpec.parse({"bias": "hidden", "kernel": "inputs! hidden"})))
      bias    n0
      kernel  n1! n0
    """
    names = dict.fromkeys(factor.name for path in spec.paths for factor in spec.factors(path))
    numbers = {name: f"n{index}" for index, name in enumerate(names)}
    leaves = tuple(
        (path, tuple(tuple(dataclasses.replace(factor, name=numbers[factor.name]) for factor in axis) for axis in axes))
        for path, axes in spec.leaves
    )
    return WeightSpec(leaves, tuple(sorted((numbers[name], size) for name, size in spec.known_sizes)))


def same_up_to_names(one: WeightSpec, other: WeightSpec) -> bool:
    """Whether a renaming turns one spec into the other: the same leaves, ties, fixed axes and factors.

    A size that both specs were given for a name must agree; a size that only one of them was given says nothing.

    Example:
      >>> free, tied = WeightSpec.parse({"w": "a b"}), WeightSpec.parse({"w": "a a"})
      >>> same_up_to_names(free, WeightSpec.parse({"w": "rows columns"})), same_up_to_names(free, tied)
      (True, False)
    """
    one, other = numbered(one), numbered(other)
    sizes, other_sizes = dict(one.known_sizes), dict(other.known_sizes)
    return one.leaves == other.leaves and all(sizes[name] == other_sizes[name] for name in sizes.keys() & other_sizes.keys())
