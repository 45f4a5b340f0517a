"""Which permutations may differ from one index of another name to the next: attention's `dim@heads`, `hidden@members` of an ensemble.

A function is equivariant to the wreath product of b within a, and not just to the product, if it treats every index of a by itself
wherever b is involved. Read off the values and equations of a trace, that is so if

- every value with an axis of b has exactly one axis of a: whatever mixes the indices of a, or spreads b over them, makes a value of b
  alone;
- every contraction of b contracts a too, or takes a as a batch axis: `q[a, b] k[a', b] -> [a, a']` would compare different a; and
  one that keeps b keeps a: `g[a, a'] x[a', b] -> [a, b]` would mix them;
- no primitive that meets b mixes indices of a: those that act along an axis (a sum so far, a look-up) map over all others.

Inside the body of a scan every value has the axis of its steps, as it belongs to one of them; what is carried from step to step is
also a value outside, and has not. So scanned layers may each permute their own hidden units.

A row that belongs to one of several groups, as those of a `ragged_dot` do, stands for its group: the axis of rows counts as one of
groups, so long as all that says which row belongs to which is one value. (Not in a loop, where a value is another at each step.)

An owner may be fixed. One level is looked for, as specs have one.
"""

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from lopt.symmetry.labels import Atoms, Label, Sum, Value

Axes = tuple[Label, ...]

MOST_BLOCKS = 256


class Record:
    """What a trace notes for this analysis."""

    def __init__(self) -> None:
        self._values: set[Axes] = set()
        self._contractions: list[tuple[Axes, Axes, Axes, Axes]] = []
        self._groups: list[tuple[Label, Label, Value]] = []
        self._acts: list[tuple[Axes, Axes]] = []
        self._opaque: list[Label] = []
        self._steps: Axes = ()
        self._loops = 0

    @contextmanager
    def within(self, steps: Label) -> Iterator[None]:
        """While inside, values belong to one step of a loop over an axis."""
        outside, self._steps = self._steps, (*self._steps, steps)
        try:
            yield
        finally:
            self._steps = outside

    @contextmanager
    def loop(self) -> Iterator[None]:
        """While inside, a value is another at each step."""
        self._loops += 1
        try:
            yield
        finally:
            self._loops -= 1

    def value(self, value: Value) -> None:
        """A value that the function computes or is given."""
        self._values.add((*value.axes, *self._steps))
        if value.index is not None:
            self._opaque.append(value.index)

    def acts(self, axes: Iterable[Label], operands: Iterable[Value]) -> None:
        """A primitive that may mix the indices of these axes, and maps over all others of its operands."""
        self._acts.append((tuple(axes), tuple(label for value in operands for label in value.axes)))

    def grouped(self, rows: Label, groups: Label, counts: Value) -> None:
        """Each index of `rows` belongs to one of `groups`, so many in order to each."""
        self._groups.append((rows, groups, dataclasses.replace(counts) if self._loops else counts))

    def opaque(self, operands: Iterable[Value]) -> None:
        """Operands of a primitive of which no more is known: it may mix the indices of all axes."""
        self._opaque.extend(label for value in operands for label in value.axes)

    def contraction(
        self, contracted: Iterable[Label], batch: Iterable[Label], left_free: Iterable[Label], right_free: Iterable[Label]
    ) -> None:
        """Axes that are summed over, those that both operands keep together, and those that only one of them has."""
        self._contractions.append((tuple(contracted), tuple(batch), tuple(left_free), tuple(right_free)))

    def owners(self, atoms: Atoms, weights: Iterable[Value]) -> dict[int, int]:
        """Permutable atom -> the atom that it is nested in, where there is one; every weight with the one has the other."""
        groups = self._rows_for_groups(atoms)

        def found_in(axes: Axes) -> list[int]:
            found = _atoms(atoms, axes)
            return [*found, *(groups[atom] for atom in found if atom in groups)]

        candidates: dict[int, set[int]] = {}
        blocks = [found_in(block) for axes in self._values for block in _blocks(atoms, axes)]
        blocks += [_atoms(atoms, block) for value in weights for block in _blocks(atoms, value.axes)]
        for found in blocks:
            counts = collections.Counter(found)
            single = {atom for atom, count in counts.items() if count == 1}
            for atom in counts:
                candidates[atom] = candidates.get(atom, single) & single - {atom}
        for contracted, batch, left, right in self._contractions:
            summed, compared = found_in(contracted), set(found_in(left)) & set(found_in(right))
            for atom in summed:
                candidates[atom] = candidates.get(atom, set()) - compared
            for atom in found_in((*batch, *left, *right)):
                candidates[atom] = candidates.get(atom, set()) - set(summed)
        for acted, axes in self._acts:
            mixed = set(found_in(acted))
            for atom in _atoms(atoms, axes):
                candidates[atom] = candidates.get(atom, set()) - mixed
        for atom in _atoms(atoms, [*self._opaque, *(label for acted, _ in self._acts for label in acted)]):
            candidates[atom] = set()
        return _choose(atoms, candidates)

    def _rows_for_groups(self, atoms: Atoms) -> dict[int, int]:
        """Atom of rows -> atom of the groups that they belong to, where all agree which."""
        found: dict[int, set[tuple[int, int]]] = {}
        for rows, groups, counts in self._groups:
            pair = [_atoms(atoms, (label,)) for label in (rows, groups)]
            for atom in pair[0]:
                whole = len(pair[0]) == len(pair[1]) == 1
                found.setdefault(atom, set()).add((pair[1][0], id(counts)) if whole else (-1, len(found)))
        return {rows: next(iter(of))[0] for rows, of in found.items() if len(of) == 1 and next(iter(of))[0] >= 0}


def _atoms(atoms: Atoms, axes: Sequence[Label]) -> list[int]:
    return [atom for label in axes for atom in atoms.atoms(label)]


def _blocks(atoms: Atoms, axes: Axes) -> Iterator[Axes]:
    """The blocks of a value whose axes have parts, one for each choice of parts; of very many, all axes in one, which nests nothing."""

    def parts(label: Label) -> list[Label]:
        found: list[Label] = [()]
        for factor in atoms.resolve(label):
            if isinstance(factor, Sum):
                found = [(*start, *end) for start in found for part in factor.parts for end in parts(part)]
            else:
                found = [(*start, factor) for start in found]
        return found

    choices = list(map(parts, axes))
    if math.prod(map(len, choices)) > MOST_BLOCKS:
        yield tuple(label for label in axes for _ in range(2))
    else:
        yield from itertools.product(*choices)


def _choose(atoms: Atoms, candidates: dict[int, set[int]]) -> dict[int, int]:
    """One owner each, none of them nested itself: greedily what enlarges the group most, then what came first."""

    def gain(pair: tuple[int, int]) -> tuple[float, int, int]:
        atom, owner = pair
        return (1 - atoms.size(owner)) * math.lgamma(atoms.size(atom) + 1), owner, atom

    chosen: dict[int, int] = {}
    pairs = [(atom, owner) for atom, found in candidates.items() if not atoms.is_fixed((atom,)) for owner in found]
    for atom, owner in sorted(pairs, key=gain):
        taken = owner in chosen or atom in chosen or atom in chosen.values()
        if not taken and min(atoms.size(atom), atoms.size(owner)) > 1:
            chosen[atom] = owner
    return chosen
