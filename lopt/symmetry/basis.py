"""From a spec to a static plan for equivariant linear maps: which pooled views of the inputs feed which outputs.

Algorithm 1 of "Universal Neural Functionals" (Zhou, Finn, Harrison, NeurIPS 2024): the equivariant linear maps from tensor m to
tensor l have one basis term per *valid partition* of the output axes plus the input axes, a set partition whose blocks hold only
axes that the same permutation moves. Seen from its two sides, a term is

    a view of the input:    take the diagonal within each block of input axes, average out the blocks that stay on the input side;
    a target of the output: write along the blocks of output axes (their diagonal), broadcast over the blocks that came from no input;

joined by the blocks both sides share, the *kept* indices. Two facts make the plan small: every view is used by many terms, and a
view fits a target exactly when their kept indices carry the same names. So the terms fall into groups, one for each tuple of kept
names, and a group is a full rectangle of views x targets: one matmul, whatever the number of tensors.

Where a name is nested in an owner (`dim@heads`), the group is a wreath product. Two of its indices can only be equal, in a sense that
the group keeps, if their owners are; so a block of nested axes lies within one block of their owners, and is kept only if that is.
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from lopt.symmetry.spec import WeightSpec

Blocks = tuple[tuple[int, ...], ...]  # a set partition of axis positions


@dataclasses.dataclass(frozen=True)
class Side:
    """One end of a term: a tensor, its axes in blocks, and the blocks that carry the group's kept indices, in order.

    As a view, the blocks left out of `kept` are averaged; as a target, they are broadcast over.
    """

    path: str
    blocks: Blocks
    kept: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Group:
    """Terms with the same kept names: every view feeds every target.

    Attributes:
      names: the kept indices, sorted; a name that is kept twice stands there twice. A nested name of which several owners are kept
        has the owner's place among them behind it, as in `dim@1`.
      views: V input sides; with a repeated name, one for every order of its blocks.
      targets: G output sides.
      part: 0, 1, ... where the terms with these names fall into several groups, as redundant ones are left out.
    """

    names: tuple[str, ...]
    views: tuple[Side, ...]
    targets: tuple[Side, ...]
    part: int = 0

    @property
    def label(self) -> str:
        """A readable key for theta, such as `hidden inputs`, or `all pooled` where nothing is kept."""
        return (" ".join(self.names) or "all pooled") + (f" #{self.part + 1}" if self.part else "")

    @property
    def num_terms(self) -> int:
        return len(self.views) * len(self.targets)


@dataclasses.dataclass(frozen=True)
class Term:
    """One basis term and where its coefficient is stored.

    Attributes:
      output, input: leaf paths.
      partition: blocks of axis positions, `0..k-1` the output's axes and `k..` the input's; sorted within and between.
      group, view, target: its coefficient is the block (view, target) of `weights[plan.groups[group].label]`.
    """

    output: str
    input: str
    partition: Blocks
    group: int
    view: int
    target: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """A static, hashable plan of an equivariant linear layer over the tensors of a spec."""

    spec: WeightSpec
    groups: tuple[Group, ...]

    @property
    def num_terms(self) -> int:
        """Number of basis terms over all pairs of tensors: product of Bell numbers, summed over pairs."""
        return sum(group.num_terms for group in self.groups)

    def partition(self, group: int, view: int, target: int) -> Blocks:
        """The partition of output plus input axes of one term; see `Term`."""
        output, source = self.groups[group].targets[target], self.groups[group].views[view]
        return join_blocks(output.blocks, output.kept, source.blocks, source.kept)

    def terms(self, output: str) -> list[Term]:
        """The terms that write to one tensor."""
        return [
            Term(output, view.path, self.partition(g, v, t), g, v, t)
            for g, group in enumerate(self.groups)
            for t, target in enumerate(group.targets)
            if target.path == output
            for v, view in enumerate(group.views)
        ]


def join_blocks(target: Blocks, target_kept: Sequence[int], view: Blocks, view_kept: Sequence[int]) -> Blocks:
    """The partition of output plus input axes that a target and a view make together."""
    rank = sum(map(len, target))
    shifted = [tuple(position + rank for position in block) for block in view]
    partner = dict(zip(target_kept, view_kept, strict=True))
    joined = [block + (shifted[partner[index]] if index in partner else ()) for index, block in enumerate(target)]
    alone = [block for index, block in enumerate(shifted) if index not in view_kept]
    return tuple(sorted(joined + alone))


def set_partitions(items: Sequence[int]) -> Iterator[Blocks]:
    """All set partitions of `items`: Bell(len(items)) of them."""
    if not items:
        yield ()
        return
    first, rest = items[0], items[1:]
    for partition in set_partitions(rest):
        yield ((first,), *partition)
        for index, block in enumerate(partition):
            yield (*partition[:index], (first, *block), *partition[index + 1 :])


def valid_partitions(names: Sequence[str], owners: Sequence[int | None] = ()) -> Iterator[Blocks]:
    """All set partitions of the axes `0..len(names)-1` whose blocks hold axes of one name only, blocks sorted.

    `owners` are the axes that nested ones are nested in: axes share a block only if their owners do.
    """
    positions = [[axis for axis, name in enumerate(names) if name == wanted] for wanted in sorted(set(names))]
    nested = [axis for axis, owner in enumerate(owners) if owner is not None]
    for choice in itertools.product(*(list(set_partitions(axes)) for axes in positions)):
        blocks = tuple(sorted(itertools.chain.from_iterable(choice)))
        if nested:
            block_of = {axis: index for index, block in enumerate(blocks) for axis in block}
            if any(len({block_of[_owner(owners, axis)] for axis in block if axis in nested}) > 1 for block in blocks):
                continue
        yield blocks


def _owner(owners: Sequence[int | None], axis: int) -> int:
    owner = owners[axis]
    assert owner is not None
    return owner


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """The names of a tensor's axes, and the axes that nested ones are nested in."""

    path: str
    names: tuple[str, ...]
    owners: tuple[int | None, ...]

    def block_name(self, block: Sequence[int]) -> str:
        return self.names[block[0]]

    def owner_block(self, blocks: Blocks, index: int) -> int | None:
        """The block that a block of nested axes is nested in."""
        owner = self.owners[blocks[index][0]]
        return None if owner is None else next(other for other, block in enumerate(blocks) if owner in block)

    def signature(self, side: Side) -> tuple[str, ...]:
        """The kept names in order, with the place of its owner for a nested one that has a choice of them: what must fit."""
        names = [self.block_name(side.blocks[index]) for index in side.kept]
        result = []
        for index, name in zip(side.kept, names, strict=True):
            owner = self.owner_block(side.blocks, index)
            same = [] if owner is None else [i for i in side.kept if self.block_name(side.blocks[i]) == self._owner_name(name)]
            result.append(f"{name}@{same.index(owner)}" if owner is not None and len(same) > 1 else name)
        return tuple(result)

    def _owner_name(self, name: str) -> str:
        owner = self.owners[self.names.index(name)]
        return name if owner is None else self.names[owner]


