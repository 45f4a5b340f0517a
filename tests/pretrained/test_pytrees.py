"""Models of other libraries, whole and in parts, with an optimizer that needs a spec."""

import pathlib
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lopt
from lopt.symmetry import SpecError
from tests.pretrained.older import older

X = jax.random.normal(jax.random.key(1), (16, 4))
NAME = "lopt-direction-unf"


def loss(model, x):
    return jnp.mean(jnp.square(jax.vmap(model)(x) - x))


@pytest.fixture(scope="module")
def model():
    return eqx.nn.MLP(4, 4, 8, 1, activation=jnp.tanh, key=jax.random.key(0))


def test_a_spec_of_a_whole_model_is_that_of_its_arrays(model):
    params, static = eqx.partition(model, eqx.is_inexact_array)
    whole = lopt.infer_spec(loss, model, X)
    part = lopt.infer_spec(lambda params, x: loss(eqx.combine(params, static), x), params, X)
    assert len(whole.paths) > len(part.paths)  # its functions are leaves too
    grads = eqx.filter_grad(loss)(model, X)
    found = []
    for spec in (whole, part):
        tx = lopt.load(NAME, num_steps=10, spec=spec)
        state = tx.init(params)
        updates, state = eqx.filter_jit(tx.update)(grads, state, model)
        found.append(updates)
        eqx.apply_updates(model, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), *found)


def test_a_part_of_the_weights_is_trained_with_the_spec_of_all_or_of_the_part(model):
    params, static = eqx.partition(model, eqx.is_inexact_array)
    spec = lopt.infer_spec(lambda params, x: loss(eqx.combine(params, static), x), params, X, check=False)
    head = eqx.tree_at(
        lambda tree: tree.layers[0],
        jax.tree.map(lambda _: False, params),
        replace_fn=lambda layer: jax.tree.map(lambda _: True, layer),
    )
    trained, frozen = eqx.partition(params, head)
    rest = lambda trained, x: loss(eqx.combine(trained, frozen, static), x)  # noqa: E731
    grads = jax.grad(rest)(trained, X)
    whole = lopt.load(NAME, num_steps=10, spec=spec)
    with pytest.warns(UserWarning, match="of the 14 relations"):
        of_all, _ = whole.update(grads, whole.init(trained), trained)
    optax.masked(whole, head).init(params)
    with pytest.warns(UserWarning, match="of the 14 relations"):  # two leaves are a network that it has not seen
        tx = lopt.load(NAME, num_steps=10, spec=lopt.infer_spec(rest, trained, X, check=False))
    updates, _ = jax.jit(tx.update)(grads, tx.init(trained), trained)
    assert jax.tree.structure(updates) == jax.tree.structure(trained)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), updates, of_all)


def test_a_complex_weight_is_refused_where_weights_are_seen_together():
    params = {"z": jnp.ones((2, 3), jnp.complex64), "w": jnp.ones(3)}
    spec = lopt.infer_spec(lambda p: jnp.sum(jnp.abs(p["z"] * p["w"][None].astype(jnp.complex64))), params, check=False)
    with pytest.warns(UserWarning, match="of the 13 relations"):
        tx = lopt.load(NAME, num_steps=10, spec=spec)
    with pytest.raises(SpecError, match=r"leaf 'z' is complex64.*two leaves of the params"):
        tx.init(params)


def test_optax_finds_the_weights_in_a_loaded_state(model):
    params, static = eqx.partition(model, eqx.is_inexact_array)
    spec = lopt.infer_spec(lambda params, x: loss(eqx.combine(params, static), x), params, X, check=False)
    tx = lopt.load(older("small-mixture-unf"), spec=spec)
    shapes = jax.eval_shape(tx.init, params)
    marked = optax.tree.map_params(tx, lambda leaf, w: leaf.shape == w.shape, shapes, params, transform_non_params=lambda _: None)
    assert len(jax.tree.leaves(marked)) >= 7 * len(jax.tree.leaves(params))
    assert all(jax.tree.leaves(marked))


def test_the_recipe_for_batch_normalisation_and_dropout_trains():
    text = (pathlib.Path(__file__).resolve().parents[2] / "docs" / "use.md").read_text()
    (block,) = (block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "nnx.BatchNorm" in block)
    names: dict = {}
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):  # as in anybody's script
        exec(block, names)
    assert len(set(map(float, names["losses"]))) == 3
    assert np.all(np.isfinite(names["losses"]))
    assert names["spec"].permutable
