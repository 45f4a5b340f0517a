"""IDX files: what is written is read, and every way a file can be wrong is named."""

import gzip
import re
import struct

import numpy as np
import pytest

from tasks.datasets import DatasetError, read_images
from tasks.datasets.idx import load_idx, read_idx


def encode(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture
def arrays():
    generator = np.random.default_rng(0)
    return {
        "train-images-idx3-ubyte": generator.integers(0, 256, (30, 28, 28), dtype=np.uint8),
        "train-labels-idx1-ubyte": generator.integers(0, 10, 30, dtype=np.uint8),
        "t10k-images-idx3-ubyte": generator.integers(0, 256, (20, 28, 28), dtype=np.uint8),
        "t10k-labels-idx1-ubyte": generator.integers(0, 10, 20, dtype=np.uint8),
    }


@pytest.fixture
def directory(tmp_path, arrays):
    for name, array in arrays.items():
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(encode(array)))
    return tmp_path


def expect_error(*parts):
    return pytest.raises(DatasetError, match=".*".join(map(re.escape, parts)))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_round_trip(tmp_path, rank, compress):
    array = np.random.default_rng(0).integers(0, 256, (300, 4, 5)[:rank], dtype=np.uint8)
    path = tmp_path / "file"
    path.write_bytes(compress(encode(array)))
    read = read_idx(path, rank)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize("plain", [[], ["train-labels-idx1-ubyte"], "all"], ids=["gzip", "mixed", "plain"])
def test_a_directory_may_mix_plain_and_compressed_files(directory, arrays, plain):
    for name in arrays if plain == "all" else plain:
        (directory / name).write_bytes(encode(arrays[name]))
        (directory / f"{name}.gz").unlink()
    splits = load_idx(directory, (28, 28))
    for (images, labels), prefix in zip((splits["train"], splits["test"]), ("train", "t10k"), strict=True):
        np.testing.assert_array_equal(images, arrays[f"{prefix}-images-idx3-ubyte"])
        np.testing.assert_array_equal(labels, arrays[f"{prefix}-labels-idx1-ubyte"])


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_truncated_gzip(directory, kept):
    path = directory / "train-images-idx3-ubyte.gz"
    content = path.read_bytes()
    path.write_bytes(content[: max(12, int(kept * len(content)))])
    with expect_error(str(path), "truncated or damaged gzip"):
        load_idx(directory, (28, 28))


@pytest.mark.parametrize("position", [1000, -6], ids=["stream", "checksum"])
def test_damaged_gzip(directory, position):
    path = directory / "t10k-images-idx3-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)
    with expect_error(str(path), "truncated or damaged gzip"):
        load_idx(directory, (28, 28))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "ends inside its header: 0 bytes"),
        (b"\0\0\x08\x03\0\0", "ends inside its header: 6 bytes"),
        (encode(np.zeros((9, 2), np.uint8)), "magic number 0x00000802, where"),
        (b"\0\0\x0d\x03" + bytes(12), "magic number 0x00000d03, where"),
        (b"<!doctype html> not found", "magic number 0x3c21646f, where"),
        (encode(np.zeros((2, 3, 4), np.uint8))[:-1], "holds 23 values, but its header says shape (2, 3, 4): 24"),
        (encode(np.zeros((2, 3, 4), np.uint8)) + b"\0", "holds 25 values, but its header says shape (2, 3, 4): 24"),
    ],
)
def test_bad_content(tmp_path, content, message):
    path = tmp_path / "images"
    path.write_bytes(content)
    with expect_error(str(path), message):
        read_idx(path, 3)


def test_swapped_files_are_told_by_the_magic_number(directory, arrays):
    (directory / "train-labels-idx1-ubyte.gz").write_bytes(encode(arrays["train-images-idx3-ubyte"]))
    with expect_error("train-labels-idx1-ubyte.gz", "0x00000803", "rank 1", "0x00000801"):
        load_idx(directory, (28, 28))


def test_wrong_image_shape(directory):
    with expect_error("train-images-idx3-ubyte.gz", "shape (28, 28), where (32, 28)"):
        load_idx(directory, (32, 28))


def test_images_and_labels_must_agree_in_number(directory):
    (directory / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(encode(np.zeros(19, np.uint8))))
    with expect_error("t10k-images-idx3-ubyte.gz holds 20 images", "t10k-labels-idx1-ubyte.gz holds 19 labels"):
        load_idx(directory, (28, 28))


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_a_missing_file_is_named(directory, name):
    (directory / f"{name}.gz").unlink()
    with expect_error(str(directory), f"no file {name} or {name}.gz"):
        load_idx(directory, (28, 28))


def test_an_unreadable_file_is_named(tmp_path):
    with expect_error(str(tmp_path), "cannot be read"):
        read_idx(tmp_path, 3)


def test_a_label_that_is_no_class(directory):
    (directory / "train-labels-idx1-ubyte.gz").write_bytes(encode(np.full(30, 11, np.uint8)))
    with expect_error(str(directory), "'train' split has the label 11, but 'mnist' has 10 classes"):
        read_images("mnist", str(directory))
