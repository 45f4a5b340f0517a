"""Gated recurrent units: what they compute, and which specs are wrong; test_all_tasks.py has what every task promises."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tasks.gru import GRUConfig, gru, gru_spec
from tests.tasks.common import Mover, batch_of, changed, general, make, shapes

SETTINGS = {"hidden": (6, 6), "embedding": 6, "length": 5, "batch_size": 4}


def reference_logits(params, tokens):
    """One sequence in float64, a token at a time."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    def cell(p, h, x):
        r = sigmoid(x @ p["ir"]["kernel"] + p["ir"]["bias"] + h @ p["hr"]["kernel"])
        z = sigmoid(x @ p["iz"]["kernel"] + p["iz"]["bias"] + h @ p["hz"]["kernel"])
        n = np.tanh(x @ p["in"]["kernel"] + p["in"]["bias"] + r * (h @ p["hn"]["kernel"] + p["hn"]["bias"]))
        return (1 - z) * n + z * h

    states, logits = [np.zeros(6), np.zeros(6)], []
    for token in tokens:
        x = params["embed"][token]
        for layer in range(2):
            x = states[layer] = cell(params[f"cell{layer}"], states[layer], x)
        logits.append(x @ params["out"]["kernel"] + params["out"]["bias"])
    return np.array(logits)


def test_the_loss_equals_the_formula():
    task = make("gru", **SETTINGS)
    params, tokens = general(task), np.asarray(batch_of(task)["tokens"])
    losses = []
    for row in tokens:
        logits = reference_logits(params, row[:-1])
        losses += list(np.log(np.exp(logits).sum(axis=-1)) - logits[np.arange(5), row[1:]])
    assert float(jax.jit(task.loss)(params, jax.random.key(0), batch_of(task))) == pytest.approx(np.mean(losses), rel=1e-5)
    assert task.name == "python_docs5_gru_6_6"


def test_fresh_params():
    init, _ = gru(11, 4, (30,), init_scale=0.5)
    params = jax.jit(init)(jax.random.key(0))
    assert shapes(params["cell0"]["hn"]) == {"kernel": (30, 30), "bias": (30,)}
    kernel = np.asarray(params["cell0"]["hz"]["kernel"])
    np.testing.assert_allclose(kernel @ kernel.T, 0.25 * np.eye(30), atol=1e-5)
    assert float(np.std(params["cell0"]["iz"]["kernel"])) == pytest.approx(0.5 * 4**-0.5, rel=0.2)
    assert not np.any(params["cell0"]["iz"]["bias"])


def test_wrong_specs_are_found_out():
    """Of one size throughout, so that layers can be confused."""
    mover, spec = Mover(make("gru", **SETTINGS)), gru_spec(2)
    assert mover.change(changed(spec), seed=0) < 1e-5
    for wrong in (
        {"cell0__hr__kernel": "hidden0 free"},
        {"cell0__hn__bias": "free"},
        {"cell1__iz__kernel": "hidden1 hidden1"},
        {"embed": "symbols! free"},
        {"embed": "free embedding"},
    ):
        assert mover.change(changed(spec, **wrong), seed=0) > 1e-4, wrong


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"hidden": ()}, "GRUConfig.hidden must have at least 1 entry, not ()"),
        ({"embedding": 0}, "GRUConfig.embedding must be an integer of at least 1, not 0"),
        ({"length": 0}, "GRUConfig.length must be an integer of at least 1, not 0"),
        ({"dataset": "no_such_text"}, "no_such_text"),
    ],
)
def test_bad_settings_are_named(settings, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        GRUConfig(**settings)


def test_the_past_alone_counts():
    init, apply = gru(9, 4, (5,))
    params = jax.jit(init)(jax.random.key(0))
    first, second = jax.jit(apply)(params, jnp.array([[1, 2, 3, 4], [1, 2, 8, 4]]))
    np.testing.assert_array_equal(first[:2], second[:2])
    assert np.max(np.abs(first[2:] - second[2:])) > 1e-4
