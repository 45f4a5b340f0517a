"""The UNF layer on random weight spaces against the definition, one index at a time."""

import collections
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopt.layers.unf import coefficients_from_terms, unf_layer
from lopt.symmetry import WeightSpec
from lopt.symmetry.basis import make_plan
from tests import brute_force

BELL = [1, 1, 2, 5, 15, 52, 203, 877, 4140]
C_IN, C_OUT = 2, 3
MAX_COST = 100_000  # of the brute force, in index assignments
SLOW = [pytest.mark.slow, pytest.mark.compiles]


def cost(names, sizes):
    """A bound on the brute force's index assignments: terms times the pairs of entries that the finest of them visits."""
    counts = {path: collections.Counter(axes) for path, axes in names.items()}
    entries = {path: math.prod(sizes[name] for name in axes) for path, axes in names.items()}
    return sum(
        math.prod(BELL[counts[a][n] + counts[b][n]] for n in sizes) * entries[a] * entries[b] for a in names for b in names
    )


def random_space(rng):
    """1 to 6 tensors of rank 0 to 4 over 1 to 4 shared names of size 1 to 5, small enough for the brute force."""
    while True:
        sizes = {name: int(rng.integers(1, 6)) for name in "abcd"[: rng.integers(1, 5)]}
        names = {f"t{i}": list(rng.choice(list(sizes), size=rng.integers(0, 5))) for i in range(rng.integers(1, 7))}
        if cost(names, sizes) <= MAX_COST:
            return names, sizes


def check(names, sizes, rng, reduced, dtype=np.float32, atol=2e-5):
    """The layer against the definition; coefficients are float32 numbers, in `dtype`."""
    spec = WeightSpec.parse({path: " ".join(axes) for path, axes in names.items()})
    plan = make_plan(spec, sizes if reduced else None)
    coefficients = {
        out: {(term.input, term.partition): rng.normal(size=(C_IN, C_OUT)).astype(np.float32) for term in plan.terms(out)}
        for out in spec.paths
    }
    bias = {path: rng.normal(size=C_OUT).astype(np.float32) for path in spec.paths}
    features = {path: rng.normal(size=(*(sizes[name] for name in axes), C_IN)).astype(dtype) for path, axes in names.items()}
    theta = jax.tree.map(lambda leaf: leaf.astype(dtype), coefficients_from_terms(plan, coefficients, bias))
    layer = unf_layer(spec, C_IN, C_OUT, sizes if reduced else None)
    found = jax.jit(layer.apply)(theta, jax.tree.map(jnp.asarray, features))
    expected = brute_force.apply_layer(names, coefficients, bias, features)
    for path in names:
        assert found[path].dtype == dtype
        scale = max(1.0, float(np.max(np.abs(expected[path]), initial=0)))
        np.testing.assert_allclose(found[path], expected[path], atol=atol * scale, rtol=0, err_msg=f"{path} of {names}, {sizes}")


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(seed, marks=SLOW) for seed in range(4, 60))])
def test_random_spaces(seed, reduced):
    rng = np.random.default_rng(seed)
    check(*random_space(rng), rng, reduced)


def test_the_random_spaces_are_varied():
    """Repeated names, rank 0, rank 4 and many tensors all occur among the seeds."""
    spaces = [random_space(np.random.default_rng(seed)) for seed in range(60)]
    ranks = collections.Counter(len(axes) for names, _ in spaces for axes in names.values())
    assert set(ranks) == {0, 1, 2, 3, 4}
    assert {len(names) for names, _ in spaces} == {1, 2, 3, 4, 5, 6}
    assert sum(any(len(set(axes)) < len(axes) for axes in names.values()) for names, _ in spaces) > 10
    assert sum(any(len(axes) >= 3 and len(set(axes)) == 1 for axes in names.values()) for names, _ in spaces) >= 1
    assert {size for _, sizes in spaces for size in sizes.values()} == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("seed", range(2))
def test_64_bit_floats(seed):
    rng = np.random.default_rng(seed)
    space = random_space(rng)
    with jax.enable_x64(True):
        check(*space, rng, False, np.float64, atol=1e-13)


@pytest.mark.parametrize(
    ("names", "sizes"),
    [
        ({"w": ["a", "b"], "v": ["b"], "s": []}, {"a": 0, "b": 3}),
        ({"o": ["b"], "r": ["a", "a"], "v": ["a"], "w": ["a", "b"]}, {"a": 0, "b": 2}),
    ],
)
@pytest.mark.parametrize("reduced", [False, True])
def test_empty_axes(names, sizes, reduced):
    """A mean over no entries is zero, and a term that `sizes` leaves out."""
    check(names, sizes, np.random.default_rng(0), reduced)


def test_init_gives_the_theta_that_apply_takes():
    names, sizes = random_space(np.random.default_rng(3))
    spec = WeightSpec.parse({path: " ".join(axes) for path, axes in names.items()})
    for given in (None, sizes):
        layer, plan = unf_layer(spec, C_IN, C_OUT, given), make_plan(spec, given)
        shapes = jax.tree.map(jnp.shape, jax.eval_shape(layer.init, jax.random.key(0)))
        groups = {group.label: (len(group.views) * C_IN, len(group.targets) * C_OUT) for group in plan.groups}
        assert shapes == {"weights": groups, "bias": (C_OUT * len(names),)}


@pytest.mark.parametrize("reduced", [False, True])
def test_rank_four_with_one_name(reduced):
    check({"t": list("aaaa"), "s": []}, {"a": 1}, np.random.default_rng(0), reduced)


def test_scalars_alone():
    check({"s": [], "t": []}, {}, np.random.default_rng(0), False)
