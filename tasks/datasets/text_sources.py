"""Where text comes from: Python's own reference, a file, a text data set of tfds's. Found first, read later.

A text is cut into train, inner valid, outer valid and test; where the source has a test split, that stays the test split.

- A file, and few documents (joined by newlines): disjoint contiguous parts, a tenth each held out. The seed decides in which
  order the parts lie in the text; they begin and end with whole characters.
- Many documents, such as the sentences of lm1b: each is in the part that a digest of it and of the seed decides, so that equal
  documents are in one part; a tenth, about, goes to each held-out part. They follow each other, one to a newline.
"""

import dataclasses
import functools
import hashlib
import importlib.util
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tasks.datasets import tfds
from tasks.datasets.cache import StoredArray, Writer, cached
from tasks.datasets.errors import DatasetError
from tasks.datasets.places import Reader, Source, is_path, locate

PARTS = ("train", "inner_valid", "outer_valid", "test")
HELD_OUT = 0.1

_MANY = 1000  # documents of the train split from which on they are shared out one by one
_BUFFER = 1 << 22  # bytes


@dataclasses.dataclass(frozen=True)
class Documents:
    """The documents of a text data set.

    Attributes:
      train: UTF-8, in the source's order.
      test: of the source's own test split, or None.
      count: how many `train` has.
    """

    train: Iterable[bytes]
    test: Iterable[bytes] | None
    count: int


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A text: a file that is read in place, or documents that are yet to be read."""

    file: Path | None
    documents: Callable[[], Documents]


@dataclasses.dataclass(frozen=True)
class FileRange:
    """A contiguous part of a file as uint8 tokens, read where and when it is asked for."""

    path: Path
    offset: int
    size: int

    def __len__(self) -> int:
        return self.size

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Bytes `start` to `stop` (to the end); raises `DatasetError` if the file has become shorter or is gone."""
        stop = self.size if stop is None else stop
        try:
            with self.path.open("rb") as file:
                # A read, not a memory map: where a mapped file is cut short, touching the map kills the process.
                file.seek(self.offset + start)
                content = file.read(stop - start)
        except OSError as error:
            raise DatasetError(f"{self.path} cannot be read: {error.strerror}") from error
        if len(content) != stop - start:
            raise DatasetError(f"{self.path} has become shorter while it was in use: it ends before byte {self.offset + stop}")
        return np.frombuffer(content, np.uint8)


Ranges = Mapping[str, FileRange | StoredArray]


def find_text(name: str, data_dir: str | None) -> Source[Corpus]:
    """Find a text data set.

    Args:
      name: `python_docs`, the path of a file, or a name of tfds's such as `lm1b`.
      data_dir: the only place to look at for a name of tfds's, or None for the usual ones.

    Raises:
      DatasetError: if it is not found, with the ways to get it.
    """
    if name == "python_docs":
        if data_dir is not None:
            raise DatasetError(f"'python_docs' comes with Python and is not read from data_dir {data_dir}; leave data_dir out")
        spec = importlib.util.find_spec("pydoc_data.topics")
        if spec is None or spec.origin is None:
            raise DatasetError(
                "this Python comes without its reference (the module pydoc_data.topics); install all of Python's library"
            )
        label = f"pydoc_data.topics of Python {platform.python_version()}"
        return Source(label, lambda: Corpus(None, _python_docs), (Path(spec.origin),), platform.python_version())
    if name != "lm1b" and is_path(name):
        if data_dir is not None:
            raise DatasetError(f"{name} is a path and is not looked for in data_dir {data_dir}; leave data_dir out")
        path = Path(name).expanduser()
        if not path.is_file():
            raise DatasetError(f"{path} is {'a directory' if path.is_dir() else 'not there'}, where a file of text is expected")
        return _in_file(path)
    plain = f"{tfds.base_name(name)}.txt"
    reader = Reader(
        plain=lambda directory: _in_file(directory / plain) if (directory / plain).is_file() else None,
        prepared=_prepared,
        check=text_feature,
        files=f"the text in one file {plain}",
    )
    return locate(name, data_dir, reader)


def _python_docs() -> Documents:
    from pydoc_data.topics import topics  # imported where it is used: half a megabyte

    return Documents(["\n\n".join(topics[topic] for topic in sorted(topics)).encode()], None, 1)


def _in_file(path: Path) -> Source[Corpus]:
    def documents() -> Documents:
        raise AssertionError("a file is read in place")

    return Source(str(path), lambda: Corpus(path, documents), (path,))


def _prepared(directory: Path) -> Source[Corpus]:
    files = tuple(sorted(path for path in directory.iterdir() if path.is_file()))
    return Source(str(directory), lambda: Corpus(None, functools.partial(_read_prepared, directory)), files)


