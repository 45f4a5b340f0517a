"""Text to token ids and back: bytes, characters, byte pairs.

A tokenizer is a value: saved beside a run as JSON, it is read back equal, whatever becomes of the corpus.

References:
  Byte pairs: Sennrich, Haddow, Birch, "Neural Machine Translation of Rare Words with Subword Units", ACL 2016, on the bytes of
  words, as in Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.
"""

import abc
import dataclasses
import functools
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tasks.datasets.errors import DatasetError

INSTALL = "pip install -e '.[text]' in the clone"
FILE_NAME = "tokenizer.json"

_FORMAT = "lopt tokenizer 1"
_UNKNOWN = "\ufffd"
_CODE_POINTS = 0x110000
_LONGEST_LINE = 1 << 16  # characters
_LINES = 4096  # that are encoded at once, in parallel
_TRAINING = 1 << 27  # characters that byte pairs are learned from


def smallest_dtype(vocab_size: int) -> np.dtype:
    """The smallest type that tokens are stored in: uint8, uint16 or int32.

    Example:
      >>> smallest_dtype(256), smallest_dtype(257)
      (dtype('uint8'), dtype('uint16'))
    """
    return np.dtype(np.uint8 if vocab_size <= 1 << 8 else np.uint16 if vocab_size <= 1 << 16 else np.int32)


