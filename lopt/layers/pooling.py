"""The two array operations on blocks of axes that every term of an equivariant map is made of: taking and writing their diagonals.

"Universal Neural Functionals" (NeurIPS 2024), equation 5 and Algorithm 1: equal indices within a block. Averages over blocks
that only the input has, and broadcasts over those that only the output has, are in `lopt.layers.apply_plan`.
"""

import itertools

import jax
import jax.numpy as jnp

from lopt.symmetry.basis import Blocks


def take_blocks(x: jax.Array, blocks: Blocks) -> jax.Array:
    """The diagonal of `x` within each block.

    Args:
      x: [..., n_1, ..., n_k], with a last axis for each position in `blocks`.
      blocks: set partition of the positions `0..k-1`.

    Returns:
      [..., n_B1, n_B2, ...], one axis a block.
    """
    label = {position: index for index, block in enumerate(blocks) for position in block}
    leading = list(range(len(blocks), len(blocks) + x.ndim - len(label)))
    return jnp.einsum(x, leading + [label[position] for position in range(len(label))], leading + list(range(len(blocks))))


def write_blocks(y: jax.Array, blocks: Blocks) -> jax.Array:
    """Write along the diagonal of each block, zero elsewhere: the adjoint of `take_blocks`.

    Args:
      y: [..., n_B1, n_B2, ...], with a last axis for each block.
      blocks: set partition of the output's axes `0..k-1`.

    Returns:
      [..., n_1, ..., n_k].
    """
    rank, lead = sum(map(len, blocks)), y.ndim - len(blocks)
    order = sorted(range(len(blocks)), key=lambda index: blocks[index][0])
    y = jnp.transpose(y, [*range(lead), *(lead + index for index in order)])
    shape = [*y.shape[:lead], *([1] * rank)]
    for block, size in zip(sorted(blocks, key=min), y.shape[lead:], strict=True):
        shape[lead + block[0]] = size
    full = list(shape)
    for block in blocks:
        for position in block[1:]:
            full[lead + position] = shape[lead + block[0]]
    y = jnp.broadcast_to(jnp.reshape(y, shape), full)
    for block in blocks:
        for first, second in itertools.pairwise(block):
            index = [jax.lax.broadcasted_iota(jnp.int32, y.shape, lead + position) for position in (first, second)]
            y = jnp.where(index[0] == index[1], y, jnp.zeros_like(y))
    return y
