"""Thetas of before there were rules give the updates that they gave then.

files/updates.json was written by commit 4fe2e0b, the last in which the paper's rule and features were the only ones.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lopt

RECORDED = json.loads((Path(__file__).parent / "files" / "updates.json").read_text())
REPOSITORY = Path(__file__).resolve().parents[2]
SPEC = lopt.WeightSpec.parse({"b0": "hidden", "b1": "classes!", "w0": "pixels! hidden", "w1": "hidden classes!"})
SHAPES = {"b0": (3,), "b1": (2,), "w0": (4, 3), "w1": (3, 2)}


def waves(step, frequency, size):
    """Numbers that no generator draws: they are the same on every machine and in every version."""
    start, found = 0, {}
    for path, shape in SHAPES.items():
        count = int(np.prod(shape))
        x = size * np.sin(frequency * np.arange(start + 1, start + count + 1) + step)
        found[path], start = jnp.asarray(x.reshape(shape), jnp.float32), start + count
    return found


def updates_of(tx):
    """Of three steps, whose weights and gradients do not depend on the updates, path -> [3, *shape]."""
    update, state, found = jax.jit(tx.update), tx.init(waves(0, 0.7, 1.0)), []
    for step in range(3):
        updates, state = update(waves(step, 2.3, 0.3), state, waves(step, 0.7, 1.0))
        found.append(updates)
    return jax.tree.map(lambda *each: np.stack(each), *found)


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_updates_are_what_they_were(name):
    found = updates_of(lopt.load(REPOSITORY / name, spec=SPEC))
    for path, shape in SHAPES.items():
        expected = np.asarray(RECORDED[name][path], np.float32)
        assert expected.shape == (3, *shape)
        np.testing.assert_allclose(found[path], expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max(), err_msg=path)
