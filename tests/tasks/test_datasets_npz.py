"""Images in .npz files: the names of arrays that are understood, and every way a file can be wrong."""

import re

import numpy as np
import pytest

from tasks.datasets import DatasetError, load_images, read_images
from tasks.datasets.npz import load_npz


def examples(count, shape=(9, 9), seed=0):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (count, *shape), dtype=np.uint8), generator.integers(0, 7, count)


TRAIN, TEST = examples(40), examples(12, seed=1)
FOUR = {"train_images": TRAIN[0], "train_labels": TRAIN[1], "test_images": TEST[0], "test_labels": TEST[1]}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "set.npz"


@pytest.mark.parametrize("names", [tuple(FOUR), ("x_train", "y_train", "x_test", "y_test")], ids=str)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_with_a_test_split(path, names, save):
    save(path, **dict(zip(names, FOUR.values(), strict=True)), other=np.zeros(3))
    splits = load_npz(path)
    for (images, labels), expected in zip((splits["train"], splits["test"]), (TRAIN, TEST), strict=True):
        np.testing.assert_array_equal(images, expected[0])
        np.testing.assert_array_equal(labels, expected[1])


@pytest.mark.parametrize("names", [("images", "labels"), ("train_images", "train_labels")], ids=str)
def test_without_one_the_test_split_is_cut_from_all(path, names):
    np.savez(path, **dict(zip(names, TRAIN, strict=True)))
    assert list(read_images(str(path))[0]) == ["train"]
    datasets, info = load_images(str(path), 9, 4)
    parts = [datasets.train, datasets.inner_valid, datasets.outer_valid, datasets.test]
    assert [part.arrays["label"].shape[0] for part in parts] == [28, 4, 4, 4]
    pixels = np.concatenate([part.arrays["image"] for part in parts])
    assert sorted(image.tobytes() for image in pixels) == sorted(image.tobytes() for image in TRAIN[0])
    assert (info.num_classes, info.image_shape, info.scale, info.source) == (7, (9, 9), 255, str(path))


def test_colour_with_a_test_split(path):
    (images, labels), (other, targets) = examples(30, (6, 5, 3)), examples(9, (6, 5, 3), seed=1)
    np.savez(path, train_images=images, train_labels=labels, test_images=other, test_labels=targets)
    datasets, info = load_images(str(path), 3, 4)
    assert (info.image_shape, datasets.train.arrays["image"].shape) == ((3, 3, 3), (24, 3, 3, 3))
    assert datasets.test.arrays["image"].shape == (9, 3, 3, 3)
    with pytest.raises(DatasetError, match=re.escape(f"{path} holds images of 6x5, smaller than image_size 6")):
        load_images(str(path), 6, 4)


WRONG = {
    "no image": ({"a": TRAIN[0], "b": TRAIN[1]}, "holds the arrays a, b, where it must hold train_images"),
    "no label": ({"images": TRAIN[0]}, "has no array labels; it holds images"),
    "half a test split": ({**FOUR} | {"test_labels": None}, "has no array test_labels"),
    "floats": ({"images": TRAIN[0] / 255, "labels": TRAIN[1]}, "images is float64 of shape (40, 9, 9), where uint8 [N, H, W] or"),
    "vectors": ({"images": TRAIN[0][:, 0], "labels": TRAIN[1]}, "images is uint8 of shape (40, 9), where"),
    "two channels": ({"images": np.zeros((4, 5, 5, 2), np.uint8), "labels": TRAIN[1][:4]}, "shape (4, 5, 5, 2), where"),
    "no pixels": ({"images": np.zeros((4, 0, 5), np.uint8), "labels": TRAIN[1][:4]}, "shape (4, 0, 5), where"),
    "one-hot labels": ({"images": TRAIN[0], "labels": np.eye(40)}, "labels is float64 of shape (40, 40), where integers [N]"),
    "labels too few": ({"images": TRAIN[0], "labels": TRAIN[1][1:]}, "images holds 40 images, but"),
    "another shape for test": (
        {**FOUR, "test_images": TEST[0][:, 1:]},
        "train and test images of different shapes, (9, 9) and (8, 9)",
    ),
    "objects": ({"images": np.array([None, 1]), "labels": TRAIN[1]}, "is no .npz file, or a truncated or damaged one"),
}


@pytest.mark.parametrize(("arrays", "message"), WRONG.values(), ids=WRONG)
def test_wrong_arrays(path, arrays, message):
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(DatasetError, match=f"{re.escape(str(path))}.*{re.escape(message)}"):
        load_images(str(path), 3, 4)


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file(path, kept):
    np.savez(path, **FOUR)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(DatasetError, match=f"{re.escape(str(path))} is no .npz file, or a truncated or damaged one"):
        load_npz(path)


def test_a_damaged_file(path):
    np.savez(path, **FOUR)
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=f"{re.escape(str(path))} is no .npz file, or a truncated or damaged one"):
        load_npz(path)


def test_one_array_alone(path):
    np.save(path.with_suffix(".npy"), TRAIN[0])
    path.with_suffix(".npy").rename(path)
    with pytest.raises(DatasetError, match="holds one array, not the arrays"):
        load_npz(path)


def test_negative_labels(path):
    np.savez(path, images=TRAIN[0], labels=TRAIN[1] - 1)
    with pytest.raises(DatasetError, match=f"{re.escape(str(path))}: the 'train' split has the label -1, but"):
        load_images(str(path), 3, 4)


def test_a_changed_file_is_read_again(path):
    np.savez(path, images=TRAIN[0], labels=TRAIN[1])
    assert load_images(str(path), 3, 4)[1].num_classes == 7
    np.savez(path, images=TRAIN[0][:30], labels=TRAIN[1][:30] * 2)
    assert load_images(str(path), 3, 4)[1].num_classes == 13
