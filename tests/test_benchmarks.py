"""Benchmarks are kept alive: each runs for seconds, its record is complete, and no time is asserted."""

import json

import pytest

from lopt.benchmarks import records
from lopt.benchmarks.compiling import compile_cost
from lopt.config import ConfigError
from lopt.networks import UNFConfig
from lopt.symmetry.spec import WeightSpec
from scripts import benchmark


def test_compile_counts_what_it_compiles():
    spec = WeightSpec.parse({"k": "i h", "b": "h"})
    cost = compile_cost(spec, {"i": 4, "h": 3}, UNFConfig((5,)), repeats=1)
    assert (cost["tensors"], cost["weights"], cost["terms"]) == (2, 15, 10)
    assert cost["parameters"] == 19 * 5 + 5 + 10 * 5 + 2
    assert all(cost[name] >= 0 for name in ("plan_s", "trace_s", "compile_s", "run_ms", "peak_mb"))


def test_records_are_lines_and_a_broken_one_is_named(tmp_path):
    path = tmp_path / "made" / "scaling.jsonl"
    records.append(path, {"weights": 10})
    records.append(path, {"weights": 20})
    assert records.read(path) == [{"weights": 10}, {"weights": 20}]
    with pytest.raises(ValueError, match="not JSON compliant"):
        records.append(path, {"weights": float("nan")})
    assert len(path.read_text().splitlines()) == 2
    path.write_text('{"weights": 10}\n[1]\n')
    with pytest.raises(ConfigError, match=r"scaling\.jsonl, line 2 is not a JSON object"):
        records.read(path)
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"scaling\.jsonl, line 1 is not JSON"):
        records.read(path)


def test_what_is_printed_is_recorded(capsys, tmp_path):
    benchmark.main(["estimators", "--windows", "1", "--estimators", "pes", "--record", str(tmp_path)])
    printed = json.loads(capsys.readouterr().out)
    assert records.read(tmp_path / "estimators.jsonl") == [printed]
    assert {"commit", "date", "devices", "device", "jax", "python"} <= set(printed)


def test_compile_prints_a_json_line(capsys):
    benchmark.main(["compile", "--blocks", "1", "--share", "role"])
    (line,) = capsys.readouterr().out.splitlines()
    record = json.loads(line)
    assert (record["benchmark"], record["blocks"], record["tensors"]) == ("compile", 1, 21)
    assert {"terms", "parameters", "trace_s", "compile_s", "run_ms", "peak_mb", "device", "jax"} <= set(record)


def test_estimators_prints_variances_and_draws_them(capsys, tmp_path):
    out = tmp_path / "figures" / "variances.png"
    benchmark.main(["estimators", "--windows", "1", "2", "--estimators", "pes", "full_backprop", "--out", str(out)])
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(record["estimator"], record["windows"]) for record in records] == [
        ("pes", 1), ("full_backprop", 1), ("pes", 2), ("full_backprop", 2)
    ]  # fmt: skip
    assert all(record["variance"] > 0 for record in records)
    assert records[1]["variance"] < records[0]["variance"], "exact gradients are less noisy"
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_memory_of_a_run_is_measured(capsys):
    benchmark.main(["memory", "--steps", "20"])
    record = json.loads(capsys.readouterr().out)
    assert record["peak_mb"] > 0.9 * record["late_mb"] > 0  # measured in two ways, of different grain
    assert record["outer_steps"] == 20
