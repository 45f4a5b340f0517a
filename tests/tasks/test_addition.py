"""The addition task: its sums, what its cells compute, what counts; test_all_tasks.py has what every task promises."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopt.symmetry.describe import count_layer
from tasks.addition import END, SYMBOLS, AdditionConfig, seq2seq, seq2seq_spec, sums, written
from tests.tasks.common import general, make

SETTINGS = {"digits": 2, "hidden": 6, "batch_size": 16, "examples": 400}


def text(row):
    return "".join(SYMBOLS[symbol] for symbol in row)


@pytest.mark.parametrize(("digits", "examples", "count"), [(1, 1000, 100), (2, 300, 300), (2, 9_999, 9_999), (5, 500, 500)])
def test_sums_are_right_and_all_different(digits, examples, count):
    arrays = sums(digits, examples, seed=1)
    questions = [text(row) for row in arrays["question"]]
    assert len(set(questions)) == len(questions) == count
    for question, answer in zip(questions, arrays["answer"], strict=True):
        first, second = map(int, re.fullmatch(r"(\d+)\+(\d+)=\.*", question).groups())
        assert max(first, second) < 10**digits
        assert re.fullmatch(rf"{first + second}\.+", text(answer)), "every answer ends with an end sign"


def test_the_spec_has_the_terms_that_the_paper_has():
    layer = count_layer(seq2seq_spec())
    assert (len(seq2seq_spec().paths), layer.num_terms, layer.views) == (22, 2058, 82)


def reference_logits(params, question, answer):
    """One example in float64, a symbol at a time."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    def cell(p, h, symbol):
        x = np.eye(len(SYMBOLS))[symbol]
        r = sigmoid(x @ p["ir"]["kernel"] + p["ir"]["bias"] + h @ p["hr"]["kernel"])
        z = sigmoid(x @ p["iz"]["kernel"] + p["iz"]["bias"] + h @ p["hz"]["kernel"])
        n = np.tanh(x @ p["in"]["kernel"] + p["in"]["bias"] + r * (h @ p["hn"]["kernel"] + p["hn"]["bias"]))
        return (1 - z) * n + z * h

    h, logits = np.zeros(len(params["out"]["kernel"])), []
    for symbol in question:
        if symbol != END:
            h = cell(params["encoder"], h, symbol)
    for symbol in [SYMBOLS.index("="), *answer[:-1]]:
        if symbol != END:
            h = cell(params["decoder"], h, symbol)
        logits.append(h @ params["out"]["kernel"] + params["out"]["bias"])
    return np.array(logits)


def test_the_model_and_its_loss_against_the_equations():
    task = make("addition", **SETTINGS)
    params, batch = general(task), {name: x[:5] for name, x in task.datasets.train.all().items()}
    _, apply = seq2seq(SETTINGS["hidden"])
    logits = apply(params, *(batch[name].astype(jnp.int32) for name in ("question", "answer")))
    expected = np.array([reference_logits(params, *pair) for pair in zip(*map(np.asarray, batch.values()), strict=True)])
    np.testing.assert_allclose(logits, expected, atol=2e-5)

    losses = []
    for row, answer in zip(expected, np.asarray(batch["answer"]), strict=True):
        for position in range(list(answer).index(END) + 1):
            scores = row[position]
            losses.append(np.log(np.sum(np.exp(scores))) - scores[answer[position]])
    assert float(task.loss(params, jax.random.key(0), batch)) == pytest.approx(np.mean(losses), rel=1e-5)


def test_success_is_what_it_writes_on_its_own():
    """Greedy decoding, a symbol at a time, on a model that has learned something."""
    task = make("addition", digits=1, hidden=12, batch_size=64, examples=100)
    _, apply = seq2seq(12)

    @jax.jit
    def train(params):
        def step(params, key):
            grads = jax.grad(task.loss)(params, key, task.datasets.train.batch(key))
            return jax.tree.map(lambda w, g: w - 0.5 * g, params, grads), None

        return jax.lax.scan(step, params, jax.random.split(jax.random.key(1), 1500))[0]

    params, batch = train(task.init(jax.random.key(0))), task.datasets.train.all()
    question, written_so_far = batch["question"].astype(jnp.int32), jnp.full_like(batch["answer"], END, jnp.int32)
    for position in range(batch["answer"].shape[1]):
        symbols = jnp.argmax(apply(params, question, written_so_far)[:, position], axis=-1)
        written_so_far = written_so_far.at[:, position].set(symbols)
    texts = [re.sub(r"\..*", "", text(row)) for row in np.asarray(written_so_far)]
    right = [text(row).rstrip(".") for row in np.asarray(batch["answer"])]
    success = np.mean([one == other for one, other in zip(texts, right, strict=True)])
    assert 0.1 < success < 1.0
    assert float(task.metrics(params, jax.random.key(0), batch)["success"]) == pytest.approx(success)


def test_text_as_symbols():
    np.testing.assert_array_equal(written(["7+5="], 6), [[7, 10, 5, 11, END, END]])


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"digits": 0}, "AdditionConfig.digits"), ({"digits": 12}, "at most 9"), ({"seed": -1}, "AdditionConfig.seed")],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        AdditionConfig(**settings)
