"""What a layer needs of the features of a tensor, computed block after block: the features themselves are never in memory.

A pointwise network gives each of N weights C features. A linear equivariant layer reads them in three ways: it multiplies those of
every weight with a matrix of few columns, it averages over axes, and it takes diagonals. So a block of weights goes through the
network while its features stay in the cache of a CPU, and leaves behind only its products and its part of the sums.

Where the process has it, `kernels/digest.cc` does this in one pass (`lopt.layers.kernels.ffi`); without it, and for derivatives, XLA does.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lopt.layers.kernels import ffi as native
from lopt.layers.pointwise import Dense, Pointwise, pointwise, pointwise_bfloat16
from lopt.layers.pooling import take_blocks
from lopt.symmetry.basis import Blocks

BLOCK = 16_384  # weights at a time

_Input = tuple[tuple[jax.Array, ...], jax.Array]  # channels [c, *shape], matrix
_Found = tuple[jax.Array, dict[int, jax.Array]]  # product, axis -> means, or sums, over it


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


def is_digested(shape: Sequence[int]) -> bool:
    """Whether the features of a tensor are only digested: on CPU, from one block on; all, where the kernel is used."""
    size = math.prod(shape)
    return size > 0 and (native.kernel() is not None or (size >= BLOCK and jax.default_backend() == "cpu"))


def clip_and_normalize(x: jax.Array) -> jax.Array:
    """Clip to [-1, 1], then divide by the root mean square over all axes but the first, plus 1e-5.

    Args:
      x: [C, ...], one channel a row: channels of very different scales, gradients and long momenta, become comparable.
    """
    x = jnp.clip(x, -1.0, 1.0)
    return x / jnp.reshape(_root_mean_square(x) + 1e-5, (-1, *(1 for _ in x.shape[1:])))


def put_together(channels: Sequence[jax.Array]) -> jax.Array:
    """Channels [c, ...] as one array [C, ...], clipped to [-1, 1]: features but for their scale."""
    return jnp.clip(jnp.concatenate(channels), -1.0, 1.0)


def channel_scale(channels: Sequence[jax.Array]) -> jax.Array:
    """What clipped channels are multiplied with: 1 / (root mean square over the tensor + 1e-5), [C]; channels [c, ...]."""
    return jnp.concatenate([1 / (_root_mean_square(jnp.clip(x, -1.0, 1.0)) + 1e-5) for x in channels])


def _root_mean_square(x: jax.Array) -> jax.Array:
    """Over all axes but the first."""
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=tuple(range(1, x.ndim))))


def digest(
    layers: Sequence[Dense],
    channels: Mapping[str, Sequence[jax.Array]],
    needs: Mapping[str, Needs],
    apply_pointwise: Pointwise = pointwise,
) -> dict[str, Digest]:
    """What a layer needs of the features of tensors, which are pointwise layers applied to clipped and normalised channels.

    Args:
      layers: kernels [c_l, c_{l+1}] and biases of the pointwise layers.
      channels: leaf path -> arrays [c, *leaf.shape], together c_0.
      needs: leaf path -> those of the layer, of these leaves at least.
      apply_pointwise: what computes the pointwise layers.
    """
    network, paths = tuple(layers), tuple(channels)
    arrays = {path: tuple(jnp.reshape(x, (x.shape[0], *needs[path].shape)) for x in channels[path]) for path in paths}
    everything = [*(x for layer in network for x in layer), *(x for path in paths for x in (*arrays[path], needs[path].matrix))]
    bfloat16 = apply_pointwise is pointwise_bfloat16
    over, inputs = tuple(needs[path].means for path in paths), tuple((arrays[path], needs[path].matrix) for path in paths)
    if paths and (bfloat16 or apply_pointwise is pointwise) and native.is_computed(everything, bfloat16):
        with jax.named_scope("trunk"):
            found = _by_kernel(over, bfloat16, network, inputs)
    else:
        found = _by_blocks(apply_pointwise, over, network, inputs)

    def diagonals(path: str) -> dict[Blocks, jax.Array]:
        scaled = _scaled(network, arrays[path])
        return {
            partition: _features(apply_pointwise, scaled, [take_blocks(x, partition) for x in arrays[path]])
            for partition in needs[path].diagonals
        }

    return {
        path: Digest(channels[path][0].shape[1:], product, means, diagonals(path) if needs[path].diagonals else {})
        for path, (product, means) in zip(paths, found, strict=True)
    }


def _scaled(layers: Sequence[Dense], channels: Sequence[jax.Array]) -> list[Dense]:
    """Layers for channels that are clipped but not normalised."""
    (kernel, bias), *others = layers
    return [(kernel * channel_scale(channels)[:, None], bias), *others]


def _features(apply_pointwise: Pointwise, scaled: Sequence[Dense], channels: Sequence[jax.Array]) -> jax.Array:
    """Channels [c, ...] to features [C, ...]."""
    x = put_together(channels)
    y = apply_pointwise(scaled, jnp.reshape(x, (x.shape[0], math.prod(x.shape[1:]))))
    return jnp.reshape(y, (y.shape[0], *x.shape[1:]))


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _by_kernel(
    over: tuple[tuple[int, ...], ...], bfloat16: bool, layers: tuple[Dense, ...], inputs: tuple[_Input, ...]
) -> list[_Found]:
    """`_by_blocks` by the kernel, in one call: tensors that are too small for two threads share them."""
    tensors = [native.Tensor(channels, matrix, axes) for axes, (channels, matrix) in zip(over, inputs, strict=True)]
    found = native.digest_call(layers, tensors, bfloat16)
    shapes = [channels[0].shape[1:] for channels, _ in inputs]
    return [
        (product, {axis: total / shape[axis] for axis, total in zip(axes, sums, strict=True)})
        for axes, shape, (product, sums) in zip(over, shapes, found, strict=True)
    ]


@_by_kernel.defjvp
def _by_kernel_jvp(over: tuple[tuple[int, ...], ...], bfloat16: bool, primals: Any, tangents: Any) -> Any:
    return jax.jvp(partial(_by_blocks, pointwise_bfloat16 if bfloat16 else pointwise, over), primals, tangents)


def _by_blocks(
    apply_pointwise: Pointwise, over: tuple[tuple[int, ...], ...], layers: tuple[Dense, ...], inputs: tuple[_Input, ...]
) -> list[_Found]:
    """Products and means of tensors, by XLA.

    Args:
      apply_pointwise: what computes the pointwise layers.
      over: of each tensor, axes over each of which there is to be a mean.
      layers: the pointwise layers.
      inputs: of each tensor.
    """
    return [_one_by_blocks(apply_pointwise, axes, layers, *each) for axes, each in zip(over, inputs, strict=True)]


def _one_by_blocks(
    apply_pointwise: Pointwise,
    over: tuple[int, ...],
    layers: tuple[Dense, ...],
    channels: tuple[jax.Array, ...],
    matrix: jax.Array,
) -> tuple[jax.Array, dict[int, jax.Array]]:
    """Products and means of a tensor.

    Args:
      apply_pointwise: what computes the pointwise layers.
      over: axes over each of which there is to be a mean.
      layers: the pointwise layers.
      channels: arrays [c, *shape].
      matrix: [C, K].

    Returns:
      [K, *shape], and axis -> [C, the other axes].
    """
    shape, scaled = channels[0].shape[1:], _scaled(layers, channels)
    axis = shape.index(max(shape)) if shape else 0  # along its longest axis a tensor can be cut most finely

    def add(found: _Found, start: jax.Array | int, size: int | None) -> _Found:
        cut = channels if size is None else [jax.lax.dynamic_slice_in_dim(x, start, size, axis=1 + axis) for x in channels]
        with jax.named_scope("trunk"):
            x = _features(apply_pointwise, scaled, cut)
        with jax.named_scope("last_layer"):
            flat = jnp.reshape(x, (x.shape[0], math.prod(x.shape[1:])))
            product = jnp.reshape(matrix.T @ flat, (matrix.shape[1], *x.shape[1:]))
            sums = {i: jnp.sum(x, axis=1 + i) for i in over}
            if size is None:
                return product, sums
            sums = {i: _add_part(total, sums[i], i, axis, start) for i, total in found[1].items()}
            return jax.lax.dynamic_update_slice_in_dim(found[0], product, start, axis=1 + axis), sums

    count, (features, columns) = math.prod(shape), matrix.shape
    found: _Found = jnp.zeros((columns, *shape), jnp.float32), {}
    if count <= BLOCK:
        found = add(found, 0, None)
    else:
        size = _block_size(shape[axis], count // shape[axis])
        blocks, rest = divmod(shape[axis], size)
        found = found[0], {i: jnp.zeros((features, *shape[:i], *shape[i + 1 :]), jnp.float32) for i in over}
        found, _ = jax.lax.scan(lambda found, start: (add(found, start, size), None), found, size * jnp.arange(blocks))
        if rest:
            found = add(found, blocks * size, rest)
    return found[0], {i: total / shape[i] for i, total in found[1].items()}


def _block_size(length: int, width: int) -> int:
    """How many of an axis's indices make a block: no more than fit, and a divisor if there is one not much smaller."""
    largest = max(BLOCK // width, 1)
    return next((size for size in range(largest, largest // 2, -1) if length % size == 0), largest)


def _add_part(total: jax.Array, part: jax.Array, over: int, axis: int, start: jax.Array | int) -> jax.Array:
    """Sums over an axis, with those of a block of indices of `axis`, from `start` on, added or put into their place."""
    if over == axis:
        return total + part
    return jax.lax.dynamic_update_slice_in_dim(total, part, start, axis=1 + axis - (over < axis))
