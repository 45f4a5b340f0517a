"""Any folder of models with a table of labels, and everything that can be wrong with one."""

import contextlib
import csv
import hashlib
import json
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from lopt.symmetry.spec import WeightSpec
from lopt.weight_space.read import read_zoo
from lopt.weight_space.store import ZooError, read_manifest, read_spec, write_shard, write_spec

SPEC = WeightSpec.parse({"dense/kernel": "inputs! hidden", "dense/bias": "hidden"})


def model(seed, hidden=3):
    draw = np.random.default_rng(seed).standard_normal
    return {"dense/kernel": draw((2, hidden), np.float32), "dense/bias": draw(hidden, np.float32)}


def write_table(folder, rows, columns=("file", "accuracy")):
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


@pytest.fixture
def folder(tmp_path):
    """Four models: two in a safetensors file each, one as NPZ in float64, and a stack of one."""
    save_file(model(0), tmp_path / "a.safetensors")
    save_file(model(1), tmp_path / "b.safetensors")
    np.savez(tmp_path / "c.npz", **{path: array.astype(np.float64) for path, array in model(2).items()})
    (tmp_path / "more").mkdir()
    save_file({path: array[None] for path, array in model(3).items()}, tmp_path / "more" / "d.safetensors")
    rows = [("a.safetensors", "", 0.1), ("b.safetensors", "", 0.2), ("c.npz", "", 0.3), ("more/d.safetensors", 0, 0.4)]
    write_table(tmp_path, rows, ("file", "index", "accuracy"))
    write_spec(tmp_path, SPEC)
    return tmp_path


def test_models_of_every_format(folder):
    zoo = read_zoo(folder, "accuracy")
    np.testing.assert_allclose(zoo.labels, [0.1, 0.2, 0.3, 0.4], rtol=1e-6)
    assert zoo.spec == SPEC
    for seed in range(4):
        for path, array in model(seed).items():
            np.testing.assert_allclose(zoo.weights[path][seed], array, rtol=1e-6)
            assert zoo.weights[path].dtype == np.float32
    assert zoo.names[3] == "more/d.safetensors[0]"


def test_a_table_of_a_spreadsheet(folder):
    table = folder / "labels.csv"
    expected = read_zoo(folder, "accuracy")
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes())
    np.testing.assert_array_equal(read_zoo(folder, "accuracy").labels, expected.labels)


def test_counters_that_the_spec_does_not_name_are_passed_over(folder):
    expected = read_zoo(folder, "accuracy")
    save_file(model(0) | {"norm/num_batches_tracked": np.asarray(7, np.int64)}, folder / "a.safetensors")
    stack = {path: array[None] for path, array in model(3).items()}
    save_file(stack | {"0_count": np.asarray(7, np.int64)}, folder / "more" / "d.safetensors")
    zoo = read_zoo(folder, "accuracy")
    assert zoo.weights.keys() == expected.weights.keys()
    for path, array in zoo.weights.items():
        np.testing.assert_array_equal(array, expected.weights[path])


def test_a_spec_that_is_passed_goes_before_the_file(folder):
    (folder / "spec.json").unlink()
    with pytest.raises(ZooError, match=r"spec.json is missing.*infer_spec"):
        read_zoo(folder, "accuracy")
    assert read_zoo(folder, "accuracy", SPEC).spec == SPEC


def test_a_spec_with_sizes_survives_its_file(tmp_path):
    spec = WeightSpec.parse({"head": "(window! c) out!"}, c=4)
    write_spec(tmp_path, spec)
    assert read_spec(tmp_path / "spec.json") == spec
    (tmp_path / "spec.json").write_text('{"axes": {"head": "a ("}}')
    with pytest.raises(ZooError, match=r"spec.json is not a spec.*head"):
        read_spec(tmp_path / "spec.json")


def no_table(folder):
    (folder / "labels.csv").unlink()


def no_label(folder):
    write_table(folder, [("a.safetensors", 0.5), ("b.safetensors", ""), ("c.npz", 0.1)])


def no_file(folder):
    (folder / "b.safetensors").unlink()


def unlabelled_file(folder):
    save_file(model(9), folder / "z.safetensors")


def unlabelled_in_stack(folder):
    save_file({path: np.stack([array, array]) for path, array in model(3).items()}, folder / "more" / "d.safetensors")


def other_shape(folder):
    save_file(model(1, hidden=4), folder / "b.safetensors")


def other_leaves(folder):
    save_file({"dense/kernel": model(1)["dense/kernel"]}, folder / "b.safetensors")


def not_finite(folder):
    broken = model(1)
    broken["dense/bias"][1] = np.nan
    save_file(broken, folder / "b.safetensors")


def whole_numbers(folder):
    save_file({path: array.astype(np.int32) for path, array in model(1).items()}, folder / "b.safetensors")


def truncated(folder):
    path = folder / "b.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def twice(folder):
    write_table(folder, [("a.safetensors", 0.5), ("a.safetensors", 0.5)])


def out_of_range(folder):
    write_table(folder, [("more/d.safetensors", 7, 0.5)], ("file", "index", "accuracy"))


def bad_index(folder):
    write_table(folder, [("more/d.safetensors", "first", 0.5)], ("file", "index", "accuracy"))


def other_suffix(folder):
    write_table(folder, [("a.pt", 0.5)])


