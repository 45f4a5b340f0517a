"""Which terms are left out when axes are small: exactly the linearly dependent ones, by rank and by counting with characters."""

import itertools
import math

import numpy as np
import pytest

from lopt.symmetry import WeightSpec
from lopt.symmetry.basis import make_plan
from tests import brute_force

CASES = [
    ({"w": "a"}, {"a": 1}),
    ({"w": "a"}, {"a": 2}),
    ({"w": "a b", "v": "b"}, {"a": 1, "b": 3}),
    ({"w": "a b", "v": "b"}, {"a": 1, "b": 1}),
    ({"w": "a b", "v": "b", "s": ""}, {"a": 4, "b": 2}),
    *(({"r": "h h", "b": "h"}, {"h": size}) for size in (1, 2, 3, 4)),
    ({"e": "v e", "r": "h h", "f": "e h", "b": "h"}, {"v": 1, "e": 2, "h": 3}),
    *(({"t": "a a a"}, {"a": size}) for size in (1, 2, 3)),
    ({"t": "a a b", "u": "b a", "w": "b"}, {"a": 2, "b": 1}),
    ({"t": "a a b", "u": "b a", "w": "b"}, {"a": 3, "b": 2}),
    ({"t": "a b a", "s": ""}, {"a": 3, "b": 3}),
    ({"q": "e (n d)", "o": "(n d) e", "one": "1 e"}, {"e": 2, "n": 1, "d": 2}),
    ({"w": "a b", "v": "b"}, {"a": 0, "b": 2}),
    ({"r": "h h", "b": "h", "s": ""}, {"h": 0}),
]


def term_matrix(partition, out_shape, in_shape):
    """A basis term as a matrix [outputs, inputs], by applying it to every unit vector."""
    count = math.prod(in_shape)
    units = np.eye(count).reshape(*in_shape, count)
    return brute_force.apply_term(units, partition, out_shape).reshape(math.prod(out_shape), count)


def rank(matrices):
    stacked = np.stack([matrix.ravel() for matrix in matrices]) if matrices else np.zeros((0, 0))
    return int(np.linalg.matrix_rank(stacked)) if stacked.size else 0


def fixed_points(permutation):
    return sum(index == image for index, image in enumerate(permutation))


def dimension(names, sizes):
    """Of the maps from all tensors to all tensors that commute with the group: the mean of the squared character."""
    used = sorted({name for axes in names.values() for name in axes})
    squares = []
    for element in itertools.product(*(itertools.permutations(range(sizes[name])) for name in used)):
        fixed = {name: fixed_points(permutation) for name, permutation in zip(used, element, strict=True)}
        squares.append(sum(math.prod(fixed[name] for name in axes) for axes in names.values()) ** 2)
    mean, remainder = divmod(sum(squares), len(squares))
    assert remainder == 0
    return mean


@pytest.mark.parametrize(("tree", "sizes"), CASES, ids=[f"{' | '.join(t.values())}: {s}" for t, s in CASES])
def test_exactly_the_dependent_terms_are_left_out(tree, sizes):
    spec = WeightSpec.parse(tree)
    names = {path: [factor.name for factor in spec.factors(path)] for path in spec.paths}
    shapes = {path: [sizes[name] for name in axes] for path, axes in names.items()}
    plan = make_plan(spec, sizes)
    total = 0
    for out in spec.paths:
        chosen = {(term.input, term.partition) for term in plan.terms(out)}
        assert len(chosen) == len(plan.terms(out))
        for source in spec.paths:
            partitions = list(brute_force.valid_partitions(names[out], names[source]))
            matrices = {p: term_matrix(p, shapes[out], shapes[source]) for p in partitions}
            kept = [matrix for p, matrix in matrices.items() if (source, p) in chosen]
            assert len(kept) == rank(kept) == rank(list(matrices.values())), (out, source)
            total += len(kept)
    assert plan.num_terms == total == dimension(names, sizes)


def test_large_axes_lose_nothing():
    spec = WeightSpec.parse({"t": "a a b", "u": "b a", "w": "b"})
    assert make_plan(spec, {"a": 4, "b": 2}).num_terms == make_plan(spec).num_terms
    # Two partitions of t's axes twice need four indices of a: those of b together, and apart.
    assert make_plan(spec, {"a": 3, "b": 2}).num_terms == make_plan(spec).num_terms - 2
