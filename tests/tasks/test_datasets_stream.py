"""Streams: the data of a step is a function of seed and step, read ahead by a thread that ends and that hides no error."""

import gc
import threading
import time

import jax
import numpy as np
import pytest

from tasks.datasets import DatasetError, StreamingText
from tasks.datasets.stream import SPLITS, block_start

COUNT, BLOCK = 1003, 50  # 20 blocks and a rest of 3


class Corpus:
    """Tokens 0, 1, 2, ... that remember who read what, and fail on request."""

    def __init__(self, count=COUNT, first=0):
        self.ids = np.arange(first, first + count, dtype=np.uint16)
        self.reads, self.failing, self.gate = [], set(), None

    def __len__(self):
        return len(self.ids)

    def read(self, start=0, stop=None):
        self.reads.append((start, threading.current_thread().name))
        if self.gate:
            assert self.gate.wait(20)
        if start in self.failing:
            raise DatasetError("the disk is gone")
        return self.ids[start:stop]


@pytest.fixture
def corpus():
    return {name: Corpus(first=10_000 * index) for index, name in enumerate(SPLITS)}


def stream_of(corpus, **options):
    return StreamingText(corpus, length=4, batch_size=3, **({"seed": 5, "block": BLOCK} | options))


def start(datasets):
    tokens = np.asarray(datasets.train.tokens)
    np.testing.assert_array_equal(np.diff(tokens.astype(int)), 1)
    assert len(tokens) == BLOCK
    return int(tokens[0])


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("lopt-stream")]


def test_every_pass_takes_every_block_once_in_another_order():
    passes = [[block_start(5, 20 * epoch + index, COUNT, BLOCK) for index in range(20)] for epoch in range(30)]
    for starts in passes:
        np.testing.assert_array_equal(np.diff(sorted(starts)), BLOCK)
        assert min(starts) >= 0
        assert max(starts) + BLOCK <= COUNT
    assert len({tuple(starts) for starts in passes}) == 30
    assert {min(starts) for starts in passes} == {0, 1, 2, 3}  # every token is seen
    assert passes[0] != [block_start(6, index, COUNT, BLOCK) for index in range(20)]


def test_the_order_never_changes():
    assert [block_start(0, step, 1000, 100) // 100 for step in range(10)] == [3, 2, 1, 8, 6, 0, 7, 4, 5, 9]


def test_any_step_may_be_asked_for_at_any_time(corpus):
    with stream_of(corpus) as stream:
        straight = [start(stream.at(step)) for step in range(45)]
    assert straight == [block_start(5, step, COUNT, BLOCK) for step in range(45)]
    for steps in ([44, 0, 21, 21, 22, 3], [30, 31, 32, 33]):
        with stream_of(corpus) as stream:
            assert [start(stream.at(step)) for step in steps] == [straight[step] for step in steps]


def test_all_steps_have_one_structure_and_the_held_out_parts_stay(corpus):
    with stream_of(corpus) as stream:
        one, other = stream.at(0), stream.at(1)
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert [leaf.shape for leaf in jax.tree.leaves(one)] == [(BLOCK,)] * 4
    for index, name in enumerate(SPLITS[1:], start=1):
        assert getattr(one, name) is getattr(other, name)
        np.testing.assert_array_equal(getattr(one, name).tokens, corpus[name].ids[:BLOCK])
        assert int(getattr(one, name).tokens[0]) == 10_000 * index
    assert one.train.batch(jax.random.key(0))["tokens"].shape == (3, 5)


def test_a_batch_of_a_resumed_run_is_that_of_an_unbroken_one(corpus):
    def batch(stream, step):
        return stream.at(step).train.batch(jax.random.fold_in(jax.random.key(0), step))["tokens"]

    with stream_of(corpus) as stream:
        unbroken = [batch(stream, step) for step in range(8)]
    with stream_of(corpus) as stream:
        np.testing.assert_array_equal([batch(stream, step) for step in range(5, 8)], unbroken[5:])


def wait_for_reads(corpus, count):
    deadline = time.monotonic() + 20
    while len(corpus.reads) < count:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_the_next_block_is_read_ahead_by_the_thread(corpus):
    train = corpus["train"]
    with stream_of(corpus) as stream:
        stream.at(7)
        wait_for_reads(train, 2)
        assert [position for position, _ in train.reads] == [block_start(5, step, COUNT, BLOCK) for step in (7, 8)]
        train.gate = threading.Event()  # from here on, reading takes until it is opened
        began = time.monotonic()
        stream.at(8)  # which has been read
        assert time.monotonic() - began < 10
        wait_for_reads(train, 3)
        train.gate.set()
        stream.at(9)
        wait_for_reads(train, 4)
    assert [position for position, _ in train.reads] == [block_start(5, step, COUNT, BLOCK) for step in (7, 8, 9, 10)]
    assert all(name.startswith("lopt-stream") for _, name in train.reads)


def test_the_same_step_twice_is_the_same_object(corpus):
    with stream_of(corpus) as stream:
        assert stream.at(3) is stream.at(3)
    short = {name: Corpus(BLOCK - 10) for name in SPLITS}
    with stream_of(short) as stream:  # one block, the whole: nothing to read again
        assert stream.at(0) is stream.at(1)
        assert len(stream.at(0).train.tokens) == BLOCK - 10
        assert len(short["train"].reads) == 1


def test_an_error_of_the_thread_reaches_the_caller_and_may_pass(corpus):
    train = corpus["train"]
    with stream_of(corpus) as stream:
        train.failing.add(block_start(5, 1, COUNT, BLOCK))
        assert start(stream.at(0)) == block_start(5, 0, COUNT, BLOCK)
        wait_for_reads(train, 2)
        assert train.reads[1][1].startswith("lopt-stream")
        for _ in range(2):
            with pytest.raises(DatasetError, match="the disk is gone"):
                stream.at(1)
        train.failing.clear()
        assert start(stream.at(1)) == block_start(5, 1, COUNT, BLOCK)
        assert start(stream.at(2)) == block_start(5, 2, COUNT, BLOCK)


def test_closing_ends_the_thread(corpus):
    before = len(threads())
    stream = stream_of(corpus)
    stream.at(0)
    assert len(threads()) == before + 1
    stream.close()
    assert len(threads()) == before
    with pytest.raises(RuntimeError, match="the stream is closed"):
        stream.at(1)


def test_a_forgotten_stream_ends_its_thread(corpus):
    before = len(threads())
    stream = stream_of(corpus)
    stream.at(0)
    (mine,) = threads()[before:]
    del stream
    gc.collect()
    mine.join(20)
    assert not mine.is_alive()


def test_several_threads_may_ask(corpus):
    failures = []

    def ask(stream, steps):
        try:
            for step in steps:
                assert start(stream.at(step)) == block_start(5, step, COUNT, BLOCK)
        except BaseException as error:
            failures.append(error)

    with stream_of(corpus) as stream:
        askers = [threading.Thread(target=ask, args=(stream, range(first, 60, 3))) for first in range(3)]
        for thread in askers:
            thread.start()
        for thread in askers:
            thread.join()
    assert not failures


def test_too_short_is_an_error(corpus):
    with pytest.raises(ValueError, match=r"a block or split of 4 tokens is too short for an example of 4 \+ 1"):
        stream_of(corpus, block=4)
    with pytest.raises(ValueError, match="a block or split of 2 tokens"):
        stream_of(corpus | {"test": Corpus(2)})
    with stream_of(corpus) as stream, pytest.raises(ValueError, match="outer steps count from 0, not -1"):
        stream.at(-1)