def text_feature(builder: Any) -> str:
    """The name of a tfds data set's text, or a `DatasetError` if it has none: `text`, the input, or its only text."""
    import tensorflow_datasets

    features = dict(builder.info.features.items())
    texts = [name for name, feature in features.items() if isinstance(feature, tensorflow_datasets.features.Text)]
    for name in ("text", *(builder.info.supervised_keys or ())[:1], *(texts if len(texts) == 1 else ())):
        if name in texts:
            return name
    described = ", ".join(f"{name}: {type(feature).__name__}" for name, feature in sorted(features.items()))
    raise DatasetError(
        f"the tfds data set '{builder.info.full_name}' has no text that could be meant: its features are {described}"
    )


def _read_prepared(directory: Path) -> Documents:
    builder = tfds.open_prepared(directory)
    name = text_feature(builder)

    def documents(split: str) -> Iterator[bytes]:
        return (bytes(example[name]) for example in tfds.examples(builder, split))

    splits = builder.info.splits
    return Documents(
        documents("train"),
        documents("test") if "test" in splits else None,
        splits["train"].num_examples if "train" in splits else 0,
    )


def part_sizes(total: int, parts: int) -> list[int]:
    """Bytes of each part, the first taking what the others leave."""
    held_out = int(total * HELD_OUT)
    return [total - (parts - 1) * held_out] + [held_out] * (parts - 1)


def contiguous(total: int, names: tuple[str, ...], seed: int, read: Callable[[int, int], bytes]) -> dict[str, tuple[int, int]]:
    """Cut a text into contiguous parts, in the order that the seed decides.

    Args:
      total: its bytes.
      names: of the parts; the first is the large one.
      seed: of the order, 0 or larger.
      read: `read(start, stop)` of the text, UTF-8.

    Returns:
      name -> (start, stop) in bytes; no character is cut in two.
    """
    sizes = part_sizes(total, len(names))
    order = np.argsort(np.random.PCG64(seed).random_raw(len(names)), kind="stable")
    ends = np.cumsum([sizes[index] for index in order])
    bounds = [0]
    for end in map(int, ends[:-1]):
        following = read(end, min(end + 3, total))  # a character has at most three more bytes, 10xxxxxx
        bounds.append(end + next((index for index, byte in enumerate(following) if byte & 0xC0 != 0x80), len(following)))
    bounds.append(total)
    return {names[index]: (bounds[place], bounds[place + 1]) for place, index in enumerate(order)}


def open_text(name: str, source: Source[Corpus], seed: int, check_bytes: float) -> Ranges:
    """The text of each part, as bytes: ranges of the file, or what the cache keeps of documents.

    Args:
      name: of the data set, for messages.
      source: what was found.
      seed: of the split.
      check_bytes: see `cached`.

    Raises:
      DatasetError: if the source cannot be read, or a part would be empty.
    """
    corpus = source.read()
    if corpus.file is not None:
        path = corpus.file
        whole = FileRange(path, 0, path.stat().st_size)
        bounds = contiguous(len(whole), PARTS, seed, lambda start, stop: whole.read(start, stop).tobytes())
        return _nonempty(name, source, {part: FileRange(path, start, stop - start) for part, (start, stop) in bounds.items()})
    settings = {"name": name, "split_seed": seed, "source": source.identity()}
    entry = cached("text", settings, functools.partial(_write, corpus, seed), check_bytes)
    return _nonempty(name, source, entry.arrays)


def _nonempty(name: str, source: Source[Corpus], ranges: Ranges) -> Ranges:
    for part in PARTS:
        if part not in ranges or not len(ranges[part]):
            raise DatasetError(
                f"{source.label}: the text is too short for the parts {', '.join(PARTS)}: '{part}' of '{name}' is empty"
            )
    return ranges


def _write(corpus: Corpus, seed: int, writer: Writer) -> dict[str, Any]:
    documents = corpus.documents()
    names = PARTS if documents.test is None else PARTS[:3]
    if documents.count < _MANY:
        text = b"\n".join(documents.train)
        for part, (start, stop) in contiguous(len(text), names, seed, lambda start, stop: text[start:stop]).items():
            writer.append(part, np.frombuffer(text[start:stop], np.uint8))
    else:
        _write_documents(writer, ((chosen_part(document, names, seed), document) for document in documents.train))
    if documents.test is not None:
        _write_documents(writer, (("test", document) for document in documents.test))
    return {}


def chosen_part(document: bytes, names: tuple[str, ...], seed: int) -> str:
    """The part that a document is in: its keyed digest is a uniform number in [0, 1)."""
    digest = hashlib.blake2b(document, digest_size=8, key=seed.to_bytes(8, "little")).digest()
    place = int.from_bytes(digest, "little") / 2**64 / HELD_OUT
    return names[1 + int(place)] if place < len(names) - 1 else names[0]


def _write_documents(writer: Writer, documents: Iterable[tuple[str, bytes]]) -> None:
    waiting: dict[str, bytearray] = {}
    for part, document in documents:
        buffer = waiting.setdefault(part, bytearray())
        buffer += document
        buffer += b"\n"
        if len(buffer) >= _BUFFER:
            writer.append(part, np.frombuffer(bytes(buffer), np.uint8))
            buffer.clear()
    for part, buffer in waiting.items():
        writer.append(part, np.frombuffer(bytes(buffer), np.uint8))
