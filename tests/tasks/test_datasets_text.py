"""Text: found, cut, made tokens of; the same parts for every tokenizer, on the device or streamed."""

import os
import re
import shutil
import sys

import jax
import numpy as np
import pytest

from lopt.task.base import Datasets
from tasks.datasets import DatasetError, StreamingText, check_text, load_text, load_tokenizer, places, tfds
from tasks.datasets import text as text_module
from tasks.datasets import text_sources as sources
from tests.tasks.tfds_sets import as_tfrecord, build, text_splits

PARTS = ("train", "inner_valid", "outer_valid", "test")
TOKENIZERS = ("bytes", "chars", "bpe:300")
TEXT = "".join(f"{index}: the naïve café sold {index * 7} jalapeños — 日本\n" for index in range(300))


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    """Nothing in the usual places, no network, an empty cache."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setenv("LOPT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(places, "system_directories", lambda name: [tmp_path / "system"])
    monkeypatch.setattr(tfds, "online", lambda: False)


@pytest.fixture
def path(tmp_path):
    (tmp_path / "corpus.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path / "corpus.txt"


def parts_of(datasets, info):
    return {part: info.tokenizer.decode(np.asarray(getattr(datasets, part).tokens)) for part in PARTS}


def build_text(root, name="lm1b", splits=None, **options):
    import tensorflow_datasets

    features = {"text": tensorflow_datasets.features.Text()}
    return build(root, name, features, text_splits(splits), version="1.1.0", **options)


def sentences(count, start=0):
    return [f"sentence number {index} of the näws" for index in range(start, start + count)]


def test_a_file_is_shared_out_completely(path):
    datasets, info = load_text(str(path), 8, 4)
    assert isinstance(datasets, Datasets)
    assert (info.name, info.vocab_size, info.length, info.source, info.bytes_per_token) == (str(path), 256, 8, str(path), 1.0)
    parts = {part: bytes(np.asarray(getattr(datasets, part).tokens)) for part in PARTS}
    whole = TEXT.encode()
    assert sorted(whole.index(part) for part in parts.values())[0] == 0
    assert b"".join(sorted(parts.values(), key=whole.index)) == whole
    for part in PARTS[1:]:
        assert len(parts[part]) == pytest.approx(len(whole) / 10, abs=4)
    assert all(getattr(datasets, part).tokens.dtype == np.uint8 for part in PARTS)


def test_the_parts_are_the_same_whatever_the_tokenizer(path):
    expected = None
    for tokenizer in TOKENIZERS:
        datasets, info = load_text(str(path), 8, 4, tokenizer)
        parts = parts_of(datasets, info)
        known = set(parts["train"])
        shown = {part: "".join(letter if letter in known else "\ufffd" for letter in text) for part, text in parts.items()}
        expected = expected or shown
        assert shown == expected
        assert info.bytes_per_token == pytest.approx(len(parts["test"].encode()) / len(datasets.test.tokens), rel=0.05)
    assert sorted(map(len, expected.values()))[0] > 400


def test_a_batch_is_text(path):
    for tokenizer in TOKENIZERS:
        datasets, info = load_text(str(path), 12, 4, tokenizer)
        batch = datasets.train.batch(jax.random.key(0))
        assert list(batch) == ["tokens"]
        assert (batch["tokens"].shape, batch["tokens"].dtype) == ((4, 13), np.int32)
        text = info.tokenizer.decode(np.asarray(datasets.train.tokens))
        for row in np.asarray(batch["tokens"]):
            assert info.tokenizer.decode(row).strip("\ufffd") in text


def test_no_character_is_cut_in_two(tmp_path):
    path = tmp_path / "corpus.txt"
    for letter in "é日🙂":
        for shift in range(4):
            path.write_text("a" * shift + letter * 50, encoding="utf-8")
            datasets, _ = load_text(str(path), 2, 4)
            parts = [bytes(np.asarray(getattr(datasets, part).tokens)).decode() for part in PARTS]
            assert sum(map(len, parts)) == 50 + shift


def test_the_seed_decides_where_the_parts_lie(path):
    def places_of(seed):
        datasets, _ = load_text(str(path), 8, 4, split_seed=seed)
        return tuple(sorted(PARTS, key=lambda part: TEXT.encode().index(bytes(np.asarray(getattr(datasets, part).tokens)))))

    orders = [places_of(seed) for seed in range(12)]
    assert orders == [places_of(seed) for seed in range(12)]
    assert orders[0] == ("test", "outer_valid", "inner_valid", "train")  # for good
    assert len(set(orders)) > 6


def test_python_docs_are_at_hand():
    datasets, info = load_text("python_docs", 16, 64, "chars")
    parts = parts_of(datasets, info)
    assert len(parts["train"]) > 250_000
    assert any("The ``lambda`` " in text or "lambda" in text for text in parts.values())
    assert info.source.startswith("pydoc_data.topics of Python 3.")
    assert 80 < info.vocab_size < 256
    assert datasets.train.batch(jax.random.key(0))["tokens"].shape == (64, 17)
    with pytest.raises(DatasetError, match="'python_docs' comes with Python"):
        load_text("python_docs", 16, 64, data_dir=".")


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_documents_of_tfds(tmp_path, file_format):
    given = {"train": sentences(1500), "test": sentences(200, 5000)}
    version = build_text(tmp_path, splits=given)
    if file_format == "tfrecord":
        as_tfrecord(version)
    datasets, info = load_text("lm1b", 16, 4, data_dir=str(tmp_path))
    assert info.source == str(version)
    documents = {part: bytes(np.asarray(getattr(datasets, part).tokens)).decode().splitlines() for part in PARTS}
    assert sorted(documents["test"]) == sorted(given["test"])
    assert sorted(documents["train"] + documents["inner_valid"] + documents["outer_valid"]) == sorted(given["train"])
    assert 120 < len(documents["inner_valid"]) < 180
    assert 120 < len(documents["outer_valid"]) < 180
    other, _ = load_text("lm1b", 16, 4, data_dir=str(tmp_path), split_seed=1)
    assert bytes(np.asarray(other.inner_valid.tokens)) != bytes(np.asarray(datasets.inner_valid.tokens))
    assert bytes(np.asarray(other.test.tokens)) == bytes(np.asarray(datasets.test.tokens))


def test_equal_documents_are_in_one_part(tmp_path):
    build_text(tmp_path, splits={"train": sentences(400) * 3})
    datasets, _ = load_text("lm1b", 16, 4, data_dir=str(tmp_path))
    parts = [set(bytes(np.asarray(getattr(datasets, part).tokens)).splitlines()) for part in PARTS]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 400


def test_few_documents_are_cut_as_one_text(tmp_path):
    given = {"train": [TEXT[:4000], TEXT[4000:]], "test": [TEXT[:300]], "validation": ["unused"]}
    build_text(tmp_path, "tiny_shakespeare", given)
    datasets, info = load_text("tiny_shakespeare", 16, 4, data_dir=str(tmp_path))
    parts = parts_of(datasets, info)
    assert parts["test"] == TEXT[:300] + "\n"
    whole = "\n".join(reversed(given["train"])) if parts["train"] not in "\n".join(given["train"]) else "\n".join(given["train"])
    assert "".join(sorted((parts[part] for part in PARTS[:3]), key=whole.index)) == whole


def test_sources_in_their_order(tmp_path):
    def source(**options):
        return load_text("lm1b", 16, 4, **options)[1].source

    with pytest.raises(DatasetError) as error:
        source()
    for part in ("no network", "data_dir", "lm1b.txt", "pip install -e '.[tfds]'", "tfds build lm1b", str(tmp_path / "system")):
        assert part in str(error.value)
    for directory in ("system", "given"):
        (tmp_path / directory).mkdir()
        (tmp_path / directory / "lm1b.txt").write_text(TEXT)
    assert source() == str(tmp_path / "system" / "lm1b.txt")
    version = build_text(tmp_path / "tfds", splits={"train": [TEXT]})
    assert source() == str(version)
    assert source(data_dir=str(tmp_path / "given")) == str(tmp_path / "given" / "lm1b.txt")
    with pytest.raises(DatasetError, match=r"elsewhere is not a directory with neither the text in one file lm1b\.txt nor"):
        source(data_dir=str(tmp_path / "elsewhere"))


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_a_large_corpus_streams_what_would_be_on_the_device(path, tokenizer):
    datasets, info = load_text(str(path), 8, 4, tokenizer)
    stream, same = load_text(str(path), 8, 4, tokenizer, device_bytes=1000, block=500)
    assert same == info
    assert isinstance(stream, StreamingText)
    with stream:
        blocks = [stream.at(step) for step in range(40)]
    whole = np.asarray(datasets.train.tokens)
    for block in blocks:
        tokens = np.asarray(block.train.tokens)
        assert (tokens.dtype, len(tokens)) == (whole.dtype, 500)
        assert tokens.tobytes() in whole.tobytes()
        for part in PARTS[1:]:
            np.testing.assert_array_equal(getattr(block, part).tokens, getattr(datasets, part).tokens[:500])
    assert len({np.asarray(block.train.tokens).tobytes() for block in blocks}) > 10
    with load_text(str(path), 8, 4, tokenizer, device_bytes=1000, block=500)[0] as again:
        np.testing.assert_array_equal(again.at(33).train.tokens, blocks[33].train.tokens)


def test_a_corpus_is_not_read_whole_to_stream_it(path, monkeypatch):
    """What a stream of bytes reads of its file: the edges of the parts, the held-out blocks, and the blocks asked for."""
    read, sizes = sources.FileRange.read, []

    def counted(self, start=0, stop=None):
        ids = read(self, start, stop)
        sizes.append(len(ids))
        return ids

    monkeypatch.setattr(sources.FileRange, "read", counted)
    stream, _ = load_text(str(path), 8, 4, device_bytes=1000, block=100)
    with stream:
        stream.at(0)
    assert sum(sizes) <= 3 * 3 + 3 * 100 + 2 * 100
    assert not (path.parent / "cache").exists()  # nor is it copied


def test_a_file_that_is_cut_short_while_it_streams(path):
    stream, _ = load_text(str(path), 8, 4, device_bytes=1000, block=100)
    with stream:
        os.truncate(path, 50)
        with pytest.raises(DatasetError, match=f"{path} has become shorter while it was in use"):
            stream.at(0)
        path.unlink()
        with pytest.raises(DatasetError, match=f"{path} cannot be read: No such file"):
            stream.at(0)


def test_tokens_are_made_once(path, monkeypatch):
    first, info = load_text(str(path), 8, 4, "bpe:300")
    monkeypatch.setattr(text_module, "_tokenize", None)
    again, same = load_text(str(path), 8, 4, "bpe:300")
    assert same == info
    assert all(bool((getattr(first, part).tokens == getattr(again, part).tokens).all()) for part in PARTS)
    for change in ({"split_seed": 1}, {"tokenizer": "bpe:301"}, {"tokenizer": "chars"}):
        with pytest.raises(TypeError):  # would be made anew
            load_text(str(path), 8, 4, **({"tokenizer": "bpe:300"} | change))
    path.write_text(TEXT + "more")
    with pytest.raises(TypeError):
        load_text(str(path), 8, 4, "bpe:300")


def test_text_of_tfds_is_read_once(tmp_path, monkeypatch):
    build_text(tmp_path, splits={"train": sentences(30)})
    expected, _ = load_text("lm1b", 8, 4, "chars", data_dir=str(tmp_path))
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    for tokenizer in ("chars", "bytes", "bpe:260"):
        load_text("lm1b", 8, 4, tokenizer, data_dir=str(tmp_path))
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(DatasetError, match=re.escape("pip install -e '.[tfds]'")):
        load_text("lm1b", 8, 4, "chars", data_dir=str(tmp_path))
    assert expected.train.tokens.dtype == np.uint8


def test_damaged_tokens_are_made_again(path):
    first, _ = load_text(str(path), 8, 4, "chars")
    stored = next((path.parent / "cache").glob("tokens-*/train.bin"))
    stored.write_bytes(bytes(len(stored.read_bytes())))
    with pytest.warns(UserWarning, match="train.bin is damaged"):
        again, _ = load_text(str(path), 8, 4, "chars")
    np.testing.assert_array_equal(again.train.tokens, first.train.tokens)


def test_damaged_tokens_of_a_stream_are_named(path):
    load_text(str(path), 8, 4, "chars")
    stored = next((path.parent / "cache").glob("tokens-*/train.bin"))
    stored.write_bytes(bytes(len(stored.read_bytes())))
    stream, _ = load_text(str(path), 8, 4, "chars", device_bytes=100, block=100)
    with stream, pytest.raises(DatasetError, match=f"{stored} is damaged.*delete"):
        stream.at(0)


def test_a_tokenizer_is_kept_beside_a_run(path, tmp_path):
    _, info = load_text(str(path), 8, 4, "bpe:300")
    info.tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path) == info.tokenizer
    assert info.vocab_size == info.tokenizer.vocab_size == 300


def test_pieces_of_a_text_may_end_anywhere(path, monkeypatch):
    expected = {tokenizer: load_text(str(path), 8, 4, tokenizer)[0] for tokenizer in TOKENIZERS[1:]}
    shutil.rmtree(path.parent / "cache")
    monkeypatch.setattr(text_module, "_PIECE", 7)
    for tokenizer, datasets in expected.items():
        again, _ = load_text(str(path), 8, 4, tokenizer)
        np.testing.assert_array_equal(again.train.tokens, datasets.train.tokens)


@pytest.mark.parametrize("tokenizer", TOKENIZERS[1:])
def test_what_is_no_utf8_is_named(tmp_path, tokenizer):
    path = tmp_path / "latin.txt"
    path.write_bytes(b"a" * 3000 + "é".encode("latin-1") + b"a" * 3000)
    with pytest.raises(DatasetError, match=f"{path} is not UTF-8 near byte 3000 .*use the tokenizer 'bytes'"):
        load_text(str(path), 8, 4, tokenizer)
    load_text(str(path), 8, 4, "bytes")


@pytest.mark.parametrize(("content", "message"), [("", "too short for the parts"), ("abc", "too short for the parts"),
                                                  ("a" * 40, "has 4 tokens, too few for an example of 8 + 1")])  # fmt: skip
def test_a_text_that_is_too_short(tmp_path, content, message):
    path = tmp_path / "short.txt"
    path.write_text(content)
    with pytest.raises(DatasetError, match=f"{path}.*{re.escape(message)}"):
        load_text(str(path), 8, 4)


def test_a_truncated_file_of_tfds(tmp_path):
    version = build_text(tmp_path, splits={"train": sentences(30)})
    as_tfrecord(version)
    record = next(version.glob("*.tfrecord*"))
    os.truncate(record, record.stat().st_size - 3)
    with pytest.raises(DatasetError, match=f"{record} ends inside the record"):
        load_text("lm1b", 8, 4, data_dir=str(tmp_path))
    assert not list((tmp_path / "cache").iterdir())


def test_a_missing_train_split(tmp_path):
    build_text(tmp_path, splits={"test": sentences(30)})
    with pytest.raises(DatasetError, match=f"the 'train' split of the tfds data set in {tmp_path}.* is missing: it has 'test'"):
        load_text("lm1b", 8, 4, data_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"dataset": "lm2b"},
            "unknown text data set 'lm2b'; the known ones are python_docs, lm1b; .*tfds does not know it, which has",
        ),
        ({"dataset": "./none.txt"}, "unknown text data set './none.txt'; .*; there is no file or directory none.txt$"),
        ({"tokenizer": "words"}, "tokenizer must be 'bytes', 'chars', or 'bpe:N'"),
        ({"length": 0}, "length must be at least 1, not 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"split_seed": -1}, "split_seed must be at least 0, not -1"),
        ({"device_bytes": 10, "block": 16}, "block must be larger than length 16, not 16"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        load_text(**({"dataset": "python_docs", "length": 16, "batch_size": 4} | settings))


def test_names_are_checked_before_anything_is_read(tmp_path):
    for dataset in ("python_docs", "lm1b", "imdb_reviews", str(tmp_path)):
        check_text(dataset, "bpe:1024")
    with pytest.raises(DatasetError, match=f"{tmp_path} is a directory, where a file of text is expected"):
        load_text(str(tmp_path), 8, 4)
