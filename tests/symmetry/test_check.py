"""The numerical check by itself: how often it evaluates, and how it moves weights."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from lopt.symmetry import WeightSpec
from lopt.symmetry.check import _generic_point, _move_in_place, drop_failing
from lopt.symmetry.spec import named_leaves


def test_a_spec_that_holds_takes_three_evaluations_however_many_names_it_has():
    depth, width = 12, 9
    names = ["in!", *(f"h{i}" for i in range(depth)), "few"]
    spec = WeightSpec.parse([f"{one} {other}" for one, other in itertools.pairwise(names)])
    params = [jax.ShapeDtypeStruct((width, width), jnp.float32)] * depth + [jax.ShapeDtypeStruct((width, 3), jnp.float32)]
    calls = []

    def evaluate(weights):
        calls.append(0)
        x = jnp.ones(width)
        for w in weights:
            x = jnp.tanh(x @ w)
        return jnp.sum(x)

    assert drop_failing(evaluate, spec, params, jax.random.key(0)) == spec
    assert len(calls) == 3


def test_weights_move_in_place_as_they_are_permuted():
    tree = {"a": "h e! k", "b": "(e! h)", "c": "(h | k) f!", "d": "f! d@f", "e": "", "g": "h h", "none": "n k"}
    spec = WeightSpec.parse(tree)
    shapes = {"a": (5, 2, 3), "b": (10,), "c": (8, 4), "d": (4, 3), "e": (), "g": (5, 5), "none": (0, 3)}
    rng = np.random.default_rng(0)
    params = {name: np.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}
    params["g"] = params["g"].astype(jnp.bfloat16)
    element = {name: np.asarray(order) for name, order in spec.sample(jax.random.key(1), params).items()}
    before = params["a"].copy()
    expected = {
        path: np.asarray(leaf) for path, leaf in spec.move(np, dict(named_leaves(params)), spec.sizes(params), element).items()
    }
    _move_in_place(spec, spec.sizes(params), params, element)
    for name, leaf in params.items():
        np.testing.assert_array_equal(leaf, expected[name])
    assert not np.array_equal(params["a"], before)


def test_random_weights_keep_the_signs_and_scales_of_those_given():
    """Also where a tensor is larger than the noise that there is; zeros become small; counts stay."""
    large = np.where(np.arange(250_000) % 3, 50.0, -0.02).astype(np.float32).reshape(500, 500)
    params = {
        "large": large,
        "zeros": np.zeros(7, jnp.bfloat16),
        "count": np.int32(3),
        "shape": jax.ShapeDtypeStruct((4, 5), np.float64),
    }
    drawn, _ = _generic_point(lambda weights: np.float32(0), params, np.random.default_rng(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), drawn) == jax.tree.map(lambda x: (x.shape, x.dtype), params)
    factors = drawn["large"] / large
    assert np.exp(-3) < np.min(factors) < 0.5
    assert 2 < np.max(factors) < np.exp(3)
    assert len(np.unique(factors[:, 0])) > 490, "rows are not alike"
    assert np.all(drawn["zeros"] != 0)
    assert np.all(np.abs(drawn["zeros"]) < 0.5)
    assert drawn["count"] == 3
    assert len(np.unique(drawn["shape"])) == 20
