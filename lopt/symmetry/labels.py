"""Labels: which factors the axes of a traced value carry, and the union-find that ties, splits and pins them.

A label is the row-major product of *factors* that make up one array axis. A factor is either an *atom*, an index that one
permutation of the group acts on, or `Uniform`, a stretch along which the value is constant, so that any permutation may be
thought to act on it. An axis of size 1 carries the empty label.

Atoms only ever lose freedom: two are united (one permutation moves both), one is split into a product (the permutations of
12 indices become those of 3 x 4), or one is pinned (no permutation). Every such step passes to a subgroup, so whatever was
true of the labels before stays true: constraints may come in any order.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence


@dataclasses.dataclass(frozen=True)
class Uniform:
    """A factor along which a value is constant: it agrees with every atom and ties none."""

    size: int


Factor = int | Uniform  # an int is an atom of `Atoms`
Label = tuple[Factor, ...]  # slowest first; () is an axis of size 1


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
    """What is known of one value of a jaxpr: under a group element each axis moves as its label says.

    Attributes:
      axes: one label per axis.
      index: for integers that are themselves indices (an iota, an argmax): the label whose element they name, so that a group
        element maps the numbers too. None for numbers that a group element leaves as they are.
      offset: what such numbers are more than the index, which counts from 0.
      number: the number that all entries are, where one is known.
    """

    axes: tuple[Label, ...]
    index: Label | None = None
    offset: int = 0
    number: float | None = None


class Atoms:
    """Union-find over atoms with sizes, splits and pins."""

    def __init__(self) -> None:
        self._size: list[int] = []
        self._parent: list[int] = []
        self._fixed: list[bool] = []
        self._role: list[str | None] = []
        self._pieces: dict[int, Label] = {}
        self._cut: list[Label] = []

    def fresh(self, size: int, *, fixed: bool = False) -> Label:
        """The label of an axis of `size` that nothing is known of; `fixed` if its order carries meaning."""
        if size == 1:
            return ()
        self._size.append(size)
        self._parent.append(len(self._parent))
        self._fixed.append(fixed)
        self._role.append(None)
        return (len(self._parent) - 1,)

    def fresh_fixed(self, shape: Iterable[int]) -> tuple[Label, ...]:
        """A fixed label for each axis of a shape."""
        return tuple(self.fresh(size, fixed=True) for size in shape)

    def _find(self, atom: int) -> int:
        while self._parent[atom] != atom:
            self._parent[atom] = self._parent[self._parent[atom]]
            atom = self._parent[atom]
        return atom

    def resolve(self, label: Label) -> Label:
        """The label in today's atoms: representatives, splits expanded, neighbouring uniform factors merged."""
        found: list[Factor] = []
        for factor in label:
            if isinstance(factor, Uniform):
                if found and isinstance(found[-1], Uniform):
                    factor = Uniform(found.pop().size * factor.size)  # type: ignore[union-attr]
                found.append(factor)
                continue
            root = self._find(factor)
            found.extend(self.resolve(self._pieces[root]) if root in self._pieces else (root,))
        return tuple(found)

    def size(self, factor: Factor) -> int:
        return factor.size if isinstance(factor, Uniform) else self._size[factor]

    def total(self, label: Label) -> int:
        """The size of the axis."""
        return math.prod(map(self.size, label))

    def is_fixed(self, label: Label) -> bool:
        """Whether the axis holds atoms only, all of them pinned."""
        label = self.resolve(label)
        return bool(label) and all(not isinstance(factor, Uniform) and self._fixed[factor] for factor in label)

    def is_uniform(self, label: Label) -> bool:
        return all(isinstance(factor, Uniform) for factor in self.resolve(label))

    def varies(self, label: Label) -> bool:
        """Whether the axis has atoms and no uniform factor."""
        label = self.resolve(label)
        return bool(label) and not any(isinstance(factor, Uniform) for factor in label)

    def pin(self, label: Label, role: str | None = None) -> None:
        """Take the order of an axis to carry meaning; `role` says what it is, for its name."""
        for factor in self.resolve(label):
            if not isinstance(factor, Uniform):
                self._fixed[factor] = True
                self._role[factor] = self._role[factor] or role

    def pinned(self, label: Label, role: str | None = None) -> Label:
        """Pin a label and return it, with fixed atoms of their own for uniform factors."""
        self.pin(label, role)
        resolved = self.resolve(label)
        return tuple(
            piece
            for factor in resolved
            for piece in (self.fresh(factor.size, fixed=True) if isinstance(factor, Uniform) else (factor,))
        )

    def role(self, atom: int) -> str | None:
        return self._role[atom]

    def blocks(self, label: Label, count: int) -> tuple[Label, Label]:
        """Cut an axis into `count` equal blocks: its labels as (blocks, block), pinned for the blocks."""
        outer, inner = self.divide(label, (count, self.total(label) // count))
        self.pin(outer, "part")
        self._cut.append(outer + inner)
        return outer, inner

    def neighbours(self) -> set[tuple[Factor, Factor]]:
        """Neighbouring factors `(slow, fast)` of axes that were cut into blocks."""
        return {pair for label in self._cut for pair in itertools.pairwise(self.resolve(label))}

    def divide(self, label: Label, sizes: Sequence[int]) -> list[Label]:
        """The labels of the axes of `sizes` into which a reshape splits an axis (row-major).

        Atoms are split where an axis ends inside them; where that is impossible (4 x 3 into 2 x 6), all that overlaps is pinned.
        """
        if 0 in sizes:
            self.pin(label)
            return list(self.fresh_fixed(sizes))
        ends = list(itertools.accumulate(reversed(sizes), lambda stride, size: stride * size, initial=1))
        label = self._split_at(label, set(ends))
        spans = self._spans(label, set(ends))
        divided: list[Label] = []
        for low, high in reversed(list(itertools.pairwise(ends))):
            inside = [(start, stop, factor) for start, stop, factor in spans if start < high and stop > low]
            if all(low <= start and stop <= high for start, stop, _ in inside):
                divided.append(tuple(factor for _, _, factor in inside))
            else:
                self.pin(tuple(factor for _, _, factor in inside))
                divided.append(self.fresh(high // low, fixed=True))
        return divided

    def unify(self, first: Label, second: Label) -> Label:
        """Tie two axes of equal size to move together and return the label of a value that varies along either."""
        while True:
            first, second = self.resolve(first), self.resolve(second)
            if first == second:
                return first
            if 0 in map(self.size, first + second):
                self.pin(first + second)
                return first
            cuts = self._cuts(first) | self._cuts(second)
            split = self.resolve(self._split_at(first, cuts)), self.resolve(self._split_at(second, cuts))
            if split == (first, second):
                break
            first, second = split
        one, two = self._spans(first, cuts), self._spans(second, cuts)
        ends = sorted({1} | ({stop for _, stop, _ in one} & {stop for _, stop, _ in two}), reverse=True)
        united: Label = ()
        for high, low in itertools.pairwise(ends):
            here = tuple(factor for start, stop, factor in one if low <= start and stop <= high)
            there = tuple(factor for start, stop, factor in two if low <= start and stop <= high)
            united += self._merge(here, there)
        return united

    def _merge(self, here: Label, there: Label) -> Label:
        if all(isinstance(factor, Uniform) for factor in here):
            return there
        if all(isinstance(factor, Uniform) for factor in there):
            return here
        if len(here) == len(there) == 1:
            low, high = sorted((self._find(here[0]), self._find(there[0])))  # type: ignore[arg-type]
            self._parent[high] = low
            self._fixed[low] |= self._fixed[high]
            self._role[low] = self._role[low] or self._role[high]
            return (low,)
        # Factors that interleave, such as 4 x 3 against 3 x 4: no product of permutations respects both.
        self.pin(there)
        return self.pinned(here)

    def _cuts(self, label: Label) -> set[int]:
        """Where one factor ends and the next begins, as strides (the product of the sizes of all faster factors)."""
        sizes = map(self.size, reversed(label))
        return set(itertools.accumulate(sizes, lambda stride, size: stride * size, initial=1))

    def _split_at(self, label: Label, cuts: set[int]) -> Label:
        """Split atoms so that, where sizes allow, every cut falls between two factors."""
        label = self.resolve(label)
        stride = 1
        for factor in reversed(label):
            pieces = self._piece_sizes(stride, self.size(factor), cuts)
            if pieces and not isinstance(factor, Uniform):
                fixed = self._fixed[factor]
                self._pieces[factor] = tuple(piece for size in reversed(pieces) for piece in self.fresh(size, fixed=fixed))
                return self._split_at(label, cuts)
            stride *= self.size(factor)
        return label

    @staticmethod
    def _piece_sizes(stride: int, size: int, cuts: set[int]) -> list[int]:
        """Sizes, fastest first, of the pieces that the cuts make of a factor; empty if none can be made."""
        inner = sorted(cut for cut in cuts if stride < cut < stride * size)
        edges = [stride, *inner, stride * size]
        whole = all(high % low == 0 for low, high in itertools.pairwise(edges))
        return [high // low for low, high in itertools.pairwise(edges)] if inner and whole else []

    def _spans(self, label: Label, cuts: set[int]) -> list[tuple[int, int, Factor]]:
        """`(start, stop, factor)` in strides, slowest first; uniform factors are cut wherever sizes allow."""
        spans: list[tuple[int, int, Factor]] = []
        stride = 1
        for factor in reversed(label):
            size = self.size(factor)
            pieces = self._piece_sizes(stride, size, cuts) if isinstance(factor, Uniform) else []
            for piece in pieces or [size]:
                spans.append((stride, stride * piece, Uniform(piece) if isinstance(factor, Uniform) else factor))
                stride *= piece
        return spans[::-1]
