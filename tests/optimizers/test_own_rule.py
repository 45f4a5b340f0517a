"""What the page "A rule, feature or network of your own" shows: it trains, is written by path, and loads."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lopt
from lopt.config import load_file
from lopt.training import metrics

CONFIG = Path(__file__).resolve().parents[2] / "examples" / "own_rule_config.py"


@pytest.mark.slow
@pytest.mark.compiles
def test_it_is_meta_trained_and_loaded(tmp_path):
    experiment = load_file(CONFIG)
    result = lopt.meta_train(experiment, tmp_path / "run", progress=False)
    assert result.step == 20
    assert float(jnp.max(jnp.abs(result.theta["network"]["last"]))) > 1e-3, "the network has learned something"
    written = json.loads((tmp_path / "run" / "config.json").read_text())["optimizer"]
    assert written["rule"]["class"] == "examples.own_rule:SignRule"
    assert written["features"]["class"] == "custom"
    assert {"rate"} <= metrics.read(tmp_path / "run")[-1].keys()
    tx = lopt.load(tmp_path / "run")
    params = {"w": jnp.ones((3, 2))}
    updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
    assert 0 < float(jnp.max(jnp.abs(updates["w"]))) < 0.01
    np.testing.assert_array_equal(jnp.sign(updates["w"]), -1)
