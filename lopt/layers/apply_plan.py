"""Applies coefficients along a plan, all tensors of a shape at once: the number of operations does not grow with the tensors.

A deep network repeats its tensors. Those of the same shape are stacked and pooled together; groups of terms that read the same kinds
of views and write the same kinds of targets are one batched matmul; targets of the same kind are broadcast and written together.
Tracing and compiling then take as long for twelve blocks as for two, and a network without repetition is computed as if none of
this were here: a stack of one is a reshape.

Inside, channels come before the axes of the weights: products with few channels and many weights are then long rows, which CPUs and
GPUs alike compute faster, and averages over the first axes of a weight are sums of such rows. Features come and go with channels
last, as everywhere; where the neighbouring layer does as this one, XLA cancels the two transpositions.

Averaging and multiplying with coefficients commute. A tensor whose views feed fewer channels than it has, as in a last layer of one
channel, is multiplied first, by the matrices of all its views at once; then there is less to average.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np

from lopt.layers.arrange import Batch, Channels, Kind, Untied, View, arrange, is_whole
from lopt.layers.base import Features, PyTree, channels_first, multiply
from lopt.layers.digest import Digest, Needs
from lopt.layers.pooling import take_blocks, write_blocks
from lopt.symmetry.basis import Blocks, Plan

NOTHING: Mapping[str, Digest] = MappingProxyType({})


def apply_plan(
    plan: Plan,
    theta: PyTree,
    features: Features,
    c_in: Channels,
    c_out: Channels,
    untied: Untied | None = None,
    digests: Mapping[str, Digest] = NOTHING,
) -> dict[str, jax.Array]:
    """Apply coefficients to features along a plan.

    Args:
      plan: of the layer.
      theta: as `lopt.layers.unf.init_coefficients` makes it.
      features: leaf path -> [one axis per factor, c_in[path]].
      c_in: channels of the input features.
      c_out: channels of the output features.
      untied: kept axes of groups whose matrices have these axes before their rows and columns.
      digests: instead of features, what `plan_needs` asks for of some of the leaves that it names; of all of one shape or none.

    Returns:
      Leaf path -> [one axis per factor, c_out[path]].

    Raises:
      ValueError: if theta was made for a spec with other names.
    """
    _check_labels(plan, theta)
    shapes = {path: x.shape[:-1] for path, x in features.items()}
    shapes |= {path: digest.product.shape[1:] for path, digest in digests.items()}
    arrangement = arrange(plan, shapes, c_in, c_out, untied or {}, digests)
    tensors = arrangement.classes
    matrices = [_matrices(batch, theta["weights"]) for batch in arrangement.batches]
    early: dict[int, dict[int, list[jax.Array]]] = {}  # batch -> group -> [columns, kept axes]
    for path, found in arrangement.early.items():
        if path in digests:
            product = digests[path].product
        else:
            product = jnp.moveaxis(multiply(features[path], _early_matrix(found, matrices, c_in[path])), -1, 0)
        for view, average in zip(found, _averages(product, found, matrices), strict=True):
            early.setdefault(view.batch, {}).setdefault(view.group, []).append(average)
    multiplied = {view.kind for found in arrangement.early.values() for view in found}
    stacks = [None if paths[0] in arrangement.early else _stack_features([features[path] for path in paths]) for paths in tensors]
    views = _ClassViews(stacks)
    for index, paths in enumerate(tensors):
        if paths[0] in digests:
            views.add(index, [digests[path] for path in paths])
    pieces: dict[Kind, list[tuple[np.ndarray, jax.Array]]] = {}
    for index, (batch, matrix) in enumerate(zip(arrangement.batches, matrices, strict=True)):
        parts = []
        if index in early:
            sums = [sum(found[1:], found[0]) for found in (early[index][group] for group in range(len(batch.labels)))]
            parts.append(_stack(sums))
        pooled = [run for run in batch.views if run.kind not in multiplied]
        if pooled:
            x = jnp.concatenate([_side_by_side(views(run.kind), run.members) for run in pooled], axis=1)
            rows = np.concatenate([np.arange(run.start, run.stop) for run in pooled])
            parts.append(_matmul(x, _take(matrix, rows, -2), batch.untied))
        y = sum(parts[1:], parts[0])
        for run in batch.targets:
            kind, values = _in_order(run.kind, _one_by_one(y[:, run.start : run.stop], run.members.shape[1]))
            pieces.setdefault(kind, []).append((run.members.reshape(-1), values))
    out: dict[str, jax.Array] = {}
    bias_start = dict(
        zip(plan.spec.paths, itertools.accumulate((c_out[path] for path in plan.spec.paths), initial=0), strict=False)
    )
    for index, paths in enumerate(tensors):
        shape = shapes[paths[0]]
        bias_index = np.concatenate([bias_start[path] + np.arange(c_out[path]) for path in paths])
        bias = jnp.reshape(_take(theta["bias"], bias_index), (len(paths), c_out[paths[0]], *(1 for _ in shape)))
        total = jnp.broadcast_to(bias, (*bias.shape[:2], *shape))
        for blocks in sorted({kind.blocks for kind in pieces if kind.tensors == index}):
            block_shape = [shape[block[0]] for block in blocks]
            parts = [
                _broadcast(kind, _in_members(found, len(paths)), block_shape)
                for kind, found in pieces.items()
                if (kind.tensors, kind.blocks) == (index, blocks)
            ]
            total = total + write_blocks(sum(parts[1:], parts[0]), blocks)
        out.update((path, jnp.moveaxis(total[member], 0, -1)) for member, path in enumerate(paths))
    return out


def plan_needs(
    plan: Plan, theta: PyTree, shapes: Mapping[str, tuple[int, ...]], c_in: Channels, c_out: Channels
) -> dict[str, Needs]:
    """What is needed of features, for the leaves alone whose products with coefficients have no more channels than they.

    Arguments as for `apply_plan`; shapes with one axis per factor.
    """
    _check_labels(plan, theta)
    arrangement = arrange(plan, shapes, c_in, c_out, {}, digested=shapes)
    matrices = [_matrices(batch, theta["weights"]) for batch in arrangement.batches]
    needs = {}
    for path, found in arrangement.early.items():
        others = [view.kind for view in arrangement.views[path] if not is_whole(view.kind)]
        rank = len(shapes[path])
        diagonals = tuple(sorted({kind.blocks for kind in others if len(kind.blocks) < rank}))
        means = tuple(range(rank)) if any(len(kind.blocks) == rank for kind in others) else ()
        needs[path] = Needs(shapes[path], _early_matrix(found, matrices, c_in[path]), means, diagonals)
    return needs


def _check_labels(plan: Plan, theta: PyTree) -> None:
    labels = {group.label for group in plan.groups}
    if labels != set(theta["weights"]):
        raise ValueError(
            f"theta is of a layer over another spec: it has coefficients for {sorted(set(theta['weights']) - labels) or 'none'} beyond "
            f"this spec's, and none for {sorted(labels - set(theta['weights'])) or 'none'}"
        )


class _ClassViews:
    """Computes views of all members of a class at once, each pooled array once: [members, C, one axis per kept block]."""

    def __init__(self, stacks: Sequence[jax.Array | None]):
        self._stacks = stacks
        self._pooled: dict[tuple[int, Blocks, frozenset[int]], jax.Array] = {}

    def add(self, tensors: int, digests: Sequence[Digest]) -> None:
        """Has the averages and diagonals of the members of a class; all others come from them."""
        axes = range(digests[0].product.ndim - 1)
        for axis in digests[0].means:
            kept = frozenset(axes) - {axis}
            self._pooled[tensors, tuple((i,) for i in axes), kept] = _stack([digest.means[axis] for digest in digests])
        for blocks in digests[0].diagonals:
            kept = frozenset(range(len(blocks)))
            self._pooled[tensors, blocks, kept] = _stack([digest.diagonals[blocks] for digest in digests])

    def _pool(self, tensors: int, blocks: Blocks, kept: frozenset[int]) -> jax.Array:
        """Averages over the blocks outside `kept`; the mean over two blocks comes from the mean over one of them."""
        found = self._pooled.get((tensors, blocks, kept))
        if found is None:
            dropped = [index for index in range(len(blocks)) if index not in kept]
            if dropped:
                larger = kept | {dropped[-1]}
                x = self._pool(tensors, blocks, larger)
                axis = 2 + sorted(larger).index(dropped[-1])
                found = _mean(x, (axis,))
            else:
                stack = self._stacks[tensors]
                assert stack is not None  # a class that is multiplied early has no views
                found = take_blocks(stack, blocks)
            self._pooled[tensors, blocks, kept] = found
        return found

    def __call__(self, kind: Kind) -> jax.Array:
        pooled = self._pool(kind.tensors, kind.blocks, frozenset(kind.kept))
        return jnp.transpose(pooled, (0, 1, *(2 + sorted(kind.kept).index(index) for index in kind.kept)))


def _mean(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The mean over some axes, zero where one is empty, as a sum over nothing is; without axes the array itself."""
    return jnp.sum(x, axis=axes) / max(math.prod(x.shape[axis] for axis in axes), 1) if axes else x


