"""Splits of arrays and of iterators: disjoint, fixed by seed, the same batch for the same key, and clear about bad data."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopt.task.splits import BatchSplit, split_arrays

NAMES = ("train", "inner_valid", "outer_valid", "test")


def parts(datasets):
    return [np.asarray(getattr(datasets, name).arrays["x"]) for name in NAMES]


def test_every_example_is_in_one_split_with_what_belongs_to_it():
    x = np.arange(50, dtype=np.int64)
    datasets = split_arrays({"x": x, "y": -x.astype(np.float64)}, 8, held_out=(0.2, 0.1, 0.1))
    assert [len(part) for part in parts(datasets)] == [30, 10, 5, 5]
    assert sorted(np.concatenate(parts(datasets))) == list(range(50))
    for name in NAMES:
        arrays = getattr(datasets, name).arrays
        np.testing.assert_array_equal(arrays["y"], -np.asarray(arrays["x"], np.float32))
    assert datasets.train.batch(jax.random.key(0))["y"].shape == (8,)


def test_a_split_is_fixed_by_its_seed():
    x = {"x": np.arange(40.0)}
    same, other = split_arrays(x, 4, seed=1), split_arrays(x, 4, seed=2)
    for a, b in zip(parts(split_arrays(x, 4, seed=1)), parts(same), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(parts(same)[0], parts(other)[0])
    # Fixed for all time: a resumed run of a later version must not see other data.
    np.testing.assert_array_equal(parts(split_arrays({"x": np.arange(10)}, 4))[1:], FIRST_SPLIT)


FIRST_SPLIT = [[4], [5], [9]]


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({}, {}, "need a first axis"),
        ({"x": np.zeros(3), "y": np.zeros(4)}, {}, r"'x': \(3,\), 'y': \(4,\)"),
        ({"x": np.zeros(20), "y": np.float32(1)}, {}, r"'y': \(\)"),
        ({"x": np.zeros(3)}, {}, r"cuts 3 examples into splits of \[3, 0, 0, 0\]"),
        ({"x": np.zeros(30)}, {"held_out": (0.5, 0.5, 0.5)}, "no split may be empty"),
        ({"x": np.zeros(30)}, {"held_out": (0.5,)}, "three parts"),
        ({"x": np.zeros(30)}, {"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_arrays_that_cannot_be_split_are_named(arrays, options, message):
    with pytest.raises(ValueError, match=message):
        split_arrays(arrays, **{"batch_size": 4, **options})


def test_batches_of_an_iterator_are_kept_and_drawn_from():
    iterator = ({"x": np.full((3, 2), index), "y": (np.arange(3),)} for index in itertools.count())
    split = BatchSplit.read(iterator, 4)
    assert (split.count, split.batch_size) == (4, 3)
    assert next(iterator)["x"][0, 0] == 4  # no more than asked for were taken
    draws = jax.jit(jax.vmap(split.batch))(jax.random.split(jax.random.key(0), 200))
    first = np.asarray(draws["x"][:, 0, 0])
    assert np.bincount(first, minlength=4).min() > 25
    assert np.all(np.asarray(draws["x"]) == first[:, None, None])
    np.testing.assert_array_equal(split.batch(jax.random.key(5))["x"], split.batch(jax.random.key(5))["x"])
    whole = split.all()
    assert whole["x"].shape == (12, 2)
    np.testing.assert_array_equal(whole["x"][:, 0], np.repeat(np.arange(4), 3))
    np.testing.assert_array_equal(whole["y"][0], np.tile(np.arange(3), 4))


def test_an_iterator_that_ends_gives_what_it_has():
    assert BatchSplit.read(iter([{"x": np.zeros((2, 1))}] * 3), 10).count == 3


def test_a_task_without_data_has_empty_batches():
    split = BatchSplit({}, 1)
    assert (split.batch(jax.random.key(0)), split.all(), split.batch_size) == ({}, {}, 0)
    assert jax.jit(lambda split: split.batch(jax.random.key(0)))(split) == {}


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "asked for 4 batches and gave none"),
        (
            [{"x": np.zeros((3, 2))}, {"x": np.zeros((1, 2))}],
            r"batch 1 .*\('x', \(1, 2\)\), \('x', \(3, 2\)\).*drop a smaller last one",
        ),
        ([{"x": np.zeros(3)}, {"y": np.zeros(3)}], "batch 1 .*'y'"),
        ([{"x": np.zeros(3)}, {"x": [np.zeros(3)]}], "batch 1"),
    ],
)
def test_batches_that_differ_are_named(batches, message):
    with pytest.raises(ValueError, match=message):
        BatchSplit.read(iter(batches), 4)


def test_splits_are_arguments_of_compiled_programs():
    datasets = split_arrays({"x": np.arange(40.0)}, 4)
    batch = jax.jit(lambda datasets, key: datasets.train.batch(key)["x"])
    key = jax.random.key(0)
    np.testing.assert_array_equal(batch(datasets, key), datasets.train.batch(key)["x"])
    other = jax.tree.map(lambda x: x + jnp.float32(1), datasets)
    np.testing.assert_array_equal(batch(other, key), datasets.train.batch(key)["x"] + 1)
