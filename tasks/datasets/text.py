"""Text as tokens: find the corpus, split it, make tokens of it, put it on the device or stream it.

| name | text | parts |
|---|---|---|
| python_docs | the reference that comes with Python (0.5 MB, by version of Python) | contiguous |
| lm1b | sentences of news (4 GB), by tfds | by sentence; test is tfds's |
| a path: a file of text | UTF-8, or anything for the bytes tokenizer | contiguous |
| any text of tfds's | its feature `text`, its input, or its only text | by document where there are 1,000 or more, else contiguous |

Whatever the tokenizer, the parts are the same text; see `tasks.datasets.text_sources` for how it is cut. Text and tokens are kept in
the cache (`tasks.datasets.cache`), except for a file's bytes, which are read from the file. Byte pairs take their time: the library
encodes some 2 MB a second and core.
"""

import codecs
import dataclasses
import functools
import importlib.metadata
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp

from lopt.task import Datasets, DataStream
from tasks.datasets import tokenizer as tokenizers
from tasks.datasets.cache import StoredArray, Writer, cached
from tasks.datasets.errors import DatasetError
from tasks.datasets.places import check_name
from tasks.datasets.stream import BLOCK, SPLITS, StreamingText
from tasks.datasets.text_sources import FileRange, Ranges, find_text, open_text
from tasks.datasets.tokenizer import BytePairs, Bytes, Characters, Tokenizer
from tasks.datasets.tokens import TokenSplit

KNOWN_TEXTS = ("python_docs", "lm1b")
DEVICE_BYTES = 1 << 28

_PIECE = 1 << 22  # bytes that are made tokens of at once


@dataclasses.dataclass(frozen=True)
class TextInfo:
    """What a task must know about its text.

    Attributes:
      name: of the data set.
      vocab_size: tokens are 0 ... vocab_size - 1.
      length: L, inputs of an example.
      source: where the text came from, for the log.
      tokenizer: makes text of tokens; `tokenizer.save(directory)` keeps it beside a run.
      bytes_per_token: of the test part, so that `loss / ln(2) / bytes_per_token` is in bits per byte.
    """

    name: str
    vocab_size: int
    length: int
    source: str
    tokenizer: Tokenizer
    bytes_per_token: float = 1.0


def check_text(dataset: str, tokenizer: str, data_dir: str | None = None) -> None:
    """Raise unless `load_text` may find the data set, and knows the tokenizer.

    Args:
      dataset: a name or a path.
      tokenizer: `bytes`, `chars` or `bpe:N`.
      data_dir: as in `load_text`; with it, names are allowed that tfds does not know.

    Raises:
      ValueError: naming the known data sets, or what a tokenizer may be.
    """
    tokenizers.parse(tokenizer)
    check_name("text", dataset, KNOWN_TEXTS, data_dir)


