"""Windows of tokens: batches inside compiled loops, and every token of the whole as a target once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopt.task.base import Datasets, uniform_index
from tasks.datasets import TokenSplit


def split(count, length=4, batch_size=3, dtype=np.uint16, **options):
    return TokenSplit(jnp.asarray(np.arange(count, dtype=dtype)), length, batch_size, **options)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_a_batch_holds_windows_of_the_text(dtype):
    tokens = split(200, dtype=dtype).batch(jax.random.key(0))["tokens"]
    assert (tokens.dtype, tokens.shape) == (jnp.int32, (3, 5))
    np.testing.assert_array_equal(tokens, tokens[:, :1] + np.arange(5)[None])


def test_windows_start_anywhere_and_equally_often():
    starts = split(9, length=4, batch_size=20_000).batch(jax.random.key(1))["tokens"][:, 0]
    counts = np.bincount(starts)
    assert len(counts) == 5  # the last window is 4 ... 8
    assert np.abs(counts / 4000 - 1).max() < 0.1


@pytest.mark.parametrize("limit", [1, 2, 1000, 65_535, 65_536, 65_537, 1 << 20, (1 << 28) + 12_345, 1 << 31])
def test_an_index_is_the_upper_half_of_a_product(limit):
    key = jax.random.key(limit % 1000)
    words = np.asarray(jax.random.bits(key, (1000,), jnp.uint32)).tolist()
    index = uniform_index(key, 1000, limit)
    assert index.dtype == jnp.int32
    assert index.tolist() == [word * limit >> 32 for word in words]


def test_the_same_batch_for_the_same_key_wherever_it_is_made():
    data, keys = split(1000), jax.random.split(jax.random.key(2), 6)

    @jax.jit
    def scanned(data, keys):
        return jax.lax.scan(lambda carry, key: (carry, data.batch(key)["tokens"]), None, keys)[1]

    expected = np.stack([data.batch(key)["tokens"] for key in keys])
    np.testing.assert_array_equal(scanned(data, keys), expected)
    np.testing.assert_array_equal(jax.jit(jax.vmap(data.batch))(keys)["tokens"], expected)
    assert len({row.tobytes() for row in expected}) == 6


def test_a_text_of_one_example():
    data = split(5)
    assert data.batch(jax.random.key(0))["tokens"].tolist() == [[0, 1, 2, 3, 4]] * 3
    assert data.all()["tokens"].tolist() == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize("count", [5, 8, 9, 10, 100])
def test_every_token_of_the_whole_is_a_target_once(count):
    tokens = np.asarray(split(count).all()["tokens"])
    assert tokens[:, 1:].ravel().tolist() == list(range(1, 1 + (count - 1) // 4 * 4))
    np.testing.assert_array_equal(tokens[:, 0], tokens[:, 1] - 1)


def test_of_many_windows_some_are_taken_at_even_distances():
    tokens = np.asarray(split(1001, max_windows=7).all()["tokens"])
    assert tokens[:, 0].tolist() == [4 * (index * 250 // 7) for index in range(7)]
    assert (np.diff(tokens, axis=1) == 1).all()


def test_splits_are_arguments_of_compiled_functions():
    traces = []

    @jax.jit
    def draw(datasets, key):
        traces.append(1)
        return datasets.train.batch(key)["tokens"]

    for shift in range(3):
        data = jax.tree.map(lambda tokens, shift=shift: tokens + jnp.uint16(shift), split(50))
        first = draw(Datasets(data, data, data, data), jax.random.key(0))
        assert first.shape == (3, 5)
    assert len(traces) == 1
