"""The NFN layer against its definition: the equivariant layer with a coefficient for every pair of window positions."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopt.layers.nfn import nfn_layer, window_names
from lopt.layers.unf import unf_layer
from lopt.symmetry import SpecError, WeightSpec
from lopt.symmetry.basis import make_plan
from tests import brute_force

TREE = {"conv0": "h0! w0! rgb! a", "bias0": "a", "conv1": "h1! w1! a b", "bias1": "b", "head": "b classes!"}
SIZES = {"h0": 2, "w0": 3, "rgb": 2, "a": 3, "h1": 3, "w1": 1, "b": 2, "classes": 4}
WINDOW = {"conv0": ["h0", "w0"], "conv1": ["h1", "w1"]}
SPEC = WeightSpec.parse(TREE)
C_IN, C_OUT = 2, 3


def make_features(seed=1):
    rng = np.random.default_rng(seed)
    shapes = {path: [SIZES[factor.name] for factor in SPEC.factors(path)] for path in SPEC.paths}
    return {path: jnp.asarray(rng.normal(size=(*shape, C_IN)), jnp.float32) for path, shape in shapes.items()}


def positions(path):
    return math.prod(SIZES[name] for name in WINDOW.get(path, []))


def coefficient_blocks(theta):
    """{(output, input, partition): [positions in, c_in, positions out, c_out]} of theta, as its docstring says that it is stored."""
    plan = make_plan(SPEC.without(*window_names(SPEC)).relax())
    found = {}
    for output in SPEC.paths:
        for term in plan.terms(output):
            group = plan.groups[term.group]
            rows = np.cumsum([0, *(positions(view.path) * C_IN for view in group.views)])
            columns = np.cumsum([0, *(positions(target.path) * C_OUT for target in group.targets)])
            matrix = np.asarray(theta["weights"][group.label])
            assert matrix.shape == (rows[-1], columns[-1])
            block = matrix[rows[term.view] : rows[term.view + 1], columns[term.target] : columns[term.target + 1]]
            block = block.reshape(positions(term.input), C_IN, positions(output), C_OUT)
            found[output, term.input, term.partition] = block
    return found


def split(x, path):
    """[positions of the window, other axes..., C]"""
    count = len(WINDOW.get(path, []))
    return np.asarray(x, np.float64).reshape(positions(path), *x.shape[count:])


def by_definition(theta, features):
    """Every pair of positions on its own, each by brute force over the indices of the axes that are left."""
    out = {}
    ends = np.cumsum([positions(path) * C_OUT for path in SPEC.paths])
    for path, bias in zip(SPEC.paths, np.split(np.asarray(theta["bias"]), ends[:-1]), strict=True):
        shape = split(features[path], path).shape[1:-1]
        out[path] = np.zeros((positions(path), *shape, C_OUT)) + bias.reshape(positions(path), *(1 for _ in shape), C_OUT)
    for (output, source, partition), block in coefficient_blocks(theta).items():
        x = split(features[source], source)
        for p_out, p_in in itertools.product(range(positions(output)), range(positions(source))):
            out[output][p_out] += brute_force.apply_term(x[p_in], partition, out[output].shape[1:-1]) @ block[p_in, :, p_out]
    return {path: y.reshape(*features[path].shape[:-1], C_OUT) for path, y in out.items()}


@pytest.fixture(scope="module")
def layer():
    init, apply, _ = nfn_layer(SPEC, C_IN, C_OUT, SIZES)
    return init, jax.jit(apply)


@pytest.fixture(scope="module")
def theta(layer):
    theta = layer[0](jax.random.key(0))
    return {**theta, "bias": jax.random.normal(jax.random.key(1), theta["bias"].shape)}


def permuted(names, features, seed=0):
    """Features with the indices of each name cycled, so that none stays in place."""
    out = {}
    for path, x in features.items():
        for axis, factor in enumerate(SPEC.factors(path)):
            if factor.name in names:
                x = jnp.roll(x, 1 + seed, axis)
        out[path] = x
    return out


def change(layer, theta, names, seed=0):
    features = make_features()
    moved = layer[1](theta, permuted(names, features, seed))
    expected = permuted(names, layer[1](theta, features), seed)
    return max(float(jnp.max(jnp.abs(moved[path] - expected[path]))) for path in moved)


def test_equals_the_definition(layer, theta):
    features = make_features()
    found, expected = layer[1](theta, features), by_definition(theta, features)
    for path in SPEC.paths:
        np.testing.assert_allclose(found[path], expected[path], atol=2e-5)


@pytest.mark.parametrize("names", [["a"], ["b"], ["a", "b"], ["rgb"], ["classes"], ["a", "rgb", "b", "classes"]])
def test_commutes_with_permutations_of_neurons(layer, theta, names):
    assert change(layer, theta, names) < 1e-5


@pytest.mark.parametrize("name", ["h0", "w0", "h1"])
def test_does_not_commute_with_permutations_of_window_positions(layer, theta, name):
    assert change(layer, theta, [name]) > 1e-1


def test_represents_any_mixing_of_positions(layer, theta):
    """y[q, i, o] = sum over p of M[p, q] x[p, i, o] for any M, and nothing elsewhere."""
    mixing = np.random.default_rng(0).normal(size=(positions("conv0"), positions("conv0"))).astype(np.float32)
    plan = make_plan(SPEC.without(*window_names(SPEC)).relax())
    identity = next(t for t in plan.terms("conv0") if t.input == "conv0" and t.partition == ((0, 2), (1, 3)))
    weights = {label: np.zeros(matrix.shape, np.float32) for label, matrix in theta["weights"].items()}
    group = plan.groups[identity.group]
    row = sum(positions(view.path) * C_IN for view in group.views[: identity.view])
    column = sum(positions(target.path) * C_OUT for target in group.targets[: identity.target])
    channels = np.eye(C_IN, C_OUT, dtype=np.float32)
    block = np.einsum("pq,cd->pcqd", mixing, channels).reshape(positions("conv0") * C_IN, -1)
    weights[group.label][row : row + block.shape[0], column : column + block.shape[1]] = block
    features = make_features()
    out = layer[1]({"weights": jax.tree.map(jnp.asarray, weights), "bias": jnp.zeros_like(theta["bias"])}, features)
    x = split(features["conv0"], "conv0")
    expected = np.einsum("pq,pioc,cd->qiod", mixing, x, channels).reshape(out["conv0"].shape)
    np.testing.assert_allclose(out["conv0"], expected, atol=1e-5)
    assert all(not np.any(out[path]) for path in SPEC.paths if path != "conv0")


def test_as_many_coefficients_as_equivariant_maps():
    """Counted by characters: the mean over the group of the squared number of entries that an element leaves in place."""
    tree = {"conv0": "h0! i! a", "bias0": "a", "conv1": "h1! a o!"}
    sizes = {"h0": 3, "i": 2, "a": 3, "h1": 2, "o": 2}
    spec = WeightSpec.parse(tree)
    theta = jax.eval_shape(nfn_layer(spec, 1, 1, sizes).init, jax.random.key(0))
    squares = []
    for element in itertools.product(*(itertools.permutations(range(sizes[name])) for name in ("i", "a", "o"))):
        fixed = {n: sum(i == p for i, p in enumerate(g)) for n, g in zip(("i", "a", "o"), element, strict=True)}
        fixed |= {"h0": sizes["h0"], "h1": sizes["h1"]}
        squares.append(sum(math.prod(fixed[factor.name] for factor in spec.factors(path)) for path in spec.paths) ** 2)
    assert sum(leaf.size for leaf in theta["weights"].values()) == np.mean(squares)
    assert theta["bias"].size == 3 + 1 + 2


def test_parameters_with_and_without_biases(theta):
    without = nfn_layer(SPEC, C_IN, C_OUT, SIZES, bias=False)
    bare = without.init(jax.random.key(0))
    assert set(bare) == {"weights"}
    assert jax.tree.map(jnp.shape, bare["weights"]) == jax.tree.map(jnp.shape, theta["weights"])
    assert theta["bias"].size == C_OUT * sum(positions(path) for path in SPEC.paths)
    zero = {"weights": bare["weights"], "bias": jnp.zeros_like(theta["bias"])}
    with_bias = nfn_layer(SPEC, C_IN, C_OUT, SIZES).apply
    found, expected = jax.jit(without.apply)(bare, make_features()), jax.jit(with_bias)(zero, make_features())
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_without_windows_it_is_the_unf_layer():
    spec = WeightSpec.parse({"k0": "i! h", "b0": "h", "k1": "h o!", "b1": "o!"})
    sizes = {"i": 4, "h": 3, "o": 2}
    shapes = {path: [sizes[factor.name] for factor in spec.factors(path)] for path in spec.paths}
    features = {path: jax.random.normal(jax.random.key(len(path)), (*shape, C_IN)) for path, shape in shapes.items()}
    nfn, unf = nfn_layer(spec, C_IN, C_OUT, sizes), unf_layer(spec, C_IN, C_OUT)
    theta = nfn.init(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, theta, unf.init(jax.random.key(0)))
    jax.tree.map(np.testing.assert_array_equal, jax.jit(nfn.apply)(theta, features), jax.jit(unf.apply)(theta, features))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"embed": "v! h", "rec": "h h"}, r"a permutation acts twice on leaf 'rec' \(h h\); use UNF"),
        ({"t": "a b c"}, r"leaf 't' is 'a b c'; use UNF"),
        ({"q": "e (n d)"}, r"leaf 'q' is 'e n d'; use UNF"),
        ({"k0": "i! s", "k1": "s s2", "k2": "s s3"}, r"'s' permutes 3 kernels: \['k0', 'k1', 'k2'\]; use UNF"),
    ],
)
def test_what_is_no_chain_is_refused_by_name(tree, message):
    with pytest.raises(SpecError, match=message):
        nfn_layer(WeightSpec.parse(tree), 1, 1, dict.fromkeys(WeightSpec.parse(tree).names, 2))


def test_features_of_another_window_are_refused(layer, theta):
    features = make_features()
    with pytest.raises(SpecError, match=r"'h0': \(2, 5\)"):
        layer[1](theta, {**features, "conv0": jnp.zeros((5, *features["conv0"].shape[1:]))})
