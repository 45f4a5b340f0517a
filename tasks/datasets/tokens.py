"""Text on the device: tokens in their storage type, windows of them gathered inside the compiled loop."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from lopt.task import Batch, uniform_index

MAX_WINDOWS = 4096  # of `TokenSplit.all`: the logits of more would not fit where the tokens do


@functools.partial(jax.tree_util.register_dataclass, data_fields=("tokens",), meta_fields=("length", "batch_size", "max_windows"))
@dataclasses.dataclass(frozen=True)
class TokenSplit:
    """One text as token ids; an example is a window of `length + 1` tokens, inputs and targets one apart.

    Attributes:
      tokens: [N] ids as uint8, uint16 or int32, N > length.
      length: L, inputs of an example.
      batch_size: B, examples a batch.
      max_windows: windows that `all` gives at most.

    Example:
      >>> split = TokenSplit(jnp.arange(10, dtype=jnp.uint8), length=4, batch_size=2)
      >>> split.batch(jax.random.key(0))["tokens"].shape
      (2, 5)
      >>> split.all()["tokens"].tolist()
      [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8]]
    """

    tokens: jax.Array
    length: int
    batch_size: int
    max_windows: int = MAX_WINDOWS

    def _windows(self, starts: jax.Array) -> Batch:
        window = functools.partial(jax.lax.dynamic_slice_in_dim, self.tokens, slice_size=self.length + 1)
        return {"tokens": jax.vmap(window)(starts).astype(jnp.int32)}

    def batch(self, key: jax.Array) -> Batch:
        """B windows that start anywhere, drawn uniformly with replacement: {"tokens": int32 [B, length + 1]}."""
        return self._windows(uniform_index(key, self.batch_size, self.tokens.shape[0] - self.length))

    def all(self) -> Batch:
        """Windows side by side, each token but the first being a target once: {"tokens": int32 [M, length + 1]}.

        Of more than `max_windows`, that many are taken at even distances.
        """
        windows = (self.tokens.shape[0] - 1) // self.length
        chosen = min(windows, self.max_windows)
        starts = np.arange(chosen) * windows // chosen * self.length
        return self._windows(jnp.asarray(starts, jnp.int32))
