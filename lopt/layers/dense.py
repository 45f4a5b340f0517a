"""Weights of a pointwise perceptron."""

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from lopt.layers.base import PyTree


def init_dense(keys: jax.Array, widths: Sequence[int]) -> PyTree:
    """{"dense0": {"kernel": [widths[0], widths[1]], "bias": [widths[1]]}, ...}: kernels ~ N(0, 2 / fan-in), for ReLU; no bias.

    `keys` are at least one for each layer.
    """
    return {
        f"dense{i}": {
            "kernel": jax.random.normal(keys[i], (c_in, c_out), jnp.float32) * math.sqrt(2 / c_in),
            "bias": jnp.zeros(c_out, jnp.float32),
        }
        for i, (c_in, c_out) in enumerate(itertools.pairwise(widths))
    }


def perceptron(theta: PyTree, x: jax.Array) -> jax.Array:
    """Dense layers with ReLU between them: [c_0] to [c_L], with the theta of `init_dense`."""
    for i in range(len(theta)):
        x = (jax.nn.relu(x) if i > 0 else x) @ theta[f"dense{i}"]["kernel"] + theta[f"dense{i}"]["bias"]
    return x
