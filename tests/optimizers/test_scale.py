"""What neither the scale of a loss nor that of the weights changes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopt.features.momenta import Momenta
from lopt.features.presets import CustomFeatures
from lopt.features.second_moments import GradientOverRoot, MomentaOverRoot
from lopt.features.time import Time
from lopt.features.weights import Gradient, Value
from lopt.networks.update import UNFConfig
from lopt.optimizers.config import LearnedOptimizerConfig
from lopt.optimizers.direction import DirectionRule
from lopt.optimizers.gated import GatedRule
from lopt.optimizers.nominals import AdamNominal, MuonNominal, NoNominal, ShampooNominal
from lopt.symmetry.spec import WeightSpec

SPEC = WeightSpec.parse({"kernel": "inputs! hidden", "bias": "hidden", "out": "hidden classes!"})
SHAPES = {"kernel": (4, 6), "bias": (6,), "out": (6, 3)}
FREE = CustomFeatures(
    parts=(
        Value(),
        Gradient(),
        Momenta((0.9,), bias_correction=True),
        GradientOverRoot(eps=1e-30),
        MomentaOverRoot(eps=1e-30, momenta=(0.99,)),
        Time(),
    )
)
RULES = {
    "gated adam": GatedRule(nominal=AdamNominal(eps=1e-30)),
    "gated muon": GatedRule(nominal=MuonNominal()),
    "direction": DirectionRule(nominal=AdamNominal(eps=1e-30)),
    "direction muon": DirectionRule(nominal=MuonNominal(), gated=True, scale="inputs"),
    "direction shampoo": DirectionRule(nominal=ShampooNominal(every=2), gated=True),
    "orthogonal direction": DirectionRule(nominal=NoNominal(), orthogonalize=True, over="matrix"),
}


@pytest.mark.parametrize("name", RULES)
def test_three_steps_of_a_loss_times_1000_and_of_weights_times_1000(name):
    """W -> 1000 W with gradients over 1000 is the same function: a relative step is 1000 times as large, and all else is as it was.

    Features that show the scale of gradients cannot do so: the paper's are clipped to 1, Celo2's second channel to 0.1, and v of Celo2
    and small_fc has 1e-8 and 1e-6 added to it under the root, as published. Nor can Adam, whose eps is 1e-8, where gradients are small.
    """
    optimizer = LearnedOptimizerConfig(dataclasses.replace(RULES[name], relative=True), FREE, UNFConfig((6,), share="role")).make(
        SPEC
    )
    theta = optimizer.init(jax.random.key(1))
    theta = jax.tree.map(lambda x: x + 0.03 * jnp.cos(7 * jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape), theta)
    tx = optimizer.opt_fn(theta)
    params = {path: jax.random.normal(jax.random.key(i), shape) for i, (path, shape) in enumerate(SHAPES.items())}

    @jax.jit
    def updates(loss, size):
        def step(carry, _):
            w, state = carry
            grads = jax.tree.map(lambda x: loss * jnp.sin(3 * x / size) / size, w)
            found, state = tx.update(grads, state, w)
            return (jax.tree.map(jnp.add, w, found), state), jax.tree.map(lambda u: u / size, found)

        w = jax.tree.map(lambda x: size * x, params)
        return jax.lax.scan(step, (w, tx.init(w)), length=3)[1]

    expected = updates(1.0, 1.0)
    for scales in ((1000.0, 1.0), (1.0, 1000.0)):
        for path, found in updates(*scales).items():
            largest = np.max(np.abs(expected[path]))
            np.testing.assert_allclose(found, expected[path], rtol=1e-3, atol=1e-4 * largest, err_msg=f"{path} at {scales}")
