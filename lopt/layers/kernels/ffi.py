"""The custom calls by which XLA for CPU reaches the kernels in C++, once a process has them (`build.use_native_kernels`)."""

import dataclasses
import functools
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from lopt.layers.kernels.program import Program
from lopt.layers.pointwise import Dense

Item = TypeVar("Item")
Found = TypeVar("Found")


class Kernel(NamedTuple):
    """A library of kernels that XLA has been told of.

    Attributes:
      name: with which its own for them begin.
      bfloat16: whether they multiply bfloat16, as the processor does.
    """

    name: str
    bfloat16: bool

    def target(self, part: str) -> str:
        """XLA's name for one of `TARGETS`."""
        return f"{self.name}_{part}"


# The kernels, each of a file of its own, and what it is called in the library.
TARGETS = {
    "digest": "LoptDigest",
    "step": "LoptStep",
    "newton_schulz": "LoptNewtonSchulz",
    "inverse_roots": "LoptInverseRoots",
    "moments": "LoptMoments",
    "direction": "LoptDirection",
}
Find = Callable[[], Kernel | None]


@dataclasses.dataclass
class _Process:
    """How the kernel of this process is found; None: none is used."""

    find: Find | None = None


_process = _Process()


def use(find: Find | None) -> None:
    """Use a kernel; what is already traced stays as it is.

    Args:
      find: called when a kernel is first needed, returns it, or None if there is none. None: no kernel is used from here on.
    """
    _process.find = None if find is None else functools.cache(find)


@contextmanager
def without() -> Iterator[None]:
    """Use no kernel for what is traced within."""
    before, _process.find = _process.find, None
    try:
        yield
    finally:
        _process.find = before


def kernel() -> Kernel | None:
    """The kernel that computes what it can: on CPU, where there is one."""
    return None if _process.find is None or jax.default_backend() != "cpu" else _process.find()


def is_computed(arrays: Iterable[jax.Array], bfloat16: bool = False) -> bool:
    """Whether the kernel serves these arrays: all float32, none empty; `bfloat16`: with rounded operands."""
    found = kernel()
    return found is not None and (found.bfloat16 or not bfloat16) and all(x.dtype == jnp.float32 and x.size > 0 for x in arrays)


def divided(
    items: Sequence[Item],
    is_served: Callable[[Item], bool],
    by_kernel: Callable[[list[Item]], Sequence[Found]],
    by_xla: Callable[[list[Item]], Sequence[Found]],
) -> list[Found]:
    """What is found of items, in their order: of those that the kernel serves by one call of it, of the others by XLA."""
    served = [is_served(item) for item in items]
    found: dict[int, Found] = {}
    for kind, computed in ((True, by_kernel), (False, by_xla)):
        places = [i for i, of in enumerate(served) if of is kind]
        if places:
            found |= zip(places, computed([items[i] for i in places]), strict=True)
    return [found[i] for i in range(len(items))]


