"""Data sets that tfds itself has written to disk, read through the loader.

TensorFlow is not among the extras: that these tests pass without it is part of what they show.
"""

import io
import json
import re
import shutil
import struct
import sys

import numpy as np
import PIL.Image
import pytest

from tasks.datasets import DatasetError, load_images, places, read_images
from tasks.datasets.tfds import find_prepared, tfrecord_frames

NAME = "fashion_mnist"
COUNTS = {"train": 36, "test": 20}


def examples(split, shape=(28, 28)):
    generator = np.random.default_rng(COUNTS[split])
    count = COUNTS[split]
    return generator.integers(0, 256, (count, *shape), dtype=np.uint8), generator.integers(0, 10, count, dtype=np.uint8)


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, format="png")
    return buffer.getvalue()


def build(root, shape=(28, 28)):
    """Let tfds write a small data set of the shape of FashionMNIST below `root`, as array_record."""
    import tensorflow_datasets as tfds

    class FashionMnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # the name of the class is that of the data
        VERSION = tfds.core.Version("3.0.1")

        def _info(self):
            features = {"image": tfds.features.Image(shape=(*shape, 1)), "label": tfds.features.ClassLabel(num_classes=10)}
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in COUNTS}

        def _generate_examples(self, split):
            for index, (image, label) in enumerate(zip(*examples(split, shape), strict=True)):
                yield index, {"image": png(image), "label": int(label)}

    FashionMnist(data_dir=root, file_format="array_record").download_and_prepare()
    return root


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return build(tmp_path_factory.mktemp("prepared"))


@pytest.fixture
def copy(prepared, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(prepared, tmp_path / "copy")


@pytest.fixture
def no_system(monkeypatch, tmp_path):
    monkeypatch.setattr(places, "system_directories", lambda name: [tmp_path / "system"])


def rows(pair):
    return sorted((image.tobytes(), int(label)) for image, label in zip(*pair, strict=True))


def as_tfrecord(root):
    """Rewrite a prepared data set as tfrecord, its records unchanged; the checksums, which are not checked, are zero."""
    from array_record.python import array_record_module

    version = find_prepared(root, NAME)
    for path in version.glob("*.array_record*"):
        reader = array_record_module.ArrayRecordReader(str(path))
        frames = [struct.pack("<Q4x", len(record)) + record + bytes(4) for record in reader.read_all()]
        reader.close()
        (version / path.name.replace("array_record", "tfrecord")).write_bytes(b"".join(frames))
        path.unlink()
    info = json.loads((version / "dataset_info.json").read_text())
    (version / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_every_example_is_read(copy, file_format):
    if file_format == "tfrecord":
        as_tfrecord(copy)
    splits, source = read_images(NAME, str(copy))
    assert source == str(copy / NAME / "3.0.1")
    for split in COUNTS:
        assert rows(splits[split]) == rows(examples(split))
        assert [array.dtype for array in splits[split]] == [np.uint8, np.int64]


def test_the_environment_names_the_place(prepared, monkeypatch, no_system):
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
    assert find_prepared(tmp_path, "mnist") is None


def test_without_tfds_the_error_says_what_to_install(prepared, monkeypatch, no_system):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)  # makes the import fail
    with pytest.raises(DatasetError, match=re.escape("pip install 'lopt[tfds]'")):
        read_images(NAME, str(prepared))
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    with pytest.raises(DatasetError, match=f"(?s)not found.*there is one in {prepared}.*cannot be imported"):
        read_images(NAME)


def test_a_file_that_is_gone_or_damaged(copy):
    path = next((copy / NAME / "3.0.1").glob("*-train.array_record*"))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DatasetError, match=f"'train' split of the tfds data set in {copy}.*cannot be read"):
        read_images(NAME, str(copy))
    path.unlink()
    with pytest.raises(DatasetError, match=f"'train' split of the tfds data set in {copy}.*cannot be read"):
        read_images(NAME, str(copy))


def test_records_lost_at_the_end(copy):
    as_tfrecord(copy)
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


def test_other_images_are_named(tmp_path):
    root = build(tmp_path, shape=(32, 28))
    with pytest.raises(DatasetError, match=re.escape("shapes [(32, 28, 1)], where (28, 28, 1) is expected")):
        read_images(NAME, str(root))


@pytest.mark.parametrize("cut", [1, 4, 10, 16, 18, 25])
def test_a_truncated_tfrecord(tmp_path, cut):
    path = tmp_path / "file"
    frames = b"".join(struct.pack("<Q4x", len(record)) + record + bytes(4) for record in (b"", b"abcde", b"f"))
    path.write_bytes(frames)
    assert list(tfrecord_frames(path)) == [b"", b"abcde", b"f"]
    path.write_bytes(frames[:-cut])
    with pytest.raises(DatasetError, match=f"{path} ends inside the record that starts at byte"):
        list(tfrecord_frames(path))
