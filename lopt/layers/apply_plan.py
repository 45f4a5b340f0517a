"""Applies coefficients along a plan, all tensors of a shape at once: the number of operations does not grow with the tensors.

A deep network repeats its tensors. Those of the same shape are stacked and pooled together; groups of terms that read the same kinds
of views and write the same kinds of targets are one batched matmul; targets of the same kind are broadcast and written together.
Tracing and compiling then take as long for twelve blocks as for two, and a network without repetition is computed as if none of
this were here: a stack of one is a reshape.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lopt.layers.base import Features, PyTree
from lopt.layers.pooling import take_blocks, write_blocks
from lopt.symmetry.basis import Blocks, Group, Plan, Side

Channels = Mapping[str, int]  # leaf path -> number of channels of its features
Untied = Mapping[str, tuple[int, ...]]  # label of a group -> positions of kept axes along which every index has its own matrix


class _Kind(NamedTuple):
    """What makes two sides alike: the class of their tensor, and how its axes are grouped and kept."""

    tensors: int
    blocks: Blocks
    kept: tuple[int, ...]


class _Run(NamedTuple):
    """Neighbouring sides of one kind in a sorted group: columns `start:stop` in units of channels, one member of the class each."""

    kind: _Kind
    members: np.ndarray  # [groups, sides]


class _Sorted(NamedTuple):
    """A group with its sides sorted by kind, so that groups of the same shape line up."""

    group: Group
    views: list[tuple[_Kind, int, int]]  # kind, member, position in group.views
    targets: list[tuple[_Kind, int, int]]


def apply_plan(
    plan: Plan, theta: PyTree, features: Features, c_out: Channels, untied: Untied | None = None
) -> dict[str, jax.Array]:
    """Apply coefficients to features along a plan.

    Args:
      plan: of the layer.
      theta: as `lopt.layers.unf.init_coefficients` makes it.
      features: leaf path -> [one axis per factor, c_in[path]].
      c_out: channels of the output features.
      untied: kept axes of groups whose matrices have these axes before their rows and columns.

    Returns:
      Leaf path -> [one axis per factor, c_out[path]].

    Raises:
      ValueError: if theta was made for a spec with other names.
    """
    labels = {group.label for group in plan.groups}
    if labels != set(theta["weights"]):
        raise ValueError(
            f"theta is of a layer over another spec: it has coefficients for {sorted(set(theta['weights']) - labels) or 'none'} beyond "
            f"this spec's, and none for {sorted(labels - set(theta['weights'])) or 'none'}"
        )
    classes = _classes(plan, features, c_out)
    place = {path: (index, member) for index, paths in enumerate(classes) for member, path in enumerate(paths)}
    views = _ClassViews([_stack_features([features[path] for path in paths]) for paths in classes])
    pieces: dict[_Kind, list[tuple[np.ndarray, jax.Array]]] = {}
    for batch in _batches(plan, place, untied or {}):
        x = jnp.concatenate([_side_by_side(views(run.kind), run.members) for run in _runs([s.views for s in batch])], axis=-1)
        channels = (
            [features[view.path].shape[-1] for view in batch[0].group.views],
            [c_out[t.path] for t in batch[0].group.targets],
        )
        weights = _stack([_sorted_weights(s, theta["weights"][s.group.label], *channels) for s in batch])
        y = _matmul(x, weights, (untied or {}).get(batch[0].group.label, ()))
        start = 0
        for run in _runs([s.targets for s in batch]):
            stop = start + run.members.shape[1] * c_out[classes[run.kind.tensors][0]]
            kind, values = _in_order(run.kind, _one_by_one(y[..., start:stop], run.members.shape[1]))
            pieces.setdefault(kind, []).append((run.members.reshape(-1), values))
            start = stop
    out: dict[str, jax.Array] = {}
    bias_start = dict(
        zip(plan.spec.paths, itertools.accumulate((c_out[path] for path in plan.spec.paths), initial=0), strict=False)
    )
    for index, paths in enumerate(classes):
        shape = features[paths[0]].shape[:-1]
        bias_index = np.concatenate([bias_start[path] + np.arange(c_out[path]) for path in paths])
        total = jnp.reshape(_take(theta["bias"], bias_index), (len(paths), c_out[paths[0]]))
        total = jnp.broadcast_to(jnp.reshape(total, (len(paths), *(1 for _ in shape), -1)), (len(paths), *shape, total.shape[-1]))
        for blocks in sorted({kind.blocks for kind in pieces if kind.tensors == index}):
            block_shape = [shape[block[0]] for block in blocks]
            parts = [
                _broadcast(kind, _in_members(found, len(paths)), block_shape)
                for kind, found in pieces.items()
                if (kind.tensors, kind.blocks) == (index, blocks)
            ]
            total = total + jax.vmap(lambda y, blocks=blocks: write_blocks(y, blocks))(sum(parts[1:], parts[0]))
        out.update((path, total[member]) for member, path in enumerate(paths))
    return out


def _classes(plan: Plan, features: Features, c_out: Channels) -> list[list[str]]:
    """Tensors that can be computed together: of the same shape and channels, with names repeated at the same axes."""
    found: dict[tuple, list[str]] = {}
    for path in plan.spec.paths:
        names = [factor.name for factor in plan.spec.factors(path)]
        repeated = tuple(names.index(name) for name in names)
        found.setdefault((features[path].shape, c_out[path], repeated), []).append(path)
    return list(found.values())


class _ClassViews:
    """Computes views of all members of a class at once, each pooled array once: [members, one axis per kept block, C]."""

    def __init__(self, stacks: Sequence[jax.Array]):
        self._stacks = stacks
        self._pooled: dict[tuple[int, Blocks, frozenset[int]], jax.Array] = {}

    def _pool(self, tensors: int, blocks: Blocks, kept: frozenset[int]) -> jax.Array:
        """Averages over the blocks outside `kept`; the mean over two blocks comes from the mean over one of them."""
        found = self._pooled.get((tensors, blocks, kept))
        if found is None:
            dropped = [index for index in range(len(blocks)) if index not in kept]
            if dropped:
                larger = kept | {dropped[-1]}
                x = self._pool(tensors, blocks, larger)
                axis = 1 + sorted(larger).index(dropped[-1])
                found = jnp.sum(x, axis=axis) / max(x.shape[axis], 1)  # of an empty axis: zero, as a sum over nothing is
            else:
                found = jax.vmap(lambda x: take_blocks(x, blocks))(self._stacks[tensors])
            self._pooled[tensors, blocks, kept] = found
        return found

    def __call__(self, kind: _Kind) -> jax.Array:
        pooled = self._pool(kind.tensors, kind.blocks, frozenset(kind.kept))
        order = [1 + sorted(kind.kept).index(index) for index in kind.kept]
        return jnp.transpose(pooled, (0, *order, pooled.ndim - 1))


def _batches(plan: Plan, place: Mapping[str, tuple[int, int]], untied: Untied) -> Iterable[list[_Sorted]]:
    """Groups of terms that line up: the same kinds of views and of targets, as often, untied along the same axes."""

    def sort(sides: Sequence[Side]) -> list[tuple[_Kind, int, int]]:
        kinds = [(_Kind(place[side.path][0], side.blocks, side.kept), place[side.path][1], i) for i, side in enumerate(sides)]
        return sorted(kinds)

    found: dict[tuple, list[_Sorted]] = {}
    for group in plan.groups:
        views, targets = sort(group.views), sort(group.targets)
        kinds = tuple(kind for kind, _, _ in views), tuple(kind for kind, _, _ in targets)
        signature = (*kinds, untied.get(group.label, ()))
        found.setdefault(signature, []).append(_Sorted(group, views, targets))
    return found.values()


def _runs(sides: list[list[tuple[_Kind, int, int]]]) -> Iterable[_Run]:
    """The runs of one kind over the sorted sides of the groups of a batch."""
    start = 0
    for kind, run in itertools.groupby(kind for kind, _, _ in sides[0]):
        stop = start + len(list(run))
        yield _Run(kind, np.asarray([[member for _, member, _ in group[start:stop]] for group in sides]))
        start = stop


def _sorted_weights(s: _Sorted, weights: jax.Array, c_in: Sequence[int], c_out: Sequence[int]) -> jax.Array:
    """The rows and columns of a group's matrix in the order of its sorted sides."""
    for axis, sides, channels in ((-2, s.views, c_in), (-1, s.targets, c_out)):
        starts = np.cumsum([0, *channels])
        order = np.concatenate([np.arange(starts[i], starts[i + 1]) for _, _, i in sides])
        weights = _take(weights, order, axis)
    return weights


