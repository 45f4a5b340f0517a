"""One step of what is kept of gradients, and what a layer needs of the features that come of it, in one pass over the weights.

Features are made of accumulators, which move on by a step, and of channels, which are functions of weight, gradient and accumulators.
Thirty channels of five accumulators are six times what must be read: the kernel (`kernels/step.cc`) computes them a tile at a time, and
takes them through the pointwise network at once. The definition is that of the features, followed by `lopt.layers.digest`: so XLA
computes derivatives, and all that the kernel does not.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from lopt.layers.digest import Channel, Digest, Needs, digest, is_by_matrix, scales
from lopt.layers.kernels import ffi as native
from lopt.layers.kernels.program import Program, factored_axes
from lopt.layers.pointwise import Dense, Pointwise, pointwise, pointwise_bfloat16

Accumulators = Mapping[str, Mapping[str, jax.Array]]  # by name and part
_PARTS = ("m", "v", "row", "column")  # in the order of the kernel


class Raw(NamedTuple):
    """What the channels of a leaf are computed of.

    Attributes:
      value: w, float32.
      gradient: g, float32.
      kept: accumulators before this gradient, float32.
    """

    value: jax.Array
    gradient: jax.Array
    kept: Accumulators


OneLeaf = Callable[[Raw, jax.Array], tuple[tuple[jax.Array, ...], Accumulators]]  # channels, and accumulators after this gradient


class Computed(NamedTuple):
    """How channels come about: hashable.

    Attributes:
      declared: their clips and scales.
      program: in the words of the kernel.
      one_leaf: their definition; `one_leaf(raw, count)`.
    """

    declared: tuple[Channel, ...]
    program: Program
    one_leaf: OneLeaf


class _Static(NamedTuple):
    """What is known of a tensor when tracing: path, shape with one axis per factor, axes over each of which a mean is needed."""

    path: str
    shape: tuple[int, ...]
    means: tuple[int, ...]


class _Input(NamedTuple):
    """Arrays of a tensor; the bias is that of its first layer."""

    raw: Raw
    matrix: jax.Array
    bias: jax.Array


_Found = tuple[jax.Array, dict[int, jax.Array], dict[str, dict[str, jax.Array]]]  # product, axis -> means, accumulators


def is_stepped(
    shape: Sequence[int], needs: Needs | None, declared: Sequence[Channel], apply_pointwise: Pointwise = pointwise
) -> bool:
    """Whether the kernel serves a tensor: not empty, no diagonal is needed, and matrices with scales of their own lie apart."""
    found = native.kernel()
    if found is None or needs is None or needs.diagonals or 0 in shape:
        return False
    if is_by_matrix(shape, declared) and not _lie_apart(shape, needs.shape, declared):
        return False
    return apply_pointwise is pointwise or (apply_pointwise is pointwise_bfloat16 and found.bfloat16)


def _lie_apart(shape: Sequence[int], factors: Sequence[int], declared: Sequence[Channel]) -> bool:
    """Whether the kernel goes through a tensor matrix by matrix: what it factors and what it cuts are axes of the matrices."""
    longest = max(range(len(factors)), key=factors.__getitem__)
    inside = math.prod(factors[longest:]) <= math.prod(shape[-2:])
    within = set(factored_axes(shape) or ()) == {len(shape) - 2, len(shape) - 1}
    return inside and within and all(channel.over != "tensor" for channel in declared)


def step(
    layers: Sequence[Dense],
    count: jax.Array,
    leaves: Mapping[str, Raw],
    needs: Mapping[str, Needs],
    computed: Computed,
    apply_pointwise: Pointwise = pointwise,
    *,
    biases: Mapping[str, jax.Array] = MappingProxyType({}),
) -> dict[str, tuple[Digest, Accumulators]]:
    """What a layer needs of the features of leaves, and their accumulators a step later; for leaves that `is_stepped` allows.

    Args:
      layers: kernels [c_l, c_{l+1}] and biases of the pointwise layers.
      count: steps done, int32 [].
      leaves: leaf path -> weights, gradients, accumulators.
      needs: leaf path -> those of the layer, of these leaves at least.
      computed: how their channels come about.
      apply_pointwise: what computes the pointwise layers.
      biases: leaf path -> bias of the first layer, for the leaves that have one of their own.
    """
    if not leaves:
        return {}
    network = tuple(layers)
    statics = tuple(_Static(path, needs[path].shape, needs[path].means) for path in leaves)
    inputs = tuple(_Input(raw, needs[path].matrix, biases.get(path, network[0][1])) for path, raw in leaves.items())
    found = _by_kernel(computed, statics, apply_pointwise, network, count, inputs)
    return {
        path: (Digest(raw.value.shape, product, means, {}), kept)
        for (path, raw), (product, means, kept) in zip(leaves.items(), found, strict=True)
    }


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _by_kernel(
    computed: Computed,
    statics: tuple[_Static, ...],
    apply_pointwise: Pointwise,
    layers: tuple[Dense, ...],
    count: jax.Array,
    inputs: tuple[_Input, ...],
) -> list[_Found]:
    """`_by_xla` by the kernel, in one call: tensors that are too small for two threads share them."""
    names = [name for name, _ in computed.program.kept]
    parts = [{name: [part for part in _PARTS if part in each.raw.kept[name]] for name in names} for each in inputs]
    tensors = [
        native.Raw(
            static.shape,
            each.raw.value,
            each.raw.gradient,
            [[each.raw.kept[name][part] for part in own[name]] for name in names],
            factored_axes(each.raw.value.shape),
            math.prod(each.raw.value.shape[:-2]) if is_by_matrix(each.raw.value.shape, computed.declared) else 1,
            each.matrix,
            each.bias,
            static.means,
        )
        for static, each, own in zip(statics, inputs, parts, strict=True)
    ]
    with jax.named_scope("trunk"):
        found = native.step_call(
            layers, count, tensors, computed.program, scales(computed.declared), apply_pointwise is pointwise_bfloat16
        )
    return [
        (
            product,
            {axis: total / static.shape[axis] for axis, total in zip(static.means, sums, strict=True)},
            {name: dict(zip(own[name], arrays, strict=True)) for name, arrays in zip(names, kept, strict=True)},
        )
        for static, own, (kept, product, sums) in zip(statics, parts, found, strict=True)
    ]


@_by_kernel.defjvp
def _by_kernel_jvp(computed: Computed, statics: Any, apply_pointwise: Pointwise, primals: Any, tangents: Any) -> Any:
    return jax.jvp(partial(_by_xla, computed, statics, apply_pointwise), primals, tangents)


def _by_xla(
    computed: Computed,
    statics: tuple[_Static, ...],
    apply_pointwise: Pointwise,
    layers: tuple[Dense, ...],
    count: jax.Array,
    inputs: tuple[_Input, ...],
) -> list[_Found]:
    """The definition: channels as arrays, then `digest`."""
    channels, kept, needs, biases = {}, {}, {}, {}
    for static, each in zip(statics, inputs, strict=True):
        channels[static.path], kept[static.path] = computed.one_leaf(each.raw, count)
        needs[static.path] = Needs(static.shape, each.matrix, static.means)
        biases[static.path] = each.bias
    found = digest(layers, channels, needs, apply_pointwise, declared=computed.declared, biases=biases)
    return [
        (found[path].product, dict(found[path].means), {name: dict(parts) for name, parts in kept[path].items()})
        for path, _, _ in statics
    ]
