"""Data sets that tfds itself has written to disk, read through the loaders.

TensorFlow is not among the extras: that these tests pass without it is part of what they show.
"""

import os
import re
import shutil
import struct
import subprocess
import sys

import jax
import numpy as np
import pytest

from tasks.datasets import DatasetError, check_images, load_images, load_text, places, read_images, tfds
from tasks.datasets.idx import holds_idx, load_idx
from tasks.datasets.places import system_directories
from tasks.datasets.tfds import find_prepared, tfrecord_frames
from tests.tasks.tfds_sets import as_tfrecord, build, image_features, image_splits, text_splits

NAME = "fashion_mnist"
COUNTS = {"train": 36, "test": 20}


def examples(split, shape=(28, 28), classes=10):
    generator = np.random.default_rng(COUNTS[split])
    count = COUNTS[split]
    return generator.integers(0, 256, (count, *shape), dtype=np.uint8), generator.integers(0, classes, count, dtype=np.uint8)


def both(shape=(28, 28), classes=10):
    return {split: examples(split, shape, classes) for split in COUNTS}


def build_images(root, name, shape=(28, 28), classes=10, splits=None, **options):
    features = image_features((*shape, 1)[:3], classes)
    return build(root, name, features, image_splits(splits or both(shape, classes)), **options)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("prepared")
    build_images(root, NAME)
    return root


