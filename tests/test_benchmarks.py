"""Benchmarks are kept alive: each runs for seconds, its record is complete, and no time is asserted."""

import json

from lopt.benchmarks import compile_cost
from lopt.networks import UNFConfig
from lopt.symmetry.spec import WeightSpec
from scripts import benchmark


def test_compile_counts_what_it_compiles():
    spec = WeightSpec.parse({"k": "i h", "b": "h"})
    cost = compile_cost(spec, {"i": 4, "h": 3}, UNFConfig((5,)), repeats=1)
    assert (cost["tensors"], cost["weights"], cost["terms"]) == (2, 15, 10)
    assert cost["parameters"] == 19 * 5 + 5 + 10 * 5 + 2
    assert all(cost[name] >= 0 for name in ("plan_s", "trace_s", "compile_s", "run_ms", "peak_mb"))


def test_compile_prints_a_json_line(capsys):
    benchmark.main(["compile", "--blocks", "1", "--share", "role"])
    (line,) = capsys.readouterr().out.splitlines()
    record = json.loads(line)
    assert (record["benchmark"], record["blocks"], record["tensors"]) == ("compile", 1, 21)
    assert {"terms", "parameters", "trace_s", "compile_s", "run_ms", "peak_mb", "device", "jax"} <= set(record)