class Tokenizer(abc.ABC):
    """What all tokenizers offer; the final ones are `Bytes`, `Characters` and `BytePairs`."""

    kind: ClassVar[str]

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """Ids are 0 ... vocab_size - 1."""

    @abc.abstractmethod
    def encode_pieces(self, pieces: Iterable[str]) -> Iterator[np.ndarray]:
        """Ids [n] of a text that comes in pieces, a part at a time: where the pieces end makes no difference."""

    @abc.abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; U+FFFD stands for what is no text."""

    @abc.abstractmethod
    def definition(self) -> dict[str, Any]:
        """All that makes it, as JSON values."""

    @property
    def dtype(self) -> np.dtype:
        return smallest_dtype(self.vocab_size)

    def encode(self, text: str) -> np.ndarray:
        """Ids [n] of a text, in the smallest type that holds them."""
        return np.concatenate([np.zeros(0, self.dtype), *self.encode_pieces([text])])

    def to_json(self) -> str:
        """What `save` writes."""
        return json.dumps({"format": _FORMAT, "kind": self.kind, **self.definition()})

    def save(self, path: str | Path) -> Path:
        """Write it as JSON, whole or not at all: to a file, or to `tokenizer.json` in a directory. Returns the file."""
        path = Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        unfinished.write_text(self.to_json(), encoding="utf-8")
        os.replace(unfinished, path)
        return path


@dataclasses.dataclass(frozen=True)
class Bytes(Tokenizer):
    """The bytes of the text in UTF-8: 256 tokens, none unknown."""

    kind: ClassVar[str] = "bytes"

    @property
    def vocab_size(self) -> int:
        return 256

    def encode_pieces(self, pieces: Iterable[str]) -> Iterator[np.ndarray]:
        return (np.frombuffer(piece.encode(), np.uint8) for piece in pieces)

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(int(index) for index in ids).decode(errors="replace")

    def definition(self) -> dict[str, Any]:
        return {}


@dataclasses.dataclass(frozen=True)
class Characters(Tokenizer):
    """The characters (Unicode code points) that the train split has, in their order; token 0 is any other one.

    Attributes:
      characters: distinct, sorted; the i-th is token i + 1. U+FFFD is never among them: it is how token 0 is written.
    """

    characters: str
    kind: ClassVar[str] = "chars"

    @classmethod
    def of(cls, pieces: Iterable[str]) -> "Characters":
        """The characters of a text that comes in pieces."""
        seen = np.zeros(_CODE_POINTS, bool)
        for piece in pieces:
            seen[_code_points(piece)] = True
        seen[ord(_UNKNOWN)] = False
        return cls("".join(map(chr, np.flatnonzero(seen))))

    @property
    def vocab_size(self) -> int:
        return len(self.characters) + 1

    @functools.cached_property
    def _table(self) -> np.ndarray:
        table = np.zeros(_CODE_POINTS, self.dtype)
        table[_code_points(self.characters)] = np.arange(1, self.vocab_size)
        return table

    def encode_pieces(self, pieces: Iterable[str]) -> Iterator[np.ndarray]:
        return (self._table[_code_points(piece)] for piece in pieces)

    def decode(self, ids: Iterable[int]) -> str:
        letters = _UNKNOWN + self.characters
        return "".join(letters[int(index)] for index in ids)

    def definition(self) -> dict[str, Any]:
        return {"characters": self.characters}


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), np.dtype("<u4"))


@dataclasses.dataclass(frozen=True)
class BytePairs(Tokenizer):
    """Byte pairs merged by frequency: the 256 bytes and the merges that the train split teaches. None is unknown.

    A text is encoded line by line, and lines are cut after 65,536 characters, so that a corpus need not fit into memory.

    Attributes:
      library: the definition in the JSON of the `tokenizers` library, laid out by `json.dumps`.
    """

    library: str
    kind: ClassVar[str] = "bpe"

    @classmethod
    def train(cls, pieces: Iterable[str], vocab_size: int) -> "BytePairs":
        """Learn the merges from a text that comes in pieces, from its first 2^27 characters.

        Args:
          pieces: of the text.
          vocab_size: tokens wanted, at least 256; a text may be too small to teach so many.

        Raises:
          DatasetError: if the `tokenizers` library is not installed.
        """
        tokenizers = _library()
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size,
            initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
            special_tokens=[],
            show_progress=False,
        )
        tokenizer.train_from_iterator(_lines(_first(pieces, _TRAINING)), trainer)
        return cls(json.dumps(json.loads(tokenizer.to_str())))

    @functools.cached_property
    def _tokenizer(self) -> Any:
        return _library().Tokenizer.from_str(self.library)

    @functools.cached_property
    def vocab_size(self) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]  kept once it is known
        return self._tokenizer.get_vocab_size()

    def encode_pieces(self, pieces: Iterable[str]) -> Iterator[np.ndarray]:
        lines = _lines(pieces)
        while batch := list(itertools.islice(lines, _LINES)):
            encoded = self._tokenizer.encode_batch_fast(batch, add_special_tokens=False)
            yield np.concatenate([np.array(line.ids, self.dtype) for line in encoded])

    def decode(self, ids: Iterable[int]) -> str:
        return self._tokenizer.decode([int(index) for index in ids], skip_special_tokens=False)

    def definition(self) -> dict[str, Any]:
        return {"library": json.loads(self.library)}


def _library() -> Any:
    try:
        import tokenizers  # an extra
    except ImportError as error:
        raise DatasetError(
            f"the tokenizer 'bpe' needs the tokenizers library, which cannot be imported ({error}): {INSTALL}"
        ) from error
    return tokenizers


def _first(pieces: Iterable[str], characters: int) -> Iterator[str]:
    for piece in pieces:
        yield piece[:characters]
        characters -= len(piece)
        if characters <= 0:
            return


def _lines(pieces: Iterable[str]) -> Iterator[str]:
    """The lines of a text, each with its newline, and those that are too long in parts; wherever the pieces end."""
    rest = ""
    for piece in itertools.chain(pieces, [None]):
        *lines, rest = (rest + (piece or "")).split("\n")
        whole = [f"{line}\n" for line in lines] + ([rest] if piece is None else [])
        for line in whole:
            yield from (line[start : start + _LONGEST_LINE] for start in range(0, len(line), _LONGEST_LINE))
        if len(rest) > _LONGEST_LINE and piece is not None:
            cut = len(rest) - len(rest) % _LONGEST_LINE
            yield from (rest[start : start + _LONGEST_LINE] for start in range(0, cut, _LONGEST_LINE))
            rest = rest[cut:]


def parse(description: str) -> tuple[str, int]:
    """What a tokenizer's description asks for: its kind, and the number of tokens (0 if it is not asked for).

    Raises:
      ValueError: for a description that is not `bytes`, `chars` or `bpe:N`.

    Example:
      >>> parse("bpe:1024")
      ('bpe', 1024)
    """
    kind, _, size = description.partition(":")
    if kind in ("bytes", "chars") and description == kind:
        return kind, 0
    if kind == "bpe" and size.isdecimal() and 256 <= int(size) < 1 << 31:
        return kind, int(size)
    raise ValueError(
        f"tokenizer must be 'bytes', 'chars', or 'bpe:N' with N of at least 256 tokens, such as 'bpe:1024', not {description!r}"
    )


def from_definition(definition: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a kind and a definition.

    Raises:
      KeyError, ValueError: if it is not one.
    """
    match definition["kind"]:
        case "bytes":
            return Bytes()
        case "chars":
            return Characters(definition["characters"])
        case "bpe":
            return BytePairs(json.dumps(definition["library"]))
        case kind:
            raise ValueError(f"unknown kind {kind!r}")


def load(path: str | Path) -> Tokenizer:
    """Read a tokenizer that `Tokenizer.save` has written: from a file, or from `tokenizer.json` in a directory.

    Raises:
      DatasetError: naming the file that cannot be read or holds something else.
    """
    path = Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)
    try:
        definition = json.loads(path.read_text(encoding="utf-8"))
        if definition["format"] != _FORMAT:
            raise ValueError(f"its format is {definition['format']!r}, not {_FORMAT!r}")
        return from_definition(definition)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{path} does not hold a tokenizer: {error}; write it again with Tokenizer.save") from error
