"""What a layer needs of the features of a tensor, computed block after block: the features themselves are never in memory.

A pointwise network gives each of N weights C features. A linear equivariant layer reads them in three ways: it multiplies those of
every weight with a matrix of few columns, it averages over axes, and it takes diagonals. So a block of weights goes through the
network while its features stay in the cache of a CPU, and leaves behind only its products and its part of the sums.

Where the process has it, `kernels/digest.cc` does this in one pass (`lopt.layers.kernels.ffi`); without it, and for derivatives, XLA does.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from lopt.layers.kernels import ffi as native
from lopt.layers.pointwise import Dense, Pointwise, pointwise, pointwise_bfloat16
from lopt.layers.pooling import take_blocks
from lopt.symmetry.basis import Blocks

BLOCK = 16_384  # weights at a time

_Found = tuple[jax.Array, dict[int, jax.Array]]  # product, axis -> means, or sums, over it


class Channel(NamedTuple):
    """How one channel of a tensor becomes a feature: clip(x) / (sqrt(mean clip(x)^2 + inside) + outside).

    Attributes:
      name: for people.
      clip: largest absolute value; `inf`: not clipped.
      inside: added to the mean square.
      outside: added to its root.
      over: what the mean is over: all of the tensor, its last two axes (`matrix`), or `nothing`: then x is only clipped.
    """

    name: str = ""
    clip: float = math.inf
    inside: float = 0.0
    outside: float = 0.0
    over: Literal["tensor", "matrix", "nothing"] = "tensor"


PAPER_CHANNEL = Channel(clip=1.0, outside=1e-5)


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


class _Input(NamedTuple):
    """Arrays of a tensor: its channels, each with one axis per factor; the matrix; the bias of the first layer."""

    channels: tuple[jax.Array, ...]
    matrix: jax.Array
    bias: jax.Array


class _Static(NamedTuple):
    """What is known of a tensor when tracing: the axes over each of which a mean is needed, and what its channels declare."""

    over: tuple[int, ...]
    declared: tuple[Channel, ...]


def is_digested(shape: Sequence[int]) -> bool:
    """Whether the features of a tensor are only digested: on CPU, from one block on; all, where the kernel is used."""
    size = math.prod(shape)
    return size > 0 and (native.kernel() is not None or (size >= BLOCK and jax.default_backend() == "cpu"))


def clip_and_normalize(x: jax.Array, declared: Sequence[Channel] = ()) -> jax.Array:
    """Channels as features: each clipped and divided by a root mean square, as it declares.

    Args:
      x: [C, ...], one channel a row: channels of very different scales, gradients and long momenta, become comparable.
      declared: of each row; none: clipped to [-1, 1] and divided by the root mean square over the tensor plus 1e-5.
    """
    declared = declared or (PAPER_CHANNEL,) * x.shape[0]
    x = clip_channels(x, declared)
    plain = [channel.over == "nothing" for channel in declared]
    if all(plain):
        return x
    size = _root_mean_square(x, declared) + _column(x, [channel.outside for channel in declared])
    return x / (jnp.where(_column(x, plain) > 0, jnp.float32(1), size) if any(plain) else size)


def clip_channels(x: jax.Array, declared: Sequence[Channel] = ()) -> jax.Array:
    """Channels [C, ...], clipped as they declare (none: to [-1, 1]): features but for their scale."""
    clips = [channel.clip for channel in declared] or [PAPER_CHANNEL.clip] * x.shape[0]
    if all(map(math.isinf, clips)):
        return x
    if len(set(clips)) == 1:
        return jnp.clip(x, -clips[0], clips[0])
    bound = jnp.broadcast_to(_column(x, clips), x.shape)
    return jnp.clip(x, -bound, bound)


def channel_scale(x: jax.Array, declared: Sequence[Channel] = ()) -> jax.Array:
    """What clipped channels [C, ...] are multiplied with, [C]: where none has a scale of its own for each of several matrices."""
    declared = declared or (PAPER_CHANNEL,) * x.shape[0]
    size = jnp.reshape(_root_mean_square(clip_channels(x, declared), declared), -1) + _row([c.outside for c in declared])
    return jnp.where(_row([channel.over == "nothing" for channel in declared]) > 0, jnp.float32(1), 1 / size)


def is_by_matrix(shape: Sequence[int], declared: Sequence[Channel]) -> bool:
    """Whether each of a tensor's matrices has scales of its own."""
    return math.prod(shape[:-2]) > 1 and any(channel.over == "matrix" for channel in declared)


