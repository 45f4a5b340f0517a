"""From atoms to a `WeightSpec`: readable, unique names for what the axes of the weights were found to carry."""

import collections
import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

from lopt.symmetry.labels import Atoms
from lopt.symmetry.spec import Factor, WeightSpec

# Ends of a path that say what a leaf is to its layer, not which layer it is; flax.nnx puts one more behind them.
_LEAVES = frozenset({"b", "bias", "embedding", "kernel", "scale", "w", "weight"})
_HOLDERS = frozenset({"raw_value", "value"})


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One weight with the atoms of its axes.

    Attributes:
      path: as in `WeightSpec.leaves`.
      axes: the atoms of each axis, slowest first.
      order: how many other weights the function consumes before it.
    """

    path: str
    axes: tuple[tuple[int, ...], ...]
    order: int


def name_spec(atoms: Atoms, leaves: Sequence[Leaf], owners: Mapping[int, int]) -> WeightSpec:
    """The spec of resolved leaves, with the owners of nested atoms.

    A permutable name is taken from the weight whose output (last) axis is the first to carry the atom as the function runs;
    otherwise, and for fixed names, from the first weight that carries it. Fixed neighbours in an axis that was cut into
    blocks, which never stand apart, are one name.
    """
    merged = _merge_fixed(atoms, leaves)
    members: dict[int, tuple[int, ...]] = {factors[0]: factors for leaf in merged for axis in leaf for factors in axis}
    sizes = {first: atoms.total(factors) for first, factors in members.items()}
    heads = [
        dataclasses.replace(leaf, axes=tuple(tuple(factors[0] for factors in axis) for axis in axes))
        for leaf, axes in zip(leaves, merged, strict=True)
    ]
    names = _names(atoms, heads)

    def factor(atom: int) -> Factor:
        # An owner that has become a part of another name is no name to be nested in.
        owner = owners.get(atom)
        return Factor(names[atom], atoms.is_fixed((atom,)), names.get(owner) if owner is not None else None)

    spec = tuple((leaf.path, tuple(tuple(map(factor, axis)) for axis in leaf.axes)) for leaf in heads)
    alone = {axis[0] for leaf in heads for axis in leaf.axes if len(axis) == 1}
    known = sorted((names[atom], sizes[atom]) for atom in names if atom not in alone)
    return WeightSpec(spec, tuple(known))


def _merge_fixed(atoms: Atoms, leaves: Sequence[Leaf]) -> list[list[list[tuple[int, ...]]]]:
    """Group the atoms of each axis: blocks and block are one group if both are fixed and never stand apart."""
    axes = [axis for leaf in leaves for axis in leaf.axes]
    counts = collections.Counter(atom for axis in axes for atom in axis)
    pairs = collections.Counter(pair for axis in axes for pair in itertools.pairwise(axis))

    def inseparable(slow: int, fast: int) -> bool:
        fixed = atoms.is_fixed((slow, fast)) and (slow, fast) in neighbours
        return fixed and slow != fast and pairs[slow, fast] == counts[slow] == counts[fast]

    neighbours = atoms.neighbours()
    merged: list[list[list[tuple[int, ...]]]] = []
    for leaf in leaves:
        merged.append([])
        for axis in leaf.axes:
            groups: list[tuple[int, ...]] = []
            for atom in axis:
                if groups and inseparable(groups[-1][-1], atom):
                    groups[-1] += (atom,)
                else:
                    groups.append((atom,))
            merged[-1].append(groups)
    return merged


def _names(atoms: Atoms, leaves: Sequence[Leaf]) -> Mapping[int, str]:
    """A name for every atom, in the order in which the function consumes them."""
    places: dict[int, list[tuple[bool, int, int, int, Leaf]]] = collections.defaultdict(list)
    for leaf in leaves:
        for axis, factors in enumerate(leaf.axes):
            for position, atom in enumerate(factors):
                matrix = axis == len(leaf.axes) - 1 and sum(map(bool, leaf.axes)) > 1
                output = matrix and not atoms.is_fixed((atom,))
                places[atom].append((not output, leaf.order, axis, position, leaf))
    names: dict[int, str] = {}
    for atom, found in sorted(places.items(), key=lambda item: min(place[:4] for place in item[1])):
        place = min(found, key=lambda place: place[:4])
        taken = set(names.values())
        names[atom] = next(name for name in _candidates(atoms, atom, *place) if name not in taken)
    return names


def _candidates(atoms: Atoms, atom: int, inner: bool, order: int, axis: int, position: int, leaf: Leaf) -> Iterator[str]:
    """Names for an atom, best first."""
    layer, full = _layer(leaf.path), _identifier(leaf.path.split("/"))
    fixed, rank = atoms.is_fixed((atom,)), len(leaf.axes)
    last = axis == rank - 1
    role = "out" if last else "in" if rank in (2, 4) and axis == rank - 2 else f"axis{axis}"
    if fixed:
        role = atoms.role(atom) or role
    if position < len(leaf.axes[axis]) - 1:
        role = f"{role}{position}"
    elif last and not fixed:
        yield layer
    yield f"{layer}.{role}"
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
