"""The custom call by which XLA for CPU reaches `digest.cc`, once a process has it (`lopt.native_kernels.use_native_kernels`)."""

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lopt.layers.pointwise import Dense

Find = Callable[[], str | None]


@dataclasses.dataclass
class _Kernel:
    """How the process finds the kernel, and the name that XLA knows it by once it is found."""

    find: Find | None = None
    name: str | None = None


_kernel = _Kernel()


def use(find: Find | None) -> None:
    """Use a kernel; what is already traced stays as it is.

    Args:
      find: called when a kernel is first needed; returns the name under which it is registered with XLA, or None if there is none.
        None: no kernel is used from here on.
    """
    _kernel.find, _kernel.name = find, None


def is_used() -> bool:
    """Whether the kernel computes what it can: on CPU, where there is one."""
    if (_kernel.find is None and _kernel.name is None) or jax.default_backend() != "cpu":
        return False
    if _kernel.find is not None:
        find, _kernel.find = _kernel.find, None
        _kernel.name = find()
    return _kernel.name is not None


def is_computed(arrays: Iterable[jax.Array]) -> bool:
    """Whether the kernel serves these arrays: all float32, none empty."""
    return is_used() and all(x.dtype == jnp.float32 and x.size > 0 for x in arrays)


def available_cores() -> int:
    """The cores that this process may use, where the system tells; not all of the machine's, which a container may withhold."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def digest_call(
    layers: Sequence[Dense], inputs: Sequence[jax.Array], matrix: jax.Array, shape: tuple[int, ...], sums: Sequence[int]
) -> tuple[jax.Array, list[jax.Array]]:
    """A pointwise network at every weight of a tensor, its features times a matrix, and their sums over axes.

    Args:
      layers: kernels [c_l, c_{l+1}] and biases, all followed by a ReLU.
      inputs: arrays [c, *shape] that together are the c_0 channels; clipped and normalised as `digest` does.
      matrix: [c_L, K].
      shape: of the tensor.
      sums: axes.

    Returns:
      [K, *shape], and for each of `sums` [c_L, the other axes]; all float32.
    """
    flat = [jnp.reshape(x, (x.shape[0], math.prod(shape))) for x in inputs]
    features, columns = matrix.shape
    out = [(columns, *shape), *((features, *shape[:axis], *shape[axis + 1 :]) for axis in sums)]
    assert _kernel.name is not None
    call = jax.ffi.ffi_call(_kernel.name, [jax.ShapeDtypeStruct(s, jnp.float32) for s in out], vmap_method="sequential")
    arrays = (*flat, *(x for layer in layers for x in layer), matrix)
    threads = max(1, available_cores() // jax.local_device_count())  # every device has its share of the cores
    attributes = {"threads": np.int64(threads), "inputs": np.int64(len(flat))}
    product, *totals = call(*arrays, **attributes, shape=np.asarray(shape, np.int64), sums=np.asarray(sums, np.int64))
    return product, totals
