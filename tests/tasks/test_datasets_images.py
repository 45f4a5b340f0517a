"""The loader of image data sets: digits, FashionMNIST of the system, the order of sources, errors."""

import hashlib
import os
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tasks.datasets import DatasetError, load_images, places, read_images, tfds
from tasks.datasets.idx import holds_idx

SPLITS = ("train", "inner_valid", "outer_valid", "test")


def arrays(datasets, split):
    held = getattr(datasets, split).arrays
    return np.asarray(held["image"]), np.asarray(held["label"])


def rows(image, label):
    return sorted((pixels.tobytes(), int(number)) for pixels, number in zip(image, label, strict=True))


def write_idx(directory, splits):
    directory.mkdir(parents=True, exist_ok=True)
    for prefix, (image, label) in zip(("train", "t10k"), splits, strict=True):
        for kind, array in (("images-idx3", image), ("labels-idx1", label)):
            header = bytes((0, 0, 8, array.ndim)) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            (directory / f"{prefix}-{kind}-ubyte").write_bytes(header + array.tobytes())


def random_examples(seed, count):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (count, 28, 28), dtype=np.uint8), generator.integers(0, 10, count, dtype=np.uint8)


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """No data set in any of the usual places, and no network."""
    monkeypatch.setattr(tfds, "online", lambda: False)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setattr(places, "system_directories", lambda name: [tmp_path / "system" / name])
    return tmp_path


def test_digits():
    datasets, info = load_images("digits", 8, 128)
    assert (info.name, info.num_classes, info.image_shape, info.scale, info.source) == ("digits", 10, (8, 8), 16, "scikit-learn")
    assert [getattr(datasets, split).num_examples for split in SPLITS] == [1257, 180, 180, 180]
    for split in SPLITS:
        held = getattr(datasets, split)
        assert held.batch_size == 128
        assert {name: (array.dtype, array.shape[1:]) for name, array in held.arrays.items()} == {
            "image": (jnp.uint8, (8, 8)),
            "label": (jnp.int32, ()),
        }
        assert all(isinstance(array, jax.Array) for array in held.arrays.values())
        assert int(held.arrays["image"].max()) == info.scale
        assert np.unique(held.arrays["label"]).tolist() == list(range(10))


def test_digits_are_shared_out_completely():
    datasets, _ = load_images("digits", 8, 128)
    parts = [arrays(datasets, split) for split in SPLITS]
    source, _ = read_images("digits")
    assert rows(*map(np.concatenate, zip(*parts, strict=True))) == rows(*source["train"])


def test_the_split_of_digits_never_changes():
    datasets, _ = load_images("digits", 8, 128)
    digest = hashlib.sha256(b"".join(part.tobytes() for split in SPLITS for part in arrays(datasets, split)))
    assert digest.hexdigest()[:16] == "f3896435510e25dd"


@pytest.mark.parametrize("change", [{"split_seed": 1}, {"image_size": 4}])
def test_the_seed_moves_examples_and_the_size_does_not(change):
    settings = {"dataset": "digits", "image_size": 8, "batch_size": 8, "split_seed": 0}
    labels = [arrays(load_images(**chosen)[0], "test")[1] for chosen in (settings, settings, settings | change)]
    np.testing.assert_array_equal(labels[0], labels[1])
    assert np.array_equal(labels[0], labels[2]) == ("split_seed" not in change)


