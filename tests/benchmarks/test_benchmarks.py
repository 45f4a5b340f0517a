"""Benchmarks are kept alive: each runs for seconds, its record is complete, and no time is asserted."""

import dataclasses
import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from lopt.benchmarks import records
from lopt.benchmarks.compiling import compile_cost
from lopt.benchmarks.growth import growth
from lopt.benchmarks.scaling import scaling
from lopt.benchmarks.synthetic import SyntheticMLPConfig, hidden_width, perceptron
from lopt.benchmarks.throughput import flop_per_inner_step, stand_in, with_network, with_rule
from lopt.config import ConfigError, load_file
from lopt.features.presets import Celo2Features
from lopt.networks.update import DeepSetsConfig, UNFConfig
from lopt.optimizers.config import LearnedOptimizerConfig
from lopt.optimizers.gated import GatedRule
from lopt.runtime.environment import stamp
from lopt.symmetry.spec import WeightSpec
from lopt.task.base import Task
from scripts import benchmark
from tasks.rnn import RNNConfig


def test_compile_counts_what_it_compiles():
    spec = WeightSpec.parse({"k": "i h", "b": "h"})
    cost = compile_cost(spec, {"i": 4, "h": 3}, UNFConfig((5,), terms=None), repeats=1)
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


@pytest.mark.parametrize(
    ("values", "costs", "slope", "linear"),
    [
        ([1, 10, 100], [3, 30, 300], 1.0, [1, 100]),
        ([1, 2, 4, 8], [1, 1, 2, 4], 0.7, [2, 8]),  # at first a fixed cost
        ([1, 2, 4, 8, 16], [1, 2, 4, 16, 64], 1.5, [1, 4]),  # in the end quadratic
        ([1, 10], [5, 5], 0.0, None),
    ],
)
def test_growth_is_fitted_and_its_linear_part_found(values, costs, slope, linear):
    found = growth(values, costs)
    assert found["slope"] == pytest.approx(slope, abs=0.01)
    assert found["linear"] == linear
    assert len(found["local_slopes"]) == len(values) - 1


@pytest.mark.parametrize(("values", "costs"), [([1], [1]), ([1, 2], [1]), ([2, 1], [1, 2]), ([1, 2], [0, 1]), ([1, 1], [1, 2])])
def test_growth_of_what_cannot_be_fitted(values, costs):
    with pytest.raises(ValueError, match="two or more increasing positive values"):
        growth(values, costs)


@pytest.mark.parametrize(("weights", "layers"), [(967, 3), (2_410, 2), (14_400, 60), (1_000_000, 4)])
def test_a_perceptron_has_the_weights_that_are_asked_for(weights, layers):
    init, spec = perceptron((hidden_width(weights, layers),) * (layers - 1))
    shapes = jax.eval_shape(init, jax.random.key(0))
    spec.sizes(shapes)  # raises where spec and shapes do not fit
    found = jax.tree.leaves(shapes)
    assert len(found) == 2 * layers
    assert sum(leaf.size for leaf in found) == pytest.approx(weights, rel=0.05)


def test_a_synthetic_task_is_one():
    task = SyntheticMLPConfig(hidden=(5, 5), batch_size=3).make()
    params, key = task.init(jax.random.key(0)), jax.random.key(1)
    params = jax.tree.map(lambda w: w + 0.1, params)
    batch = task.datasets.at(0).train.batch(key)
    permuted = task.spec.permute(params, task.spec.sample(key, params))
    assert jnp.abs(task.loss(permuted, key, batch) - task.loss(params, key, batch)) < 1e-5


