"""How the terms of a plan line up, so that those of tensors of one shape are computed together: bookkeeping, without arrays.

Tensors of the same shape form a class, and are members of it. Groups of terms that read the same kinds of views and write the same
kinds of targets form a batch.
"""

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lopt.symmetry.basis import Blocks, Group, Plan, Side

Channels = Mapping[str, int]  # leaf path -> number of channels of its features
Untied = Mapping[str, tuple[int, ...]]  # label of a group -> positions of kept axes along which every index has its own matrix


class Kind(NamedTuple):
    """What makes two sides alike: the class of their tensor, and how its axes are grouped and kept."""

    tensors: int
    blocks: Blocks
    kept: tuple[int, ...]


class Stretch(NamedTuple):
    """Neighbouring sides of one kind, in every group of a batch.

    Attributes:
      kind: theirs.
      members: [groups, sides], which of the class.
      start: where their channels begin among those of all sides.
      stop: where they end.
    """

    kind: Kind
    members: np.ndarray
    start: int
    stop: int


class Batch(NamedTuple):
    """Groups of terms that line up.

    Attributes:
      labels: of the groups.
      views: stretches of views.
      targets: stretches of targets.
      rows: for each group, the order of its matrix's rows that belongs to `views`.
      columns: for each group, the order of its matrix's columns that belongs to `targets`.
      untied: kept axes along which every index has a matrix of its own, in the order of the matrices.
    """

    labels: list[str]
    views: list[Stretch]
    targets: list[Stretch]
    rows: list[np.ndarray]
    columns: list[np.ndarray]
    untied: tuple[int, ...]


class _Sorted(NamedTuple):
    """The views or targets of a group, sorted by kind: kind, member, place in the group."""

    sides: list[tuple[Kind, int, int]]
    channels: list[int]  # in the order of the group

    def kinds(self) -> tuple[tuple[Kind, int], ...]:
        return tuple((kind, self.channels[i]) for kind, _, i in self.sides)

    def order(self) -> np.ndarray:
        starts = np.cumsum([0, *self.channels])
        return np.concatenate([np.arange(starts[i], starts[i + 1]) for _, _, i in self.sides])


class View(NamedTuple):
    """One view of one tensor.

    Attributes:
      batch: index of the batch that it belongs to.
      group: index of the group there.
      kind: what it keeps.
      start: the first of its rows in the group's matrix.
    """

    batch: int
    group: int
    kind: Kind
    start: int


class Arrangement(NamedTuple):
    """How the terms of a plan are computed, for tensors of given shapes.

    Attributes:
      classes: the paths of the members of each class.
      batches: groups of terms that line up.
      views: path -> views of a tensor.
      early: path -> those of them that are multiplied with coefficients before they are averaged; for some tensors.
    """

    classes: list[list[str]]
    batches: list[Batch]
    views: dict[str, list[View]]
    early: dict[str, list[View]]


def is_whole(kind: Kind) -> bool:
    """Whether views of a kind are the tensor itself, up to the order of axes: nothing is averaged, no diagonal taken."""
    return len(kind.kept) == len(kind.blocks) == sum(map(len, kind.blocks))


def arrange(
    plan: Plan,
    shapes: Mapping[str, tuple[int, ...]],
    c_in: Channels,
    c_out: Channels,
    untied: Untied,
    digested: Collection[str] = (),
) -> Arrangement:
    """How the terms of a plan are computed.

    Args:
      plan: of the layer.
      shapes: leaf path -> one axis per factor.
      c_in: channels of the input features.
      c_out: channels of the output features.
      untied: as `Untied` has it.
      digested: paths of tensors whose averages and diagonals are there already: only they themselves are multiplied early.
    """
    classes = _classes(plan, shapes, c_in, c_out)
    batches = list(_batches(plan, classes, c_in, c_out, untied))
    views: dict[str, list[View]] = {path: [] for path in plan.spec.paths}
    for index, batch in enumerate(batches):
        for run in batch.views:
            paths = classes[run.kind.tensors]
            for (group, side), member in np.ndenumerate(run.members):
                view = View(index, group, run.kind, run.start + side * c_in[paths[member]])
                views[paths[member]].append(view)

    def products(chosen: Sequence[View]) -> int:
        return sum(batches[view.batch].columns[view.group].size for view in chosen)

    early: dict[str, list[View]] = {}
    for paths in classes if not any(batch.untied for batch in batches) else ():
        chosen = {path: [view for view in views[path] if path not in digested or is_whole(view.kind)] for path in paths}
        if all(chosen[path] and products(chosen[path]) <= c_in[path] for path in paths):
            early |= chosen
    return Arrangement(classes, batches, views, early)


def _classes(plan: Plan, shapes: Mapping[str, tuple[int, ...]], c_in: Channels, c_out: Channels) -> list[list[str]]:
    """Tensors that can be computed together: of the same shape and channels, with names repeated at the same axes."""
    found: dict[tuple, list[str]] = {}
    for path in plan.spec.paths:
        names = [factor.name for factor in plan.spec.factors(path)]
        repeated = tuple(names.index(name) for name in names)
        found.setdefault((shapes[path], c_in[path], c_out[path], repeated), []).append(path)
    return list(found.values())


def _batches(plan: Plan, classes: Sequence[Sequence[str]], c_in: Channels, c_out: Channels, untied: Untied) -> Iterable[Batch]:
    """Groups of terms that line up: the same kinds of views and of targets, as often, untied along the same axes."""
    place = {path: (index, member) for index, paths in enumerate(classes) for member, path in enumerate(paths)}
    found: dict[tuple, list[tuple[str, _Sorted, _Sorted]]] = {}
    for group in plan.groups:
        order = _order(group)
        views, targets = _sort(group.views, order, place, c_in), _sort(group.targets, order, place, c_out)
        axes = tuple(order.index(i) for i in untied.get(group.label, ()))
        found.setdefault((views.kinds(), targets.kinds(), axes), []).append((group.label, views, targets))
    for (_, _, axes), groups in found.items():
        labels, views, targets = (list(column) for column in zip(*groups, strict=True))
        yield Batch(
            labels, _stretches(views), _stretches(targets), [v.order() for v in views], [t.order() for t in targets], axes
        )


def _order(group: Group) -> tuple[int, ...]:
    """The order of a group's kept axes that most of its views have already: these need not be transposed."""
    orders = Counter(tuple(sorted(range(len(view.kept)), key=lambda i: view.kept[i])) for view in group.views)
    return orders.most_common(1)[0][0]


def _sort(sides: Sequence[Side], order: Sequence[int], place: Mapping[str, tuple[int, int]], channels: Channels) -> _Sorted:
    kinds = (Kind(place[side.path][0], side.blocks, tuple(side.kept[i] for i in order)) for side in sides)
    placed = ((kind, place[side.path][1], i) for i, (kind, side) in enumerate(zip(kinds, sides, strict=True)))
    return _Sorted(sorted(placed), [channels[side.path] for side in sides])


def _stretches(groups: Sequence[_Sorted]) -> list[Stretch]:
    """The stretches of one kind over the sorted sides of groups that line up."""
    result, start, first = [], 0, 0
    for kind, run in itertools.groupby(groups[0].sides, key=lambda side: side[0]):
        sides = list(run)
        last, stop = first + len(sides), start + sum(groups[0].channels[i] for _, _, i in sides)
        members = np.asarray([[member for _, member, _ in group.sides[first:last]] for group in groups])
        result.append(Stretch(kind, members, start, stop))
        first, start = last, stop
    return result
