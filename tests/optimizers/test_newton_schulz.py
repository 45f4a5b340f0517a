"""Newton-Schulz by the kernel in C++ against XLA's products, and against singular values by NumPy."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopt.layers.kernels import ffi as native
from lopt.layers.kernels.build import find_compiler, load_kernels
from lopt.optimizers.muon import COEFFICIENTS, IN_CACHE, newton_schulz

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="there is no C++ compiler")

# Tall and wide, sides beside those of blocks and vectors, batches, one row, the largest.
SHAPES = [
    (6, 5),
    (5, 6),
    (1, 1),
    (1, 7),
    (33, 1),
    (13, 12),
    (12, 12),
    (3, 17, 16),
    (2, 2, 9, 40),
    (70, 49),
    (128, 128),
    (256, 64),
]


@pytest.fixture(autouse=True)
def nothing_is_used():
    yield
    native.use(None)


def tensors_of(shapes):
    return [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]


def by_kernel(tensors, **options):
    """What the kernel computes; it is asked whether it was used."""
    native.use(load_kernels)
    function = partial(newton_schulz, **options)
    assert "ffi_call" in str(jax.make_jaxpr(function)(tensors))
    found = jax.jit(function)(tensors)
    native.use(None)
    return found


def polynomial_of_singular_values(x, steps):
    """The same on singular values, in double precision: vectors stay, values go through the polynomial."""
    a, b, c = COEFFICIENTS
    left, values, right = np.linalg.svd(np.asarray(x, np.float64), full_matrices=False)
    values = values / np.sqrt(np.sum(values**2, axis=-1, keepdims=True))
    for _ in range(steps):
        values = a * values + b * values**3 + c * values**5
    return (left * values[..., None, :]) @ right


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_it_is_the_polynomial_of_the_singular_values(steps):
    tensors = tensors_of(SHAPES)
    for x, found, xla in zip(tensors, by_kernel(tensors, steps=steps), newton_schulz(tensors, steps=steps), strict=True):
        np.testing.assert_allclose(found, polynomial_of_singular_values(x, steps), atol=1e-5)
        np.testing.assert_allclose(found, xla, atol=1e-5)


def test_large_and_empty_ones_are_left_to_xla():
    tensors = tensors_of([(IN_CACHE, 1), (IN_CACHE + 1, 1), (0, 3), (4, 0, 2, 2), (5, 4)])
    native.use(load_kernels)
    taken = re.findall(r"ffi_call\[(?:[^\[\]]|\[[^\]]*\])*\] ([a-z ]+)", str(jax.make_jaxpr(newton_schulz)(tensors)))
    assert [len(names.split()) for names in taken] == [2]
    for x, found in zip(tensors, by_kernel(tensors), strict=True):
        assert found.shape == x.shape
        np.testing.assert_allclose(found, newton_schulz([x])[0], atol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_what_is_not_finite_is_not_masked(value):
    """Nor does it reach other matrices; zeros stay zeros."""
    broken = [tensors_of([(2, 9, 6)])[0].at[0, 3, 2].set(value), *tensors_of([(4, 5)])]
    broken = [0 * x for x in broken] if value == 0 else broken
    for found, expected in zip(by_kernel(broken), newton_schulz(broken), strict=True):
        np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_derivatives_and_batches():
    """By every entry, one after another under vmap, inside of a scan."""
    tensors = [jnp.stack([x, 2 * x + 1, jnp.sin(x)]) for x in tensors_of([(4, 6), (2, 5, 3)])]

    def loss(tensors):
        last, _ = jax.lax.scan(lambda x, _: ([y + 0.1 for y in newton_schulz(x)], None), tensors, None, length=2)
        return sum(jnp.sum(jnp.sin(x)) for x in last)

    def outcome():
        jax.clear_caches()
        return jax.jit(jax.vmap(jax.value_and_grad(loss)))(tensors), jax.jit(jax.vmap(loss))(tensors)

    expected = outcome()
    native.use(load_kernels)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), outcome(), expected)


def test_threads_change_nothing(monkeypatch):
    tensors, found = tensors_of([(6, 128, 100), (40, 50)]), []
    for threads in (1, 2):
        monkeypatch.setattr(native, "available_cores", lambda threads=threads: threads * jax.local_device_count())
        jax.clear_caches()
        found.append(by_kernel(tensors))
    jax.tree.map(np.testing.assert_array_equal, *found)


@pytest.mark.slow
@pytest.mark.usefixtures("architecture")
def test_other_processors():
    tensors = tensors_of(SHAPES)
    for found, expected in zip(by_kernel(tensors), newton_schulz(tensors), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