def test_scaling_measures_what_it_says(monkeypatch):
    monkeypatch.setattr("lopt.benchmarks.scaling.use_all_cores", lambda devices: None)  # JAX is in use already
    record = scaling("tensors", 6, "deep_sets", min_steps=1)
    assert (record["axis"], record["value"], record["tensors"], record["particles"], record["truncation"]) == (
        "tensors",
        6,
        6,
        2,
        2,
    )
    assert record["parameters"] == 2_788
    assert record["weights"] == pytest.approx(14_400, rel=0.05)
    assert record["inner_steps_per_s"] == pytest.approx(2 * 2 * 2 / record["outer_step_s"], rel=0.05)
    assert record["program_mb"] > 4e-6 * 4 * 28 * record["weights"], "no less than the states of four inner trainings"
    with pytest.raises(ValueError, match="even number of tensors, at least 4, got 5"):
        scaling("tensors", 5, "unf")


def test_scaling_of_a_rule_that_is_shipped(monkeypatch):
    monkeypatch.setattr("lopt.benchmarks.scaling.use_all_cores", lambda devices: None)
    record = scaling("weights", 1_000, "lopt_direction", min_steps=1)
    assert record["network"] == "lopt_direction"
    assert record["parameters"] < 500, "8 8 and not 32 32 32"


def test_in_use_is_measured_beside_adam(capsys):
    benchmark.main(["in-use", "--quick"])
    adam, unf, direction = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (adam["optimizer"], unf["optimizer"], direction["optimizer"], adam["ratio"]) == ("adam", "unf", "direction", 1.0)
    assert adam["weights"] == unf["weights"] == direction["weights"] == pytest.approx(1_000, rel=0.05)
    # Adam: two moments and a count; the learned one: seven momenta and a count.
    assert adam["state_bytes"] == pytest.approx(8, abs=0.1)
    assert unf["state_bytes"] == pytest.approx(28, abs=0.1)
    # Three momenta, a second moment, Muon's momentum and, of vectors, second moment; rows and columns are many in so small a model.
    assert 20 < direction["state_bytes"] < 24
    assert unf["peak_bytes"] > unf["temp_bytes"] + unf["state_bytes"]
    assert all(record[name] > 0 for record in (adam, unf) for name in ("step_us", "ns_per_weight", "compile_s", "peak_mb"))


@pytest.mark.slow
def test_scaling_runs_each_point_alone_and_says_how_it_grows(capsys, tmp_path):
    benchmark.main(["scaling", "--quick", "--network", "deep_sets", "--record", str(tmp_path)])
    two, four, growth = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (two["value"], four["value"], growth["values"]) == (2, 4, [2, 4])
    assert two["mesh"] == min(2, two["devices"])
    for name in ("outer_step_s_growth", "program_mb_growth"):
        assert set(growth[name]) == {"slope", "local_slopes", "linear"}
    assert set(stamp()) <= set(growth)
    assert len(records.read(tmp_path / "scaling.jsonl")) == 3


def test_startup_starts_what_a_user_would(capsys, monkeypatch, tmp_path):
    """With scripts in the place of ours that say how they were called: the real ones take half a minute."""
    (tmp_path / "scripts").mkdir()
    said = tmp_path / "said"
    for name in ("meta_train", "benchmark"):
        code = f"import os, sys; open({str(said)!r}, 'a').write(os.environ.get('LOPT_COMPILATION_CACHE', '-') + ' '.join(sys.argv) + '\\n')"
        (tmp_path / "scripts" / f"{name}.py").write_text(code)
    monkeypatch.setattr(benchmark, "ROOT", tmp_path)
    monkeypatch.delenv("LOPT_COMPILATION_CACHE", raising=False)
    benchmark.main(["startup", "--quick"])
    record = json.loads(capsys.readouterr().out)
    assert all(record[f"first_step_{name}_s"] > 0 for name in ("off", "cold", "warm"))
    assert {"import_jax_s", "import_lopt_s", "import_trainer_s", "help_benchmark_s"} <= set(record)
    asked, off, cold, warm = said.read_text().splitlines()
    assert asked == f"-{tmp_path}/scripts/benchmark.py --help"
    assert off.startswith("off")
    caches = [line.split("/cache")[0] for line in (cold, warm)]
    assert caches[0] == caches[1], "the second reads what the first has written"
    assert f"--config {tmp_path}/configs/smoke.py --outer-steps 1 --run-dir" in warm


