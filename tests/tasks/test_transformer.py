"""The Transformer task: what it computes, and which specs of it are wrong; test_all_tasks.py has what every task promises."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopt.symmetry.spec import WeightSpec
from tasks import paper_specs
from tasks.transformer import Sizes, TransformerConfig, transformer, transformer_spec
from tests.tasks.common import Mover, batch_of, general, make, shapes

SMALL = {"width": 8, "head_width": 6, "mlp": 12}


def test_the_model_of_the_paper():
    config = TransformerConfig()
    sizes = Sizes(256, config.blocks, config.width, config.heads, config.head_width, config.mlp)
    assert sizes == Sizes(256)
    params = jax.eval_shape(transformer(sizes)[0], jax.random.key(0))
    assert len(jax.tree.leaves(params)) == 37
    assert shapes(params["h1"]) == {
        "ln1": {"scale": (32,), "offset": (32,)},
        **{name: {"kernel": (32, 128), "bias": (128,)} for name in ("query", "key", "value", "mlp0")},
        **{name: {"kernel": (128, 32), "bias": (32,)} for name in ("attn_out", "mlp1")},
        "ln2": {"scale": (32,), "offset": (32,)},
    }
    assert shapes(params["embed"]) == (256, 32)
    assert shapes(params["out"]) == {"kernel": (32, 256), "bias": (256,)}
    assert (config.length, config.batch_size) == (8, 8)
    assert make("transformer", **SMALL).name == "python_docs8_transformer_2x8"


@pytest.mark.parametrize("blocks", [1, 2])
def test_fresh_params(blocks):
    init, _ = transformer(Sizes(200, blocks=blocks, width=24, heads=2, head_width=10, mlp=30), init_scale=0.5)
    params = jax.jit(init)(jax.random.key(0))
    assert float(np.std(params["embed"])) == pytest.approx(0.5 * 0.88, rel=0.05)  # cut off at two deviations
    assert float(np.std(params["out"]["kernel"])) == pytest.approx(0.5 * 24**-0.5, rel=0.05)
    block = params[f"h{blocks - 1}"]
    for name, fan_in in (("query", 24), ("key", 24), ("value", 24), ("attn_out", 20), ("mlp0", 24), ("mlp1", 30)):
        assert float(np.std(block[name]["kernel"])) == pytest.approx(0.5 * (2 / blocks / fan_in) ** 0.5, rel=0.1)
        assert not np.any(block[name]["bias"])
    for norm in (block["ln1"], block["ln2"], params["ln_f"]):
        assert np.all(norm["scale"] == 1)
        assert not np.any(norm["offset"])


def gelu(x):
    return 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))


def reference_logits(params, tokens, heads, activation):
    """In float64, one sequence, position and head at a time."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def norm(weights, x):
        return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * weights["scale"] + weights["offset"]

    def dense(weights, x):
        return x @ weights["kernel"] + weights["bias"]

    def attend(block, stream):
        normed = [norm(block["ln1"], x) for x in stream]
        query, key, value = (np.stack([dense(block[name], x) for x in normed]) for name in ("query", "key", "value"))
        width = query.shape[1] // heads
        mixed = np.zeros_like(value)
        for head in range(heads):
            own = slice(head * width, (head + 1) * width)
            for position in range(len(stream)):
                scores = np.exp(key[: position + 1, own] @ query[position, own] / width**0.5)
                mixed[position, own] = scores @ value[: position + 1, own] / scores.sum()
        return [x + dense(block["attn_out"], y) for x, y in zip(stream, mixed, strict=True)]

    logits = []
    for sequence in np.asarray(tokens):
        stream = [params["embed"][token] for token in sequence]
        for index in range(len([name for name in params if re.fullmatch(r"h\d+", name)])):
            block = params[f"h{index}"]
            stream = attend(block, stream)
            stream = [x + dense(block["mlp1"], activation(dense(block["mlp0"], norm(block["ln2"], x)))) for x in stream]
        logits.append([dense(params["out"], norm(params["ln_f"], x)) for x in stream])
    return np.array(logits)