def _matrices(batch: Batch, weights: Mapping[str, jax.Array]) -> jax.Array:
    """The matrices of the groups of a batch, [groups, untied axes, rows, columns], rows and columns in the order of its runs."""
    sorted_weights = [
        _take(_take(weights[label], rows, -2), columns, -1)
        for label, rows, columns in zip(batch.labels, batch.rows, batch.columns, strict=True)
    ]
    return _stack(sorted_weights)


def _stack(arrays: Sequence[jax.Array]) -> jax.Array:
    return arrays[0][None] if len(arrays) == 1 else jnp.stack(arrays)


def _early_matrix(views: Sequence[View], matrices: Sequence[jax.Array], channels: int) -> jax.Array:
    """The matrices of all views of a tensor side by side: [C, K]."""
    # Transposed one by one: XLA computes the product of few rows faster than that of a transposed matrix.
    rows = [matrices[view.batch][view.group, view.start : view.start + channels].T for view in views]
    return jnp.concatenate(rows).T


def _averages(y: jax.Array, views: Sequence[View], matrices: Sequence[jax.Array]) -> list[jax.Array]:
    """What the views of a tensor contribute to their groups: [columns, kept axes], each.

    Args:
      y: [K, one axis per factor], the products of the tensor's features with all matrices of its views.
      views: of the tensor.
      matrices: of the batches.
    """
    found, start = [], 0
    for view in views:
        blocks, kept = view.kind.blocks, view.kind.kept
        stop = start + matrices[view.batch].shape[-1]
        x = take_blocks(y[start:stop], blocks)
        x = _mean(x, tuple(1 + axis for axis in range(len(blocks)) if axis not in kept))
        found.append(jnp.transpose(x, (0, *(1 + sorted(kept).index(axis) for axis in kept))))
        start = stop
    return found


