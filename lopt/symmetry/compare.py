"""Whether two specs describe the same symmetry, whatever they call its permutations."""

import dataclasses
import itertools

from lopt.symmetry.notation import Axis, Factor, Part, Segments, map_parts, parts_of
from lopt.symmetry.spec import PyTree, WeightSpec


def numbered(spec: WeightSpec) -> WeightSpec:
    """The spec with its names numbered in the order in which they are read: `n0`, `n1`, ...

    Example:
      >>> print(numbered(WeightSpec.parse({"bias": "hidden", "kernel": "inputs! hidden"})))
      bias    n0
      kernel  n1! n0
    """
    names = dict.fromkeys(factor.name for path in spec.blocks.paths for factor in spec.blocks.factors(path))
    numbers = {name: f"n{index}" for index, name in enumerate(names)}

    def renamed(factor: Factor) -> Factor:
        return dataclasses.replace(factor, name=numbers[factor.name], owner=numbers.get(factor.owner or ""))

    leaves = spec.with_factors(renamed).leaves
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


def same_group(one: WeightSpec, other: WeightSpec) -> bool:
    """Whether two specs describe the same permutations of the weights, whatever they say of the axes that no permutation moves.

    Fixed axes may then have other names, be tied or not, and be divided into factors or not. Layers that treat fixed axes as
    permutable still differ.

    Example:
      >>> image, flat = WeightSpec.parse({"w": "(rows! columns!) hidden"}), WeightSpec.parse({"w": "pixels! units"})
      >>> same_group(image, flat), same_up_to_names(image, flat)
      (True, False)
    """
    return same_up_to_names(_without_fixed_names(one), _without_fixed_names(other))


def without_single_indices(spec: WeightSpec, params: PyTree) -> WeightSpec:
    """The spec with `1` for every axis, and nothing for every factor, of size one: no permutation moves it, whatever it is called.

    Args:
      spec: describes `params`.
      params: pytree of arrays or `jax.ShapeDtypeStruct`s.

    Example:
      >>> spec = WeightSpec.parse({"state": "batch! hidden", "kernel": "hidden (heads dim@heads)"}, heads=1)
      >>> print(without_single_indices(spec, {"state": np.zeros((1, 4)), "kernel": np.zeros((4, 6))}))
      kernel  hidden dim
      state   1 hidden
    """
    single = {name for name, size in spec.sizes(params).items() if size == 1}

    def kept(part: Part) -> Part:
        free = (dataclasses.replace(factor, owner=None) if factor.owner in single else factor for factor in part)
        return tuple(factor for factor in free if factor.name not in single)

    leaves = tuple((path, tuple(map_parts(axis, kept) for axis in axes)) for path, axes in spec.leaves)
    return WeightSpec(leaves, tuple((name, size) for name, size in spec.known_sizes if name not in single))


def _without_fixed_names(spec: WeightSpec) -> WeightSpec:
    """Runs of fixed factors within an axis, or a part of one, as one factor, all of one name; fixed parts in a row as one part."""
    fixed_name = "fixed" + "".join(spec.permutable)  # longer than any permutable name, so none of them

    owners = set(spec.nested.values())  # a fixed owner tells whose permutations are whose

    def merged(part: Part) -> Part:
        runs = itertools.groupby(
            part, key=lambda factor: Factor(fixed_name, True) if factor.fixed and factor.name not in owners else factor
        )
        # Only fixed factors merge: a permutable name that stands twice in a row is two factors.
        return tuple(factor for key, run in runs for factor in ([key] if key.fixed else run))

    def merged_parts(axis: Axis) -> Axis:
        parts = parts_of(map_parts(axis, merged))
        fixed = (Factor(fixed_name, True),)
        # A part of size one is fixed, if it is one of several.
        named = [fixed if not part and len(parts) > 1 else part for part in parts]
        runs = itertools.groupby(named)
        kept = tuple(part for part, run in runs for part in ([part] if part == fixed else run))
        return Segments(kept) if len(kept) > 1 else next(iter(kept), ())

    leaves = tuple((path, tuple(map(merged_parts, axes))) for path, axes in spec.leaves)
    return WeightSpec(leaves, tuple((name, size) for name, size in spec.known_sizes if name in spec.permutable))