@pytest.mark.parametrize(
    ("settings", "heads", "activation"),
    [(SMALL, 4, gelu), ({**SMALL, "blocks": 1, "heads": 2, "activation": "tanh", "length": 5, "batch_size": 3}, 2, np.tanh)],
    ids=["gelu", "others"],
)
def test_loss_and_metrics_equal_the_formula(settings, heads, activation):
    task = make("transformer", **settings)
    params, batch, key = general(task), batch_of(task), jax.random.key(0)
    computed, metrics = jax.jit(lambda *inputs: (task.loss(*inputs), task.metrics(*inputs)))(params, key, batch)
    tokens = np.asarray(batch["tokens"])
    logits, targets = reference_logits(params, tokens[:, :-1], heads, activation), tokens[:, 1:]
    chosen = np.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    loss = (np.log(np.exp(logits).sum(axis=-1)) - chosen).mean()
    assert computed.dtype == jnp.float32
    assert float(computed) == pytest.approx(loss, rel=1e-5)
    assert sorted(metrics) == ["accuracy", "bits_per_character"]
    assert float(metrics["bits_per_character"]) == pytest.approx(loss / math.log(2), rel=1e-5)
    assert float(metrics["accuracy"]) == pytest.approx((logits.argmax(-1) == targets).mean(), abs=1e-6)


def test_order_matters_though_no_position_is_given():
    """The causal mask alone tells positions apart: the past in another order predicts something else."""
    init, apply = transformer(Sizes(vocabulary=9, width=8, heads=2, head_width=4, mlp=12))
    params = jax.jit(init)(jax.random.key(0))
    first, second = jax.jit(apply)(params, jnp.array([[1, 2, 3, 4, 5, 6], [2, 1, 3, 4, 5, 6]]))
    assert np.max(np.abs(first[-1] - second[-1])) > 1e-3


def test_the_spec_in_full():
    norm = {"scale": "embed", "offset": "embed"}
    compared = {"kernel": "embed (heads0 qk0@heads0)", "bias": "(heads0 qk0@heads0)"}
    assert transformer_spec(1, heads=4) == WeightSpec.parse(
        {
            "embed": "vocabulary! embed",
            "h0": {
                "ln1": norm,
                "query": compared,
                "key": compared,
                "value": {"kernel": "embed (heads0 v0@heads0)", "bias": "(heads0 v0@heads0)"},
                "attn_out": {"kernel": "(heads0 v0@heads0) embed", "bias": "embed"},
                "ln2": norm,
                "mlp0": {"kernel": "embed hidden0", "bias": "hidden0"},
                "mlp1": {"kernel": "hidden0 embed", "bias": "embed"},
            },
            "ln_f": norm,
            "out": {"kernel": "embed vocabulary!", "bias": "vocabulary!"},
        },
        heads0=4,
    )


def test_the_views_of_the_paper_and_its_code_are_not_true_of_several_heads():
    """Nor is one permutation for the features of attention and the hidden units of the perceptron, where their numbers agree."""
    task = make("transformer", width=8, head_width=6, mlp=24)
    mover = Mover(task)
    assert mover.change(task.spec, seed=0) < 1e-5
    assert mover.change(paper_specs.TRANSFORMER.true, seed=0) > 1e-2
    assert mover.change(paper_specs.TRANSFORMER.released, seed=0) > 1e-2


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"dataset": "no_such_text"}, "no_such_text"),
        ({"tokenizer": "bpe"}, "bpe"),
        *(
            ({field: 0}, f"TransformerConfig.{field} must be an integer of at least 1, not 0")
            for field in ("length", "blocks", "width", "heads", "head_width", "mlp", "batch_size")
        ),
        ({"activation": "step"}, "TransformerConfig.activation must be one of relu, "),
        ({"init_scale": -1}, "TransformerConfig.init_scale must be a positive number, not -1"),
        ({"split_seed": -1}, "TransformerConfig.split_seed must be an integer of at least 0, not -1"),
    ],
)
def test_bad_settings_are_named(settings, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        TransformerConfig(**settings)
