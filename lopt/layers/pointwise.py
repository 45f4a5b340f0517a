"""Dense layers with ReLU that every weight goes through alone, channels first: most of the work of an update network.

`pointwise` leaves the work to XLA: a product and a pass over the features for every layer. `pointwise_pallas` is one kernel for an
accelerator: a block of weights stays on the chip from the first layer to the last, so that memory is read and written once, where
XLA's products write every layer's features out. Both give the same up to the order of sums.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

BLOCK = 128  # weights that a program of the kernel works on
_SMALLEST = 16  # rows and columns of the smallest products on tensor cores; larger ones must be powers of two

Dense = tuple[jax.Array, jax.Array]  # kernel [c_in, c_out], bias [c_out]
Pointwise = Callable[[Sequence[Dense], jax.Array], jax.Array]  # dense layers, [c_0, N] -> [c_L, N]


def pointwise(layers: Sequence[Dense], x: jax.Array) -> jax.Array:
    """relu(W_L^T ... relu(W_1^T x + b_1) ... + b_L).

    Args:
      layers: kernels [c_l, c_{l+1}] and biases [c_{l+1}], or [c_{l+1}, N] where weights have biases of their own.
      x: [c_0, N], one column a weight.

    Returns:
      [c_L, N].
    """
    for kernel, bias in layers:
        x = jax.nn.relu(kernel.T @ x + _column(bias))
    return x


def _column(bias: jax.Array) -> jax.Array:
    return bias[:, None] if bias.ndim == 1 else bias


def pointwise_bfloat16(layers: Sequence[Dense], x: jax.Array) -> jax.Array:
    """`pointwise` with the operands of every product rounded to bfloat16; sums, biases and what is returned are float32.

    A derivative is that of the rounded product, rounded again: it has the 8 bits of bfloat16.

    Args:
      layers: as for `pointwise`, float32.
      x: [c_0, N], float32.
    """
    for kernel, bias in layers:
        # XLA for CPU has products in bfloat16 of rows alone, and would fold a mere transposition into them.
        rows = jnp.eye(kernel.shape[1], dtype=jnp.float32) @ kernel.T
        y = jax.lax.dot(rows.astype(jnp.bfloat16), x.astype(jnp.bfloat16), preferred_element_type=jnp.float32)
        x = jax.nn.relu(y + _column(bias))
    return x


def pointwise_pallas(layers: Sequence[Dense], x: jax.Array, *, interpret: bool | None = None) -> jax.Array:
    """`pointwise` as one kernel; its derivatives are those of `pointwise`, computed by XLA.

    Args:
      layers: as for `pointwise`, float32.
      x: [c_0, N], float32.
      interpret: compute what the kernel says without compiling it, on any device; None: where there is no GPU.

    Raises:
      ValueError: if something is not float32.
    """
    wrong = {str(a.dtype) for a in (x, *(a for layer in layers for a in layer)) if a.dtype != jnp.float32}
    if wrong:
        raise ValueError(f"the kernel computes in float32, got {sorted(wrong)}; use pointwise")
    if any(bias.ndim > 1 for _, bias in layers):
        raise ValueError("the kernel has one bias for all weights: features per tensor need kernel='xla'")
    interpret = jax.default_backend() != "gpu" if interpret is None else interpret
    return _pointwise(interpret, tuple(layers), x)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pointwise(interpret: bool, layers: tuple[Dense, ...], x: jax.Array) -> jax.Array:
    # A program's products have rows and columns of 16, 32, 64, ...: what is missing is filled up with zeros, which stay zeros.
    padded = [(_pad(kernel.T, *map(_width, kernel.T.shape)), _pad(bias, _width(bias.size))) for kernel, bias in layers]
    count, channels = x.shape[1], layers[-1][1].size
    columns = -(-count // BLOCK) * BLOCK
    x = _pad(x, padded[0][0].shape[1], columns)
    whole = [pl.BlockSpec(a.shape, lambda i, rank=a.ndim: (0,) * rank) for layer in padded for a in layer]
    out_rows = padded[-1][1].size
    y = pl.pallas_call(
        _kernel,
        grid=(columns // BLOCK,),
        in_specs=[pl.BlockSpec((x.shape[0], BLOCK), lambda i: (0, i)), *whole],
        out_specs=pl.BlockSpec((out_rows, BLOCK), lambda i: (0, i)),
        out_shape=jax.ShapeDtypeStruct((out_rows, columns), x.dtype),
        compiler_params=triton.CompilerParams(),
        interpret=interpret,
        name="pointwise",
    )(x, *(a for layer in padded for a in layer))
    return y[:channels, :count]


def _kernel(x_ref: Any, *refs: Any) -> None:
    *dense, out_ref = refs
    x = x_ref[...]
    for kernel, bias in zip(dense[::2], dense[1::2], strict=True):
        y = jnp.dot(kernel[...], x)
        x = jnp.maximum(y + jnp.broadcast_to(bias[...][:, None], y.shape), jnp.zeros_like(y))
    out_ref[...] = x


def _forward(interpret: bool, layers: tuple[Dense, ...], x: jax.Array) -> tuple[jax.Array, Any]:
    return _pointwise(interpret, layers, x), (layers, x)


def _backward(interpret: bool, saved: Any, gradient: jax.Array) -> Any:
    del interpret
    vjp: Callable[[jax.Array], Any] = jax.vjp(pointwise, *saved)[1]
    return vjp(gradient)


_pointwise.defvjp(_forward, _backward)


def _width(channels: int) -> int:
    return max(_SMALLEST, 1 << (channels - 1).bit_length())


def _pad(x: jax.Array, *shape: int) -> jax.Array:
    return jnp.pad(x, [(0, size - old) for size, old in zip(shape, x.shape, strict=True)])
