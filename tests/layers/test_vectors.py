"""The published conformance vectors, run through the script as a person would."""

import json
import shutil

import numpy as np
import pytest

from scripts import conformance


def test_all_vectors_pass(shared_dir, capsys):
    assert conformance.main([str(shared_dir / "unf_vectors")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["cnn", "mlp", "rank3", "rnn", "transformer"]
    assert all(float(line.split()[1]) < 1e-5 for line in lines)


@pytest.fixture
def copy(shared_dir, tmp_path):
    for suffix in ("json", "npz"):
        shutil.copy(shared_dir / "unf_vectors" / f"mlp.{suffix}", tmp_path)
    (tmp_path / "mlp.npz").chmod(0o644)
    (tmp_path / "mlp.json").chmod(0o644)
    return tmp_path


@pytest.mark.parametrize("change", [1e-4, np.nan])
def test_a_wrong_output_fails(copy, change, capsys):
    arrays = dict(np.load(copy / "mlp.npz"))
    arrays["out/dense0/bias"] = arrays["out/dense0/bias"] + np.float32(change)
    np.savez(copy / "mlp.npz", **arrays)
    assert conformance.main([str(copy)]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_missing_terms_and_files_are_errors(copy, capsys):
    description = json.loads((copy / "mlp.json").read_text())
    removed = description["terms"]["dense0/bias"].pop()
    (copy / "mlp.json").write_text(json.dumps(description))
    assert conformance.main([str(copy)]) == 1
    assert "lists 6 terms for dense0/bias, its NPZ has 7" in capsys.readouterr().err
    description["terms"]["dense0/bias"].append([removed[0], [[0], [1], [3]]])
    (copy / "mlp.json").write_text(json.dumps(description))
    assert conformance.main([str(copy)]) == 1
    assert "no coefficient for the term" in capsys.readouterr().err
    (copy / "mlp.npz").unlink()
    assert conformance.main([str(copy)]) == 1
    assert "mlp.npz" in capsys.readouterr().err
    assert conformance.main([str(copy / "nowhere")]) == 1