def test_all_that_was_recorded_is_drawn_and_tabulated(tmp_path):
    kept, images, page = tmp_path / "records", tmp_path / "images", tmp_path / "page.md"
    shutil.copytree(benchmark.RECORDS, kept)
    place = {"benchmark": "x", "device": "cpu", "devices": 2}
    for value in (1_000, 10_000):
        for network in ("unf", "deep_sets"):
            costs = {
                "outer_step_s": value / 1e6,
                "inner_step_us": value / 10,
                "program_mb": 2.5,
                "inner_steps_per_s": 8e6 / value,
            }
            records.append(
                kept / "scaling.jsonl", {**place, "axis": "weights", "network": network, "value": value, "peak_mb": 7.0, **costs}
            )
        for optimizer, ratio in (("adam", 1.0), ("unf", 36.0)):
            costs = {"step_us": value * ratio, "ns_per_weight": ratio, "ratio": ratio}
            memory = {"state_bytes": 8.0, "temp_bytes": 300.0, "peak_bytes": 400.0}
            records.append(kept / "in-use.jsonl", {**place, "optimizer": optimizer, "weights": value, **costs, **memory})
    for task in ("mlp", "cnn"):
        bar = {"task": task, "network": "UNF", "inner_steps_per_s": 6_000, "utilisation": 0.5, "compile_s": 5.0}
        bar |= {"inner_steps_per_s_range": [5_000, 7_000], "mflop": 14.8, "matmul_gflops": 180.0, "shares": {"trunk": 0.9}}
        records.append(kept / "throughput.jsonl", {**place, **bar})
    # In turns with others: its ratios count, and not the rate that it had then.
    records.append(kept / "throughput.jsonl", {**place, **bar, "inner_steps_per_s": 1_234, "over_xla": 1.5})
    text = "Growth\n\n<!-- table scaling -->\n<!-- end -->\n\n<!-- table in-use -->\nold\n<!-- end -->\n"
    text += "\n<!-- table throughput -->\n<!-- end -->\n"
    page.write_text(text)
    arguments = ["plot", "--records", str(kept), "--images", str(images), "--page", str(page)]
    benchmark.main(arguments)
    drawn = {file.name: file.read_bytes() for file in images.iterdir()}
    assert set(drawn) >= {"scaling.png", "in-use.png", "throughput.png", "estimators.png", "compile.png"}
    assert all(content.startswith(b"\x89PNG") for content in drawn.values())
    filled = page.read_text()
    assert filled.startswith("Growth\n\n<!-- table scaling -->\n| axis |")
    assert "old" not in filled
    assert "| cnn, UNF | 6,000 (5,000 to 7,000) |" in filled
    assert "1,234" not in filled
    newer = records.read(kept / "in-use.jsonl")[-1] | {"ratio": 12.0}
    records.append(kept / "in-use.jsonl", newer)
    benchmark.main(arguments)
    changed = set(page.read_text().splitlines()) ^ set(filled.splitlines())
    assert sorted(" 12 " in line for line in changed) == [False, True], "the newer record takes the place of the older"


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


def test_an_inner_step_of_the_paper_is_counted_by_its_layer_sizes():
    """14.8 MFLOP: 2,410 weights through f, and three times the products of the loss on 128 images."""
    experiment = load_file(benchmark.ROOT / "configs" / "fashion_mlp.py")
    task = dataclasses.replace(experiment.task, dataset="digits").make()
    network, loss = 2 * 2410 * (19 * 32 + 2 * 32 * 32 + 32), 2 * 128 * (64 * 32 + 32 * 10)
    assert flop_per_inner_step(task, experiment.optimizer) == network + 3 * loss == pytest.approx(14.8e6, rel=0.01)
    assert flop_per_inner_step(task, with_network(experiment, "sgdm").optimizer) == 3 * loss