def _root_mean_square(x: jax.Array, declared: Sequence[Channel]) -> jax.Array:
    """Over all axes but the first, or over the last two, as declared; axes that are averaged over have size 1."""
    mean = jnp.mean(jnp.square(x), axis=tuple(range(1, x.ndim)), keepdims=True)
    if is_by_matrix(x.shape[1:], declared):
        chosen = _column(x, [channel.over == "matrix" for channel in declared]) > 0
        by_matrix = jnp.mean(jnp.square(x), axis=(-2, -1), keepdims=True)
        chosen, mean = (jnp.broadcast_to(y, by_matrix.shape) for y in (chosen, mean))
        mean = jnp.where(chosen, by_matrix, mean)
    inside = [channel.inside for channel in declared]
    return jnp.sqrt(mean + jnp.broadcast_to(_column(x, inside), mean.shape) if any(inside) else mean)


def _row(values: Sequence[float]) -> jax.Array:
    return jnp.asarray(values, jnp.float32)


def _column(x: jax.Array, values: Sequence[float]) -> jax.Array:
    """One value for each of the first axis, [C, 1, ...]."""
    return jnp.reshape(_row(values), (-1, *(1 for _ in x.shape[1:])))


def scales(declared: Sequence[Channel]) -> list[tuple[float, float, float, float]]:
    """Four numbers a channel, as the kernel takes them: clip, what is added to mean square and root, whether it is divided."""
    return [(c.clip, c.inside, c.outside, float(c.over != "nothing")) for c in declared]


def digest(
    layers: Sequence[Dense],
    channels: Mapping[str, Sequence[jax.Array]],
    needs: Mapping[str, Needs],
    apply_pointwise: Pointwise = pointwise,
    *,
    declared: Sequence[Channel] = (),
    biases: Mapping[str, jax.Array] = MappingProxyType({}),
) -> dict[str, Digest]:
    """What a layer needs of the features of tensors, which are pointwise layers applied to clipped and normalised channels.

    Args:
      layers: kernels [c_l, c_{l+1}] and biases of the pointwise layers.
      channels: leaf path -> c_0 arrays [*leaf.shape], one a channel.
      needs: leaf path -> those of the layer, of these leaves at least.
      apply_pointwise: what computes the pointwise layers.
      declared: how each channel is clipped and normalised; none: to [-1, 1], and by the root mean square plus 1e-5.
      biases: leaf path -> bias of the first layer, for the leaves that have one of their own.
    """
    network, bfloat16 = tuple(layers), apply_pointwise is pointwise_bfloat16
    statics, inputs = [], []
    for path, arrays in channels.items():
        own = tuple(declared) or (PAPER_CHANNEL,) * len(arrays)
        if is_by_matrix(arrays[0].shape, own):  # what follows has one scale a channel
            arrays, own = tuple(clip_and_normalize(jnp.stack(arrays), own)), (Channel(over="nothing"),) * len(own)
        shaped = tuple(jnp.reshape(x, needs[path].shape) for x in arrays)
        statics.append(_Static(needs[path].means, own))
        inputs.append(_Input(shaped, needs[path].matrix, biases.get(path, network[0][1])))
    everything = [*(x for layer in network for x in layer), *(x for each in inputs for x in (*each.channels, each.matrix))]
    if inputs and (bfloat16 or apply_pointwise is pointwise) and native.is_computed(everything, bfloat16):
        with jax.named_scope("trunk"):
            found = _by_kernel(tuple(statics), bfloat16, network, tuple(inputs))
    else:
        found = _by_blocks(apply_pointwise, tuple(statics), network, tuple(inputs))

    def diagonals(static: _Static, each: _Input, partitions: Sequence[Blocks]) -> dict[Blocks, jax.Array]:
        scaled = _scaled(network, static, each)
        return {
            partition: _features(apply_pointwise, static, scaled, [take_blocks(x, partition) for x in each.channels])
            for partition in partitions
        }

    return {
        path: Digest(channels[path][0].shape, product, means, diagonals(static, each, d) if (d := needs[path].diagonals) else {})
        for path, static, each, (product, means) in zip(channels, statics, inputs, found, strict=True)
    }


