"""The two array operations that every term of an equivariant map is made of: pooled views, and writing along blocks.

"Universal Neural Functionals" (NeurIPS 2024), equation 5 and Algorithm 1: equal indices within a block, averages over blocks that
only the input has, broadcasts over blocks that only the output has.
"""

import itertools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from lopt.symmetry.basis import Blocks, Side


def take_blocks(x: jax.Array, blocks: Blocks) -> jax.Array:
    """The diagonal of `x` within each block.

    Args:
      x: [n_1, ..., n_k, C], one axis for each position in `blocks`.
      blocks: set partition of the positions `0..k-1`.

    Returns:
      [n_B1, n_B2, ..., C], one axis a block.
    """
    label = {position: index for index, block in enumerate(blocks) for position in block}
    channel = len(blocks)
    return jnp.einsum(x, [label[position] for position in range(x.ndim - 1)] + [channel], list(range(channel + 1)))


class PooledViews:
    """Computes views of the inputs, each pooled array once: the mean over two blocks comes from the mean over one of them."""

    def __init__(self, features: Mapping[str, jax.Array]):
        """Args: features: leaf path -> [one axis per factor, C]."""
        self._features = features
        self._pooled: dict[tuple[str, Blocks, frozenset[int]], jax.Array] = {}

    def _pool(self, path: str, blocks: Blocks, kept: frozenset[int]) -> jax.Array:
        """Averages over the blocks outside `kept`; the kept ones stay in the order of `blocks`."""
        found = self._pooled.get((path, blocks, kept))
        if found is None:
            dropped = [index for index in range(len(blocks)) if index not in kept]
            if not dropped:
                found = take_blocks(self._features[path], blocks)
            else:
                larger = kept | {dropped[-1]}
                found = jnp.mean(self._pool(path, blocks, larger), axis=sorted(larger).index(dropped[-1]))
            self._pooled[path, blocks, kept] = found
        return found

    def __call__(self, view: Side) -> jax.Array:
        """One view: [one axis per kept block, in the order of `view.kept`, C]."""
        pooled = self._pool(view.path, view.blocks, frozenset(view.kept))
        order = [sorted(view.kept).index(index) for index in view.kept]
        return jnp.transpose(pooled, [*order, len(order)])


def broadcast_kept(y: jax.Array, target: Side, block_sizes: Sequence[int]) -> jax.Array:
    """Broadcast an array over the kept blocks of a target to all its blocks: [n_B1, n_B2, ..., C]."""
    axes = sorted(range(len(target.kept)), key=lambda axis: target.kept[axis])
    y = jnp.transpose(y, [*axes, len(axes)])
    shape = [size if index in target.kept else 1 for index, size in enumerate(block_sizes)]
    return jnp.broadcast_to(jnp.reshape(y, [*shape, y.shape[-1]]), [*block_sizes, y.shape[-1]])


def write_blocks(y: jax.Array, blocks: Blocks) -> jax.Array:
    """Write along the diagonal of each block, zero elsewhere: the adjoint of `take_blocks`.

    Args:
      y: [n_B1, n_B2, ..., C], one axis a block.
      blocks: set partition of the output's axes `0..k-1`.

    Returns:
      [n_1, ..., n_k, C].
    """
    rank = sum(map(len, blocks))
    y = jnp.transpose(y, [*sorted(range(len(blocks)), key=lambda index: blocks[index][0]), len(blocks)])
    shape = [1] * rank
    for block, size in zip(sorted(blocks, key=min), y.shape, strict=False):
        shape[block[0]] = size
    full = list(shape)
    for block in blocks:
        for position in block[1:]:
            full[position] = shape[block[0]]
    y = jnp.broadcast_to(jnp.reshape(y, [*shape, y.shape[-1]]), [*full, y.shape[-1]])
    for block in blocks:
        for first, second in itertools.pairwise(block):
            index = [jax.lax.broadcasted_iota(jnp.int32, y.shape, position) for position in (first, second)]
            y = jnp.where(index[0] == index[1], y, jnp.zeros_like(y))
    return y
