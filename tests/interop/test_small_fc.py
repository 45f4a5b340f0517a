"""small_fc as its authors' package computes it, `AdafacMLPLOpt` of learned_optimization, and as we do, which read its theta."""

import dataclasses
import importlib.util
import pathlib
import types

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lopt.interop.learned_optimization import restore_jax_names
from lopt.optimizers.magnitude import MagnitudeRule
from lopt.optimizers.published import read_published
from lopt.symmetry import WeightSpec
from tests.optimizers.test_published import SHAPES, network_loss

pytestmark = pytest.mark.interop
NAME = "learned_optimization.learned_optimizers.adafac_mlp_lopt"
RELEASED, REPAIRED = "m * (fac_vec_v)**-0.5", "m * (fac_vec_v + 1e-6)**-0.5"


@pytest.fixture
def adafac():
    """Its module. Of vectors version 0.0.1 divides by the root of v, its repository by that of v + 1e-6, as Celo2 and we do."""
    if importlib.util.find_spec("learned_optimization") is None:
        pytest.skip("learned_optimization is not installed here; `make test-interop` makes an environment with it")
    restore_jax_names()
    found = importlib.util.find_spec(NAME)
    source = pathlib.Path(found.origin).read_text()
    assert source.count(RELEASED) == 1, "a release has another formula: compare with it as it is"
    module = types.ModuleType(f"{NAME}_repaired")
    exec(compile(source.replace(RELEASED, REPAIRED), found.origin, "exec"), vars(module))
    return module


def movements(update, params):
    """How far weights of every rank have moved after each of three steps, by `update(grads)`, which gives the weights."""
    x, gradient, start, found = jax.random.normal(jax.random.key(9), (16, 6)), jax.jit(jax.grad(network_loss)), params, []
    for _ in range(3):
        params = update(gradient(params, x), params)
        found.append(jax.tree.map(lambda a, b: np.asarray(a - b), params, start))
    return found


def test_three_steps_are_those_of_its_authors(adafac, tmp_path):
    """Steps are larger than theirs, so that they are not lost in the weights; decays and biases are not those of the start."""
    params = {path: 0.5 * jax.random.normal(jax.random.key(i), shape) for i, (path, shape) in enumerate(SHAPES.items())}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        learned = adafac.AdafacMLPLOpt(step_mult=0.3, exp_mult=0.3)
        theta = learned.init(jax.random.PRNGKey(0))
        theta = jax.tree.map(lambda x: x + 0.02 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), theta)
        theirs = learned.opt_fn(theta)
        their_state, their_step = theirs.init(params, num_steps=3), jax.jit(theirs.update)

    def their_update(grads, _):
        nonlocal their_state
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            their_state = their_step(their_state, grads, jnp.float32(0))
        return theirs.get_params(their_state)

    file = tmp_path / "theta.state"
    file.write_bytes(flax.serialization.to_bytes(theta))
    config, our_theta = read_published(file)
    ours = dataclasses.replace(config, rule=MagnitudeRule(step=0.3, exponent=0.3)).make(WeightSpec(())).opt_fn(our_theta)
    our_state, our_step = ours.init(params), jax.jit(ours.update)

    def our_update(grads, params):
        nonlocal our_state
        updates, our_state = our_step(grads, our_state, params)
        return optax.apply_updates(params, updates)

    for step, (found, expected) in enumerate(zip(movements(our_update, params), movements(their_update, params), strict=True)):
        for path, moved in expected.items():
            size = np.max(np.abs(moved))
            assert size > 1e-3
            np.testing.assert_allclose(found[path], moved, rtol=0, atol=5e-5 * size, err_msg=f"{path} in step {step}")
