"""The products in bfloat16 compute what those in float32 do, forwards and backwards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopt.layers.pointwise import pointwise, pointwise_bfloat16


def dense(key, widths):
    keys = jax.random.split(key, 2 * len(widths))
    pairs = zip(widths, widths[1:], keys[::2], keys[1::2], strict=False)
    return [(jax.random.normal(k, (a, b)), jax.random.normal(q, (b,))) for a, b, k, q in pairs]


def rounded(x):
    return x.astype(jnp.bfloat16).astype(jnp.float32)


@pytest.mark.parametrize("count", [1, 2410])
def test_products_in_bfloat16_round_their_operands_alone(count):
    ((kernel, bias),) = dense(jax.random.key(0), (8, 32))
    x = jax.random.normal(jax.random.key(1), (8, count))
    found = jax.jit(pointwise_bfloat16)([(kernel, bias)], x)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, pointwise([(rounded(kernel), bias)], rounded(x)), rtol=1e-5, atol=1e-5)
    assert jnp.max(jnp.abs(found - pointwise([(kernel, bias)], x))) > 1e-3


def test_products_in_bfloat16_are_close_over_particles_and_differentiable():
    layers = jax.vmap(lambda key: dense(key, (8, 32, 16)))(jax.random.split(jax.random.key(0), 3))
    x = jax.random.normal(jax.random.key(1), (3, 8, 50))

    def loss(f, layers, x):
        return jnp.mean(jnp.square(jax.vmap(f)(layers, x)))

    expected = jax.value_and_grad(lambda *a: loss(pointwise, *a), argnums=(0, 1))(layers, x)
    found = jax.value_and_grad(lambda *a: loss(pointwise_bfloat16, *a), argnums=(0, 1))(layers, x)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        assert jnp.linalg.norm(a - b) < 0.03 * jnp.linalg.norm(b)
