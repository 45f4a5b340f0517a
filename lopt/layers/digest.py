"""What a layer needs of the features of a large tensor, computed block after block: the features themselves are never in memory.

A pointwise function gives each of N weights C features. A linear equivariant layer reads them in three ways: it multiplies those of
every weight with a matrix of few columns, it averages over axes, and it takes diagonals. So a block of weights goes through the
function while its features stay in the cache of a CPU, and leaves behind only its products and its part of the sums.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lopt.layers.pooling import take_blocks
from lopt.symmetry.basis import Blocks

BLOCK = 16_384  # weights at a time

Pointwise = Callable[[Sequence[jax.Array]], jax.Array]  # arrays [c, n] to [C, n]
_Found = tuple[jax.Array, dict[int, jax.Array]]  # product, axis -> sums over it


class Needs(NamedTuple):
    """What a layer needs of a tensor's features.

    Attributes:
      shape: of the tensor, with one axis per factor.
      matrix: [C, K], what the features of every weight are multiplied with.
      means: axes over each of which an average is needed.
      diagonals: partitions of the axes whose diagonal is needed.
    """

    shape: tuple[int, ...]
    matrix: jax.Array
    means: tuple[int, ...] = ()
    diagonals: tuple[Blocks, ...] = ()


class Digest(NamedTuple):
    """What `Needs` asks for.

    Attributes:
      shape: of the leaf.
      product: [K, one axis per factor].
      means: axis -> [C, the other axes].
      diagonals: partition -> [C, one axis a block].
    """

    shape: tuple[int, ...]
    product: jax.Array
    means: Mapping[int, jax.Array]
    diagonals: Mapping[Blocks, jax.Array]


def is_large(shape: Sequence[int]) -> bool:
    """Whether a tensor is computed block after block: on CPU, from one block on."""
    return math.prod(shape) >= BLOCK and jax.default_backend() == "cpu"


def digest(pointwise: Pointwise, inputs: Sequence[jax.Array], needs: Needs) -> Digest:
    """What a layer needs of the features pointwise(inputs).

    Args:
      pointwise: maps arrays [c, n], c channels of n weights, to their C features [C, n].
      inputs: arrays [c, *leaf.shape].
      needs: of the layer.
    """
    leaf_shape, shape = inputs[0].shape[1:], needs.shape
    inputs = [jnp.reshape(x, (x.shape[0], *shape)) for x in inputs]
    axis = shape.index(max(shape))  # along its longest axis a tensor can be cut most finely
    size = _block_size(shape[axis], math.prod(shape) // shape[axis])
    blocks, rest = divmod(shape[axis], size)

    def features(arrays: Sequence[jax.Array]) -> jax.Array:
        y = pointwise([jnp.reshape(x, (x.shape[0], math.prod(x.shape[1:]))) for x in arrays])
        return jnp.reshape(y, (y.shape[0], *arrays[0].shape[1:]))

    def add(found: _Found, start: jax.Array | int, size: int) -> _Found:
        with jax.named_scope("trunk"):
            x = features([jax.lax.dynamic_slice_in_dim(x, start, size, axis=1 + axis) for x in inputs])
        with jax.named_scope("last_layer"):
            flat = jnp.reshape(x, (x.shape[0], math.prod(x.shape[1:])))
            product = jnp.reshape(needs.matrix.T @ flat, (needs.matrix.shape[1], *x.shape[1:]))
            means = {over: _add_part(total, jnp.sum(x, axis=1 + over), over, axis, start) for over, total in found[1].items()}
            return jax.lax.dynamic_update_slice_in_dim(found[0], product, start, axis=1 + axis), means

    channels, columns = needs.matrix.shape
    zeros = {over: jnp.zeros((channels, *shape[:over], *shape[over + 1 :]), jnp.float32) for over in needs.means}
    found: _Found = jnp.zeros((columns, *shape), jnp.float32), zeros
    found, _ = jax.lax.scan(lambda found, start: (add(found, start, size), None), found, size * jnp.arange(blocks))
    if rest:
        found = add(found, blocks * size, rest)
    means = {over: total / shape[over] for over, total in found[1].items()}
    diagonals = {partition: features([take_blocks(x, partition) for x in inputs]) for partition in needs.diagonals}
    return Digest(leaf_shape, found[0], means, diagonals)


def _block_size(length: int, width: int) -> int:
    """How many of an axis's indices make a block: no more than fit, and a divisor if there is one not much smaller."""
    largest = max(BLOCK // width, 1)
    return next((size for size in range(largest, largest // 2, -1) if length % size == 0), largest)


def _add_part(total: jax.Array, part: jax.Array, over: int, axis: int, start: jax.Array | int) -> jax.Array:
    """Sums over an axis, with those of a block of indices of `axis`, from `start` on, added or put into their place."""
    if over == axis:
        return total + part
    return jax.lax.dynamic_update_slice_in_dim(total, part, start, axis=1 + axis - (over < axis))