def other_spec(folder):
    write_spec(folder, WeightSpec.parse({"dense/kernel": "hidden hidden", "dense/bias": "hidden"}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_table, r"labels.csv is missing"),
        (no_label, r"line 3: the label 'accuracy' of b.safetensors is ''"),
        (no_file, r"line 3: there is no file .*b.safetensors"),
        (unlabelled_file, r"1 files have no line in .*labels.csv, the first is z.safetensors"),
        (unlabelled_in_stack, r"d.safetensors holds 2 models, of which 1 has no line"),
        (other_shape, r"leaf 'dense/bias' has shape \(4,\) in b.safetensors, but \(3,\) in a.safetensors"),
        (other_leaves, r"b.safetensors does not have the same leaves as a.safetensors: they differ in dense/bias"),
        (not_finite, r"leaf 'dense/bias' of b.safetensors holds values that are not finite"),
        (whole_numbers, r"of b.safetensors holds int32"),
        (truncated, r"b.safetensors cannot be read"),
        (twice, r"line 3 names a.safetensors a second time"),
        (out_of_range, r"there is no model more/d.safetensors\[7\]"),
        (bad_index, r"line 2: index is 'first'"),
        (other_suffix, r"a.pt is neither a .safetensors nor a .npz file"),
        (other_spec, r"the spec does not describe the models of .*dense/kernel"),
    ],
)
def test_what_is_wrong_is_named(folder, spoil, message):
    spoil(folder)
    with pytest.raises(ZooError, match=message):
        read_zoo(folder, "accuracy")


def test_a_label_that_is_no_column(folder):
    with pytest.raises(ZooError, match=r"no column 'success'; its columns are file, index, accuracy"):
        read_zoo(folder, "success")


def test_archives_that_are_damaged_or_none_are_named(folder):
    whole = (folder / "c.npz").read_bytes()
    for at in range(0, len(whole), 97):
        (folder / "c.npz").write_bytes(whole[:at])
        with pytest.raises(ZooError, match=r"c\.npz cannot be read"):
            read_zoo(folder, "accuracy")
    for at in range(0, len(whole), 41):  # whatever bit it is: named, or of no consequence
        (folder / "c.npz").write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        with contextlib.suppress(ZooError):
            read_zoo(folder, "accuracy")
    with (folder / "c.npz").open("wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(ZooError, match=r"c\.npz cannot be read: it holds one array.*numpy\.savez"):
        read_zoo(folder, "accuracy")


def test_labels_that_are_no_utf8_are_named(folder):
    (folder / "labels.csv").write_bytes("file,index,accuracy\nkäse.npz,,1\n".encode("latin-1"))
    with pytest.raises(ZooError, match=r"labels\.csv cannot be read: .*UTF-8"):
        read_zoo(folder, "accuracy")


@pytest.mark.parametrize("name", ["../outside.npz", "/etc/passwd.npz", "more/../../outside.npz", "link/outside.npz"])
def test_a_zoo_reads_no_file_that_is_not_in_its_folder(folder, name):
    outside = folder.parent / "outside.npz"
    np.savez(outside, **model(0))
    (folder / "link").symlink_to(folder.parent)
    write_table(folder, [(name, 0.5)])
    with pytest.raises(ZooError, match=r"labels\.csv, line 2 names the file '.*', which is not in"):
        read_zoo(folder, "accuracy")
    shard = {"file": name, "sha256": hashlib.sha256(outside.read_bytes()).hexdigest(), "rows": [{}]}
    (folder / "manifest.json").write_text(json.dumps({"format": "lopt-zoo-1", "shards": [shard]}))
    with pytest.raises(ZooError, match=r"manifest\.json names the file '.*', which is not in"):
        read_manifest(folder)


def test_a_zoo_whose_files_are_not_those_of_its_manifest_is_refused(tmp_path):
    write_shard(tmp_path, {}, 0, {path: array[None] for path, array in model(0).items()}, [{"accuracy": 0.5}])
    write_spec(tmp_path, SPEC)
    assert len(read_zoo(tmp_path, "accuracy").labels) == 1
    save_file({path: array[None] for path, array in model(1).items()}, tmp_path / "models" / "00000.safetensors")
    with pytest.raises(ZooError, match=r"00000\.safetensors is not what was written: its sha256"):
        read_zoo(tmp_path, "accuracy")


@pytest.mark.parametrize("name", ["spec.json", "manifest.json"])
def test_deeply_nested_json_is_named(folder, name):
    (folder / name).write_text("[" * 100_000)
    with pytest.raises(ZooError, match=rf"{name} is not .*nested too deeply"):
        read_zoo(folder, "accuracy")


def test_a_zoo_of_npz_files_needs_no_safetensors(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", **model(0))
    write_table(tmp_path, [("a.npz", 0.5)])
    write_spec(str(tmp_path), SPEC)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    assert read_zoo(tmp_path, "accuracy").labels.tolist() == [0.5]
    (tmp_path / "b.safetensors").write_bytes(b"")
    write_table(tmp_path, [("a.npz", 0.5), ("b.safetensors", 0.5)])
    with pytest.raises(
        ZooError, match=r"b.safetensors needs the package safetensors: pip install safetensors, or keep the zoo as .npz"
    ):
        read_zoo(tmp_path, "accuracy")