def _take(x: jax.Array, index: np.ndarray, axis: int = 0) -> jax.Array:
    """`jnp.take` that leaves out what would change nothing."""
    if np.array_equal(index, np.arange(x.shape[axis])):
        return x
    return jnp.take(x, index, axis=axis, mode="clip")


def _stack(arrays: Sequence[jax.Array]) -> jax.Array:
    return arrays[0][None] if len(arrays) == 1 else jnp.stack(arrays)


def _stack_features(arrays: Sequence[jax.Array]) -> jax.Array:
    """`_stack` by way of rows: where the arrays are neighbouring rows of one, as after a layer over all weights, XLA sees one slice."""
    if len(arrays) == 1:
        return arrays[0][None]
    rows = jnp.concatenate([jnp.reshape(x, (math.prod(x.shape[:-1]), x.shape[-1])) for x in arrays])
    return jnp.reshape(rows, (len(arrays), *arrays[0].shape))


def _side_by_side(views: jax.Array, members: np.ndarray) -> jax.Array:
    """Views [members, axes, C] to one array a group with the channels of its views after one another: [groups, axes, sides C]."""
    chosen = _take(views, members.reshape(-1))
    chosen = jnp.reshape(chosen, (*members.shape, *views.shape[1:]))
    return jnp.reshape(jnp.moveaxis(chosen, 1, -2), (members.shape[0], *views.shape[1:-1], members.shape[1] * views.shape[-1]))


