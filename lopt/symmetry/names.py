"""From atoms to a `WeightSpec`: readable, unique names for what the axes of the weights were found to carry."""

import collections
import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from lopt.symmetry.labels import Atoms
from lopt.symmetry.notation import Axis, Factor, Segments
from lopt.symmetry.spec import WeightSpec

# Ends of a path that say what a leaf is to its layer, not which layer it is; flax.nnx puts one more behind them.
_LEAVES = frozenset({"b", "bias", "embedding", "kernel", "scale", "w", "weight"})
_HOLDERS = frozenset({"raw_value", "value"})


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One weight with the atoms of its axes.

    Attributes:
      path: as in `WeightSpec.leaves`.
      axes: the atoms of each axis, slowest first, of each of its parts: an axis that is not in parts has one.
      order: how many other weights the function consumes before it.
    """

    path: str
    axes: tuple[tuple[tuple[int, ...], ...], ...]
    order: int


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where an atom stands: in which part of which axis of a leaf, and before how many others of the part."""

    leaf: Leaf
    axis: int
    part: int
    position: int


def name_spec(atoms: Atoms, leaves: Sequence[Leaf], owners: Mapping[int, int]) -> WeightSpec:
    """The spec of resolved leaves, with the owners of nested atoms.

    A permutable name is taken from the weight whose output (last) axis is the first to carry the atom as the function runs;
    otherwise, and for fixed names, from the first weight that carries it. Fixed neighbours in an axis that was cut into
    blocks, which never stand apart, are one name.
    """
    merge = _merge_fixed(atoms, leaves)
    groups = {group[0]: group for leaf in leaves for axis in leaf.axes for part in axis for group in merge(part)}
    sizes = {first: atoms.total(group) for first, group in groups.items()}
    heads = [
        dataclasses.replace(
            leaf, axes=tuple(tuple(tuple(group[0] for group in merge(part)) for part in axis) for axis in leaf.axes)
        )
        for leaf in leaves
    ]
    names = _names(atoms, heads)

    def factor(atom: int) -> Factor:
        # An owner that has become a part of another name is no name to be nested in.
        owner = owners.get(atom)
        return Factor(names[atom], atoms.is_fixed((atom,)), names.get(owner) if owner is not None else None)

    def named(axis: tuple[tuple[int, ...], ...]) -> Axis:
        parts = tuple(tuple(map(factor, part)) for part in axis)
        return parts[0] if len(parts) == 1 else Segments(parts)

    spec = tuple((leaf.path, tuple(map(named, leaf.axes))) for leaf in heads)
    alone = {axis[0][0] for leaf in heads for axis in leaf.axes if len(axis) == len(axis[0]) == 1}
    known = sorted((names[atom], sizes[atom]) for atom in names if atom not in alone)
    return WeightSpec(spec, tuple(known))


def _merge_fixed(atoms: Atoms, leaves: Sequence[Leaf]) -> Callable[[tuple[int, ...]], list[tuple[int, ...]]]:
    """Groups the atoms of a part of an axis: blocks and block are one group if both are fixed and never stand apart."""
    parts = [part for leaf in leaves for axis in leaf.axes for part in axis]
    counts = collections.Counter(atom for part in parts for atom in part)
    pairs = collections.Counter(pair for part in parts for pair in itertools.pairwise(part))
    neighbours = atoms.neighbours()

    def inseparable(slow: int, fast: int) -> bool:
        fixed = atoms.is_fixed((slow, fast)) and (slow, fast) in neighbours
        return fixed and slow != fast and pairs[slow, fast] == counts[slow] == counts[fast]

    def merge(part: tuple[int, ...]) -> list[tuple[int, ...]]:
        groups: list[tuple[int, ...]] = []
        for atom in part:
            if groups and inseparable(groups[-1][-1], atom):
                groups[-1] += (atom,)
            else:
                groups.append((atom,))
        return groups

    return merge


def _names(atoms: Atoms, leaves: Sequence[Leaf]) -> Mapping[int, str]:
    """A name for every atom, in the order in which the function consumes them."""
    places: dict[int, list[tuple[tuple[bool, int, int, int, int], _Place]]] = collections.defaultdict(list)
    for leaf in leaves:
        rank = sum(axis != ((),) for axis in leaf.axes)
        for axis, parts in enumerate(leaf.axes):
            for part, factors in enumerate(parts):
                for position, atom in enumerate(factors):
                    output = axis == len(leaf.axes) - 1 and rank > 1 and not atoms.is_fixed((atom,))
                    places[atom].append(((not output, leaf.order, axis, part, position), _Place(leaf, axis, part, position)))
    best = {atom: min(found, key=lambda place: place[0]) for atom, found in places.items()}
    names: dict[int, str] = {}
    for atom, (_, place) in sorted(best.items(), key=lambda item: item[1][0]):
        taken = set(names.values())
        names[atom] = next(name for name in _candidates(atoms, atom, place) if name not in taken)
    return names


def _candidates(atoms: Atoms, atom: int, place: _Place) -> Iterator[str]:
    """Names for an atom, best first."""
    axis, parts = place.axis, place.leaf.axes[place.axis]
    layer, full = _layer(place.leaf.path), _identifier(place.leaf.path.split("/"))
    fixed, rank = atoms.is_fixed((atom,)), len(place.leaf.axes)
    last = axis == rank - 1
    role = "out" if last else "in" if rank in (2, 4) and axis == rank - 2 else f"axis{axis}"
    if fixed:
        role = atoms.role(atom) or role
    if place.position < len(parts[place.part]) - 1:
        role = f"{role}{place.position}"
    elif last and not fixed:
        yield layer
    yield f"{layer}.{role}"
    if len(parts) > 1:
        yield f"{layer}.{role}{place.part}"
    yield full
    yield from (f"{full}.{role}.{extra}" for extra in itertools.count())


def _layer(path: str) -> str:
    """The name of a leaf's layer: its path without the parts that say what the leaf is."""
    parts = path.split("/")
    for ends in (_HOLDERS, _LEAVES):
        if len(parts) > 1 and parts[-1] in ends:
            parts.pop()
    if len(parts) > 1 and parts[0] == "params":  # the collection that flax.linen keeps weights in
        parts.pop(0)
    return _identifier(parts)


def _identifier(parts: Sequence[str]) -> str:
    """A name in the notation of specs. One that would begin with a digit, as of a list's item, gets a letter before it."""
    name = re.sub(r"[^A-Za-z0-9_.]", "_", ".".join(parts)) or "params"
    return name if re.match(r"[A-Za-z_]", name) else f"layer{name}"
