"""Splits: disjoint, complete, fixed by the seed and by the examples alone."""

import numpy as np
import pytest

from tasks.datasets import DatasetError
from tasks.datasets.splits import canonical_order, random_parts


def examples(count, seed=0):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (count, 3, 4), dtype=np.uint8), generator.integers(0, 10, count, dtype=np.uint8)


def split_indices(images, labels, fractions, seed):
    """As the loader of images splits."""
    order = canonical_order(images, labels)
    return [order[part] for part in random_parts(len(labels), fractions, seed)]


@pytest.mark.parametrize(
    ("count", "fractions", "sizes"),
    [
        (1797, (0.1, 0.1, 0.1), [1257, 180, 180, 180]),
        (60_000, (1 / 12, 1 / 12), [50_000, 5_000, 5_000]),
        (10, (0.25,), [7, 3]),
        (7, (), [7]),
    ],
)
def test_every_example_is_in_exactly_one_split(count, fractions, sizes):
    parts = split_indices(*examples(count), fractions, seed=3)
    assert [len(part) for part in parts] == sizes
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(count))


def test_the_seed_decides():
    images, labels = examples(200)
    first, again, other = (np.concatenate(split_indices(images, labels, (0.2,), seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.9


def test_the_same_on_every_platform():
    # Distinct labels sort by themselves, so this is the permutation of the seed alone; numpy keeps the PCG64 stream for good.
    labels = np.arange(12, dtype=np.uint8)
    parts = split_indices(np.zeros((12, 1, 1), np.uint8), labels, (0.25, 0.25), seed=0)
    assert [part.tolist() for part in parts] == [[11, 3, 2, 1, 8, 6], [0, 7, 4], [10, 5, 9]]


def test_the_order_of_the_source_does_not_matter():
    images, labels = examples(300)
    images[100:200] = images[:100]  # equal images, some with another label
    shuffle = np.random.default_rng(1).permutation(300)
    one = split_indices(images, labels, (0.3, 0.1), seed=5)
    two = split_indices(images[shuffle], labels[shuffle], (0.3, 0.1), seed=5)
    for left, right in zip(one, two, strict=True):
        np.testing.assert_array_equal(images[left], images[shuffle][right])
        np.testing.assert_array_equal(labels[left], labels[shuffle][right])


def test_canonical_order_is_that_of_the_bytes():
    images, labels = examples(50)
    images[:, 0] = 0  # leading zeros must count
    labels[:25] = labels[25:]
    rows = [image.tobytes() + bytes([label]) for image, label in zip(images, labels, strict=True)]
    assert [rows[index] for index in canonical_order(images, labels)] == sorted(rows)


@pytest.mark.parametrize("count", [0, 4])
def test_an_empty_split_is_an_error(count):
    with pytest.raises(DatasetError, match=f"{count} examples are too few for splits"):
        split_indices(*examples(count), (0.1, 0.1), seed=0)


def test_the_order_is_that_of_colour_images_and_of_large_labels_too():
    images = np.zeros((6, 1, 2, 3), np.uint8)
    images[3, 0, 1, 2] = 1
    assert canonical_order(images, np.array([256, 1, 999, 0, 255, 2])).tolist() == [1, 5, 4, 0, 2, 3]
