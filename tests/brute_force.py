"""The equivariant basis from its definition, one index at a time: slow, and independent of the engine it checks."""

import itertools

import numpy as np


def growth_partitions(length: int):
    """All set partitions of range(length) as block labels (restricted growth strings)."""

    def extend(labels):
        if len(labels) == length:
            yield labels
            return
        for label in range(max(labels, default=-1) + 2):
            yield from extend([*labels, label])

    yield from extend([])


def valid_partitions(out_names, in_names):
    """Set partitions of output plus input axes whose blocks hold axes of one name, as sorted tuples of sorted tuples."""
    names = [*out_names, *in_names]
    for labels in growth_partitions(len(names)):
        blocks = [tuple(i for i, label in enumerate(labels) if label == wanted) for wanted in range(max(labels, default=-1) + 1)]
        if all(len({names[i] for i in block}) == 1 for block in blocks):
            yield tuple(sorted(blocks))


def apply_term(x, partition, out_shape):
    """One basis term by definition: sum over all index assignments to blocks, averaged over input-only blocks.

    x: [*in_shape, C]; returns [*out_shape, C].
    """
    rank = len(out_shape)
    shape = (*out_shape, *x.shape[:-1])
    out = np.zeros((*out_shape, x.shape[-1]))
    sizes = [shape[block[0]] for block in partition]
    average = np.prod([size for block, size in zip(partition, sizes, strict=True) if min(block) >= rank])
    for assignment in itertools.product(*map(range, sizes)):
        index = {axis: value for block, value in zip(partition, assignment, strict=True) for axis in block}
        out[tuple(index[i] for i in range(rank))] += x[tuple(index[i] for i in range(rank, len(shape)))] / average
    return out


def apply_layer(names, coefficients, bias, features):
    """A whole layer: names path -> axis names; coefficients output -> {(input, partition): [c_in, c_out]}."""
    out = {}
    for path in names:
        shape = features[path].shape[:-1]
        total = np.zeros((*shape, bias[path].shape[0])) + bias[path]
        for (source, partition), matrix in coefficients[path].items():
            total = total + apply_term(np.asarray(features[source], np.float64), partition, shape) @ matrix
        out[path] = total
    return out
