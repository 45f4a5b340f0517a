"""Which example belongs to which split: fixed by the examples and a seed, and by nothing else."""

import math
from collections.abc import Sequence

import numpy as np

from tasks.datasets.errors import DatasetError


def canonical_order(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The indices that sort examples by their bytes, the label last.

    Sources hold one data set in different orders (tfds shuffles when it prepares); sorted, they all give the same splits.
    Examples that tie are equal in every byte, so their order does not matter.

    Args:
      images: uint8 [N, H, W] or [N, H, W, C].
      labels: integers [N], from 0 to 2**32 - 1.

    Returns:
      int64 [N].
    """
    last = labels.astype(">u4").view(np.uint8).reshape(-1, 4)
    rows = np.concatenate([images.reshape(len(images), math.prod(images.shape[1:])), last], axis=1)
    return np.argsort(np.ascontiguousarray(rows).view(f"V{rows.shape[1]}")[:, 0], kind="stable")


def random_parts(count: int, fractions: Sequence[float], seed: int) -> tuple[np.ndarray, ...]:
    """Cut 0 ... count - 1 into disjoint parts, at random.

    The permutation sorts raw words of a PCG64 bit generator: numpy promises that stream on every platform and in every later
    version, which it does not promise for `Generator.permutation`.

    Args:
      count: N.
      fractions: the part of N that goes to each split after the first; the first takes the rest.
      seed: of the permutation, 0 or larger.

    Returns:
      One int64 array a split, each index in exactly one: `len(fractions) + 1` arrays.

    Raises:
      DatasetError: if a split would be empty.
    """
    sizes = [math.floor(count * fraction + 0.5) for fraction in fractions]
    sizes.insert(0, count - sum(sizes))
    if min(sizes) < 1:
        raise DatasetError(f"{count} examples are too few for splits of {sizes} examples; each needs one at least")
    shuffled = np.argsort(np.random.PCG64(seed).random_raw(count), kind="stable")
    return tuple(np.split(shuffled, np.cumsum(sizes)[:-1]))
