"""Tokenizers: what is encoded is decoded, whatever the pieces; what is saved is read back equal."""

import hashlib
import itertools
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from tasks.datasets import DatasetError, load_tokenizer
from tasks.datasets.tokenizer import BytePairs, Bytes, Characters, from_definition, parse, smallest_dtype

TEXT = "To be, or not to be:\r\nthat is the question — naïve 日本語 🙂\n\n\tindented  twice\u2028one line\n" * 20


@pytest.fixture(scope="module")
def tokenizers():
    return {"bytes": Bytes(), "chars": Characters.of([TEXT]), "bpe": BytePairs.train([TEXT], 300)}


@pytest.fixture(params=["bytes", "chars", "bpe"])
def tokenizer(request, tokenizers):
    return tokenizers[request.param]


def test_round_trip(tokenizer):
    for text in (TEXT, "", "\n", " \n ", "be 🙂"):
        ids = tokenizer.encode(text)
        assert ids.dtype == tokenizer.dtype
        assert ids.ndim == 1
        assert tokenizer.decode(ids) == text
    assert int(tokenizer.encode(TEXT).max()) < tokenizer.vocab_size


def test_where_the_pieces_end_makes_no_difference(tokenizer):
    expected = tokenizer.encode(TEXT)
    generator = np.random.default_rng(0)
    for _ in range(5):
        cuts = [0, *sorted(generator.integers(0, len(TEXT) + 1, 30)), len(TEXT)]
        pieces = [TEXT[start:stop] for start, stop in itertools.pairwise(cuts)]
        np.testing.assert_array_equal(np.concatenate(list(tokenizer.encode_pieces(pieces))), expected)


def test_saved_and_loaded(tokenizer, tmp_path):
    for path in (tokenizer.save(tmp_path), tokenizer.save(tmp_path / "mine.json")):
        loaded = load_tokenizer(path)
        assert loaded == tokenizer
        np.testing.assert_array_equal(loaded.encode(TEXT), tokenizer.encode(TEXT))
    assert load_tokenizer(tmp_path) == tokenizer
    assert sorted(os.listdir(tmp_path)) == ["mine.json", "tokenizer.json"]
    assert json.loads((tmp_path / "mine.json").read_text())["kind"] == tokenizer.kind


def test_the_tokens_of_bytes_are_the_bytes():
    assert bytes(Bytes().encode("aé\n")) == "aé\n".encode()
    assert (Bytes().vocab_size, Bytes().dtype) == (256, np.uint8)
    assert Bytes().decode([0x61, 0xFF]) == "a\ufffd"


def test_the_tokens_of_characters_are_their_places():
    tokenizer = Characters.of(["cab", "bé\n"])
    assert tokenizer.characters == "\nabcé"
    assert tokenizer.vocab_size == 6
    assert tokenizer.encode("é a\n").tolist() == [5, 0, 2, 1]
    assert tokenizer.decode([5, 0, 2, 1]) == "é\ufffda\n"


def test_the_sign_for_other_characters_is_never_one_of_them():
    tokenizer = Characters.of(["a\ufffdb"])
    assert (tokenizer.characters, tokenizer.encode("b\ufffd").tolist()) == ("ab", [2, 0])


def test_many_characters_take_a_wider_type():
    tokenizer = Characters.of(["".join(map(chr, range(1000, 1300)))])
    assert tokenizer.dtype == np.uint16
    assert tokenizer.encode(chr(1299)).tolist() == [300]


@pytest.mark.parametrize(
    ("size", "dtype"), [(1, np.uint8), (256, np.uint8), (257, np.uint16), (65536, np.uint16), (65537, np.int32)]
)
def test_the_smallest_type(size, dtype):
    assert smallest_dtype(size) == dtype


def test_byte_pairs_merge_what_is_frequent():
    tokenizer = BytePairs.train(["abab abab abab xy\n"] * 10, 260)
    assert tokenizer.vocab_size == 260
    assert len(tokenizer.encode("abab")) == 1
    assert len(tokenizer.encode("xzxz")) == 4


def test_byte_pairs_know_every_byte(tokenizers):
    text = "".join(map(chr, range(0x250))) + "\U0001f600"
    assert tokenizers["bpe"].decode(tokenizers["bpe"].encode(text)) == text
    assert BytePairs.train(["a"], 256).vocab_size == 256


def test_a_small_text_teaches_fewer_pairs_than_asked_for():
    assert BytePairs.train(["ab"], 1000).vocab_size == 257


def test_training_is_deterministic(tokenizers):
    """The library hashes with a seed of each process: two others must learn the same."""
    script = (
        "import sys, hashlib; from tasks.datasets.tokenizer import BytePairs;"
        "print(hashlib.sha256(BytePairs.train([sys.stdin.read()], 300).library.encode()).hexdigest())"
    )
    texts = [
        subprocess.run([sys.executable, "-c", script], input=TEXT, text=True, capture_output=True, check=True) for _ in range(2)
    ]
    mine = hashlib.sha256(tokenizers["bpe"].library.encode()).hexdigest()
    assert {done.stdout.strip() for done in texts} == {mine}


def test_long_lines_are_cut_in_the_same_places():
    text = "ab cd " * 30_000 + "\nshort\n" + "e" * 65_536 + "\n" + "f" * 65_537
    tokenizer = BytePairs.train([TEXT], 256)
    expected = tokenizer.encode(text)
    assert tokenizer.decode(expected) == text
    for size in (1000, 65_536, 65_537, 100_003):
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        np.testing.assert_array_equal(np.concatenate(list(tokenizer.encode_pieces(pieces))), expected)


@pytest.mark.parametrize(
    "description", ["", "byte", "bytes:3", "chars:", "bpe", "bpe:", "bpe:255", "bpe:-1", "bpe:1e3", "BPE:300"]
)
def test_other_descriptions_are_an_error(description):
    with pytest.raises(ValueError, match=f"'bytes', 'chars', or 'bpe:N' .* not '{description}'"):
        parse(description)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "does not hold a tokenizer: Expecting value"),
        ('{"format": "lopt tokenizer 1", "kind": "chars"', "does not hold a tokenizer: Expecting"),
        ('{"kind": "bytes"}', "does not hold a tokenizer: 'format'"),
        ('{"format": "lopt tokenizer 2", "kind": "bytes"}', "its format is 'lopt tokenizer 2', not 'lopt tokenizer 1'"),
        ('{"format": "lopt tokenizer 1", "kind": "words"}', "unknown kind 'words'"),
        ('{"format": "lopt tokenizer 1", "kind": "chars"}', "does not hold a tokenizer: 'characters'"),
        ("[]", "does not hold a tokenizer"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, content, reason):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(DatasetError, match=re.escape(f"{path} {reason}" if reason.startswith("does") else reason)):
        load_tokenizer(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DatasetError, match=f"{tmp_path}/tokenizer.json cannot be read"):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_without_the_library_the_error_says_what_to_install(monkeypatch, tokenizers):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(DatasetError, match=re.escape("pip install -e '.[text]'")):
        BytePairs.train([TEXT], 300)
    definition = {"kind": "bpe", **tokenizers["bpe"].definition()}
    with pytest.raises(DatasetError, match=re.escape("pip install -e '.[text]'")):
        from_definition(definition).encode("a")
