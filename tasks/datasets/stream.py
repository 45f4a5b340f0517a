"""Text too large for the device: every outer step trains on another part of it, read ahead by a thread.

The N train tokens hold K = floor(N / C) blocks of C tokens. Outer step n gets the block number order_e[n mod K], where e = n div K
counts the passes over the corpus and order_e is a permutation drawn from the seed and e; at each pass the first block starts at
another offset, so that no token is left out for good. The block is a function of (seed, n) alone: a resumed run sees what an
unbroken one would have seen.
"""

import functools
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from lopt.task import Datasets, DataStream
from tasks.datasets.tokens import TokenSplit

SPLITS = ("train", "inner_valid", "outer_valid", "test")
BLOCK = 1 << 20  # tokens, about as many as the inner steps of one outer step draw


class Tokens(Protocol):
    """Token ids on disk, read a part at a time."""

    def __len__(self) -> int: ...

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Ids `start` to `stop`; raises `DatasetError` if they cannot be read."""
        ...


def block_start(seed: int, step: int, tokens: int, block: int) -> int:
    """Where the block of an outer step starts.

    Args:
      seed: of the order, 0 or larger.
      step: n, from 0.
      tokens: N, those of the corpus.
      block: C, those of a block, at most N.

    Returns:
      A start in 0 ... N - C.
    """
    blocks = tokens // block
    epoch, index = divmod(step, blocks)
    # Raw words of PCG64, as in `splits`: the same on every platform and in every later version of numpy.
    words = np.random.PCG64([seed, epoch]).random_raw(blocks + 1)
    offset = int(words[-1] % (tokens - blocks * block + 1))
    return offset + int(np.argsort(words[:-1], kind="stable")[index]) * block


class StreamingText(DataStream):
    """A corpus on disk, a block of its train split for each outer step.

    Where blocks come from is a function of the seed and the step; the block of the next step is read by a thread while the device
    computes. Any step may be asked for at any time, such as the one that a run goes on from. The held-out splits do not change:
    they are the first C tokens of each.

    Args:
      splits: the tokens of "train", "inner_valid", "outer_valid" and "test", each longer than `length`.
      length: L, inputs of an example; see `TokenSplit`.
      batch_size: B, examples a batch.
      seed: of the order of the blocks.
      block: C, tokens of a block; at most so many are used of each held-out split.

    Raises:
      ValueError: if a block, or a split, is too short for one example.
      DatasetError: if the held-out splits cannot be read.
    """

    def __init__(self, splits: Mapping[str, Tokens], length: int, batch_size: int, seed: int = 0, block: int = BLOCK):
        shortest = min(block, *(len(splits[name]) for name in SPLITS))
        if shortest <= length:
            raise ValueError(f"a block or split of {shortest} tokens is too short for an example of {length} + 1")
        self._tokens, self._seed, self._block = splits["train"], seed, min(block, len(splits["train"]))
        self._split = functools.partial(TokenSplit, length=length, batch_size=batch_size)
        self._held_out = {name: self._split(_read(splits[name], 0, min(block, len(splits[name])))) for name in SPLITS[1:]}
        self._lock, self._closed = threading.Lock(), False
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lopt-stream")
        self._ahead: tuple[int, Future[jax.Array]] | None = None  # the start of a block, and the block
        self._last: tuple[int, Datasets] | None = None

    def _start(self, step: int) -> int:
        return block_start(self._seed, step, len(self._tokens), self._block)

    def at(self, step: int) -> Datasets:
        """The data of outer step `step`, from 0; that of the step after it is read meanwhile.

        Raises:
          DatasetError: if the block cannot be read, in the thread or here.
          RuntimeError: if the stream is closed.
        """
        if step < 0:
            raise ValueError(f"outer steps count from 0, not {step}")
        with self._lock:
            if self._closed:
                raise RuntimeError("the stream is closed: no step can be read any more")
            start = self._start(step)
            if self._last is None or self._last[0] != start:
                ahead, self._ahead = self._ahead, None  # taken first: an error is raised once, and then it is read again
                read = ahead[1] if ahead and ahead[0] == start else self._submit(start)
                self._last = start, Datasets(self._split(read.result()), **self._held_out)
            following = self._start(step + 1)
            if following != start and (self._ahead is None or self._ahead[0] != following):
                self._ahead = following, self._submit(following)
            return self._last[1]

    def _submit(self, start: int) -> Future[jax.Array]:
        return self._thread.submit(_read, self._tokens, start, start + self._block)

    def close(self) -> None:
        """End the thread, once it has read what it is reading. Without it the thread ends with the stream, or with the process."""
        with self._lock:
            self._closed = True
        self._thread.shutdown(cancel_futures=True)

    def __enter__(self) -> "StreamingText":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _read(tokens: Tokens, start: int, stop: int) -> jax.Array:
    """A part of a text, on the device."""
    return jnp.asarray(tokens.read(start, stop))