def available_cores() -> int:
    """The cores that this process may use, where the system tells; not all of the machine's, which a container may withhold."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Tensor(NamedTuple):
    """What `digest.cc` is given of a tensor.

    Attributes:
      channels: c_0 arrays [*shape].
      matrix: [c_L, K].
      bias: of the first layer, [c_1].
      sums: axes.
      scales: of each channel: clip, what is added to the mean square and to its root, and 0 where it is not divided at all.
    """

    channels: Sequence[jax.Array]
    matrix: jax.Array
    bias: jax.Array
    sums: Sequence[int]
    scales: Sequence[tuple[float, float, float, float]]


def digest_call(
    layers: Sequence[Dense], tensors: Sequence[Tensor], bfloat16: bool = False
) -> list[tuple[jax.Array, list[jax.Array]]]:
    """A pointwise network at every weight of some tensors, its features times a matrix, and their sums over axes.

    Args:
      layers: kernels [c_l, c_{l+1}] and biases, all followed by a ReLU; of the first the bias is each tensor's own.
      tensors: at least one.
      bfloat16: round the operands of the layers' products; not those with the matrices.

    Returns:
      For each tensor [K, *shape], and for each of its `sums` [c_L, the other axes]; all float32.
    """
    found = kernel()
    assert found is not None
    shapes = [tensor.channels[0].shape for tensor in tensors]
    arrays = [x for layer in layers for x in layer]
    out: list[jax.ShapeDtypeStruct] = []
    for tensor, shape in zip(tensors, shapes, strict=True):
        arrays += [
            *tensor.channels,
            tensor.matrix,
            tensor.bias,
        ]  # as they are: if reshaped, XLA would compute them here once more
        features, columns = tensor.matrix.shape
        sizes = [(columns, *shape), *((features, *shape[:axis], *shape[axis + 1 :]) for axis in tensor.sums)]
        out += [jax.ShapeDtypeStruct(size, jnp.float32) for size in sizes]
    call = jax.ffi.ffi_call(found.target("digest"), out, vmap_method="sequential")
    results = iter(
        call(
            *arrays,
            threads=_threads(),
            bfloat16=bfloat16,
            layers=np.int64(len(layers)),
            inputs=_counts(len(tensor.channels) for tensor in tensors),
            ranks=_counts(map(len, shapes)),
            shapes=_counts(itertools.chain(*shapes)),
            sum_counts=_counts(len(tensor.sums) for tensor in tensors),
            sums=_counts(itertools.chain(*(tensor.sums for tensor in tensors))),
            scales=np.asarray([x for tensor in tensors for channel in tensor.scales for x in channel], np.float32),
        )
    )
    return [(next(results), list(itertools.islice(results, len(tensor.sums)))) for tensor in tensors]


class Raw(NamedTuple):
    """What `step.cc` is given of a tensor.

    Attributes:
      shape: of the tensor, with one axis per factor; its arrays have any of the same size.
      value: weights.
      gradient: of them.
      kept: the arrays of every accumulator in the order of the program, of a factored one rows and columns.
      sides: the axes of `value` that are factored, the second largest and the largest; None: it is a vector.
      matrices: how many there are in it that have scales of their own, one behind the other; 1: it has one for each channel.
      matrix: [c_L, K].
      bias: of the first layer, [c_1].
      sums: axes of `shape`.
    """

    shape: Sequence[int]
    value: jax.Array
    gradient: jax.Array
    kept: Sequence[Sequence[jax.Array]]
    sides: tuple[int, int] | None
    matrices: int
    matrix: jax.Array
    bias: jax.Array
    sums: Sequence[int]


Stepped = tuple[list[list[jax.Array]], jax.Array, list[jax.Array]]  # accumulators, product, sums


def step_call(
    layers: Sequence[Dense],
    count: jax.Array,
    tensors: Sequence[Raw],
    program: Program,
    scales: Sequence[tuple[float, float, float, float]],
    bfloat16: bool = False,
) -> list[Stepped]:
    """`digest_call` for channels that the kernel computes itself, of accumulators that move on by a step.

    Args:
      layers: kernels [c_l, c_{l+1}] and biases, all followed by a ReLU; of the first the bias is each tensor's own.
      count: steps done, int32 [].
      tensors: at least one; float32.
      program: what is kept of gradients, and how channels are made of it.
      scales: of each channel, as for `Tensor`.
      bfloat16: round the operands of the layers' products; not those with the matrices.

    Returns:
      For each tensor its accumulators after the step, [K, *shape], and for each of its `sums` [c_L, the other axes]; all float32.
    """
    found = kernel()
    assert found is not None
    arrays = [*(x for layer in layers for x in layer), count]
    out: list[jax.ShapeDtypeStruct] = []
    axes: list[int] = []
    in_place: dict[int, int] = {}
    for tensor in tensors:
        kept = [x for each in tensor.kept for x in each]
        if _moves_in_place(tensor.value, len(tensors)):
            in_place |= {len(arrays) + 2 + i: len(out) + i for i in range(len(kept))}
        arrays += [tensor.value, tensor.gradient, *kept, tensor.matrix, tensor.bias]
        features, columns = tensor.matrix.shape
        shape = tuple(tensor.shape)
        sizes = [(columns, *shape), *((features, *shape[:axis], *shape[axis + 1 :]) for axis in tensor.sums)]
        out += [jax.ShapeDtypeStruct(size, jnp.float32) for size in (*(x.shape for x in kept), *sizes)]
        own = tensor.value.shape
        for axis in () if tensor.sides is None else reversed(tensor.sides):
            axes += [own[axis], math.prod(own[axis + 1 :])]
        axes += [0] * 4 if tensor.sides is None else []
    call = jax.ffi.ffi_call(found.target("step"), out, vmap_method="sequential", input_output_aliases=in_place)
    results = iter(
        call(
            *arrays,
            threads=_threads(),
            bfloat16=bfloat16,
            layers=np.int64(len(layers)),
            ranks=_counts(len(tensor.shape) for tensor in tensors),
            shapes=_counts(itertools.chain(*(tensor.shape for tensor in tensors))),
            sum_counts=_counts(len(tensor.sums) for tensor in tensors),
            sums=_counts(itertools.chain(*(tensor.sums for tensor in tensors))),
            axes=_counts(axes),
            matrices=_counts(tensor.matrices for tensor in tensors),
            kept=np.asarray(program.numbers_of_kept(), np.float64),
            forms=_counts(program.numbers_of_forms()),
            scales=np.asarray(
                [x for form, scale in zip(program.forms, scales, strict=True) for x in (*scale, form.eps)], np.float32
            ),
        )
    )
    return [
        (
            [list(itertools.islice(results, len(each))) for each in tensor.kept],
            next(results),
            list(itertools.islice(results, len(tensor.sums))),
        )
        for tensor in tensors
    ]


def newton_schulz_call(tensors: Sequence[jax.Array], steps: int, coefficients: Sequence[float]) -> list[jax.Array]:
    """Matrices made nearly orthogonal, each in the cache of one core: `lopt.optimizers.muon.newton_schulz`.

    Args:
      tensors: at least one; of rank 2 or more, float32, none empty; leading axes are a batch of matrices.
      steps: of the iteration.
      coefficients: a, b and c of its polynomial, and what is added to a matrix's norm.
    """
    return _matrices_call("newton_schulz", tensors, steps, coefficients)


def inverse_roots_call(tensors: Sequence[jax.Array], steps: int, coefficients: Sequence[float]) -> list[jax.Array]:
    """Inverse roots of symmetric matrices, each in the cache of one core: `lopt.optimizers.shampoo.inverse_roots`.

    Args:
      tensors: at least one; [..., n, n], float32, none empty.
      steps: of the iteration.
      coefficients: a, b and c of its polynomial, what is added to a matrix's norm, and to its eigenvalues in parts of that.
    """
    return _matrices_call("inverse_roots", tensors, steps, coefficients)


def _matrices_call(target: str, tensors: Sequence[jax.Array], steps: int, coefficients: Sequence[float]) -> list[jax.Array]:
    found = kernel()
    assert found is not None
    out = [jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in tensors]
    call = jax.ffi.ffi_call(found.target(target), out, vmap_method="broadcast_all")
    return list(call(*tensors, threads=_threads(), steps=np.int64(steps), coefficients=np.asarray(coefficients, np.float32)))


class Moments(NamedTuple):
    """What `moments.cc` is given of a tensor.

    Attributes:
      gradient: of its weights.
      mean: of past gradients.
      square: mean of their squares; None: it is a matrix, whose step is orthogonalised and not divided.
    """

    gradient: jax.Array
    mean: jax.Array
    square: jax.Array | None


def moments_call(numbers: jax.Array, tensors: Sequence[Moments], eps: float) -> list[tuple[Moments, jax.Array]]:
    """Nesterov's step of all tensors and their means after this gradient: `lopt.optimizers.muon.scale_by_muon`.

    Args:
      numbers: [8]; of matrices the decay, and the factors of the new mean and of the gradient in the step; of vectors the same, then the
        decay of mean squares and their factor.
      tensors: at least one; float32, none empty.
      eps: added to the root of mean squares.

    Returns:
      For each tensor the same with its new means, and the step.
    """
    found = kernel()
    assert found is not None
    arrays, out = [numbers], []
    in_place: dict[int, int] = {}
    for tensor in tensors:
        kept = [tensor.mean] if tensor.square is None else [tensor.mean, tensor.square]
        if _moves_in_place(tensor.mean, len(tensors)):
            in_place |= {len(arrays) + 1 + i: len(out) + i for i in range(len(kept))}
        arrays += [tensor.gradient, *kept]
        out += [jax.ShapeDtypeStruct(tensor.mean.shape, jnp.float32)] * (len(kept) + 1)
    call = jax.ffi.ffi_call(found.target("moments"), out, vmap_method="broadcast_all", input_output_aliases=in_place)
    squared = _counts(tensor.square is not None for tensor in tensors)
    results = iter(call(*arrays, threads=_threads(), squared=squared, eps=np.float32(eps)))
    return [
        (Moments(each.gradient, next(results), None if each.square is None else next(results)), next(results)) for each in tensors
    ]


class Directed(NamedTuple):
    """What `direction.cc` is given of a tensor.

    Attributes:
      f: what the network gives, [1 or 2, *shape].
      nominal: the step that it corrects, [*shape].
      matrices: how many there are in it that are normalised each, one behind the other.
      size: root mean square of the direction.
      learned: multiply it by the second of the scalars.
    """

    f: jax.Array
    nominal: jax.Array
    matrices: int
    size: float
    learned: bool


def direction_call(scalars: jax.Array, tensors: Sequence[Directed], eps: float) -> list[jax.Array]:
    """The directions of all tensors: `lopt.optimizers.direction.DirectionRule`.

    Args:
      scalars: [2]: the weight of the nominal step, and what the size of some tensors is multiplied with; positive.
      tensors: at least one; float32, none empty; f of all has as many outputs.
      eps: added to mean squares.
    """
    found = kernel()
    assert found is not None
    out = [jax.ShapeDtypeStruct(each.nominal.shape, jnp.float32) for each in tensors]
    call = jax.ffi.ffi_call(found.target("direction"), out, vmap_method="broadcast_all")
    return list(
        call(
            scalars,
            *(x for each in tensors for x in (each.f, each.nominal)),
            threads=_threads(),
            outputs=np.int64(tensors[0].f.shape[0]),
            matrices=_counts(each.matrices for each in tensors),
            sizes=np.asarray([-each.size if each.learned else each.size for each in tensors], np.float32),
            eps=np.float32(eps),
        )
    )


def _moves_in_place(x: jax.Array, tensors: int) -> bool:
    """Whether what is kept of a tensor moves on where it is, if nobody else reads it as it was.

    Of many tensors only large ones: the time that XLA takes to compile a call grows with the square of what it does in place.
    """
    return tensors <= 16 or x.size >= 1 << 16


def _threads() -> np.int64:
    """Every device has its share of the cores."""
    return np.int64(max(1, available_cores() // jax.local_device_count()))


def _counts(values: Iterable[int]) -> np.ndarray:
    return np.asarray([*values], np.int64)