@pytest.mark.parametrize("size", [8, 28])
def test_fashion_mnist_of_the_system(size):
    if not any(holds_idx(directory) for directory in places.system_directories("fashion_mnist")):
        if "CI" in os.environ:
            pytest.fail("FashionMNIST is missing: apt-get install dataset-fashion-mnist")
        pytest.skip("FashionMNIST is not installed: apt-get install dataset-fashion-mnist")
    directory = next(filter(holds_idx, places.system_directories("fashion_mnist")))
    splits, _ = read_images("fashion_mnist", str(directory))
    for split, count, first in (
        ("train", 60_000, [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]),
        ("test", 10_000, [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]),
    ):
        image, label = splits[split]
        assert image.shape == (count, 28, 28)
        assert label[:10].tolist() == first
        assert np.bincount(label).tolist() == [count // 10] * 10
    assert splits["train"][0].mean() / 255 == pytest.approx(0.2860, abs=5e-5)

    datasets, info = load_images("fashion_mnist", size, 128, data_dir=str(directory))
    assert [getattr(datasets, split).num_examples for split in SPLITS] == [50_000, 5_000, 5_000, 10_000]
    assert (info.image_shape, info.scale, info.source) == ((size, size), 255, str(directory))
    train = [np.concatenate(parts) for parts in zip(*(arrays(datasets, split) for split in SPLITS[:3]), strict=True)]
    assert np.bincount(train[1]).tolist() == [6_000] * 10
    for image in (train[0], arrays(datasets, "test")[0]):
        assert image.mean() / 255 == pytest.approx(0.2860, abs=2e-3)  # averaging keeps the mean brightness
    if size == 28:
        assert rows(*train) == rows(*splits["train"])
        assert rows(*arrays(datasets, "test")) == rows(*splits["test"])


def test_the_order_within_the_source_does_not_matter(tmp_path):
    sets = [random_examples(0, 60), random_examples(1, 20)]
    write_idx(tmp_path / "one", sets)
    write_idx(tmp_path / "two", [(image[::-1], label[::-1]) for image, label in sets])
    one, two = (load_images("mnist", 8, 4, str(tmp_path / name))[0] for name in ("one", "two"))
    assert jax.tree.all(jax.tree.map(lambda left, right: bool((left == right).all()), one, two))


def test_the_test_split_of_the_source_stays_the_test_split(tmp_path):
    write_idx(tmp_path, [random_examples(0, 60), random_examples(1, 20)])
    for seed in (0, 1):
        datasets, _ = load_images("mnist", 28, 4, str(tmp_path), seed)
        assert rows(*arrays(datasets, "test")) == rows(*random_examples(1, 20))


def test_system_directories_follow_the_environment(monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", "/home/me/data")
    monkeypatch.setenv("XDG_DATA_DIRS", "/opt/share:relative:/usr/share")
    assert list(map(str, places.system_directories("fashion_mnist"))) == [
        "/home/me/data/datasets/fashion-mnist",
        "/opt/share/datasets/fashion-mnist",
        "/usr/share/datasets/fashion-mnist",
    ]


def test_a_system_directory_is_found(nowhere):
    write_idx(nowhere / "system" / "fashion_mnist", [random_examples(0, 60), random_examples(1, 20)])
    assert load_images("fashion_mnist", 8, 4)[1].source == str(nowhere / "system" / "fashion_mnist")


def test_a_system_directory_with_a_file_missing_is_not_passed_over(nowhere):
    directory = nowhere / "system" / "fashion_mnist"
    write_idx(directory, [random_examples(0, 60), random_examples(1, 20)])
    (directory / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DatasetError, match="no file t10k-labels-idx1-ubyte"):
        load_images("fashion_mnist", 8, 4)


@pytest.mark.parametrize("name", ["fashion_mnist", "mnist"])
def test_nothing_found_lists_the_ways(nowhere, name):
    with pytest.raises(DatasetError) as error:
        load_images(name, 8, 4)
    message = str(error.value)
    for part in (
        "data_dir",
        "train-images-idx3-ubyte",
        "pip install -e '.[tfds]'",
        f"tfds build {name}",
        "TFDS_DATA_DIR",
        str(nowhere),
    ):
        assert part in message
    assert ("apt-get install dataset-fashion-mnist" in message) == (name == "fashion_mnist")


@pytest.mark.parametrize("exists", [True, False])
def test_a_given_directory_is_the_only_one_looked_at(nowhere, exists):
    write_idx(nowhere / "system" / "fashion_mnist", [random_examples(0, 60), random_examples(1, 20)])
    given = nowhere / "given"
    if exists:
        given.mkdir()
    with pytest.raises(DatasetError, match=f"data_dir {given} {'holds' if exists else 'is not a directory'}"):
        load_images("fashion_mnist", 8, 4, data_dir=str(given))


def test_unknown_name():
    with pytest.raises(ValueError, match="unknown image data set 'cifar'; the known ones are digits, fashion_mnist, mnist"):
        load_images("cifar", 8, 4)


@pytest.mark.parametrize(("name", "size", "largest"), [("digits", 9, 8), ("mnist", 29, 28), ("mnist", 0, 28)])
def test_a_size_that_the_images_cannot_have(name, size, largest):
    with pytest.raises(ValueError, match=f"image_size must be from 1 to {largest} for '{name}', not {size}"):
        load_images(name, size, 4)


def test_digits_are_not_read_from_a_directory(tmp_path):
    with pytest.raises(DatasetError, match=re.escape(str(tmp_path))):
        load_images("digits", 8, 4, data_dir=str(tmp_path))


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("LOPT_CACHE_DIR", str(tmp_path))
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DatasetError, match=re.escape("pip install scikit-learn")):
        load_images("digits", 8, 4)