def _one_by_one(y: jax.Array, sides: int) -> jax.Array:
    """[groups, axes, sides C] to [groups sides, axes, C]."""
    y = jnp.moveaxis(jnp.reshape(y, (*y.shape[:-1], sides, y.shape[-1] // sides)), -2, 1)
    return jnp.reshape(y, (y.shape[0] * sides, *y.shape[2:]))


def _matmul(x: jax.Array, weights: jax.Array, untied: tuple[int, ...] = ()) -> jax.Array:
    """[groups, axes, rows] @ [groups, untied axes, rows, columns], as one matmul over all other axes."""
    if untied:
        first = range(1, 1 + len(untied))
        x = jnp.moveaxis(x, [1 + axis for axis in untied], first)
        shape = x.shape
        x = jnp.reshape(x, (math.prod(shape[: 1 + len(untied)]), math.prod(shape[1 + len(untied) : -1]), shape[-1]))
        y = x @ jnp.reshape(weights, (x.shape[0], *weights.shape[-2:]))
        return jnp.moveaxis(jnp.reshape(y, (*shape[:-1], weights.shape[-1])), first, [1 + axis for axis in untied])
    flat = jnp.reshape(x, (x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1]))
    y = (flat[0] @ weights[0])[None] if len(weights) == 1 else flat @ weights
    return jnp.reshape(y, (*x.shape[:-1], weights.shape[-1]))


def _in_order(kind: _Kind, values: jax.Array) -> tuple[_Kind, jax.Array]:
    """Targets with their kept axes in the order of the blocks."""
    axes = sorted(range(len(kind.kept)), key=lambda axis: kind.kept[axis])
    values = jnp.transpose(values, (0, *(1 + axis for axis in axes), values.ndim - 1))
    return kind._replace(kept=tuple(sorted(kind.kept))), values


def _in_members(found: list[tuple[np.ndarray, jax.Array]], count: int) -> jax.Array:
    """Pieces that belong to some members of a class as one array over all; zero for members that no piece is for."""
    members = np.concatenate([index for index, _ in found])
    values = found[0][1] if len(found) == 1 else jnp.concatenate([value for _, value in found])
    if len(members) == count:
        return _take(values, np.argsort(members))
    return jnp.zeros((count, *values.shape[1:]), values.dtype).at[members].set(values)


def _broadcast(kind: _Kind, values: jax.Array, block_shape: Sequence[int]) -> jax.Array:
    """[members, kept axes, C] to [members, one axis per block, C]."""
    shape = [size if index in kind.kept else 1 for index, size in enumerate(block_shape)]
    values = jnp.reshape(values, (len(values), *shape, values.shape[-1]))
    return jnp.broadcast_to(values, (len(values), *block_shape, values.shape[-1]))
