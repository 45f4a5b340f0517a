"""From a spec to a static plan for equivariant linear maps: which pooled views of the inputs feed which outputs.

Algorithm 1 of "Universal Neural Functionals" (Zhou, Finn, Harrison, NeurIPS 2024): the equivariant linear maps from tensor m to
tensor l have one basis term per *valid partition* of the output axes plus the input axes, a set partition whose blocks hold only
axes that the same permutation moves. Seen from its two sides, a term is

    a view of the input:    take the diagonal within each block of input axes, average out the blocks that stay on the input side;
    a target of the output: write along the blocks of output axes (their diagonal), broadcast over the blocks that came from no input;

joined by the blocks both sides share, the *kept* indices. Two facts make the plan small: every view is used by many terms, and a
view fits a target exactly when their kept indices carry the same names. So the terms fall into groups, one for each tuple of kept
names, and a group is a full rectangle of views x targets: one matmul, whatever the number of tensors.
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
      names: the kept indices, sorted; a name that is kept twice stands there twice.
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
        side = self.groups[group].targets[target]
        return _join(side, self.groups[group].views[view], sum(map(len, side.blocks)))

    def terms(self, output: str) -> list[Term]:
        """The terms that write to one tensor."""
        return [
            Term(output, view.path, self.partition(g, v, t), g, v, t)
            for g, group in enumerate(self.groups)
            for t, target in enumerate(group.targets)
            if target.path == output
            for v, view in enumerate(group.views)
        ]


def _join(target: Side, view: Side, rank: int) -> Blocks:
    """The partition of output plus input axes that a target and a view make together."""
    shifted = [tuple(position + rank for position in block) for block in view.blocks]
    partner = dict(zip(target.kept, view.kept, strict=True))
    joined = [block + (shifted[partner[index]] if index in partner else ()) for index, block in enumerate(target.blocks)]
    alone = [block for index, block in enumerate(shifted) if index not in view.kept]
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


def valid_partitions(names: Sequence[str]) -> Iterator[Blocks]:
    """All set partitions of the axes `0..len(names)-1` whose blocks hold axes of one name only, blocks sorted."""
    positions = [[axis for axis, name in enumerate(names) if name == wanted] for wanted in sorted(set(names))]
    for choice in itertools.product(*(list(set_partitions(axes)) for axes in positions)):
        yield tuple(sorted(itertools.chain.from_iterable(choice)))


def _sides(path: str, names: Sequence[str]) -> Iterator[tuple[tuple[str, ...], Side]]:
    """Every side of a tensor with its kept names, kept blocks in canonical order (by name, then position)."""
    for blocks in valid_partitions(names):
        block_names = [names[block[0]] for block in blocks]
        order = sorted(range(len(blocks)), key=lambda index: (block_names[index], index))
        for size in range(len(blocks) + 1):
            for kept in itertools.combinations(order, size):
                yield tuple(block_names[index] for index in kept), Side(path, blocks, kept)


def _orders(names: Sequence[str], kept: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """All orders of the kept blocks that leave the names in place: permutations among blocks of one name."""
    runs = [[index for index, _ in run] for _, run in itertools.groupby(zip(kept, names, strict=True), key=lambda pair: pair[1])]
    for choice in itertools.product(*map(itertools.permutations, runs)):
        yield tuple(itertools.chain.from_iterable(choice))


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
    views: dict[tuple[str, ...], list[Side]] = {}
    targets: dict[tuple[str, ...], list[Side]] = {}
    for path in spec.paths:
        for names, side in _sides(path, [factor.name for factor in spec.factors(path)]):
            targets.setdefault(names, []).append(side)
            views.setdefault(names, []).extend(dataclasses.replace(side, kept=kept) for kept in _orders(names, side.kept))
    groups = []
    for names in sorted(targets):
        if sizes is None:
            groups.append(Group(names, tuple(views[names]), tuple(targets[names])))
        else:
            groups.extend(_independent(spec, names, views[names], targets[names], sizes))
    return Plan(spec, tuple(groups))


def _independent(
    spec: WeightSpec, names: tuple[str, ...], views: list[Side], targets: list[Side], sizes: Mapping[str, int]
) -> Iterator[Group]:
    """The terms with few enough blocks, in rectangles: targets that take the same views together."""

    def own_blocks(side: Side) -> Counter[str]:
        axis_names = [factor.name for factor in spec.factors(side.path)]
        return Counter(axis_names[block[0]] for index, block in enumerate(side.blocks) if index not in side.kept)

    kept, view_blocks = Counter(names), [own_blocks(view) for view in views]
    rectangles: dict[tuple[Side, ...], list[Side]] = {}
    for target in targets:
        blocks = kept + own_blocks(target)
        fitting = [
            view
            for view, extra in zip(views, view_blocks, strict=True)
            if all(blocks[name] + extra[name] <= sizes[name] for name in blocks | extra)
        ]
        if fitting:
            rectangles.setdefault(tuple(fitting), []).append(target)
    for part, (fitting, together) in enumerate(rectangles.items()):
        yield Group(names, fitting, tuple(together), part)
