"""The RNN task: what it computes, and what its settings do; test_all_tasks.py has what every task promises."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopt.symmetry.spec import WeightSpec
from tasks.rnn import RNNConfig, rnn, rnn_spec
from tests.tasks.common import batch_of, general, make, shapes


def relu(x):
    return np.maximum(x, 0)


def test_the_model_of_the_paper():
    config = RNNConfig()
    init, _ = rnn(256, config.embedding, config.hidden)
    assert shapes(jax.eval_shape(init, jax.random.key(0))) == {
        "embed": (256, 32),
        "ff": {"kernel": (32, 64), "bias": (64,)},
        "rec": {"kernel": (64, 64), "bias": (64,)},
        "state0": (1, 64),
        "out": {"kernel": (64, 256), "bias": (256,)},
    }
    assert (config.length, config.batch_size) == (16, 64)
    assert make("rnn").name == "python_docs16_rnn_64"
    assert batch_of(make("rnn"))["tokens"].shape == (64, 17)


def test_fresh_params():
    init, _ = rnn(200, 50, (40, 30), init_scale=0.5)
    params = jax.jit(init)(jax.random.key(0))
    np.testing.assert_allclose(params["rec"]["kernel"], np.eye(40), rtol=1e-6)
    np.testing.assert_allclose(params["rec1"]["kernel"], np.eye(30), rtol=1e-6)
    assert not any(np.any(params[name]["bias"]) for name in ("ff", "rec", "ff1", "rec1", "out"))
    assert not np.any(params["state0"])
    assert float(np.std(params["embed"])) == pytest.approx(0.5 * 0.88, rel=0.05)  # cut off at two deviations
    for layer, fan_in in (("ff", 50), ("ff1", 40), ("out", 30)):
        assert float(np.std(params[layer]["kernel"])) == pytest.approx(0.5 * fan_in**-0.5, rel=0.1)


def reference_logits(params, tokens, activation):
    """In float64, a step at a time."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    layers = [suffix for suffix in ("", "1", "2") if f"ff{suffix}" in params]
    states = [np.repeat(params[f"state{layer}"], len(tokens), axis=0) for layer in range(len(layers))]
    logits = []
    for column in np.asarray(tokens).T:
        x = params["embed"][column]
        for layer, suffix in enumerate(layers):
            forward, recurrent = params[f"ff{suffix}"], params[f"rec{suffix}"]
            x = x @ forward["kernel"] + forward["bias"] + states[layer] @ recurrent["kernel"] + recurrent["bias"]
            x = states[layer] = activation(x)
        logits.append(x @ params["out"]["kernel"] + params["out"]["bias"])
    return np.stack(logits, axis=1)


@pytest.mark.parametrize(
    ("settings", "activation"),
    [({}, relu), ({"hidden": (9, 5), "embedding": 7, "activation": "tanh", "length": 5, "tokenizer": "bytes"}, np.tanh)],
    ids=["default", "others"],
)
def test_loss_and_metrics_equal_the_formula(settings, activation):
    task = make("rnn", **settings)
    params, batch, key = general(task), batch_of(task), jax.random.key(0)
    computed, metrics = jax.jit(lambda *inputs: (task.loss(*inputs), task.metrics(*inputs)))(params, key, batch)
    tokens = np.asarray(batch["tokens"])
    logits, targets = reference_logits(params, tokens[:, :-1], activation), tokens[:, 1:]
    highest = logits.max(axis=-1, keepdims=True)
    log_probabilities = logits - highest - np.log(np.exp(logits - highest).sum(axis=-1, keepdims=True))
    loss = -np.take_along_axis(log_probabilities, targets[..., None], axis=-1).mean()
    assert computed.dtype == jnp.float32
    assert float(computed) == pytest.approx(loss, rel=1e-5)
    assert sorted(metrics) == ["accuracy", "bits_per_character"]
    assert float(metrics["bits_per_character"]) == pytest.approx(loss / math.log(2), rel=1e-5)
    assert float(metrics["accuracy"]) == pytest.approx((logits.argmax(-1) == targets).mean(), abs=1e-6)


def test_the_spec_in_full():
    assert rnn_spec(2) == WeightSpec.parse(
        {
            "embed": "symbols! embedding",
            "ff": {"kernel": "embedding hidden", "bias": "hidden"},
            "rec": {"kernel": "hidden hidden", "bias": "hidden"},
            "state0": "batch! hidden",
            "ff1": {"kernel": "hidden hidden1", "bias": "hidden1"},
            "rec1": {"kernel": "hidden1 hidden1", "bias": "hidden1"},
            "state1": "batch! hidden1",
            "out": {"kernel": "hidden1 symbols!", "bias": "symbols!"},
        }
    )


def test_a_text_file_and_byte_pairs(tmp_path, monkeypatch):
    monkeypatch.setenv("LOPT_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "words.txt").write_text("the cat sat on the mat, the dog sat on the log. " * 400)
    config = RNNConfig(dataset=str(tmp_path / "words.txt"), tokenizer="bpe:270", hidden=(5,), length=4, batch_size=3)
    task = config.make()
    assert task.name == "words.txt4_rnn_5"
    assert task.initial_loss == pytest.approx(math.log(task.param_shapes()["embed"].shape[0]))
    params, batch = general(task), batch_of(task)
    assert batch["tokens"].shape == (3, 5)
    loss, metrics = jax.jit(lambda *inputs: (task.loss(*inputs), task.metrics(*inputs)))(params, jax.random.key(0), batch)
    # Pieces are longer than bytes, so there are fewer bits in each byte than in each piece.
    assert sorted(metrics) == ["accuracy", "bits_per_byte"]
    assert 0 < float(metrics["bits_per_byte"]) < 0.9 * float(loss) / math.log(2)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"dataset": "no_such_text"}, "no_such_text"),
        ({"tokenizer": "words"}, "words"),
        ({"length": 0}, "RNNConfig.length must be an integer of at least 1, not 0"),
        ({"embedding": -2}, "RNNConfig.embedding must be an integer of at least 1, not -2"),
        ({"hidden": ()}, "RNNConfig.hidden must have at least 1 entry, not ()"),
        ({"hidden": (64, "8")}, "RNNConfig.hidden[1] must be an integer of at least 1, not '8'"),
        ({"activation": "step"}, "RNNConfig.activation must be one of relu, "),
        ({"init_scale": 0}, "RNNConfig.init_scale must be a positive number, not 0"),
        ({"batch_size": True}, "RNNConfig.batch_size must be an integer of at least 1, not True"),
        ({"split_seed": -1}, "RNNConfig.split_seed must be an integer of at least 0, not -1"),
    ],
)
def test_bad_settings_are_named(settings, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        RNNConfig(**settings)
