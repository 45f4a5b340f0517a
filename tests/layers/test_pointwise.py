"""The kernel for accelerators and the products in bfloat16 compute what XLA's in float32 do, forwards and backwards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopt.layers.pointwise import BLOCK, pointwise, pointwise_bfloat16, pointwise_pallas
from lopt.networks.update import UNFConfig
from lopt.symmetry.spec import WeightSpec
from tests.paper_features import SEEN, weight_features


def dense(key, widths):
    keys = jax.random.split(key, 2 * len(widths))
    pairs = zip(widths, widths[1:], keys[::2], keys[1::2], strict=False)
    return [(jax.random.normal(k, (a, b)), jax.random.normal(q, (b,))) for a, b, k, q in pairs]


@pytest.mark.parametrize("widths", [(8, 32, 32, 32), (3, 20, 5), (19, 16)], ids=str)
@pytest.mark.parametrize("count", [1, BLOCK, BLOCK + 3])
def test_kernel_equals_products(widths, count):
    layers, x = dense(jax.random.key(0), widths), jax.random.normal(jax.random.key(1), (widths[0], count))
    expected = pointwise(layers, x)
    assert expected.shape == (widths[-1], count)
    assert jnp.any(expected > 0.1)
    np.testing.assert_allclose(pointwise_pallas(layers, x, interpret=True), expected, rtol=1e-4, atol=1e-4)


def test_kernel_is_batched_over_particles_and_differentiable():
    layers = jax.vmap(lambda key: dense(key, (4, 6, 5)))(jax.random.split(jax.random.key(0), 3))
    x = jax.random.normal(jax.random.key(1), (3, 4, 7))

    def loss(f, layers, x):
        return jnp.sum(jnp.sin(jax.vmap(f)(layers, x)))

    expected = jax.value_and_grad(lambda *a: loss(pointwise, *a), argnums=(0, 1))(layers, x)
    found = jax.value_and_grad(lambda *a: loss(lambda *b: pointwise_pallas(*b, interpret=True), *a), argnums=(0, 1))(layers, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)


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


def test_a_kernel_without_products_in_bfloat16_is_refused():
    spec = WeightSpec.parse({"w": "inputs! units"})
    with pytest.raises(ValueError, match="kernel='pallas' has no products in bfloat16: use kernel='xla'"):
        UNFConfig(kernel="pallas", matmul_dtype="bfloat16").make(spec, SEEN, 1)


def test_other_dtypes_are_refused():
    with pytest.raises(ValueError, match=r"float32, got \['bfloat16'\]"):
        pointwise_pallas(dense(jax.random.key(0), (3, 4)), jnp.ones((3, 5), jnp.bfloat16))


def test_kernel_is_lowered_for_cuda_without_a_gpu():
    def of(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    @jax.jit
    def particles(layers, x):
        return jax.vmap(lambda layers, x: pointwise_pallas(layers, x, interpret=False))(layers, x)

    traced = particles.trace([(of(2, 8, 32), of(2, 32)), (of(2, 32, 32), of(2, 32))], of(2, 8, 2410))
    assert "triton" in traced.lower(lowering_platforms=("cuda",)).as_text()


def test_update_network_is_the_same_with_either():
    spec = WeightSpec.parse({"w": "inputs! units", "b": "units"})
    params = {"w": jax.random.normal(jax.random.key(0), (5, 4)), "b": jnp.ones(4)}
    momenta = jax.tree.map(lambda w: jnp.stack([w * i for i in range(6)]), params)
    features = weight_features(params, params, momenta, jnp.int32(3))
    xla, pallas = (UNFConfig((6, 5), kernel=kernel).make(spec, SEEN, 1) for kernel in ("xla", "pallas"))
    theta = xla.init(jax.random.key(1))
    expected, found = xla.apply(theta, features), pallas.apply(theta, features)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("count", [1, 2410, 100_000])
def test_compiled_kernel_equals_products(count):
    layers, x = dense(jax.random.key(0), (8, 32, 32, 32)), jax.random.normal(jax.random.key(1), (8, count))
    with jax.default_matmul_precision("float32"):
        expected = pointwise(layers, x)
        np.testing.assert_allclose(pointwise_pallas(layers, x, interpret=False), expected, rtol=1e-3, atol=1e-3)