def _sides(tensor: _Tensor) -> Iterator[Side]:
    """Every side of a tensor, kept blocks in canonical order (by name, then position)."""
    for blocks in valid_partitions(tensor.names, tensor.owners):
        order = sorted(range(len(blocks)), key=lambda index: (tensor.block_name(blocks[index]), index))
        owner = {index: tensor.owner_block(blocks, index) for index in order}
        for size in range(len(blocks) + 1):
            for kept in itertools.combinations(order, size):
                if all(owner[index] is None or owner[index] in kept for index in kept):
                    yield Side(tensor.path, blocks, kept)


def _orders(tensor: _Tensor, side: Side) -> Iterator[Side]:
    """All orders of the kept blocks that leave the names in place: permutations among blocks of one name."""
    runs = itertools.groupby(side.kept, key=lambda index: tensor.block_name(side.blocks[index]))
    for choice in itertools.product(*(itertools.permutations(run) for _, run in runs)):
        yield dataclasses.replace(side, kept=tuple(itertools.chain.from_iterable(choice)))


def make_plan(spec: WeightSpec, sizes: Mapping[str, int] | None = None) -> Plan:
    """The plan of the full equivariant basis (Algorithm 1) over all pairs of tensors of a spec.

    A partition with more blocks of one name than that name has indices is a linear combination of coarser ones: the maps of the
    orbits of n indices span the space, and an orbit needs a distinct index for each of its blocks. The partitions with at most n
    blocks are a basis. Without `sizes` all partitions are kept, so that one theta serves every width.

    Args:
      spec: every name is treated as permutable; relax or fold fixed names first, `spec.relax()` is the paper's setting.
      sizes: of the names; if given, exactly the linearly dependent terms are left out.

    Raises:
      ValueError: if the spec still has fixed names.

    Example:
      >>> make_plan(WeightSpec.parse({"kernel": "rows columns"})).num_terms
      4
      >>> make_plan(WeightSpec.parse({"recurrent": "hidden hidden"})).num_terms
      15
    """
    fixed = sorted(set(spec.names) - set(spec.permutable))
    if fixed:
        raise ValueError(f"the basis treats every axis as permutable, but {fixed} are fixed: pass spec.relax()")
    tensors = {path: _Tensor(path, tuple(factor.name for factor in spec.factors(path)), spec.owners(path)) for path in spec.paths}
    views: dict[tuple[str, ...], list[Side]] = {}
    targets: dict[tuple[str, ...], list[Side]] = {}
    for tensor in tensors.values():
        for side in _sides(tensor):
            targets.setdefault(tensor.signature(side), []).append(side)
            for view in _orders(tensor, side):
                views.setdefault(tensor.signature(view), []).append(view)
    groups = []
    for names in sorted(targets):
        if sizes is None:
            groups.append(Group(names, tuple(views[names]), tuple(targets[names])))
        else:
            groups.extend(_independent(tensors, names, views[names], targets[names], sizes))
    return Plan(spec, tuple(groups))


def _independent(
    tensors: Mapping[str, _Tensor], names: tuple[str, ...], views: list[Side], targets: list[Side], sizes: Mapping[str, int]
) -> Iterator[Group]:
    """The terms with few enough blocks, in rectangles: targets that take the same views together."""

    def count(side: Side, *, kept: bool) -> Counter[tuple[str, object]]:
        """Blocks by name, those of a nested name for each of its owners: kept ones are known by their place, others by their side."""
        tensor, place = tensors[side.path], {index: place for place, index in enumerate(side.kept)}
        found: Counter[tuple[str, object]] = Counter()
        for index, block in enumerate(side.blocks):
            if (index in place) == kept:
                owner = tensor.owner_block(side.blocks, index)
                found[tensor.block_name(block), place.get(owner, (id(side), owner)) if owner is not None else None] += 1
        return found

    own_blocks = [count(view, kept=False) for view in views]
    rectangles: dict[tuple[Side, ...], list[Side]] = {}
    for target in targets:
        blocks = count(target, kept=True) + count(target, kept=False)
        fitting = [
            view
            for view, extra in zip(views, own_blocks, strict=True)
            if all(blocks[key] + extra[key] <= sizes[key[0]] for key in blocks | extra)
        ]
        if fitting:
            rectangles.setdefault(tuple(fitting), []).append(target)
    for part, (fitting, together) in enumerate(rectangles.items()):
        yield Group(names, fitting, tuple(together), part)
