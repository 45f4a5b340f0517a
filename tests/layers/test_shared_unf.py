"""Coefficients shared by role: one theta for every depth, blind to names, equivariant."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopt.layers.shared_unf import distances, pattern, shared_unf_layer
from lopt.symmetry.spec import Factor, WeightSpec
from tasks.transformer import transformer_spec


def mlp_spec(depth, names="h"):
    tree = {}
    for i in range(depth):
        source = "in!" if i == 0 else f"{names}{i - 1}"
        target = "out!" if i == depth - 1 else f"{names}{i}"
        tree[f"layer{i}"] = {"kernel": f"{source} {target}", "bias": target}
    return WeightSpec.parse(tree)


def features_of(spec, sizes, channels=2, key=0):
    return {
        path: jax.random.normal(
            jax.random.fold_in(jax.random.key(key), i), (*(sizes[f.name] for f in spec.factors(path)), channels)
        )
        for i, path in enumerate(spec.paths)
    }


def test_patterns_see_equality_and_fixedness_only():
    a, b, c = Factor("a"), Factor("b"), Factor("c", fixed=True)
    assert pattern((a, b), (b, c)) == ("ab", "bc!")
    assert pattern((b, a), (a, c)) == ("ab", "bc!")
    assert pattern((a, a), (a,)) == ("aa", "a")


def test_distances_count_shared_names():
    spec = mlp_spec(5)
    found = {other: d for (one, other), d in distances(spec).items() if one == "layer0/kernel"}
    kernels = [found[f"layer{i}/kernel"] for i in range(5)]
    assert kernels == [0, 1, 2, 3, 3]


def test_theta_does_not_grow_with_depth():
    counts = [
        sum(x.size for x in jax.tree.leaves(jax.eval_shape(shared_unf_layer(mlp_spec(depth), 2, 2).init, jax.random.key(0))))
        for depth in (6, 7, 9)  # from six layers on, every relation there is occurs
    ]
    assert counts[0] == counts[1] == counts[2]
    transformers = [
        sum(x.size for x in jax.tree.leaves(jax.eval_shape(shared_unf_layer(transformer_spec(n), 1, 1).init, jax.random.key(0))))
        for n in (2, 3)
    ]
    assert transformers[0] == transformers[1]


def test_one_theta_serves_another_depth():
    theta = jax.jit(shared_unf_layer(mlp_spec(5), 2, 3).init)(jax.random.key(0))
    spec = mlp_spec(3)
    features = features_of(spec, {"in": 4, "h0": 3, "h1": 5, "out": 2})
    out = jax.jit(shared_unf_layer(spec, 2, 3).apply)(theta, features)
    assert {path: x.shape for path, x in out.items()} == {path: (*x.shape[:-1], 3) for path, x in features.items()}
    assert all(float(jnp.std(x)) > 1e-3 for x in out.values())


def test_isomorphic_specs_give_identical_results():
    """Renaming every permutation changes nothing, not even the order of floating-point sums of one tensor's terms matters much."""
    one, other = mlp_spec(4), mlp_spec(4, names="z_last_")
    renamed = WeightSpec.parse({path.replace("/", "."): other.notation(path) for path in other.paths})
    theta = jax.jit(shared_unf_layer(one, 2, 3).init)(jax.random.key(1))
    x = features_of(one, {"in": 4, "h0": 3, "h1": 5, "h2": 2, "out": 2})
    a = jax.jit(shared_unf_layer(one, 2, 3).apply)(theta, x)
    b = jax.jit(shared_unf_layer(renamed, 2, 3).apply)(theta, {path.replace("/", "."): value for path, value in x.items()})
    for path in one.paths:
        np.testing.assert_allclose(a[path], b[path.replace("/", ".")], atol=1e-6)


def test_commutes_with_the_relaxed_group():
    spec = mlp_spec(3)
    x = features_of(spec, {"in": 4, "h0": 3, "h1": 5, "out": 2})
    init, apply, _ = shared_unf_layer(spec, 2, 3)
    theta = jax.jit(init)(jax.random.key(0))
    acting = WeightSpec.parse({path: f"{spec.relax().notation(path)} channels!" for path in spec.paths})
    element = acting.sample(jax.random.key(2), x)
    out = jax.jit(apply)(theta, x)
    moved = jax.jit(apply)(theta, acting.permute(x, element))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), moved, acting.permute(out, element))


def test_two_layers_with_equal_inputs_get_equal_outputs():
    """Hidden layers in the middle of a deep network stand in the same relations, so equal features give equal updates."""
    spec = mlp_spec(9)
    sizes = {"in": 3, "out": 3, **{f"h{i}": 3 for i in range(8)}}
    one = jax.random.normal(jax.random.key(0), (3, 3, 1))
    features = {path: one if path.endswith("kernel") else one[0] for path in spec.paths}
    assert spec.sizes({p: jax.ShapeDtypeStruct(x.shape[:-1], x.dtype) for p, x in features.items()}) == dict(
        sorted(sizes.items())
    )
    init, apply, _ = shared_unf_layer(spec, 1, 1)
    out = jax.jit(apply)(jax.jit(init)(jax.random.key(3)), features)
    np.testing.assert_allclose(out["layer4/kernel"], out["layer5/kernel"], atol=1e-5)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(out["layer4/kernel"], out["layer0/kernel"], atol=1e-3)
