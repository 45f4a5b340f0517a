"""Sums of written numbers, character by character: the models of the paper's Tiny RNN Zoo.

One GRU cell reads "15+20=", another writes "35" and an end sign, starting from what the first remembers (Zhou, Finn, Harrison,
"Universal Neural Functionals", NeurIPS 2024, section 5.1: numbers of up to 5 digits, 128 hidden units).

References:
  Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation", EMNLP 2014.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lopt.symmetry.spec import WeightSpec
from lopt.task import ArraySplit, Batch, Datasets, Task, TaskConfig
from tasks.datasets.splits import random_parts
from tasks.gru import cell_init, cell_spec, joined, recur
from tasks.modules import check_count

PyTree = Any

SYMBOLS = "0123456789+=."  # the last ends a sum, and fills it up
END = SYMBOLS.index(".")
HELD_OUT = 0.1  # of the examples, for each split but that for training


def _run_cell(cell: PyTree, state: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """States of a GRU over symbols [B, T] from a state [B, H]: the last one, and all, [T, B, H]; end signs leave it as it is."""
    rows = joined(cell, "i", "kernel") + joined(cell, "i", "bias")[None]  # a symbol's product is its row
    return recur(cell, state, jnp.take(rows, tokens.T, axis=0), (tokens.T == END)[..., None])


def seq2seq(hidden: int) -> tuple[Callable[[jax.Array], PyTree], Callable[[PyTree, jax.Array, jax.Array], jax.Array]]:
    """A GRU that reads and a GRU that writes, as a pair of pure functions.

    `r = sigmoid(W_ir^T x + b_ir + W_hr^T h)`, `z` alike, `n = tanh(W_in^T x + b_in + r * (W_hn^T h + b_hn))`,
    `h <- (1 - z) n + z h`, from h = 0; x has one 1. The writer starts from the reader's last h; `logits = V^T h + d`.

    Args:
      hidden: units H of each.

    Returns:
      init: `init(key) -> params`, 22 tensors: {"encoder": cell, "decoder": cell, "out": {"kernel", "bias"}}, a cell being
        {"ir", "iz", "in": {"kernel": [13, H], "bias": [H]}, "hr", "hz", "hn": {"kernel": [H, H]}, "hn": with a "bias"}.
      apply: `apply(params, question [B, T], answer [B, S]) -> logits [B, S, 13]`: of each symbol given those of the answer before it.

    Example:
      >>> init, apply = seq2seq(hidden=8)
      >>> apply(init(jax.random.key(0)), jnp.zeros((5, 6), jnp.int32), jnp.zeros((5, 4), jnp.int32)).shape
      (5, 4, 13)
    """
    start = SYMBOLS.index("=")

    def init(key: jax.Array) -> PyTree:
        encoder, decoder, out = jax.random.split(key, 3)
        kernel = jax.nn.initializers.lecun_normal()(out, (hidden, len(SYMBOLS)), jnp.float32)
        return {
            "encoder": cell_init(encoder, len(SYMBOLS), hidden),
            "decoder": cell_init(decoder, len(SYMBOLS), hidden),
            "out": {"kernel": kernel, "bias": jnp.zeros(len(SYMBOLS), jnp.float32)},
        }

    def apply(params: PyTree, question: jax.Array, answer: jax.Array) -> jax.Array:
        empty = jnp.zeros((question.shape[0], hidden), params["out"]["kernel"].dtype)
        remembered, _ = _run_cell(params["encoder"], empty, question)
        before = jnp.concatenate([jnp.full_like(answer[:, :1], start), answer[:, :-1]], axis=1)
        _, states = _run_cell(params["decoder"], remembered, before)
        return jnp.swapaxes(states @ params["out"]["kernel"] + params["out"]["bias"][None, None], 0, 1)

    return init, apply


def seq2seq_spec() -> WeightSpec:
    """The symmetry of `seq2seq`: one order of hidden units for both cells, as the writer starts from the reader's state."""
    cell = cell_spec("symbols!", "hidden")
    tree = {"encoder": cell, "decoder": cell, "out": {"kernel": "hidden symbols!", "bias": "symbols!"}}
    return WeightSpec.parse(tree)


def written(texts: list[str], length: int) -> np.ndarray:
    """Texts as symbols, uint8 [N, length], filled up with end signs."""
    return np.array([[SYMBOLS.index(c) for c in text.ljust(length, ".")] for text in texts], np.uint8)