def load_text(
    dataset: str,
    length: int,
    batch_size: int,
    tokenizer: str = "bytes",
    data_dir: str | None = None,
    split_seed: int = 0,
    *,
    device_bytes: int = DEVICE_BYTES,
    block: int = BLOCK,
) -> tuple[Datasets | DataStream, TextInfo]:
    """Load a text as tokens, split four ways.

    Args:
      dataset: one of `KNOWN_TEXTS`, the path of a file, or a name of tfds's.
      length: L, inputs of an example, which has L + 1 tokens.
      batch_size: B, examples a batch.
      tokenizer: `bytes` (256 tokens); `chars`, the characters of the train part, and token 0 for others; or `bpe:N`, N byte pairs
        learned from the train part.
      data_dir: directory with NAME.txt or a prepared tfds data set, and then no other place is looked at; None looks at tfds's
        directory, then at the system's, and then has tfds download it. `python_docs` and paths take None only.
      split_seed: of the split, and of the order in which a corpus is streamed.
      device_bytes: tokens that take up to so many bytes live on the device; larger ones are streamed.
      block: tokens that each outer step has of a stream.

    Returns:
      `Datasets` of `TokenSplit`s, or a `StreamingText`, whose batches are {"tokens": int32 [B, length + 1]}: inputs are
      `tokens[:, :-1]`, targets `tokens[:, 1:]`; and the `TextInfo`.

    Raises:
      ValueError: for an unknown name or tokenizer, or sizes below 1.
      DatasetError: a ValueError: if the text cannot be found or read, is no UTF-8 where characters are needed, or is too short.

    Example:
      >>> datasets, info = load_text("python_docs", length=16, batch_size=4, tokenizer="chars")
      >>> batch = datasets.at(0).train.batch(jax.random.key(0))
      >>> batch["tokens"].shape, info.tokenizer.decode(info.tokenizer.encode("lambda"))
      ((4, 17), 'lambda')
    """
    check_text(dataset, tokenizer, data_dir)
    for field, value, least in (("length", length, 1), ("batch_size", batch_size, 1), ("split_seed", split_seed, 0)):
        if value < least:
            raise ValueError(f"{field} must be at least {least}, not {value}")
    source = find_text(dataset, data_dir)
    ranges = functools.partial(open_text, dataset, source, split_seed, device_bytes)
    if tokenizer == "bytes":
        tokens, maker, ratio = ranges(), Bytes(), 1.0
    else:
        settings = {"name": dataset, "split_seed": split_seed, "source": source.identity(), "tokenizer": tokenizer}
        if tokenizer.startswith("bpe"):
            settings["library"] = _library_version()
        entry = cached("tokens", settings, lambda writer: _tokenize(ranges(), tokenizer, writer), device_bytes)
        tokens, maker = entry.arrays, tokenizers.from_definition(entry.extra["tokenizer"])
        ratio = entry.extra["test_bytes"] / len(tokens["test"])
    for part in SPLITS:
        if len(tokens[part]) <= length:
            raise DatasetError(
                f"{source.label}: the '{part}' part has {len(tokens[part])} tokens, too few for an example of {length} + 1; "
                "take a smaller length or a longer text"
            )
    info = TextInfo(dataset, maker.vocab_size, length, source.label, maker, ratio)
    if sum(len(tokens[part]) for part in SPLITS) * maker.dtype.itemsize > device_bytes:
        if block <= length:
            raise ValueError(f"block must be larger than length {length}, not {block}")
        return StreamingText(tokens, length, batch_size, split_seed, block), info
    return Datasets(*(TokenSplit(jnp.asarray(tokens[part].read()), length, batch_size) for part in SPLITS)), info


def _library_version() -> str:
    try:
        return importlib.metadata.version("tokenizers")
    except importlib.metadata.PackageNotFoundError as error:
        raise DatasetError(f"the tokenizer 'bpe' needs the tokenizers library: {tokenizers.INSTALL}") from error


def _tokenize(ranges: Ranges, description: str, writer: Writer) -> dict[str, Any]:
    """Make the tokenizer from the train part and write the tokens of all parts."""
    kind, size = tokenizers.parse(description)
    train = _characters(ranges["train"])
    maker = Characters.of(train) if kind == "chars" else BytePairs.train(train, size)
    for part in SPLITS:
        for ids in maker.encode_pieces(_characters(ranges[part])):
            writer.append(part, ids)
    return {"tokenizer": {"kind": maker.kind, **maker.definition()}, "test_bytes": len(ranges["test"])}


def _characters(text: FileRange | StoredArray) -> Iterator[str]:
    """A part of a text as characters, a piece at a time."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    start = 0
    try:
        for start in range(0, len(text), _PIECE):
            stop = min(start + _PIECE, len(text))
            yield decoder.decode(text.read(start, stop).tobytes(), final=stop == len(text))
    except UnicodeDecodeError as error:
        offset = start + (text.offset if isinstance(text, FileRange) else 0) + error.start
        raise DatasetError(
            f"{text.path} is not UTF-8 near byte {offset} ({error.reason}); use the tokenizer 'bytes', or convert it"
        ) from error
