"""Area averaging: against a brute force over areas, and its exactness."""

import re

import numpy as np
import pytest

from tasks.datasets.resize import area_average, overlaps


def brute_force(image: np.ndarray, size: int) -> np.ndarray:
    """Cut every pixel into `size * size` equal ones; then each target pixel is the mean of a whole block of them."""
    height, width = image.shape
    fine = np.repeat(np.repeat(image.astype(np.int64), size, axis=0), size, axis=1)
    sums = fine.reshape(size, height, size, width).sum(axis=(1, 3))
    return ((2 * sums + height * width) // (2 * height * width)).astype(np.uint8)


@pytest.mark.parametrize(
    ("shape", "size"), [((28, 28), 8), ((28, 28), 14), ((28, 28), 27), ((28, 28), 1), ((8, 8), 5), ((7, 10), 3)], ids=str
)
def test_equals_the_brute_force(shape, size):
    images = np.random.default_rng(0).integers(0, 256, (2, *shape), dtype=np.uint8)
    expected = np.stack([brute_force(image, size) for image in images])
    np.testing.assert_array_equal(area_average(images, size), expected)


def test_each_channel_is_averaged_by_itself():
    images = np.random.default_rng(0).integers(0, 256, (3, 9, 7, 3), dtype=np.uint8)
    resized = area_average(images, 4)
    assert (resized.shape, resized.dtype) == ((3, 4, 4, 3), np.uint8)
    for channel in range(3):
        np.testing.assert_array_equal(resized[..., channel], area_average(images[..., channel], 4))


def test_large_images_are_exact_too():
    # A float32 cannot hold these sums: 255 * 300 * 300 is above 2**24.
    images = np.random.default_rng(0).integers(0, 256, (1, 300, 300), dtype=np.uint8)
    blocks = images.astype(np.int64).reshape(3, 100, 3, 100).sum((1, 3))
    np.testing.assert_array_equal(area_average(images, 3)[0], (2 * blocks + 10_000) // 20_000)


@pytest.mark.parametrize("value", [0, 17, 254, 255])
def test_a_constant_image_stays_constant(value):
    np.testing.assert_array_equal(area_average(np.full((1, 28, 28), value, np.uint8), 9), np.full((1, 9, 9), value))


def test_a_half_rounds_up():
    assert area_average(np.array([[[0, 1], [0, 1]]], np.uint8), 1).tolist() == [[[1]]]


def test_the_own_size_changes_nothing():
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    np.testing.assert_array_equal(area_average(images, 8), images)


def test_many_images_are_resized_one_by_one():
    images = np.random.default_rng(0).integers(0, 256, (5000, 4, 4), dtype=np.uint8)  # more than one chunk
    resized = area_average(images, 3)
    for index in (0, 4095, 4096, 4999):
        np.testing.assert_array_equal(resized[index], brute_force(images[index], 3))


@pytest.mark.parametrize(("source", "target"), [(28, 8), (8, 8), (5, 3)])
def test_overlaps_share_out_every_pixel(source, target):
    table = overlaps(source, target)
    assert (table.sum(axis=1) == source).all()
    assert (table.sum(axis=0) == target).all()


@pytest.mark.parametrize("size", [0, -1, 9])
def test_a_size_out_of_range_is_an_error(size):
    with pytest.raises(ValueError, match=f"from 1 to 8 for images of 8x9, not {size}"):
        area_average(np.zeros((1, 8, 9), np.uint8), size)


@pytest.mark.parametrize(
    ("images", "named"),
    [(np.zeros((1, 8, 8), np.float32), "float32 of shape (1, 8, 8)"), (np.zeros((8, 8), np.uint8), "uint8 of shape (8, 8)")],
)
def test_other_arrays_are_an_error(images, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        area_average(images, 4)