def _take(x: jax.Array, index: np.ndarray, axis: int = 0) -> jax.Array:
    """`jnp.take` that leaves out what would change nothing."""
    if np.array_equal(index, np.arange(x.shape[axis])):
        return x
    return jnp.take(x, index, axis=axis, mode="clip")


def _stack_features(arrays: Sequence[jax.Array]) -> jax.Array:
    """Features [axes, C] to [members, C, axes]; neighbouring columns of one array, as after a layer over all weights, are one slice."""
    columns = [channels_first(x) for x in arrays]
    channels, size = columns[0].shape
    if len(arrays) == 1:
        stacked = columns[0][None]
    else:
        stacked = jnp.moveaxis(jnp.reshape(jnp.concatenate(columns, axis=1), (channels, len(arrays), size)), 1, 0)
    return jnp.reshape(stacked, (len(arrays), channels, *arrays[0].shape[:-1]))


def _side_by_side(views: jax.Array, members: np.ndarray) -> jax.Array:
    """Views [members, C, axes] to one array a group with the channels of its views after one another: [groups, sides C, axes]."""
    chosen = _take(views, members.reshape(-1))
    return jnp.reshape(chosen, (members.shape[0], members.shape[1] * views.shape[1], *views.shape[2:]))


def _one_by_one(y: jax.Array, sides: int) -> jax.Array:
    """[groups, sides C, axes] to [groups sides, C, axes]."""
    return jnp.reshape(y, (y.shape[0] * sides, y.shape[1] // sides, *y.shape[2:]))


def _matmul(x: jax.Array, weights: jax.Array, untied: tuple[int, ...] = ()) -> jax.Array:
    """[groups, untied axes, rows, columns] applied to the rows of [groups, rows, axes], as one matmul over all other axes."""
    weights = jnp.swapaxes(weights, -1, -2)
    if untied:
        first = range(1, 1 + len(untied))
        x = jnp.moveaxis(x, [2 + axis for axis in untied], first)
        copies, shape = x.shape[: 1 + len(untied)], x.shape[2 + len(untied) :]
        x = jnp.reshape(x, (math.prod(copies), x.shape[1 + len(untied)], math.prod(shape)))
        y = jnp.reshape(weights, (x.shape[0], *weights.shape[-2:])) @ x
        return jnp.moveaxis(jnp.reshape(y, (*copies, y.shape[1], *shape)), first, [2 + axis for axis in untied])
    flat = jnp.reshape(x, (*x.shape[:2], math.prod(x.shape[2:])))
    y = (weights[0] @ flat[0])[None] if len(weights) == 1 else weights @ flat
    return jnp.reshape(y, (*y.shape[:2], *x.shape[2:]))


def _in_order(kind: Kind, values: jax.Array) -> tuple[Kind, jax.Array]:
    """Targets with their kept axes in the order of the blocks."""
    axes = sorted(range(len(kind.kept)), key=lambda axis: kind.kept[axis])
    values = jnp.transpose(values, (0, 1, *(2 + axis for axis in axes)))
    return kind._replace(kept=tuple(sorted(kind.kept))), values


def _in_members(found: list[tuple[np.ndarray, jax.Array]], count: int) -> jax.Array:
    """Pieces that belong to some members of a class as one array over all; zero for members that no piece is for."""
    members = np.concatenate([index for index, _ in found])
    values = found[0][1] if len(found) == 1 else jnp.concatenate([value for _, value in found])
    if len(members) == count:
        return _take(values, np.argsort(members))
    return jnp.zeros((count, *values.shape[1:]), values.dtype).at[members].set(values)


def _broadcast(kind: Kind, values: jax.Array, block_shape: Sequence[int]) -> jax.Array:
    """[members, C, kept axes] to [members, C, one axis per block]."""
    shape = [size if index in kind.kept else 1 for index, size in enumerate(block_shape)]
    values = jnp.reshape(values, (*values.shape[:2], *shape))
    return jnp.broadcast_to(values, (*values.shape[:2], *block_shape))