@pytest.fixture
def copy(prepared, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(prepared, tmp_path / "copy")


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    """Nothing in the usual places, and no network."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setattr(places, "system_directories", lambda name: [tmp_path / "system"])
    monkeypatch.setattr(tfds, "online", lambda: False)


def rows(pair):
    pair = map(np.asarray, pair)
    return sorted((image.tobytes(), int(label)) for image, label in zip(*pair, strict=True))


def equal(one, other):
    return jax.tree.structure(one) == jax.tree.structure(other) and jax.tree.all(
        jax.tree.map(lambda left, right: left.shape == right.shape and bool((left == right).all()), one, other)
    )


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_every_example_is_read(copy, file_format):
    if file_format == "tfrecord":
        as_tfrecord(copy / NAME / "3.0.1")
    splits, source = read_images(NAME, str(copy))
    assert source == str(copy / NAME / "3.0.1")
    for split in COUNTS:
        assert rows(splits[split]) == rows(examples(split))
        assert [array.dtype for array in splits[split]] == [np.uint8, np.int64]


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_colour(tmp_path, file_format):
    version = build_images(tmp_path, "cifar10", (32, 32, 3), supervised=("image", "label"))
    if file_format == "tfrecord":
        as_tfrecord(version)
    splits, _ = read_images("cifar10", str(tmp_path))
    for split in COUNTS:
        assert rows(splits[split]) == rows(examples(split, (32, 32, 3)))
    datasets, info = load_images("cifar10", 16, 4, str(tmp_path))
    assert (info.num_classes, info.image_shape, info.scale) == (10, (16, 16, 3), 255)
    assert datasets.train.arrays["image"].shape == (28, 16, 16, 3)
    assert datasets.test.arrays["image"].shape == (20, 16, 16, 3)
    np.savez(tmp_path / "cifar10.npz", **{f"{split}_{kind}": array for split, pair in both((32, 32, 3)).items()
                                          for kind, array in zip(("images", "labels"), pair, strict=True)})  # fmt: skip
    shutil.rmtree(version.parent)
    other, info = load_images("cifar10", 16, 4, str(tmp_path))
    assert info.source == str(tmp_path / "cifar10.npz")
    assert equal(datasets, other)


def test_the_label_of_a_set_with_several_is_the_supervised_one(tmp_path):
    import tensorflow_datasets

    features = {**image_features((32, 32, 3), 100), "coarse_label": tensorflow_datasets.features.ClassLabel(num_classes=20)}
    splits = {
        split: [{**example, "coarse_label": example["label"] // 5} for example in given]
        for split, given in image_splits(both((32, 32, 3), 100)).items()
    }
    build(tmp_path, "cifar100", features, splits, supervised=("image", "label"))
    assert rows(read_images("cifar100", str(tmp_path))[0]["train"]) == rows(examples("train", (32, 32, 3), 100))
    assert load_images("cifar100", 4, 4, str(tmp_path))[1].num_classes == 100


def test_fashion_mnist_of_the_system_through_tfds(tmp_path):
    directory = next(filter(holds_idx, system_directories(NAME)), None)
    if directory is None:
        if "CI" in os.environ:
            pytest.fail("FashionMNIST is missing: apt-get install dataset-fashion-mnist")
        pytest.skip("FashionMNIST is not installed: apt-get install dataset-fashion-mnist")
    few = {split: (images[:600], labels[:600]) for split, (images, labels) in load_idx(directory).items()}
    version = build_images(tmp_path / "tfds", NAME, splits=few)
    plain = tmp_path / "system"
    plain.mkdir()
    np.savez(plain / f"{NAME}.npz", train_images=few["train"][0], train_labels=few["train"][1],
             test_images=few["test"][0], test_labels=few["test"][1])  # fmt: skip
    datasets, info = load_images(NAME, 8, 32)
    assert info.source == str(version)  # tfds's directory comes before the system's
    shutil.rmtree(tmp_path / "tfds")
    other, info = load_images(NAME, 8, 32)
    assert info.source == str(plain / f"{NAME}.npz")
    assert equal(datasets, other)
    assert [part.arrays["label"].shape[0] for part in (datasets.train, datasets.inner_valid, datasets.test)] == [500, 50, 600]


def ragged(count, seed):
    generator = np.random.default_rng(seed)
    sizes = generator.integers(9, 20, (count, 2))
    return [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes], generator.integers(0, 5, count)


def test_images_of_many_shapes_are_shrunk_one_by_one(tmp_path):
    splits = {"train": ragged(40, 0), "validation": ragged(10, 1), "unlabelled": ragged(3, 2)}
    build(tmp_path / "one", "pets", image_features((None, None, 3), 5), image_splits(splits))
    backwards = {split: (images[::-1], labels[::-1]) for split, (images, labels) in splits.items()}
    build(tmp_path / "two", "pets", image_features((None, None, 3), 5), image_splits(backwards))
    datasets, info = load_images("pets", 8, 4, str(tmp_path / "one"))
    assert (info.num_classes, info.image_shape) == (5, (8, 8, 3))
    assert [len(part.arrays["label"]) for part in (datasets.train, datasets.inner_valid, datasets.outer_valid)] == [32, 4, 4]
    assert len(datasets.test.arrays["label"]) == 10  # tfds's validation, where there is no test
    assert equal(datasets, load_images("pets", 8, 4, str(tmp_path / "two"))[0])
    # Which example is in which part does not depend on the size.
    small = load_images("pets", 1, 4, str(tmp_path / "one"))[0]
    np.testing.assert_array_equal(small.inner_valid.arrays["label"], datasets.inner_valid.arrays["label"])
    found = [np.asarray(part.arrays["image"])[:, 0, 0] for part in (small.train, small.inner_valid, small.outer_valid)]
    means = [np.floor(image.mean(axis=(0, 1)) + 0.5).astype(int).tolist() for image in splits["train"][0]]
    assert sorted(np.concatenate(found).tolist()) == sorted(means)
    with pytest.raises(DatasetError, match=r"image [0-9]+ is [0-9]+x[0-9]+, smaller than image_size 12"):
        load_images("pets", 12, 4, str(tmp_path / "one"))
    with pytest.raises(DatasetError, match="use load_images, which shrinks them"):
        read_images("pets", str(tmp_path / "one"))


def test_a_split_too_large_to_keep_is_shrunk_one_by_one(tmp_path, monkeypatch):
    build_images(tmp_path, "large", (12, 12))
    whole = load_images("large", 5, 4, str(tmp_path))[0]
    monkeypatch.setenv("LOPT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("tasks.datasets.image_sources._LARGE", 1000)
    shrunk = load_images("large", 5, 4, str(tmp_path))[0]
    # The other parts are cut from another order.
    assert rows(whole.test.arrays[name] for name in ("image", "label")) == rows(
        shrunk.test.arrays[name] for name in ("image", "label")
    )
    assert shrunk.train.arrays["image"].shape == (28, 5, 5)


def test_configs_and_versions(tmp_path):
    for name, version, classes in (("emnist/letters", "1.0.0", 5), ("emnist/digits", "1.0.0", 6), ("emnist/digits", "2.0.0", 7)):
        splits = {"train": examples("train", (4, 4), classes)}
        build_images(tmp_path, name, (4, 4), classes, splits=splits, version=version)
    for name, path, classes in (
        ("emnist/letters", "letters/1.0.0", 5),
        ("emnist/digits", "digits/2.0.0", 7),
        ("emnist/digits:1.0.0", "digits/1.0.0", 6),
    ):
        info = load_images(name, 4, 4, str(tmp_path))[1]
        assert (info.source, info.num_classes) == (str(tmp_path / "emnist" / path), classes)
    with pytest.raises(DatasetError, match="several configs of 'emnist'; name the one you want: emnist/digits, emnist/letters"):
        load_images("emnist", 4, 4, str(tmp_path))
    shutil.rmtree(tmp_path / "emnist" / "digits")
    assert load_images("emnist", 4, 4, str(tmp_path))[1].num_classes == 5
    with pytest.raises(DatasetError, match=r"nor a prepared tfds data set emnist:3\.0\.0"):
        load_images("emnist:3.0.0", 4, 4, str(tmp_path))


def test_the_environment_names_the_place(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    datasets, info = load_images(NAME, 28, 4)
    assert info.source == str(prepared / NAME / "3.0.1")
    parts = [datasets.train, datasets.inner_valid, datasets.outer_valid]
    assert [part.num_examples for part in parts] == [30, 3, 3]
    held = [tuple(np.asarray(part.arrays[key]) for key in ("image", "label")) for part in parts]
    assert rows(tuple(map(np.concatenate, zip(*held, strict=True)))) == rows(examples("train"))


def test_the_newest_finished_version_is_taken(tmp_path):
    for version in ("3.0.1", "3.0.10", "3.0.9", "incomplete.ABC_4.0.0", "2.9.9"):
        (tmp_path / NAME / version).mkdir(parents=True)
        (tmp_path / NAME / version / "dataset_info.json").touch()
    (tmp_path / NAME / "5.0.0").mkdir()  # without its info: not finished
    assert find_prepared(tmp_path, NAME) == tmp_path / NAME / "3.0.10"
    assert find_prepared(tmp_path, f"{NAME}:2.9.9") == tmp_path / NAME / "2.9.9"
    assert find_prepared(tmp_path, f"{NAME}:9.9.9") is None
    assert find_prepared(tmp_path, "mnist") is None
    assert find_prepared(tmp_path, "../mnist") is None


def test_without_tfds_the_error_says_what_to_install(prepared, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)  # makes the import fail
    with pytest.raises(DatasetError, match=re.escape("pip install -e '.[tfds]'")):
        read_images(NAME, str(prepared))
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    with pytest.raises(DatasetError, match=f"(?s)not found.*there is one in {prepared}.*cannot be imported"):
        read_images(NAME)


def test_nothing_heavy_is_imported_where_tfds_has_nothing(tmp_path):
    """Neither to find that there is nothing, nor to read what the cache has."""
    script = f"""
import sys
from tasks.datasets import places, load_images, load_text
places.system_directories = lambda name: [places.Path({str(tmp_path)!r})]
load_images("fashion_mnist", 8, 4)
load_text("python_docs", 8, 4)
assert not {{"tensorflow_datasets", "array_record", "sklearn", "tokenizers"}} & set(sys.modules)
load_images("digits", 8, 4)
assert ("sklearn" in sys.modules) == (sys.argv[1] == "first")
"""
    images = {
        f"{split}_{kind}": array for split, pair in both().items() for kind, array in zip(("images", "labels"), pair, strict=True)
    }
    np.savez(tmp_path / "fashion_mnist.npz", **images)
    environment = {**os.environ, "LOPT_CACHE_DIR": str(tmp_path / "cache")}
    for which in ("first", "second"):
        subprocess.run([sys.executable, "-c", script, which], check=True, env=environment)


def test_a_file_that_is_gone_or_damaged(copy):
    path = next((copy / NAME / "3.0.1").glob("*-train.array_record*"))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DatasetError, match=f"'train' split of the tfds data set in {copy}.*cannot be read"):
        read_images(NAME, str(copy))
    path.unlink()
    with pytest.raises(DatasetError, match=f"'train' split of the tfds data set in {copy}.*cannot be read"):
        read_images(NAME, str(copy))


def test_records_lost_at_the_end(copy):
    as_tfrecord(copy / NAME / "3.0.1")
    path = next((copy / NAME / "3.0.1").glob("*-test.tfrecord*"))
    last = list(tfrecord_frames(path))[-1]
    path.write_bytes(path.read_bytes()[: -len(last) - 16])
    with pytest.raises(
        DatasetError, match=f"'test' split of the tfds data set in {copy}.*holds 19 examples, but its info says 20"
    ):
        read_images(NAME, str(copy))


def test_unreadable_info(copy):
    (copy / NAME / "3.0.1" / "dataset_info.json").write_text("{")
    with pytest.raises(DatasetError, match=f"{copy}.*cannot be read"):
        read_images(NAME, str(copy))


def test_a_format_that_cannot_be_read(copy):
    path = copy / NAME / "3.0.1" / "dataset_info.json"
    path.write_text(path.read_text().replace('"array_record"', '"riegeli"'))
    with pytest.raises(DatasetError, match=r"format riegeli.*--file_format=array_record"):
        read_images(NAME, str(copy))


@pytest.mark.parametrize("shape", [(32, 28), (28, 28, 3)], ids=str)
def test_other_images_are_named(tmp_path, shape):
    build_images(tmp_path, NAME, shape)
    with pytest.raises(DatasetError, match=re.escape(f"shapes [{(*shape, 1)[:3]}], where (28, 28, 1) is expected")):
        read_images(NAME, str(tmp_path))


@pytest.mark.parametrize(("name", "missing"), [(NAME, "test"), (NAME, "train"), ("own_set", "train")])
def test_a_missing_split_is_named(tmp_path, name, missing):
    (other,) = set(COUNTS) - {missing}
    build_images(tmp_path, name, splits={other: examples(other)})
    with pytest.raises(
        DatasetError, match=f"the '{missing}' split of .* in {tmp_path}/{name}/3.0.1 is missing: it has '{other}'"
    ):
        load_images(name, 8, 4, str(tmp_path))


def test_a_set_of_another_kind_is_named(tmp_path):
    import tensorflow_datasets

    build(tmp_path, "notes", {"text": tensorflow_datasets.features.Text()}, text_splits({"train": ["a"]}))
    with pytest.raises(DatasetError, match=r"'notes/3\.0\.1' is not one of images with a class each: .*text: Text"):
        load_images("notes", 8, 4, str(tmp_path))
    build_images(tmp_path, "pictures", (4, 4))
    with pytest.raises(
        DatasetError, match=r"'pictures/3\.0\.1' has no text that could be meant: .*image: Image, label: ClassLabel"
    ):
        load_text("pictures", 8, 4, data_dir=str(tmp_path))


def test_a_set_that_tfds_can_prepare_is_prepared(tmp_path, monkeypatch):
    """Registered with tfds, so that all but the network is what a download is."""
    build_images(tmp_path, "lopt_test_set", registered=True)
    with pytest.raises(DatasetError, match="it cannot be downloaded: there is no network"):
        load_images("lopt_test_set", 8, 4)
    monkeypatch.setattr(tfds, "online", lambda: True)
    datasets, info = load_images("lopt_test_set", 8, 4)
    assert info.source == str(tmp_path / "tfds" / "lopt_test_set" / "3.0.1")
    assert next((tmp_path / "tfds" / "lopt_test_set" / "3.0.1").glob("*.array_record*"))
    assert len(datasets.test.arrays["label"]) == COUNTS["test"]
    shutil.rmtree(tmp_path / "tfds")
    with pytest.raises(DatasetError, match=r"cannot be downloaded: the tfds data set 'lopt_test_set/3\.0\.1' has no text"):
        load_text("lopt_test_set", 8, 4)
    assert not (tmp_path / "tfds").exists()  # it was found out before anything was prepared


def test_why_a_preparation_failed_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds, "online", lambda: True)
    build(
        tmp_path,
        "lopt_broken_set",
        image_features((4, 4, 1)),
        {"train": [{"image": b"no picture", "label": 77}]},
        registered=True,
    )
    with pytest.raises(DatasetError, match=r"'lopt_broken_set' was not found, and it cannot be downloaded: tfds failed with \w+"):
        load_images("lopt_broken_set", 4, 4)


def test_names_are_checked_before_anything_is_read(prepared, monkeypatch):
    check_images("imdb_reviews", 8)  # a name of tfds's; what it holds is seen when it is found
    check_images("cifar10_corrupted/brightness_1", 8)
    with pytest.raises(ValueError, match=r"unknown image data set 'cifar11'; .*tfds does not know it, which has .*cifar10"):
        check_images("cifar11", 8)
    check_images("cifar11", 8, data_dir="/anywhere")  # a set of one's own may have any name
    build_images(prepared, "cifar11", (4, 4))
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    check_images("cifar11", 4)


def test_without_tfds_its_names_are_not_known(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ValueError, match=re.escape("the names of tfds need pip install -e '.[tfds]'")):
        check_images("imdb_reviews", 8)


@pytest.mark.parametrize("cut", [1, 4, 10, 16, 18, 25])
def test_a_truncated_tfrecord(tmp_path, cut):
    path = tmp_path / "file"
    frames = b"".join(struct.pack("<Q4x", len(record)) + record + bytes(4) for record in (b"", b"abcde", b"f"))
    path.write_bytes(frames)
    assert list(tfrecord_frames(path)) == [b"", b"abcde", b"f"]
    path.write_bytes(frames[:-cut])
    with pytest.raises(DatasetError, match=f"{path} ends inside the record that starts at byte"):
        list(tfrecord_frames(path))
