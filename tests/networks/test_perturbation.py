"""Evolution strategies move f of a UNF as far as that of DeepSets, by the same noise, on the weights of every kind of task.

`tests/layers/test_begin.py` has the four weight spaces of the paper. Here both networks have the pointwise layers and their noise in
common, so that what differs is the last layer, and three draws are enough.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopt.networks.update import DeepSetsConfig, UNFConfig
from tasks.addition import seq2seq_spec
from tasks.autoencoder import autoencoder_spec
from tasks.gru import gru_spec
from tasks.mlp import mlp_spec
from tasks.resnet import resnet_spec
from tasks.rnn import rnn_spec
from tasks.transformer import transformer_spec
from tasks.vit import vit_spec
from tests.paper_features import SEEN, finished

SPECS = {
    "addition": seq2seq_spec(),
    "autoencoder": autoencoder_spec(1),
    "variational autoencoder": autoencoder_spec(1, variational=True),
    "gru": gru_spec(),
    "mlp of 3 layers": mlp_spec(2),
    "resnet": resnet_spec(2, 1),
    "rnn of 2 layers": rnn_spec(2),
    "transformer by head": transformer_spec(1, heads=3),
    "vit": vit_spec(1, heads=3),
}
FAST = (("gru", "none"), ("addition", "role"))


@functools.cache
def change(name, config, draws=3):
    """Mean square of the change of f, for each draw of theta and of the noise."""
    spec = SPECS[name]
    sizes = dict(spec.known_sizes)
    generator, seen = np.random.default_rng(0), {}
    for path, axes in spec.leaves:
        shape = [math.prod(sizes.get(factor.name, 3) for factor in axis) for axis in axes]
        seen[path] = jnp.asarray(generator.standard_normal((*shape, 8)), jnp.float32)
    network = config.make(spec, SEEN, 1)
    apply, found = jax.jit(network.apply), []
    for draw in range(draws):
        theta = jax.tree.map(np.asarray, network.init(jax.random.key(draw)))

        def f(sign, draw=draw, theta=theta):
            moved = {}
            for index, part in enumerate(("pointwise", "last")):
                noise = np.random.default_rng((draw, index))
                add = lambda x, noise=noise: x + np.float32(sign * 0.01) * noise.standard_normal(x.shape).astype(np.float32)  # noqa: E731
                moved[part] = jax.tree.map(add, theta[part])
            return np.concatenate([np.ravel(y) for y in apply(moved, finished(seen, jnp.zeros(11))).values()])

        found.append(np.mean(np.square(f(1) - f(-1))))
    return found


@pytest.mark.parametrize(
    ("name", "share"),
    [
        pytest.param(name, share, marks=[] if (name, share) in FAST else [pytest.mark.slow, pytest.mark.compiles])
        for name in SPECS
        for share in ("none", "role")
    ],
)
def test_noise_moves_f_of_a_unf_as_far_as_that_of_deep_sets(name, share):
    ratio = np.sqrt(np.mean(change(name, UNFConfig((32, 32), share=share))) / np.mean(change(name, DeepSetsConfig((32, 32)))))
    assert 1 / 1.5 < ratio < 1.5
