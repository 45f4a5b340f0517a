"""Dense layers with ReLU that every weight goes through alone, channels first: most of the work of an update network.

They are left to XLA: a product and a pass over the features for every layer. On CPU a kernel takes their place where it can
(`lopt.layers.digest`).
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

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