def sums(digits: int, examples: int, seed: int) -> dict[str, np.ndarray]:
    """Different pairs of numbers below 10^digits, drawn uniformly, and their sums.

    Args:
      digits: of the larger numbers.
      examples: N; all pairs, if there are fewer.
      seed: of the choice.

    Returns:
      "question" [N, 2 digits + 2], "answer" [N, digits + 2], uint8 symbols.
    """
    limit = 10**digits
    words = np.random.PCG64(seed)
    if limit**2 <= examples:
        pairs = np.arange(limit**2)
    else:
        drawn = words.random_raw(2 * examples).astype(np.uint64) % np.uint64(limit**2)  # 2^64 is many times the 10^10 pairs
        pairs = drawn[np.sort(np.unique(drawn, return_index=True)[1])][:examples].astype(np.int64)
        if len(pairs) < examples:  # where the pairs wanted are a large part of all
            pairs = np.argsort(words.random_raw(limit**2), kind="stable")[:examples]
    first, second = np.divmod(pairs, limit)
    numbers = list(zip(first.tolist(), second.tolist(), strict=True))
    return {
        "question": written([f"{a}+{b}=" for a, b in numbers], 2 * digits + 2),
        "answer": written([str(a + b) for a, b in numbers], digits + 2),
    }


@dataclasses.dataclass(frozen=True)
class AdditionConfig(TaskConfig):
    """A pair of GRU cells that adds written numbers.

    Raises:
      ValueError: naming the field that is out of range.

    Example:
      >>> task = AdditionConfig(digits=1, hidden=8).make()
      >>> task.spec.sizes(task.param_shapes())["hidden"]
      8
    """

    digits: int = 5
    """Digits of the larger numbers (the paper: up to 5)."""
    hidden: int = 128
    """Hidden units of each cell (the paper: 128)."""
    batch_size: int = 128
    """B, sums a batch (the paper's zoo: 64, 128 or 256)."""
    examples: int = 100_000
    """Different sums, or as many as there are; a tenth each is held out for the three splits besides the one for training."""
    seed: int = 0
    """Of the choice of sums and of the splits."""

    def __post_init__(self) -> None:
        """Raise `ValueError` for a field that is out of range."""
        for field in ("digits", "hidden", "batch_size", "examples"):
            check_count(f"AdditionConfig.{field}", getattr(self, field))
        check_count("AdditionConfig.seed", self.seed, 0)
        if self.digits > 9:
            raise ValueError(f"AdditionConfig.digits must be at most 9, got {self.digits}: pairs are counted in 64 bits")

    def make(self) -> Task:
        """Draw the sums and build the task.

        Returns:
          A `Task` whose params are those of `seq2seq`; batches have "question" and "answer", uint8; the metrics, in [0, 1], are
          `success`, the part of the sums that are written without a mistake, and `accuracy`, that of the symbols which are right
          given those before.
        """
        arrays = sums(self.digits, self.examples, self.seed)
        parts = random_parts(len(arrays["question"]), (HELD_OUT,) * 3, self.seed)
        train, inner_valid, outer_valid, test = (
            ArraySplit({name: jnp.asarray(array[part]) for name, array in arrays.items()}, self.batch_size) for part in parts
        )
        init, apply = seq2seq(self.hidden)

        def predict(params: PyTree, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
            question, answer = batch["question"].astype(jnp.int32), batch["answer"].astype(jnp.int32)
            ended = jnp.cumsum((answer == END).astype(jnp.int32), axis=1)
            return (
                apply(params, question, answer).astype(jnp.float32),
                answer,
                ended <= 1,
            )  # the first end sign is part of the answer

        def loss(params: PyTree, key: jax.Array, batch: Batch) -> jax.Array:
            logits, answer, counted = predict(params, batch)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, answer)
            return jnp.sum(jnp.where(counted, losses, 0.0)) / jnp.sum(counted.astype(jnp.float32))

        def metrics(params: PyTree, key: jax.Array, batch: Batch) -> dict[str, jax.Array]:
            # Given the right symbols before, every symbol is right: exactly then is the answer right that it writes on its own.
            logits, answer, counted = predict(params, batch)
            right = jnp.argmax(logits, axis=-1) == answer
            whole = jnp.all(right | ~counted, axis=1)
            return {
                "success": jnp.mean(whole.astype(jnp.float32)),
                "accuracy": jnp.sum((right & counted).astype(jnp.float32)) / jnp.sum(counted.astype(jnp.float32)),
            }

        return Task(
            name=f"addition{self.digits}_gru_{self.hidden}",
            init=init,
            loss=loss,
            metrics=metrics,
            spec=seq2seq_spec(),
            datasets=Datasets(train, inner_valid, outer_valid, test),
            initial_loss=math.log(len(SYMBOLS)),
        )
