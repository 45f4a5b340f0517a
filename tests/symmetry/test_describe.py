"""The rows of a spec's tables against the layer that they count."""

import jax
import numpy as np
import pytest

from lopt.layers.unf import unf_layer
from lopt.symmetry import SpecError, WeightSpec
from lopt.symmetry.basis import make_plan
from lopt.symmetry.describe import LeafRow, NameRow, count_layer, describe

SPECS = {
    "mlp": {"k0": "i! h", "b0": "h", "k1": "h o!", "b1": "o!"},
    "recurrent": {"e": "v! e", "r": "h h", "f": "e h", "b": "h"},
    "rank 3": {"t": "a a a", "u": "a b a", "w": "b", "s": ""},
    "composed": {"q": "e (n d)", "o": "(n d) e", "one": "1 e"},
}


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize(("c_in", "c_out"), [(32, 1), (3, 2)])
def test_parameters_are_those_of_the_layer(name, c_in, c_out):
    spec = WeightSpec.parse(SPECS[name])
    theta = jax.eval_shape(unf_layer(spec, c_in, c_out).init, jax.random.key(0))
    assert count_layer(spec).parameters(c_in, c_out) == sum(leaf.size for leaf in jax.tree.leaves(theta))


@pytest.mark.parametrize("name", SPECS)
def test_terms_are_those_of_the_plan(name):
    spec = WeightSpec.parse(SPECS[name])
    layer, plan = count_layer(spec), make_plan(spec.relax())
    assert layer.num_terms == plan.num_terms
    assert layer.terms == {path: len(plan.terms(path)) for path in spec.paths}


def test_views_by_hand():
    assert count_layer(WeightSpec.parse({"k": "a b"})).views == 4  # all, over a, over b, over both
    assert count_layer(WeightSpec.parse({"r": "a a"})).views == 6  # the same, the diagonal and its mean; its transpose is free


def test_rows():
    spec = WeightSpec.parse({"bias": "hidden", "head": "(window! hidden) classes!", "scale": ""}, window=2)
    params = {"bias": np.zeros(3), "head": jax.ShapeDtypeStruct((6, 5), np.float32), "scale": np.zeros(())}
    found = describe(spec, params)
    layer = count_layer(spec)
    assert found.leaves == (
        LeafRow("bias", (3,), "hidden", layer.terms["bias"]),
        LeafRow("head", (6, 5), "(window! hidden) classes!", layer.terms["head"]),
        LeafRow("scale", (), "", layer.terms["scale"]),
    )
    assert found.names == (
        NameRow("hidden", False, 3, ("bias", "head")),
        NameRow("classes", True, 5, ("head",)),
        NameRow("window", True, 2, ("head",)),
    )


def test_other_params_are_refused():
    with pytest.raises(SpecError, match="leaf 'k' has shape"):
        describe(WeightSpec.parse({"k": "a b"}), {"k": np.zeros(3)})
