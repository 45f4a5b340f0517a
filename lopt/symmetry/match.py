"""Which weight of one network is which of another: two specs that differ only in what they call leaves and axes.

What was trained for the weights of one network can be used on another of the same symmetry, whichever library it is written in, once it
is known which leaf plays which part. Leaves are told apart by refinement: by their own axes, then by which leaves they share names
with, then by which leaves those share names with, and so on. The result is verified; where two leaves play the same part, as query and
key do, nothing is guessed.
"""

import dataclasses
import hashlib
from collections import Counter

from lopt.symmetry.compare import same_up_to_names
from lopt.symmetry.notation import Factor, Part, parts_of
from lopt.symmetry.spec import SpecError, WeightSpec


def match_leaves(spec: WeightSpec, known: WeightSpec) -> dict[str, str] | None:
    """The leaf of `known` for each leaf of `spec`.

    Runs of fixed factors that stand nowhere else count as one, `(rows! columns!) units` as `pixels! units`. Sizes say nothing.

    Args:
      spec: of one network's weights.
      known: of another's.

    Returns:
      path -> path, or None if the two are not the same up to the names of leaves and axes.

    Raises:
      SpecError: naming leaves that play the same part, so that it cannot be told which is which.

    Example:
      >>> known = WeightSpec.parse({"dense0": {"bias": "h", "kernel": "pixels! h"}, "dense1": {"kernel": "h classes!"}})
      >>> match_leaves(WeightSpec.parse({"b": "u", "v": "u y!", "w": "(rows! columns!) u"}), known)
      {'b': 'dense0/bias', 'v': 'dense1/kernel', 'w': 'dense0/kernel'}
    """
    if spec.in_parts or known.in_parts:
        return _match_by_blocks(spec, known)
    spec, known = _whole_axes(spec), _whole_axes(known)
    if same_up_to_names(_sorted(spec), _sorted(known)):
        return {path: path for path in spec.paths}
    parts, known_parts = _parts(spec), _parts(known)
    if Counter(parts.values()) != Counter(known_parts.values()):
        return None
    by_part = {part: path for path, part in known_parts.items()}
    found = {path: by_part[part] for path, part in parts.items()}
    if len(by_part) < len(parts):
        alike = next(
            [path for path in parts if parts[path] == part] for part in parts.values() if [*parts.values()].count(part) > 1
        )
        raise SpecError(
            f"leaves {alike} play the same part, so it cannot be told which of them is which of "
            f"{[path for path in known_parts if known_parts[path] == parts[alike[0]]]}; name them like these"
        )
    renamed = dataclasses.replace(spec, leaves=tuple((found[path], axes) for path, axes in spec.leaves))
    return found if same_up_to_names(_sorted(renamed), _sorted(known)) else None


def _match_by_blocks(spec: WeightSpec, known: WeightSpec) -> dict[str, str] | None:
    """`match_leaves` for leaves with axes in parts: all blocks of a leaf are those of one other, in the same places."""
    found = match_leaves(spec.blocks, known.blocks)
    if found is None:
        return None
    places = {path: {} for path in spec.paths}
    for (path, which), block in zip(spec.block_places(), spec.blocks.paths, strict=True):
        other = dict(zip(known.blocks.paths, known.block_places(), strict=True))[found[block]]
        places[path][which] = other
    whole = {path: next(iter(others.values()))[0] for path, others in places.items()}
    same = all(other == (whole[path], which) for path, others in places.items() for which, other in others.items())
    return whole if same else None


def _sorted(spec: WeightSpec) -> WeightSpec:
    return WeightSpec(tuple(sorted(spec.leaves, key=lambda leaf: leaf[0])))


def _whole_axes(spec: WeightSpec) -> WeightSpec:
    """The spec, without sizes, with one factor for every run of fixed factors of an axis that stand nowhere else."""
    owners = set(spec.nested.values())
    count = Counter(factor.name for path in spec.paths for factor in spec.factors(path))

    def whole(axis: Part) -> Part:
        factors: list[Factor] = []
        for factor in axis:
            alone = factor.fixed and count[factor.name] == 1 and factor.name not in owners
            if alone and factors and factors[-1] in merged:
                continue
            factors.append(factor)
            if alone:
                merged.add(factor)
        return tuple(factors)

    merged: set[Factor] = set()
    leaves = tuple((path, tuple(whole(part) for axis in axes for part in parts_of(axis))) for path, axes in spec.leaves)
    return WeightSpec(leaves)


def _parts(spec: WeightSpec) -> dict[str, str]:
    """path -> what part the leaf plays: equal for leaves that refinement does not tell apart, of one spec or of two."""
    places = {
        path: [(index, position, factor) for index, axis in enumerate(axes) for position, factor in enumerate(parts_of(axis)[0])]
        for path, axes in spec.leaves
    }
    leaf_parts, name_parts = dict.fromkeys(spec.paths, ""), dict.fromkeys(spec.names, "")
    for _ in spec.paths:
        uses: dict[str, list[object]] = {name: [] for name in spec.names}
        for path, found in places.items():
            for index, position, factor in found:
                uses[factor.name].append((leaf_parts[path], index, position, factor.fixed, factor.owner is None))
        name_parts = {name: _digest((name_parts[name], sorted(map(repr, used)))) for name, used in uses.items()}
        leaf_parts = {
            path: _digest([(index, position, name_parts[factor.name]) for index, position, factor in found])
            for path, found in places.items()
        }
    return leaf_parts


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()
