"""Where batches come from: splits on the device, and streams that give each outer step its part."""

import abc
import dataclasses
import functools
from collections.abc import Mapping
from typing import Protocol

import jax
import jax.numpy as jnp

Batch = Mapping[str, jax.Array]  # name -> [B, ...]


def uniform_index(key: jax.Array, count: int, limit: int) -> jax.Array:
    """Integers drawn uniformly from 0 ... limit - 1.

    `floor(r limit / 2^32)` for random words r < 2^32: no two values differ in probability by more than 2^-32. `jax.random.randint`
    draws two words a value and takes remainders, which is several times the cost of gathering a batch.

    Args:
      key: typed key.
      count: values wanted, B.
      limit: from 1 to 2^31.

    Returns:
      int32 [B].
    """
    words = jax.random.bits(key, (count,), jnp.uint32)
    half, mask = jnp.uint32(16), jnp.uint32(0xFFFF)
    high, low = words >> half, words & mask
    limit_high, limit_low = jnp.uint32(limit >> 16), jnp.uint32(limit & 0xFFFF)
    # The upper half of a product of 64 bits, by halves of 16 bits: no sum exceeds 32 bits.
    upper = high * limit_low + ((low * limit_low) >> half)
    lower = low * limit_high + (upper & mask)
    return (high * limit_high + (upper >> half) + (lower >> half)).astype(jnp.int32)


class Split(Protocol):
    """Where batches of one split come from: a pytree of arrays on the device, so that batches are made inside the compiled loop."""

    @property
    def batch_size(self) -> int:
        """B, examples a batch."""
        ...

    def batch(self, key: jax.Array) -> Batch:
        """A random batch, name -> [B, ...]: the same for the same key on any device."""
        ...

    def all(self) -> Batch:
        """Every example as one batch, name -> [N, ...], for evaluation."""
        ...


@functools.partial(jax.tree_util.register_dataclass, data_fields=("arrays",), meta_fields=("batch_size",))
@dataclasses.dataclass(frozen=True)
class ArraySplit:
    """Examples as arrays on the device, of which batches are drawn inside the compiled loop.

    Attributes:
      arrays: name -> [N, ...], N examples, in the storage type (uint8 for images); the task's loss converts.
      batch_size: B, examples a batch; may exceed N, as examples are drawn with replacement.
    """

    arrays: Mapping[str, jax.Array]
    batch_size: int

    @property
    def num_examples(self) -> int:
        return next(iter(self.arrays.values())).shape[0]

    def batch(self, key: jax.Array) -> Batch:
        """B examples drawn uniformly with replacement: the same batch for the same key on any device."""
        index = uniform_index(key, self.batch_size, self.num_examples)
        return {name: jnp.take(array, index, axis=0) for name, array in self.arrays.items()}

    def all(self) -> Batch:
        """Every example as one batch, for evaluation."""
        return dict(self.arrays)

    def __repr__(self) -> str:
        """Without the numbers: a split stands in messages."""
        shapes = ", ".join(f"{name}: {array.dtype}{list(array.shape)}" for name, array in self.arrays.items())
        return f"ArraySplit({shapes}; batch_size={self.batch_size})"


@functools.partial(jax.tree_util.register_dataclass, data_fields=("train", "inner_valid", "outer_valid", "test"), meta_fields=())
@dataclasses.dataclass(frozen=True)
class Datasets:
    """Four disjoint splits of one data set, fixed by seed.

    It is a pytree, so that compiled functions are given the arrays as arguments: arrays that a function only refers to would be copied into
    the compiled program.

    Attributes:
      train: what the inner training sees.
      inner_valid: held out from the inner training, for meta-losses on unseen data.
      outer_valid: held out from meta-training.
      test: looked at by the final evaluation only.
    """

    train: Split
    inner_valid: Split
    outer_valid: Split
    test: Split

    def at(self, step: int) -> "Datasets":
        """The data of an outer step: these, whichever it is. A `DataStream` gives others at each."""
        return self


class DataStream(abc.ABC):
    """Data too large for the device: for each outer step the host gives the part that this step's inner steps draw from.

    The part is a function of the outer step alone (and of what the stream was built with, such as a seed), so that a resumed run
    sees the same data as an unbroken one with no position to save.
    """

    @abc.abstractmethod
    def at(self, step: int) -> Datasets:
        """The data of outer step `step`, from 0: of the same structure, shapes and dtypes at every step.

        Called once a step, from the thread that trains, while the device computes the step before; a stream that has more to do than
        to slice an array reads ahead in a thread of its own. Where it returns the object of the step before, nothing is transferred.
        """