def _scaled(layers: Sequence[Dense], static: _Static, each: _Input) -> list[Dense]:
    """Layers for channels that are clipped but not normalised; the first with the tensor's own bias."""
    (kernel, _), *others = layers
    if any(channel.over != "nothing" for channel in static.declared):
        kernel = kernel * channel_scale(jnp.stack(each.channels), static.declared)[:, None]
    return [(kernel, each.bias), *others]


def _features(apply_pointwise: Pointwise, static: _Static, scaled: Sequence[Dense], channels: Sequence[jax.Array]) -> jax.Array:
    """Channels [...] to features [C, ...]."""
    x = clip_channels(jnp.stack(channels), static.declared)
    y = apply_pointwise(scaled, jnp.reshape(x, (x.shape[0], math.prod(x.shape[1:]))))
    return jnp.reshape(y, (y.shape[0], *x.shape[1:]))


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _by_kernel(
    statics: tuple[_Static, ...], bfloat16: bool, layers: tuple[Dense, ...], inputs: tuple[_Input, ...]
) -> list[_Found]:
    """`_by_blocks` by the kernel, in one call: tensors that are too small for two threads share them."""
    tensors = [
        native.Tensor(
            each.channels,
            each.matrix,
            each.bias,
            static.over,
            scales(static.declared),
        )
        for static, each in zip(statics, inputs, strict=True)
    ]
    found = native.digest_call(layers, tensors, bfloat16)
    return [
        (product, {axis: total / each.channels[0].shape[axis] for axis, total in zip(static.over, sums, strict=True)})
        for static, each, (product, sums) in zip(statics, inputs, found, strict=True)
    ]


@_by_kernel.defjvp
def _by_kernel_jvp(statics: tuple[_Static, ...], bfloat16: bool, primals: Any, tangents: Any) -> Any:
    return jax.jvp(partial(_by_blocks, pointwise_bfloat16 if bfloat16 else pointwise, statics), primals, tangents)


def _by_blocks(
    apply_pointwise: Pointwise, statics: tuple[_Static, ...], layers: tuple[Dense, ...], inputs: tuple[_Input, ...]
) -> list[_Found]:
    """Products and means of tensors, by XLA.

    Args:
      apply_pointwise: what computes the pointwise layers.
      statics: of each tensor.
      layers: the pointwise layers.
      inputs: of each tensor.
    """
    return [_one_by_blocks(apply_pointwise, static, layers, each) for static, each in zip(statics, inputs, strict=True)]


def _one_by_blocks(
    apply_pointwise: Pointwise, static: _Static, layers: tuple[Dense, ...], each: _Input
) -> tuple[jax.Array, dict[int, jax.Array]]:
    """Products and means of a tensor: [K, *shape], and axis -> [C, the other axes]."""
    channels, matrix, over = each.channels, each.matrix, static.over
    shape, scaled = channels[0].shape, _scaled(layers, static, each)
    axis = shape.index(max(shape)) if shape else 0  # along its longest axis a tensor can be cut most finely

    def add(found: _Found, start: jax.Array | int, size: int | None) -> _Found:
        cut = channels if size is None else [jax.lax.dynamic_slice_in_dim(x, start, size, axis=axis) for x in channels]
        with jax.named_scope("trunk"):
            x = _features(apply_pointwise, static, scaled, cut)
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
