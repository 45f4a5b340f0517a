"""Nested names: the wreath product of `heads dim@heads`, in which every head permutes its own `dim`."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopt.layers.deep_sets import pooled_deep_sets_layer
from lopt.layers.folded import folded_unf_layer
from lopt.layers.positions import position_unf_layer
from lopt.layers.shared_unf import shared_unf_layer
from lopt.layers.unf import unf_layer
from lopt.symmetry import SpecError, WeightSpec, infer_spec
from lopt.symmetry.basis import make_plan
from lopt.symmetry.compare import same_group, same_up_to_names
from lopt.symmetry.spec import Factor
from tests import brute_force

ATTENTION = {
    "query": "embed heads qk@heads",
    "key": "embed (heads qk@heads)",
    "key_bias": "(heads qk@heads)",
    "value": "embed heads v@heads",
    "out": "(heads v@heads) embed",
    "gate": "heads",
    "head": "embed classes!",
}
SIZES = {"embed": 4, "heads": 3, "qk": 2, "v": 5, "classes": 2}


def arrays(spec: WeightSpec, sizes: dict[str, int], *channels: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    shape = {path: [math.prod(sizes[f.name] for f in axis) for axis in axes] for path, axes in spec.leaves}
    return {path: jnp.asarray(rng.normal(size=(*shape[path], *channels)), jnp.float32) for path in spec.paths}


def test_notation_round_trips_and_sizes_are_found():
    spec = WeightSpec.parse(ATTENTION)
    assert spec.notation("key") == ATTENTION["key"]
    assert spec.nested == {"qk": "heads", "v": "heads"}
    assert spec.owners("value") == (None, None, 1)
    assert spec.sizes(arrays(spec, SIZES)) == dict(sorted(SIZES.items()))


def test_a_nested_name_is_bound_to_the_owner_on_its_left_or_else_to_the_first_one():
    assert WeightSpec.parse({"w": "a b@a a b@a"}).owners("w") == (None, 0, None, 2)
    assert WeightSpec.parse({"w": "b@a c a"}).owners("w") == (2, None, None)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"w": "dim@heads"}, "leaf 'w'.*nested in 'heads', which the leaf has no axis of"),
        ({"w": "heads dim@heads", "b": "dim"}, "'dim' is 'dim' in 'b' but 'dim@heads' in 'w'"),
        ({"w": "a b@a c@b"}, "'c' is nested in 'b', which is nested itself"),
        ({"w": "a a@a"}, "'a'"),
        ({"w": "a b@"}, "leaf 'w': cannot read"),
        ({"w": "a b!@a"}, "leaf 'w': cannot read"),
        ({"w": "a b@a!"}, "leaf 'w': cannot read"),
    ],
)
def test_what_cannot_be_nested_is_refused(tree, message):
    with pytest.raises(SpecError, match=message):
        WeightSpec.parse(tree)


def test_an_owner_is_not_taken_out_alone():
    spec = WeightSpec.parse(ATTENTION)
    with pytest.raises(SpecError, match=r"\['qk', 'v'\].*nested"):
        spec.without("heads")
    assert spec.without("qk", "v").notation("query") == "embed heads"


def test_every_owner_permutes_its_own_and_then_the_owners_move():
    spec = WeightSpec.parse({"w": "x! (heads dim@heads)", "v": "dim@heads heads"})
    w, v = jnp.arange(6.0)[None] * jnp.ones((2, 1)), jnp.arange(6.0).reshape(3, 2)
    moved = spec.permute({"w": w, "v": v}, {"dim": [[1, 0, 2], [0, 2, 1]], "heads": [1, 0]})
    # dim has 3 indices in each of 2 heads; the first head is reversed in its first two, and both change places.
    np.testing.assert_array_equal(moved["w"][0], [3, 5, 4, 1, 0, 2])
    np.testing.assert_array_equal(moved["v"], [[1, 2], [5, 0], [3, 4]])


@pytest.mark.parametrize("wrong", [[0, 1, 2], [[0, 1, 2]], [[0, 1, 2], [0, 0, 2]]])
def test_an_element_of_the_wrong_shape_is_refused(wrong):
    spec = WeightSpec.parse({"w": "heads dim@heads"})
    with pytest.raises(SpecError, match="'dim' is not a permutation of 3 indices for each of the 2 indices of 'heads'"):
        spec.permute({"w": jnp.zeros((2, 3))}, {"dim": wrong})


def test_comparison_sees_nesting():
    nested, product = WeightSpec.parse({"w": "a b@a"}), WeightSpec.parse({"w": "a b"})
    assert same_up_to_names(nested, WeightSpec.parse({"w": "heads dim@heads"}))
    assert not same_up_to_names(nested, product)
    assert not same_group(nested, product)
    assert not same_group(WeightSpec.parse({"w": "a! c! b@a"}), WeightSpec.parse({"w": "a! c! b@c"}))


CASES = [
    ({"w": "h d@h"}, {"h": 3, "d": 3}),
    ({"w": "h d@h"}, {"h": 2, "d": 1}),
    ({"w": "h d@h", "u": "h", "e": "h d@h e"}, {"h": 2, "d": 2, "e": 2}),
    ({"w": "h d@h d@h", "b": "(h d@h)"}, {"h": 2, "d": 3}),
    ({"w": "h d@h d@h", "b": "(h d@h)"}, {"h": 2, "d": 2}),
    ({"w": "h d@h h d@h", "b": "h d@h"}, {"h": 2, "d": 2}),
    ({"w": "h d@h h", "b": "d@h h"}, {"h": 3, "d": 2}),
    ({"w": "h d@h c@h", "b": "c@h h"}, {"h": 2, "d": 2, "c": 3}),
]


def generators(spec: WeightSpec, sizes: dict[str, int]) -> list[dict[str, np.ndarray]]:
    """Transpositions that generate the group; of nested names within each owner alone."""
    result = []
    for name in spec.permutable:
        swaps = []
        for one in range(sizes[name] - 1):
            swap = np.arange(sizes[name])
            swap[[one, one + 1]] = [one + 1, one]
            swaps.append(swap)
        if name in spec.nested:
            owners = sizes[spec.nested[name]]
            still = np.tile(np.arange(sizes[name]), (owners, 1))
            for owner, swap in itertools.product(range(owners), swaps):
                result.append({name: np.concatenate([still[:owner], swap[None], still[owner + 1 :]])})
        else:
            result.extend({name: swap} for swap in swaps)
    return result


def orbits(spec: WeightSpec, sizes: dict[str, int]) -> int:
    """Orbits of the group on pairs of entries of all tensors: the dimension of the equivariant maps, from the definition."""
    counts = {path: math.prod(sizes[f.name] for f in spec.factors(path)) for path in spec.paths}
    start = dict(zip(spec.paths, itertools.accumulate(counts.values(), initial=0), strict=False))
    shapes = {path: [math.prod(sizes[f.name] for f in axis) for axis in axes] for path, axes in spec.leaves}
    entries = {path: jnp.reshape(start[path] + jnp.arange(counts[path]), shapes[path]) for path in spec.paths}
    total = sum(counts.values())
    label = np.arange(total * total).reshape(total, total)
    moves = [spec.permute(entries, element) for element in generators(spec, sizes)]
    moves = [np.concatenate([np.asarray(moved[path]).ravel() for path in spec.paths]) for moved in moves]
    while True:
        before = label.copy()
        for move in moves:
            label = np.minimum(label, label[move][:, move])
            label[np.ix_(move, move)] = np.minimum(label[np.ix_(move, move)], label)
        if np.array_equal(before, label):
            return len(np.unique(label))


@pytest.mark.parametrize(("tree", "sizes"), CASES, ids=[f"{' | '.join(t.values())}: {s}" for t, s in CASES])
def test_the_terms_are_a_basis_of_all_equivariant_maps(tree, sizes):
    spec = WeightSpec.parse(tree)
    shapes = {path: [sizes[factor.name] for factor in spec.factors(path)] for path in spec.paths}
    plan = make_plan(spec, sizes)
    for out, source in itertools.product(spec.paths, spec.paths):
        partitions = [term.partition for term in plan.terms(out) if term.input == source]
        count = math.prod(shapes[source])
        units = np.eye(count).reshape(*shapes[source], count)
        matrices = [brute_force.apply_term(units, partition, shapes[out]).ravel() for partition in partitions]
        assert len(set(partitions)) == len(partitions) == np.linalg.matrix_rank(np.stack(matrices))
    assert plan.num_terms == orbits(spec, sizes)
    assert make_plan(spec).num_terms >= plan.num_terms


def _layers(spec):
    return {
        "unf": unf_layer(spec, 2, 3),
        "unf without redundant terms": unf_layer(spec, 2, 3, SIZES),
        "shared": shared_unf_layer(spec, 2, 3),
        "positions": position_unf_layer(spec, 2, 3),
        "folded": folded_unf_layer(spec, 2, 3, SIZES, ["classes"]),
        "pooled deep sets": pooled_deep_sets_layer(spec, 2, 3),
    }


@pytest.mark.parametrize("kind", list(_layers(WeightSpec.parse(ATTENTION))))
def test_layers_commute_with_the_wreath_product(kind):
    spec = WeightSpec.parse(ATTENTION)
    layer = _layers(spec)[kind]
    theta, x = layer.init(jax.random.key(1)), arrays(spec, SIZES, 2)
    apply = jax.jit(layer.apply)
    y = apply(theta, x)
    channel = WeightSpec(tuple((path, (*axes, (Factor("c"),))) for path, axes in spec.leaves))
    for seed in range(3):
        element = spec.sample(jax.random.key(seed), {path: value[..., 0] for path, value in x.items()})

        def act(features, element=element):
            return channel.permute(features, element)

        for path, expected in act(y).items():
            np.testing.assert_allclose(apply(theta, act(x))[path], expected, atol=2e-5, err_msg=path)


def test_a_layer_of_the_product_group_has_more_terms():
    nested = WeightSpec.parse(ATTENTION)
    product = WeightSpec.parse({path: text.replace("@heads", "") for path, text in ATTENTION.items()})
    assert make_plan(nested.relax()).num_terms < make_plan(product.relax()).num_terms


W = {"w": (3, 4), "v": (3, 4), "u": (3, 3), "b": (4,), "t": (2, 3, 4)}
INFERRED = {
    # Each index of the owner by itself.
    "summed": (lambda p: jnp.sum(jnp.sin(p["w"])), {"w": "a b@a"}),
    "a product of sums": (lambda p: jnp.sum(jnp.sum(p["w"] * p["v"], 1) ** 3), {"w": "a b@a", "v": "a b@a"}),
    "batched contraction": (lambda p: jnp.sum(jnp.einsum("ab,ab->a", p["w"], p["v"]) ** 3), {"w": "a b@a", "v": "a b@a"}),
    "both contracted": (lambda p: jnp.einsum("ab,ab->", p["w"], p["v"]) ** 3, {"w": "a b@a", "v": "a b@a"}),
    "a fixed owner": (lambda p: jnp.sum(jnp.sum(p["w"] ** 3, 1) * jnp.arange(3.0)), {"w": "a! b@a"}),
    "the largest": (lambda p: jnp.sum(jnp.max(p["w"], 1) ** 3), {"w": "a b@a"}),
    "merged and split": (lambda p: jnp.sum(jnp.prod(jnp.sin(p["w"].reshape(12)).reshape(3, 4), 1)), {"w": "a b@a"}),
    "parts": (lambda p: jnp.sum(jnp.sum(p["t"][0] * p["t"][1] ** 2, 1) ** 3), {"t": "p! a b@a"}),
    "scanned": (
        lambda p: jax.lax.scan(lambda c, x: (c * jnp.mean(x[0] * x[1]), None), 1.0, (p["w"], p["v"]))[0],
        {"w": "a! b@a", "v": "a! b@a"},
    ),
    # The indices of the owner mixed or compared.
    "compared": (lambda p: jnp.sum((p["w"] @ p["v"].T) ** 3), {"w": "a b", "v": "c b"}),
    "compared with itself": (lambda p: jnp.sum((p["w"] @ p["w"].T) ** 3), {"w": "a b"}),
    "mixed": (lambda p: jnp.sum((jnp.ones((3, 3)).at[0, 1].set(2) @ p["w"]) ** 3), {"w": "a! b"}),
    "mixed by a weight": (lambda p: jnp.sum((p["u"] @ p["w"]) ** 3), {"u": "c a", "w": "a b"}),
    "mixed by a square": (
        lambda p: jnp.sum((p["u"] @ p["w"] * p["v"]) ** 3 + jnp.sum(p["u"] ** 2 * p["u"].T)),
        {"u": "a a", "w": "a b", "v": "a b"},
    ),
    "pooled": (lambda p: jnp.sum(jnp.mean(p["w"], 0) ** 3), {"w": "a@b b"}),
    "shared": (lambda p: jnp.sum((p["w"] * p["b"][None]) ** 3), {"w": "a@b b", "b": "b"}),
    "shared both ways": (
        lambda p: jnp.sum((p["w"] * p["b"][None]) ** 3 + jnp.sum(p["w"], 1, keepdims=True) ** 2),
        {"w": "a b", "b": "b"},
    ),
    "cumulated": (lambda p: jnp.sum(jnp.cumsum(p["w"], 0) ** 3), {"w": "a! b"}),
    "reversed": (lambda p: jnp.sum((p["w"] * p["w"][::-1]) ** 3), {"w": "a! b"}),
    "carried": (lambda p: jnp.sum(jax.lax.scan(lambda c, x: (c * x, None), jnp.ones(4), p["w"])[0] ** 3), {"w": "a! b"}),
    "read at every step": (
        lambda p: jax.lax.scan(lambda c, x: (c + jnp.sum(x * p["b"]) ** 3, None), 0.0, p["w"])[0],
        {"w": "a! b", "b": "b"},
    ),
    "the place of the largest": (lambda p: jnp.sum(jnp.take(p["b"], jnp.argmax(p["w"], 1)) ** 3), {"w": "a b!", "b": "c!"}),
}


@pytest.mark.parametrize("case", INFERRED)
def test_inference_finds_what_is_nested_and_nothing_else(case):
    fn, notation = INFERRED[case]
    keys = jax.random.split(jax.random.key(0), len(W))
    params = {name: jax.random.normal(key, W[name]) for name, key in zip(W, keys, strict=True) if name in notation}
    found = infer_spec(fn, params)
    assert same_up_to_names(found, WeightSpec.parse(notation)), f"found:\n{found}"


def test_the_check_unnests_what_a_wrong_analysis_nested(monkeypatch):
    monkeypatch.setattr("lopt.symmetry.nesting.Record.owners", lambda self, atoms, weights: {1: 0})
    params = {"w": jax.random.normal(jax.random.key(0), (3, 4))}
    with pytest.warns(UserWarning, match="no longer nested"):
        found = infer_spec(lambda p: jnp.sum(jnp.mean(p["w"], 0) ** 3), params)
    assert same_up_to_names(found, WeightSpec.parse({"w": "a b"}))
