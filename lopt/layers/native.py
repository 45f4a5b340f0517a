"""The custom call by which XLA for CPU reaches `kernels/digest.cc`, once a process has it (`lopt.native_kernels.use_native_kernels`)."""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lopt.layers.pointwise import Dense


class Kernel(NamedTuple):
    """A kernel that XLA has been told of.

    Attributes:
      name: XLA's for it.
      bfloat16: whether it multiplies bfloat16, as the processor does.
    """

    name: str
    bfloat16: bool


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


def kernel() -> Kernel | None:
    """The kernel that computes what it can: on CPU, where there is one."""
    return None if _process.find is None or jax.default_backend() != "cpu" else _process.find()


def is_computed(arrays: Iterable[jax.Array], bfloat16: bool = False) -> bool:
    """Whether the kernel serves these arrays: all float32, none empty; `bfloat16`: with rounded operands."""
    found = kernel()
    return found is not None and (found.bfloat16 or not bfloat16) and all(x.dtype == jnp.float32 and x.size > 0 for x in arrays)


def available_cores() -> int:
    """The cores that this process may use, where the system tells; not all of the machine's, which a container may withhold."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def digest_call(
    layers: Sequence[Dense],
    inputs: Sequence[jax.Array],
    matrix: jax.Array,
    shape: tuple[int, ...],
    sums: Sequence[int],
    bfloat16: bool = False,
) -> tuple[jax.Array, list[jax.Array]]:
    """A pointwise network at every weight of a tensor, its features times a matrix, and their sums over axes.

    Args:
      layers: kernels [c_l, c_{l+1}] and biases, all followed by a ReLU.
      inputs: arrays [c, *shape] that together are the c_0 channels; clipped and normalised as `digest` does.
      matrix: [c_L, K].
      shape: of the tensor.
      sums: axes.
      bfloat16: round the operands of the layers' products; not those with the matrix.

    Returns:
      [K, *shape], and for each of `sums` [c_L, the other axes]; all float32.
    """
    flat = [jnp.reshape(x, (x.shape[0], math.prod(shape))) for x in inputs]
    features, columns = matrix.shape
    out = [(columns, *shape), *((features, *shape[:axis], *shape[axis + 1 :]) for axis in sums)]
    found = kernel()
    assert found is not None
    call = jax.ffi.ffi_call(found.name, [jax.ShapeDtypeStruct(s, jnp.float32) for s in out], vmap_method="sequential")
    arrays = (*flat, *(x for layer in layers for x in layer), matrix)
    threads = max(1, available_cores() // jax.local_device_count())  # every device has its share of the cores
    attributes = {"threads": np.int64(threads), "bfloat16": bfloat16, "inputs": np.int64(len(flat))}
    product, *totals = call(*arrays, **attributes, shape=np.asarray(shape, np.int64), sums=np.asarray(sums, np.int64))
    return product, totals
