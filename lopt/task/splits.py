"""Splits made of what people have at hand: arrays, and iterators of batches."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from lopt.symmetry.spec import PyTree, named_leaves
from lopt.task.base import ArraySplit, Batch, Datasets, Split


def split_arrays(
    arrays: Mapping[str, ArrayLike], batch_size: int, *, held_out: Sequence[float] = (0.1, 0.1, 0.1), seed: int = 0
) -> Datasets:
    """Examples in arrays as the four splits, at random but fixed by the seed.

    Args:
      arrays: name -> [N, ...], N examples in each; 64-bit numbers become 32-bit ones, unless JAX is told to keep them.
      batch_size: B, examples a batch.
      held_out: the parts of N that go to inner valid, outer valid and test; train takes the rest.
      seed: of the split, 0 or larger: the same on every platform.

    Raises:
      ValueError: if there are no arrays, they hold no numbers, their first axes differ, or a split would be empty.

    Example:
      >>> datasets = split_arrays({"x": np.arange(20.0)}, batch_size=4)
      >>> [split.num_examples for split in (datasets.train, datasets.inner_valid, datasets.outer_valid, datasets.test)]
      [14, 2, 2, 2]
    """
    host = {name: np.asarray(array) for name, array in arrays.items()}
    shapes = {name: array.shape for name, array in host.items()}
    if len({shape[:1] for shape in shapes.values()}) != 1 or () in shapes.values():
        raise ValueError(
            f"arrays of examples need a first axis of one length, that of the examples; these have the shapes {shapes}"
        )
    for name, array in host.items():
        if array.dtype.kind not in "biufc" and not jnp.issubdtype(array.dtype, jnp.number):
            raise ValueError(
                f"array '{name}' of examples is of dtype {array.dtype}; batches are numbers: give indices in place of text"
            )
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    N = next(iter(shapes.values()))[0]
    sizes = [math.floor(N * part + 0.5) for part in held_out]
    sizes.insert(0, N - sum(sizes))
    if len(sizes) != 4 or min(sizes) < 1:
        raise ValueError(
            f"held_out={tuple(held_out)} cuts {N} examples into splits of {sizes}; it must name three parts, and no split may be empty"
        )
    # numpy promises the raw words of this generator on every platform, as it does not promise `Generator.permutation`.
    order = np.argsort(np.random.PCG64(seed).random_raw(N), kind="stable")
    train, inner_valid, outer_valid, test = (
        ArraySplit({name: jnp.asarray(array[index]) for name, array in host.items()}, batch_size)
        for index in np.split(order, np.cumsum(sizes)[:-1])
    )
    return Datasets(train, inner_valid, outer_valid, test)


@functools.partial(jax.tree_util.register_dataclass, data_fields=("batches",), meta_fields=("count",))
@dataclasses.dataclass(frozen=True)
class BatchSplit:
    """Batches as someone else's pipeline made them, kept on the device; one of them is drawn at a time.

    Attributes:
      batches: pytree of [M, B, ...]; `{}` for a task without data.
      count: M.
    """

    batches: PyTree
    count: int

    @classmethod
    def read(cls, iterator: Iterator[PyTree], count: int) -> "BatchSplit":
        """The next `count` batches of an iterator; fewer if it ends before.

        Raises:
          ValueError: if it gives none, or batches of different structures or shapes, naming the array.
        """
        batches = [jax.tree.map(np.asarray, batch) for batch in itertools.islice(iterator, count)]
        if not batches:
            raise ValueError(f"the iterator was asked for {count} batches and gave none")
        first = _shapes(batches[0])
        for index, batch in enumerate(batches):
            differing = sorted(_shapes(batch).items() ^ first.items())
            if differing or jax.tree.structure(batch) != jax.tree.structure(batches[0]):
                raise ValueError(
                    f"batch {index} of the iterator is not of the shapes of the first: {differing or jax.tree.structure(batch)}; "
                    "batches must be equal in shape (drop a smaller last one)"
                )
        return cls(jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *batches), len(batches))

    @property
    def batch_size(self) -> int:
        leaves = jax.tree.leaves(self.batches)
        return leaves[0].shape[1] if leaves and leaves[0].ndim > 1 else 0

    def batch(self, key: jax.Array) -> PyTree:
        """One of the M batches, each as likely: the same for the same key on any device."""
        index = jax.random.randint(key, (), 0, self.count)
        return jax.tree.map(lambda leaf: leaf[index], self.batches)

    def all(self) -> PyTree:
        """The M batches as one, leaves [M B, ...]."""
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), self.batches)


@functools.partial(jax.tree_util.register_dataclass, data_fields=("split", "size"), meta_fields=())
@dataclasses.dataclass(frozen=True)
class RepeatedSplit:
    """A split whose batches are as large as ever but hold only the first S of their rows, over and over.

    Attributes:
      split: where batches come from.
      size: S, int32 [], which may be traced; a divisor of the batch size.
    """

    split: Split
    size: jax.Array

    @property
    def batch_size(self) -> int:
        return self.split.batch_size

    def batch(self, key: jax.Array) -> Batch:
        """A batch in which row b is row b mod S of the split's batch for that key."""
        rows = jnp.arange(self.batch_size, dtype=jnp.int32) % self.size
        return jax.tree.map(lambda array: jnp.take(array, rows, axis=0), self.split.batch(key))

    def all(self) -> Batch:
        """Every example once."""
        return self.split.all()


def _shapes(batch: PyTree) -> dict[str, tuple[int, ...]]:
    return {path: np.shape(leaf) for path, leaf in named_leaves(batch)}
