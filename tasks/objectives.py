"""The losses and metrics of the tasks: classes of images, and the next token of a text."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lopt.task import Batch

PyTree = Any
Logits = Callable[[PyTree, Batch], jax.Array]
Loss = Callable[[PyTree, jax.Array, Batch], jax.Array]
Metrics = Callable[[PyTree, jax.Array, Batch], dict[str, jax.Array]]

# What the bits of a text are counted by. Of a byte they are said to be per character, as everywhere for corpora in English.
_BITS: Mapping[str, str] = MappingProxyType({"bytes": "bits_per_character", "chars": "bits_per_character"})


def _accuracy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    return jnp.mean((jnp.argmax(logits, axis=-1) == targets).astype(jnp.float32))


def _cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, targets))


def classification(logits: Logits) -> tuple[Loss, Metrics]:
    """Mean cross entropy of the classes, in nats.

    Args:
      logits: `logits(params, batch) -> [B, classes]` float32; batches have "label", int32 [B].

    Returns:
      loss: `loss(params, key, batch)`, float32; the key is not used.
      metrics: {"accuracy": the part of the batch whose largest logit is that of its label, in [0, 1]}.
    """

    def loss(params: PyTree, key: jax.Array, batch: Batch) -> jax.Array:
        return _cross_entropy(logits(params, batch), batch["label"])

    def metrics(params: PyTree, key: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        return {"accuracy": _accuracy(logits(params, batch), batch["label"])}

    return loss, metrics


def next_token(
    apply: Callable[[PyTree, jax.Array], jax.Array], tokenizer: str, bytes_per_token: float = 1.0
) -> tuple[Loss, Metrics]:
    """Mean cross entropy of each token given those before it, in nats: `-mean_{b,t} ln p(x_{b,t+1} | x_{b,0..t})`.

    Args:
      apply: `apply(params, tokens [B, T]) -> logits [B, T, V]`, where those at t depend on the tokens up to t.
      tokenizer: what the tokens are: "bytes", "chars" or others such as "bpe:1024".
      bytes_per_token: mean length of a token, for tokens that are neither bytes nor characters.

    Returns:
      loss: `loss(params, key, batch)`, float32, of batches with "tokens", int32 [B, T + 1]; the key is not used.
      metrics: "accuracy", in [0, 1], and the loss in bits: "bits_per_character", loss / ln 2; of other tokens "bits_per_byte",
        loss / ln 2 / bytes_per_token.
    """
    name = _BITS.get(tokenizer, "bits_per_byte")
    nats = math.log(2) * (bytes_per_token if name == "bits_per_byte" else 1.0)

    def predict(params: PyTree, batch: Batch) -> tuple[jax.Array, jax.Array]:
        tokens = batch["tokens"]
        return apply(params, tokens[:, :-1]).astype(jnp.float32), tokens[:, 1:]

    def loss(params: PyTree, key: jax.Array, batch: Batch) -> jax.Array:
        return _cross_entropy(*predict(params, batch))

    def metrics(params: PyTree, key: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        logits, targets = predict(params, batch)
        return {name: _cross_entropy(logits, targets) / nats, "accuracy": _accuracy(logits, targets)}

    return loss, metrics
