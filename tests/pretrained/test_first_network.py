"""The network that people try first, MLP 784-128-10 on FashionMNIST in batches of 128, with every shipped optimizer.

One that is loaded for it without a warning claims to be general, and has to be better than an Adam that nobody has tuned. One that warns
does not claim it; what its warning advises has to be good advice.
"""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lopt
from tasks.datasets import places
from tasks.datasets.idx import holds_idx
from tasks.datasets.images import read_images

STEPS, BATCH, LAST = 235, 128, 50  # half a pass; in 150 steps 0.3 and 0.1 do not suffice for all
WARNS = r"'{}' was seen to work on weights of at most [\d,]+ inputs, but 'w0' \[784, 128\] has up to 784: there its steps may be far too"


def start():
    keys, lecun = jax.random.split(jax.random.key(0)), jax.nn.initializers.lecun_normal()
    return {"w0": lecun(keys[0], (784, 128)), "b0": jnp.zeros(128), "w1": lecun(keys[1], (128, 10)), "b1": jnp.zeros(10)}


def loss(params, x, y):
    hidden = jax.nn.relu(x @ params["w0"] + params["b0"][None])
    return optax.softmax_cross_entropy_with_integer_labels(hidden @ params["w1"] + params["b1"][None], y).mean()


@pytest.fixture(scope="module")
def images():
    there = [directory for directory in places.system_directories("fashion_mnist") if holds_idx(directory)]
    if not there:
        pytest.skip("FashionMNIST is not installed: apt-get install dataset-fashion-mnist")
    pixels, labels = read_images("fashion_mnist", str(there[0]))[0]["train"]
    chosen = np.random.default_rng(0).permutation(len(pixels))[: STEPS * BATCH]
    return pixels[chosen].reshape(-1, 784) / np.float32(255), labels[chosen].astype(np.int32)


def final_loss(tx, pixels, labels):
    """Mean loss of the last steps, in one pass over the examples."""

    def step(carry, batch):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params, *batch)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    batches = jax.tree.map(lambda leaf: jnp.asarray(leaf).reshape(-1, BATCH, *leaf.shape[1:]), (pixels, labels))
    params = start()
    with jax.numpy_dtype_promotion("standard"):  # as in anybody's script; optax counts on it
        losses = jax.jit(lambda carry, batches: jax.lax.scan(step, carry, batches)[1])((params, tx.init(params)), batches)
    return float(losses[-LAST:].mean())


def load(name):
    return lopt.load(name, spec=lopt.infer_spec(loss, start(), jnp.ones((8, 784)), jnp.arange(8)), num_steps=STEPS)


def warns(name):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load(name).init(start())
    return any(re.match(WARNS.format(name), str(warning.message)) for warning in caught)


@pytest.fixture(scope="module", params=["raw", "standardised"])
def data(images, request):
    """Pixels and labels, and what Adam makes of them."""
    pixels, labels = images
    if request.param == "standardised":
        pixels = (pixels - pixels.mean()) / pixels.std()
    return pixels, labels, final_loss(optax.adam(1e-3), pixels, labels)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*was seen to work on weights of at most")
@pytest.mark.parametrize("name", sorted(lopt.available()))
def test_it_is_better_than_adam_or_says_what_to_do(name, data):
    pixels, labels, adam = data
    assert 0.3 < adam < 0.7
    scales, found = [optax.constant_schedule(1.0)], []
    if warns(name):
        scales = [optax.cosine_decay_schedule(first, STEPS) for first in (0.3, 0.1)]
    for scale in scales:
        found.append(final_loss(optax.chain(load(name), optax.scale_by_schedule(scale)), pixels, labels))
        if found[-1] < adam:
            return
    pytest.fail(f"final losses {found}, and adam's {adam}")
