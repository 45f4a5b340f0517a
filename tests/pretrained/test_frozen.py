"""Weights of which a part is trained: what is left of their symmetry, and optimizers on it through optax's wrappers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lopt
from lopt.pretrained.bind import trained_part
from lopt.pretrained.card import CardError
from lopt.symmetry import WeightSpec, infer_spec
from lopt.symmetry.compare import same_group
from tests.pretrained.older import older

KEYS = jax.random.split(jax.random.key(0), 4)
PARAMS = {
    "w0": jax.random.normal(KEYS[0], (3, 5)),
    "b0": 0.1 * jax.random.normal(KEYS[3], (5,)),
    "w1": jax.random.normal(KEYS[1], (5, 4)),
    "w2": jax.random.normal(KEYS[2], (4, 2)),
}
X = jax.random.normal(jax.random.key(1), (6, 3))


def loss(params, x):
    hidden = jnp.tanh(jnp.tanh(x @ params["w0"] + params["b0"][None]) @ params["w1"])
    return jnp.mean(jnp.square(hidden @ params["w2"] - 1))


SPEC = infer_spec(loss, PARAMS, X)
GRADS = jax.grad(loss)(PARAMS, X)


@pytest.mark.parametrize("frozen", [("w2",), ("w0", "b0"), ("b0",), ("w0", "w2")])
def test_what_is_left_is_the_symmetry_of_the_loss_with_frozen_weights_as_data(frozen):
    kept = {name: leaf for name, leaf in PARAMS.items() if name not in frozen}
    data = {name: PARAMS[name] for name in frozen}
    inferred = infer_spec(lambda params, data, x: loss({**params, **data}, x), kept, data, X)
    assert same_group(trained_part(SPEC, kept), inferred)


def test_of_heads_the_width_goes_with_them():
    spec = WeightSpec.parse({"q": "embed (heads dim@heads)", "o": "(heads dim@heads) out!"})
    assert str(trained_part(spec, ["q"])).split() == ["q", "embed", "(heads!", "dim!)"]


@pytest.mark.parametrize("wrap", ["masked", "multi_transform"])
def test_a_part_of_the_weights_is_trained_from_the_spec_of_all(wrap):
    labels = {"w0": "train", "b0": "train", "w1": "train", "w2": "freeze"}
    tx = lopt.load(older("small-mixture-unf"), spec=SPEC)
    if wrap == "masked":
        whole = optax.masked(tx, {name: label == "train" for name, label in labels.items()})
    else:
        whole = optax.multi_transform({"train": tx, "freeze": optax.set_to_zero()}, labels)
    state = whole.init(PARAMS)
    updates, state = jax.jit(whole.update)(GRADS, state, PARAMS)
    kept = {name: leaf for name, leaf in PARAMS.items() if name != "w2"}
    grads = {name: GRADS[name] for name in kept}
    alone = lopt.load(older("small-mixture-unf"), spec=trained_part(SPEC, kept))
    expected, _ = alone.update(grads, alone.init(kept), kept)
    for name in kept:
        np.testing.assert_allclose(updates[name], expected[name], rtol=1e-5, atol=1e-7)
        assert np.any(np.asarray(updates[name]))
    if wrap == "multi_transform":
        assert not np.any(np.asarray(updates["w2"]))


def test_a_leaf_that_the_spec_does_not_know_is_still_refused():
    with pytest.raises(ValueError, match=r"no leaf for \['b0', 'w1', 'w2'\]"):
        lopt.load("lopt-direction-unf", num_steps=10, spec=SPEC).init({"w0": PARAMS["w0"], "other": jnp.ones(3)})


def test_coefficients_of_all_weights_cannot_train_a_part():
    spec = WeightSpec.parse({"w0": "in! a", "b0": "a", "w1": "a out!", "b1": "out!"})
    params = {"w0": jnp.ones((3, 4)), "b0": jnp.ones(4), "w1": jnp.ones((4, 2)), "b1": jnp.ones(2)}
    tx = lopt.load("paper-unf", spec=spec)
    tx.init(params)
    with pytest.raises(CardError, match=r"without b0, which are not among the params: .* cannot train a part"):
        tx.init({name: leaf for name, leaf in params.items() if name != "b0"})


def test_of_a_model_with_batch_norm_and_dropout_the_spec_is_inferred_in_eval_mode():
    nnx = pytest.importorskip("flax.nnx")
    rngs = nnx.Rngs(0)
    layers = (nnx.Linear(8, 6, rngs=rngs), nnx.BatchNorm(6, rngs=rngs), nnx.relu, nnx.Dropout(0.5, rngs=rngs))
    model = nnx.Sequential(*layers, nnx.Linear(6, 3, rngs=rngs))

    def loss(model, x):
        return jnp.mean(jnp.square(model(x)))

    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):  # as flax needs
        model.eval()
        graph, params, rest = nnx.split(model, nnx.Param, ...)
        spec = infer_spec(
            lambda params, x: loss(nnx.merge(graph, params, rest), x), params, jnp.ones((4, 8)) * jnp.arange(4)[:, None]
        )
    units = {spec.notation(path).split()[0] for path in spec.paths if "layers/1" in path}
    assert units == {spec.notation("layers/4/kernel/value").split()[0]}
    assert not units.pop().endswith("!")
