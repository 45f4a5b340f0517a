"""Labels: which factors the axes of a traced value carry, and the union-find that ties, splits, cuts and pins them.

A label is the row-major product of *factors* that make up one array axis. A factor is an *atom*, an index that one permutation of
the group acts on; `Uniform`, a stretch along which the value is constant, so that any permutation may be thought to act on it; or
a `Sum`, parts that lie one behind the other, each with a label of its own. An axis of size 1 carries the empty label.

Atoms only ever lose freedom: two are united (one permutation moves both), one is split into a product (the permutations of
12 indices become those of 3 x 4) or cut into a sum (they become those of 5 + 7), or one is pinned (no permutation). Every such
step passes to a subgroup, so whatever was true of the labels before stays true: constraints may come in any order.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence


@dataclasses.dataclass(frozen=True)
class Uniform:
    """A factor along which a value is constant: it agrees with every atom and ties none."""

    size: int


@dataclasses.dataclass(frozen=True)
class Sum:
    """Parts of an axis that lie one behind the other.

    Attributes:
      parts: their labels, at least two, none of them a sum.
      atom: that was cut into them, if they are parts of one.
    """

    parts: tuple["Label", ...]
    atom: int | None = None


Factor = int | Uniform | Sum  # an int is an atom of `Atoms`
Label = tuple[Factor, ...]  # slowest first; () is an axis of size 1

MOST_PARTS = 32  # of an axis; one of more is taken to be ordered
DEEPEST = 16  # how often parts may be cut further while two axes are tied


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
        self._parts: dict[int, tuple[Label, ...]] = {}
        self._cut: list[Label] = []
        self._depth = 0
        self._whole: dict[tuple[Label, int], int] = {}

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
        """The label in today's atoms: representatives, splits and cuts expanded, neighbouring uniform factors merged."""
        found: list[Factor] = []
        for factor in label:
            if isinstance(factor, int):
                root = self._find(factor)
                if root in self._parts:
                    expanded: Label = (self._sum(self._parts[root], root),)
                else:
                    expanded = self.resolve(self._pieces[root]) if root in self._pieces else (root,)
            elif isinstance(factor, Sum):
                expanded = (self._sum(factor.parts),) if factor.atom is None else self.resolve((factor.atom,))
            else:
                expanded = (factor,)
            for one in expanded:
                if isinstance(one, Uniform) and found and isinstance(found[-1], Uniform):
                    one = Uniform(found.pop().size * one.size)  # type: ignore[union-attr]
                found.append(one)
        return tuple(found)

    def _sum(self, parts: Iterable[Label], atom: int | None = None) -> Factor:
        """Parts in today's atoms, those that are sums themselves in their place."""
        flat: list[Label] = []
        for part in map(self.resolve, parts):
            flat.extend(part[0].parts if len(part) == 1 and isinstance(part[0], Sum) else (part,))
        return Sum(tuple(flat), atom)

    def size(self, factor: Factor) -> int:
        if isinstance(factor, Sum):
            return sum(map(self.total, factor.parts))
        return factor.size if isinstance(factor, Uniform) else self._size[factor]

    def total(self, label: Label) -> int:
        """The size of the axis."""
        return math.prod(map(self.size, label))

    def factors(self, label: Label) -> Iterator[int | Uniform]:
        """All atoms and uniform factors of a label, those of parts among them."""
        for factor in self.resolve(label):
            if isinstance(factor, Sum):
                for part in factor.parts:
                    yield from self.factors(part)
            else:
                yield factor

    def atoms(self, label: Label) -> list[int]:
        """All atoms of a label, those of parts among them."""
        return [factor for factor in self.factors(label) if isinstance(factor, int)]

    def is_fixed(self, label: Label) -> bool:
        """Whether the axis holds atoms only, all of them pinned."""
        return self.varies(label) and all(self._fixed[atom] for atom in self.atoms(label))

    def is_uniform(self, label: Label) -> bool:
        return all(isinstance(factor, Uniform) for factor in self.resolve(label))

    def varies(self, label: Label) -> bool:
        """Whether the axis has atoms, or parts, and no uniform factor."""
        return bool(self.resolve(label)) and not any(isinstance(factor, Uniform) for factor in self.factors(label))

    def uniformity(self, label: Label) -> int:
        """How much of an axis is uniform: what can only become less when the axis is tied to another."""
        factors = self.resolve(label)
        of_sums = [1 + sum(self.uniformity(part) - 1 for part in factor.parts) for factor in factors if isinstance(factor, Sum)]
        return math.prod([*of_sums, *(factor.size for factor in factors if isinstance(factor, Uniform))])

    def pin(self, label: Label, role: str | None = None) -> None:
        """Take the order of an axis to carry meaning; `role` says what it is, for its name."""
        for atom in self.atoms(label):
            self._fixed[atom] = True
            self._role[atom] = self._role[atom] or role

    def pinned(self, label: Label, role: str | None = None) -> Label:
        """Pin a label and return it, with fixed atoms of their own for uniform factors."""
        self.pin(label, role)
        return tuple(
            piece
            for factor in self.resolve(label)
            for piece in ((factor,) if isinstance(factor, int) else self.fresh(self.size(factor), fixed=True))
        )

    def add(self, labels: Sequence[Label]) -> Label:
        """The label of an axis whose parts, one behind the other, have these labels."""
        if 0 in map(self.total, labels) or len(labels) > MOST_PARTS:
            for label in labels:
                self.pin(label)
            return self.fresh(sum(map(self.total, labels)), fixed=True)
        return self.resolve((self._sum(labels),)) if len(labels) > 1 else labels[0]

    def cut(self, label: Label, points: Sequence[int]) -> list[Label]:
        """The labels of the parts that end at these places inside an axis, and at its end.

        An atom is cut into atoms. A product is cut between the indices of its slowest factor; elsewhere, it and what else cannot be cut
        is divided into the largest equal blocks that end where a part does, and these are ordered.
        """
        label, size = self.resolve(label), self.total(label)
        ends = [0, *points, size]
        sizes = [high - low for low, high in itertools.pairwise(ends)]
        if not points:
            return [label]
        if self.is_uniform(label):
            return [(Uniform(length),) if length > 1 else () for length in sizes]
        if self.is_fixed(label) or len(sizes) > MOST_PARTS or all(length == 1 for length in sizes):
            self.pin(label)
            return [self.fresh(length, fixed=True) for length in sizes]
        if len(label) > 1:
            block = size // self.size(label[0])
            if any(point % block for point in points):
                block = math.gcd(size, *points)
                if block == 1:
                    self.pin(label)
                    return [self.fresh(length, fixed=True) for length in sizes]
                outer, inner = self.blocks(label, size // block)
            else:
                outer, inner = label[:1], label[1:]
            return [(*part, *inner) for part in self.cut(outer, [point // block for point in points])]
        [factor] = list(label)
        if isinstance(factor, int):
            self._parts[factor] = tuple(self.fresh(length, fixed=self._fixed[factor]) for length in sizes)
            return list(self._parts[factor])
        assert isinstance(factor, Sum), factor
        cut: list[list[Label]] = [[] for _ in sizes]
        start = 0
        for part in factor.parts:
            stop = start + self.total(part)
            inside = [point for point in points if start < point < stop]
            place = sum(point <= start for point in points)
            for piece in self.cut(part, [point - start for point in inside]):
                cut[place].append(piece)
                place += 1
            start = stop
        return [self.add(pieces) for pieces in cut]

    def part(self, label: Label, start: int, stop: int) -> Label:
        """The label of the entries from `start` to before `stop`."""
        points = [point for point in (start, stop) if 0 < point < self.total(label)]
        return self.cut(label, points)[1 if start else 0]

    def settle(self, label: Label) -> None:
        """Pin what `segments` could not say: an index of which each stands before parts, unless its order is fixed."""
        for place, factor in enumerate(self.resolve(label)):
            if isinstance(factor, Sum):
                self.pin(self.resolve(label)[:place])
                for part in factor.parts:
                    self.settle((*part, *self.resolve(label)[place + 1 :]))
                break
        if len(self._expand(self.resolve(label))) > MOST_PARTS:
            self.pin(label)

    def segments(self, label: Label) -> tuple[tuple[int, ...], ...]:
        """The atoms of an axis without uniform factors, part by part; call `settle` on all such axes before.

        Parts that are all alike are a product, (parts!, part); where all are fixed, the whole is one index.
        """
        label = self.resolve(label)
        expanded = self._expand(label)
        if len(expanded) > 1 and self.is_fixed(label):
            return ((self._whole_atom(label, self.total(label)),),)
        if len(expanded) > 1 and len(set(expanded)) == 1:
            return ((self._whole_atom(label, len(expanded)), *expanded[0]),)
        return tuple(expanded)

    def _expand(self, label: Label) -> list[tuple[int, ...]]:
        for place, factor in enumerate(label):
            if isinstance(factor, Sum):
                parts = [atoms for part in factor.parts for atoms in self._expand((*part, *label[place + 1 :]))]
                return parts * self.total(label[:place])
        return [tuple(factor for factor in label if isinstance(factor, int))]

    def _whole_atom(self, label: Label, size: int) -> int:
        """A fixed atom for an axis that is in parts, or for which of its parts an index is in: always the same one."""
        if (label, size) not in self._whole:
            (self._whole[label, size],) = self.fresh(size, fixed=True)  # type: ignore[assignment]
            self.pin((self._whole[label, size],), "part" if size < self.total(label) else None)
        return self._whole[label, size]

    def inner_ends(self, label: Label) -> list[int]:
        """Where, inside an axis that is a sum, one part ends and the next begins."""
        label = self.resolve(label)
        if len(label) != 1 or not isinstance(label[0], Sum):
            return []
        return list(itertools.accumulate(self.total(part) for part in label[0].parts))[:-1]

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
            points = sorted({*self.inner_ends(first), *self.inner_ends(second)})
            if points and not self.is_uniform(first) and not self.is_uniform(second):
                return self._unify_parts(first, second, points)
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

    def _unify_parts(self, first: Label, second: Label, points: Sequence[int]) -> Label:
        """Tie two axes part by part. Parts of one may be cut by the other's again and again, as in `x[1:] + x[:-1]`."""
        if self._depth >= DEEPEST or len(points) >= MOST_PARTS:
            self.pin(second)
            return self.pinned(first)
        self._depth += 1
        # What cutting one does to atoms of the other is seen as each part is resolved anew.
        parts = list(zip(self.cut(first, points), self.cut(second, points), strict=True))
        united = [self.unify(one, other) for one, other in parts]
        self._depth -= 1
        return self.add(united)

    def _merge(self, here: Label, there: Label) -> Label:
        if any(self.resolve((factor,)) != (factor,) for factor in (*here, *there) if isinstance(factor, int)):
            return self.unify(here, there)  # what was tied before has split, cut or united one of them
        if all(isinstance(factor, Uniform) for factor in here):
            return there
        if all(isinstance(factor, Uniform) for factor in there):
            return here
        if len(here) == len(there) == 1 and (isinstance(here[0], Sum) or isinstance(there[0], Sum)):
            return self.unify(here, there)
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
            if pieces and isinstance(factor, Sum):
                product = self._product(factor)
                if product:
                    place = label.index(factor)
                    return self._split_at((*label[:place], *product, *label[place + 1 :]), cuts)
            elif pieces and isinstance(factor, int):
                fixed = self._fixed[factor]
                self._pieces[factor] = tuple(piece for size in reversed(pieces) for piece in self.fresh(size, fixed=fixed))
                return self._split_at(label, cuts)
            stride *= self.size(factor)
        return label

    def _product(self, factor: Sum) -> Label:
        """A sum of equal parts as a product (parts!, part), all parts tied; empty if they are not of one size."""
        if len({self.total(part) for part in factor.parts}) != 1:
            return ()
        product = self.fresh(len(factor.parts), fixed=True) + functools.reduce(self.unify, factor.parts)
        if factor.atom is not None:
            del self._parts[self._find(factor.atom)]
            self._pieces[self._find(factor.atom)] = product
        return product

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
