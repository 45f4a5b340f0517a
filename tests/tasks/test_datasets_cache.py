"""The cache of preprocessed arrays: what is written is read, once, whole, and never damaged."""

import os
import re
import resource
import time

import numpy as np
import pytest

from tasks.datasets import DatasetError, cache_root
from tasks.datasets.cache import cached, fingerprint

BLOCK = 1 << 20


@pytest.fixture(autouse=True)
def root(monkeypatch, tmp_path):
    monkeypatch.setenv("LOPT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def arrays():
    generator = np.random.default_rng(0)
    return {
        "pixels": generator.integers(0, 256, (5000, 20, 30), dtype=np.uint8),  # nearly three blocks
        "labels": generator.integers(-5, 5, 5000).astype(np.int32),
        "nothing": np.zeros((0, 3), np.float32),
    }


class Build:
    """Appends arrays in pieces and counts how often it was asked to."""

    def __init__(self, arrays, extra=None, piece=701):
        self.arrays, self.extra, self.piece, self.calls = arrays, extra or {}, piece, 0

    def __call__(self, writer):
        self.calls += 1
        for name, array in self.arrays.items():
            for start in range(0, max(len(array), 1), self.piece):
                writer.append(name, array[start : start + self.piece])
        return self.extra


def equal(entry, arrays):
    assert set(entry.arrays) == set(arrays)
    for name, array in arrays.items():
        read = entry.arrays[name].read()
        assert (read.dtype, read.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"LOPT_CACHE_DIR": "/own", "XDG_CACHE_HOME": "/shared"}, "/own"),
        ({"LOPT_CACHE_DIR": "", "XDG_CACHE_HOME": "/shared"}, "/shared/lopt"),
        ({"LOPT_CACHE_DIR": "", "XDG_CACHE_HOME": "relative"}, "/home/me/.cache/lopt"),
        ({"LOPT_CACHE_DIR": "~/own", "XDG_CACHE_HOME": ""}, "/home/me/own"),
    ],
)
def test_the_root_follows_the_environment(monkeypatch, environment, expected):
    for name, value in (environment | {"HOME": "/home/me"}).items():
        monkeypatch.setenv(name, value)
    assert str(cache_root()) == expected


def test_what_is_written_is_read(root, arrays):
    build = Build(arrays, {"words": ["a", "é"]})
    for _ in range(3):
        entry = cached("kind", {"size": 1}, build)
        equal(entry, arrays)
        assert entry.extra == {"words": ["a", "é"]}
    assert build.calls == 1
    assert [path.name.split("-")[0] for path in root.iterdir()] == ["kind"]


@pytest.mark.parametrize("settings", [{"size": 2}, {"size": 1, "seed": 0}, {"size": [1]}])
def test_other_settings_are_another_entry(arrays, settings):
    one, other = Build(arrays), Build({"labels": arrays["labels"] + 1})
    cached("kind", {"size": 1}, one)
    equal(cached("kind", settings, other), other.arrays)
    equal(cached("kind", {"size": 1}, one), arrays)
    equal(cached("other", {"size": 1}, other), other.arrays)
    assert (one.calls, other.calls) == (1, 2)


def test_any_rows_can_be_read(arrays):
    stored = cached("kind", {}, Build(arrays)).arrays["pixels"]
    edges = [0, 1, 1747, 1748, 3495, 4999, 5000]  # rows of 600 bytes: 1747 is where the first block ends
    for start in edges:
        for stop in [edge for edge in edges if edge >= start]:
            np.testing.assert_array_equal(stored.read(start, stop), arrays["pixels"][start:stop])
    with pytest.raises(ValueError, match=r"rows 4999 to 5001 of .*pixels\.bin, which has 5000"):
        stored.read(4999, 5001)


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "first byte": (lambda entry: flip(entry / "pixels.bin", 0), "pixels.bin is damaged at byte 0"),
    "last byte": (lambda entry: flip(entry / "pixels.bin", -1), f"pixels.bin is damaged at byte {2 * BLOCK}"),
    "cut short": (lambda entry: os.truncate(entry / "labels.bin", 7), "labels.bin has 7 bytes, not 20000 bytes"),
    "longer": (lambda entry: os.truncate(entry / "labels.bin", 20001), "labels.bin has 20001 bytes"),
    "gone": (lambda entry: (entry / "labels.bin").unlink(), "labels.bin is missing"),
    "description gone": (lambda entry: (entry / "entry.json").unlink(), "entry.json cannot be read: No such file"),
    "description changed": (lambda entry: flip(entry / "entry.json", 100), "entry.json is damaged"),
    "description empty": (lambda entry: os.truncate(entry / "entry.json", 0), "entry.json is damaged"),
    "description a directory": (
        lambda entry: ((entry / "entry.json").unlink(), (entry / "entry.json").mkdir()),
        "entry.json cannot be read",
    ),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_entry_is_built_again(root, arrays, damage, reason):
    build = Build(arrays)
    cached("kind", {}, build)
    damage(next(root.iterdir()))
    with pytest.warns(UserWarning, match=f"built again: .*{re.escape(reason)}"):
        equal(cached("kind", {}, build), arrays)
    equal(cached("kind", {}, build), arrays)  # and no warning
    assert build.calls == 2