def test_another_learned_optimizer_is_counted_by_its_own_sizes():
    experiment = load_file(benchmark.ROOT / "configs" / "fashion_mlp.py")
    other = with_rule(experiment, "gated", "celo2", "unf_role", [8, 4])
    assert other.optimizer == LearnedOptimizerConfig(GatedRule(), Celo2Features(), UNFConfig((8, 4), share="role", terms=None))
    assert with_rule(experiment, "direction", "paper", "config", None).optimizer.network == DeepSetsConfig()
    task = dataclasses.replace(experiment.task, dataset="digits").make()
    alone = flop_per_inner_step(task, with_network(experiment, "sgdm").optimizer)
    assert flop_per_inner_step(task, other.optimizer) - alone == 2 * 2410 * (30 * 8 + 8 * 4 + 4 * 2)


def test_features_without_a_rule_are_refused():
    with pytest.raises(SystemExit, match="--rule makes: give it too"):
        benchmark.main(["throughput", "--quick", "--hidden", "8", "8"])


@pytest.mark.slow
def test_throughput_beside_others(capsys):
    smoke = str(benchmark.ROOT / "configs" / "smoke.py")
    arguments = ["--config", smoke, "--rule", "direction", "--features", "paper", "--hidden", "4", "--beside", "xla", "sgdm"]
    benchmark.main(["throughput", "--quick", "--steps", "3", *arguments])
    record = json.loads(capsys.readouterr().out)
    for name in ("xla", "sgdm"):
        low, high = record[f"over_{name}_range"]
        assert 0 < low <= record[f"over_{name}"] <= high


def test_products_in_a_loop_count_as_often_as_it_runs():
    task = RNNConfig(hidden=(6,), embedding=5, length=7, batch_size=3).make()
    symbols = task.spec.sizes(task.init(jax.random.key(0)))["symbols"]
    found = flop_per_inner_step(task, with_network(load_file(benchmark.ROOT / "configs" / "smoke.py"), "sgdm").optimizer)
    assert found == 3 * 2 * 3 * 7 * (5 * 6 + 6 * 6 + 6 * symbols)


def test_throughput_is_that_of_the_real_outer_step(capsys):
    benchmark.main(["throughput", "--quick", "--config", str(benchmark.ROOT / "configs" / "smoke.py")])
    record = json.loads(capsys.readouterr().out)
    assert (record["task"], record["network"], record["particles"]) == ("digits8_mlp_4", "UNF", 4)
    low, high = record["inner_steps_per_s_range"]
    assert 0 < low <= record["inner_steps_per_s"] <= high
    flops = record["inner_steps_per_s"] * record["mflop"] * 1e6
    assert record["utilisation"] == pytest.approx(flops / (record["matmul_gflops"] * 1e9), abs=2e-3)
    assert record["compile_s"] > 0


@pytest.mark.parametrize(("name", "shape"), [("cifar_cnn", (128, 16, 16, 3)), ("lm1b_rnn", (64, 17))])
def test_data_that_is_not_at_hand_is_stood_in_for(name, shape):
    experiment = load_file(benchmark.ROOT / "configs" / f"{name}.py")
    with stand_in(experiment, "random") as changed:
        task = changed.task.make()
    assert isinstance(task, Task)
    batch = task.datasets.at(0).train.batch(jax.random.key(0))
    assert shape in {x.shape for x in batch.values()}
    with stand_in(experiment, None) as same:
        assert same is experiment


def test_operations_are_found_by_the_part_of_the_program(tmp_path):
    """In a process of its own, as operations are recorded only where that was asked for before JAX started."""
    code = """
import json, jax, jax.numpy as jnp
from lopt.benchmarks.profile import record_operations, shares
record_operations()
def f(x):
    with jax.named_scope("trunk"):
        y = jnp.sin(x @ x)
    with jax.named_scope("task"):
        return y @ x
x = jnp.ones((400, 400))
compiled = jax.jit(f).lower(x).compile()
print(json.dumps(shares(compiled, lambda: jax.block_until_ready(compiled(x)))))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert {"trunk", "task"} <= set(found["shares"])
    assert sum(found["shares"].values()) == pytest.approx(1, abs=0.01)
    assert found["largest"][0][1] in ("trunk", "task")
