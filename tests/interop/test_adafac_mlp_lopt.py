"""learned_optimization's AdafacMLPLOpt, small_fc, step for step: its theta written as its authors write it, and read by `lopt.load`."""

import importlib
import importlib.util

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lopt
from lopt.features import factored
from lopt.interop.learned_optimization import restore_jax_names

pytestmark = pytest.mark.interop

SHAPES = {"w0": (5, 7), "b0": (7,), "w1": (7, 7), "b1": (7,), "w2": (7, 3), "gain": (), "window": (3, 3, 2, 4)}


@pytest.fixture(scope="module")
def theirs():
    if importlib.util.find_spec("learned_optimization") is None:
        pytest.skip("learned_optimization is not installed here; `make test-interop` makes an environment with it")
    restore_jax_names()
    return importlib.import_module("learned_optimization.learned_optimizers.adafac_mlp_lopt").AdafacMLPLOpt


def loss(params, x):
    """A small network; every leaf has a gradient."""
    x = jnp.tanh(x @ params["w0"] + params["b0"])
    x = jnp.tanh(x @ params["w1"] + params["b1"]) @ params["w2"]
    return jnp.mean(jnp.square(x - params["gain"])) + jnp.mean(jnp.cos(3 * params["window"]))


def test_it_takes_the_same_steps(theirs, tmp_path, monkeypatch):
    """With learned decays, over ranks 0 to 4; noise is large, so that steps of a thousandth of it are seen in float32."""
    monkeypatch.setattr(jax, "tree_multimap", jax.tree.map, raising=False)  # its name of then
    monkeypatch.setitem(factored._EPS, "momenta", 0.0)  # of vectors; the release is from before there was one
    learned = theirs()
    theta = learned.init(jax.random.key(0))
    leaves, structure = jax.tree.flatten(theta)
    theta = jax.tree.unflatten(
        structure, [x + (2 if x.ndim > 1 else 0.02) * jax.random.normal(jax.random.key(i), x.shape) for i, x in enumerate(leaves)]
    )
    file = tmp_path / "theta.state"
    file.write_bytes(
        flax.serialization.msgpack_serialize(jax.tree.map(np.asarray, flax.serialization.to_state_dict(dict(theta))))
    )
    params = {path: 0.5 * jax.random.normal(jax.random.key(i), shape) for i, (path, shape) in enumerate(SHAPES.items())}
    x = jax.random.normal(jax.random.key(9), (8, 5))

    optimizer = learned.opt_fn(theta)
    state = optimizer.init(params, num_steps=3)
    tx = lopt.load(str(file))
    ours, our_state = params, tx.init(params)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):  # as theirs needs it
        for _ in range(3):
            state = optimizer.update(state, jax.grad(loss)(optimizer.get_params(state), x), loss=jnp.float32(0))
            updates, our_state = tx.update(jax.grad(loss)(ours, x), our_state, ours)
            ours = optax.apply_updates(ours, updates)
    found, expected = (jax.tree.map(lambda a, b: a - b, end, params) for end in (ours, optimizer.get_params(state)))
    for path, step in expected.items():
        largest = float(jnp.max(jnp.abs(step)))
        assert largest > 1e-5
        np.testing.assert_allclose(found[path], step, rtol=1e-4, atol=1e-4 * largest, err_msg=path)