def test_a_description_of_other_settings_is_not_believed(root, arrays):
    cached("kind", {"size": 1}, Build(arrays))
    (other,) = root.iterdir()
    cached("kind", {"size": 2}, Build({"labels": arrays["labels"]}))
    (mine,) = set(root.iterdir()) - {other}
    (mine / "entry.json").write_bytes((other / "entry.json").read_bytes())
    with pytest.warns(UserWarning, match="belongs to other settings"):
        equal(cached("kind", {"size": 2}, Build({"labels": arrays["labels"]})), {"labels": arrays["labels"]})


def test_a_large_entry_is_checked_where_it_is_read(root, arrays):
    cached("kind", {}, Build(arrays))
    path = next(root.iterdir()) / "pixels.bin"
    flip(path, BLOCK + 5)
    stored = cached("kind", {}, Build(arrays), check_bytes=1000).arrays["pixels"]
    np.testing.assert_array_equal(stored.read(0, 1747), arrays["pixels"][:1747])
    with pytest.raises(DatasetError, match=f"{path} is damaged at byte {BLOCK}"):
        stored.read(0, 1748)
    path.unlink()
    with pytest.raises(DatasetError, match=f"{path} cannot be read"):
        stored.read(0, 1)


def test_a_failed_build_leaves_nothing(root, arrays):
    def build(writer):
        writer.append("labels", arrays["labels"])
        raise DatasetError("the source is damaged")

    with pytest.raises(DatasetError, match="the source is damaged"):
        cached("kind", {}, build)
    assert list(root.iterdir()) == []
    equal(cached("kind", {}, Build(arrays)), arrays)


def test_rows_must_agree(arrays):
    def build(writer):
        writer.append("labels", arrays["pixels"])
        writer.append("labels", arrays["pixels"][:, :1])
        return {}

    with pytest.raises(ValueError, match=re.escape("rows of shape (1, 30) after rows of shape (20, 30)")):
        cached("kind", {}, build)


def test_what_a_killed_process_left_is_not_used_and_goes_in_time(root, arrays):
    for name, age in (("old", 3 * 86_400), ("new", 60)):
        (root / f".unfinished-{name}").mkdir(parents=True)
        os.utime(root / f".unfinished-{name}", (time.time() - age,) * 2)
    equal(cached("kind", {}, Build(arrays)), arrays)
    assert sorted(path.name.split("-")[0] for path in root.iterdir()) == [".unfinished", "kind"]
    assert (root / ".unfinished-new").exists()


def test_the_faster_of_two_builders_wins(root, arrays):
    faster = Build(arrays)

    def slower(writer):
        cached("kind", {}, faster)
        return Build(arrays)(writer)

    equal(cached("kind", {}, slower), arrays)
    assert faster.calls == 1
    assert len(list(root.iterdir())) == 1


def test_without_a_place_to_write_nothing_is_kept(monkeypatch, tmp_path, arrays):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LOPT_CACHE_DIR", str(tmp_path / "file" / "cache"))
    build = Build(arrays)
    for calls in (1, 2):
        with pytest.warns(UserWarning, match=f"not kept, as {tmp_path}/file/cache cannot be written .*set LOPT_CACHE_DIR"):
            equal(cached("kind", {}, build), arrays)
        assert build.calls == calls


def test_without_room_the_error_says_so(root, arrays):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (BLOCK, limits[1]))  # a write beyond fails, as on a full disk
    try:
        with pytest.raises(DatasetError, match=f"cannot be written to {root}: .*set LOPT_CACHE_DIR"):
            cached("kind", {}, Build(arrays))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(root.iterdir()) == []


def test_a_changed_file_has_another_fingerprint(tmp_path):
    path = tmp_path / "file"
    path.write_text("a")
    seen = [fingerprint([path])]
    path.write_text("ab")
    seen.append(fingerprint([path]))
    os.utime(path, ns=(0, 1))
    seen.append(fingerprint([path]))
    assert len({str(one) for one in seen}) == 3
    assert fingerprint([path]) == seen[-1]
    path.unlink()
    with pytest.raises(DatasetError, match=f"{path} cannot be read"):
        fingerprint([path])


def test_what_others_could_have_put_there_is_not_read(root, arrays):
    planted, own = Build({"labels": arrays["labels"] + 1}), Build({"labels": arrays["labels"]})
    cached("kind", {}, planted)
    root.chmod(0o777)
    before = sorted(root.rglob("*"))
    with pytest.warns(UserWarning, match=r"preprocessed data is not kept: .*the mode 777: others can put things there"):
        equal(cached("kind", {}, own), own.arrays)
    assert sorted(root.rglob("*")) == before
    root.chmod(0o755)
    equal(cached("kind", {}, own), planted.arrays)
