"""The outer loop: it learns, it resumes bit for bit, and it refuses what would lose something."""

import dataclasses
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file as load_safetensors

from lopt.config import ConfigError, load_file, load_run, operational, parse_experiment
from lopt.estimators.pes import PESConfig
from lopt.evaluation.evaluate import EvaluationConfig
from lopt.networks.update import DeepSetsConfig, UNFConfig
from lopt.optimizers.momentum import LearnedMomentumConfig, LearnedSGDMConfig
from lopt.runtime.environment import read_starts
from lopt.symmetry import WeightSpec
from lopt.task.base import ArraySplit, Datasets, DataStream, Task, TaskConfig
from lopt.task.families import vary_init_scale
from lopt.training import checkpoint, metrics
from lopt.training.held_out import HeldOutConfig
from lopt.training.loggers import LoggerConfig
from lopt.training.trainer import DivergedError, initial_theta, meta_train, on_devices
from lopt.unroll import UnrollConfig

ROOT = Path(__file__).resolve().parents[2]
SMOKE = load_file(ROOT / "configs" / "smoke.py")


def smoke(**changes):
    return dataclasses.replace(SMOKE, **changes)


def assert_bit_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("unbroken")
    return run_dir, meta_train(SMOKE, run_dir, progress=False)


def without_speed(run_dir):
    return [{k: v for k, v in record.items() if k != "inner_steps_per_s"} for record in metrics.read(run_dir)]


def test_writes_config_metrics_and_checkpoints(unbroken):
    run_dir, result = unbroken
    assert (result.step, result.interrupted) == (10, False)
    assert json.loads((run_dir / "config.json").read_text())
    records = metrics.read(run_dir)
    assert [record["outer_step"] for record in records] == list(range(1, 11))
    assert {"meta_loss", "alpha", "beta", "g0", "gradient_norm", "diverged", "capped", "inner_steps_per_s"} <= set(records[0])
    assert checkpoint.steps(run_dir) == [6, 8, 10]
    assert_bit_equal(checkpoint.load_theta(run_dir), result.theta)


def test_theta_moved_from_its_start(unbroken):
    start = initial_theta(SMOKE.seed, SMOKE.optimizer.make(SMOKE.task.make().spec))
    moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), unbroken[1].theta, start)
    assert all(change > 0 for change in jax.tree.leaves(moved))


def test_a_run_may_start_from_the_theta_of_another(unbroken, tmp_path):
    run_dir, result = unbroken
    start = smoke(init_from=str(run_dir), seed=1, outer_steps=0)
    assert_bit_equal(meta_train(start, tmp_path / "run", progress=False).theta, result.theta)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / checkpoint.THETA_FILE).write_bytes(checkpoint.pack_theta(result.theta, 10))
    start = dataclasses.replace(start, init_from=str(tmp_path / "folder"))
    assert_bit_equal(meta_train(start, tmp_path / "other", progress=False).theta, result.theta)

    other = dataclasses.replace(start, optimizer=LearnedSGDMConfig())
    with pytest.raises(
        ConfigError, match=r"folder'?: leaf '\S+' of its theta .* and in this experiment's is not there; rule, features"
    ):
        meta_train(other, tmp_path / "refused", progress=False)
    assert not checkpoint.steps(tmp_path / "refused")

    shutil.rmtree(tmp_path / "folder")  # a run that has begun does not need it any more
    assert_bit_equal(meta_train(start, tmp_path / "other", progress=False).theta, result.theta)


def test_a_unf_may_start_from_the_deep_sets_of_its_own_seed_and_train_its_terms_alone(tmp_path):
    first = smoke(optimizer=LearnedMomentumConfig(network=DeepSetsConfig((4, 3))), outer_steps=2)
    trained = [meta_train(dataclasses.replace(first, seed=seed), tmp_path / f"first-{seed}", progress=False) for seed in (0, 1)]
    rest = tuple((part, 0.0) for part in ("alpha", "beta", "g0", "network"))
    second = dataclasses.replace(
        first,
        optimizer=LearnedMomentumConfig(network=UNFConfig((4, 3))),
        estimator=PESConfig(particles=2, sigmas=(*rest, ("network/last/terms", 0.1))),
        init_from=str(tmp_path / "first-{seed}"),
    )
    for seed, (_, theta, _) in enumerate(trained):
        run_dir = tmp_path / f"second-{seed}"
        after = meta_train(dataclasses.replace(second, seed=seed), run_dir, progress=False).theta
        last, terms = after["network"]["last"]["shared"], jax.tree.leaves(after["network"]["last"]["terms"])
        assert_bit_equal(last, theta["network"]["last"])
        assert_bit_equal({**after, "network": after["network"]["pointwise"]}, {**theta, "network": theta["network"]["pointwise"]})
        assert all(np.any(np.asarray(leaf) != 0) for leaf in terms)

    wide = dataclasses.replace(second, optimizer=LearnedMomentumConfig(network=UNFConfig((4, 5))))
    with pytest.raises(ConfigError, match=r"first-0'? is a DeepSets' theta: the maps of the DeepSets have the shapes"):
        meta_train(wide, tmp_path / "refused", progress=False)
    published = dataclasses.replace(second, optimizer=LearnedMomentumConfig(network=UNFConfig((4, 3), terms=None)))
    with pytest.raises(ConfigError, match=r"first-0'? is a DeepSets' theta: a layer without a shared pointwise map, terms=None"):
        meta_train(published, tmp_path / "refused", progress=False)


def test_a_run_in_two_parts_is_the_unbroken_one(unbroken, tmp_path):
    meta_train(smoke(outer_steps=5), tmp_path, progress=False)
    result = meta_train(SMOKE, tmp_path, progress=False)
    assert_bit_equal(result.theta, unbroken[1].theta)
    state = checkpoint.steps(tmp_path)
    assert state[-1] == 10
    assert [json.dumps(r) for r in without_speed(tmp_path)] == [json.dumps(r) for r in without_speed(unbroken[0])]


def test_a_finished_run_is_left_as_it_is(unbroken):
    before = sorted((path.name, path.stat().st_mtime_ns) for path in (unbroken[0] / "checkpoints").iterdir())
    assert_bit_equal(meta_train(SMOKE, unbroken[0], progress=False).theta, unbroken[1].theta)
    assert before == sorted((path.name, path.stat().st_mtime_ns) for path in (unbroken[0] / "checkpoints").iterdir())


def test_another_config_is_refused_by_field(unbroken):
    other = smoke(seed=1, estimator=dataclasses.replace(SMOKE.estimator, sigma=0.5))
    with pytest.raises(ConfigError, match=r"estimator.sigma is 0.01 there, not 0.5; seed is 0 there, not 1"):
        meta_train(other, unbroken[0], progress=False)


def test_settings_that_make_no_sense_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="save_every"):
        meta_train(smoke(save_every=0), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_run_whose_particles_all_diverge_stops_with_advice(tmp_path):
    experiment = smoke(optimizer=LearnedMomentumConfig(alpha=1e38, network=SMOKE.optimizer.network), outer_steps=100)
    with pytest.raises(DivergedError, match=r"last 20 outer steps \(outer step 20\).*smaller optimizer.alpha"):
        meta_train(experiment, tmp_path, progress=False)
    records = metrics.read(tmp_path)
    assert len(records) == 20
    assert all(record["diverged"] == 4 and record["nonfinite"] > 0 for record in records)
    assert checkpoint.steps(tmp_path)[-1] == 20


class Stream(DataStream):
    """A thousand numbers for each outer step, drawn from that step's own seed."""

    def __init__(self):
        self.asked = []

    def at(self, step):
        self.asked.append(step)
        x = np.random.default_rng(step).normal(size=(1000, 2)).astype(np.float32)
        return Datasets(*[ArraySplit({"x": x}, 4)] * 4)


@functools.cache
def stream():
    return Stream()


@dataclasses.dataclass(frozen=True)
class CarryingConfig(TaskConfig):
    """All that an inner training can carry: a model's state, keys, a family's variant; its data come from a stream."""

    def make(self):
        def loss_with_state(params, state, key, batch):
            mean = 0.9 * state["mean"] + 0.1 * jnp.mean(batch["x"], axis=0)
            error = (batch["x"] - mean[None]) @ params["w"] + jax.random.normal(key, (4,)) - 1.0
            return jnp.mean(jnp.square(error)), {"mean": mean, "count": state["count"] + 1}

        task = Task(
            name="carrying",
            init_with_state=lambda key: ({"w": jax.random.normal(key, (2,))}, {"mean": jnp.zeros(2), "count": jnp.asarray(0)}),
            loss_with_state=loss_with_state,
            spec=WeightSpec.parse({"w": "w!"}),
            datasets=stream(),
            initial_loss=2.0,
        )
        return vary_init_scale(task, (0.1, 10.0))


def carrying(**changes):
    unroll = UnrollConfig(horizon=6, truncation=2)
    return smoke(task=CarryingConfig(), optimizer=LearnedSGDMConfig(), estimator=PESConfig(particles=4), unroll=unroll, **changes)


def test_model_states_variants_and_streams_resume_bit_for_bit(tmp_path):
    whole = meta_train(carrying(), tmp_path / "whole", progress=False)
    meta_train(carrying(outer_steps=5), tmp_path / "parts", progress=False)
    stream().asked.clear()
    result = meta_train(carrying(), tmp_path / "parts", progress=False)
    assert stream().asked == [5, 6, 7, 8, 9]
    assert_bit_equal(result.theta, whole.theta)
    files = [tmp_path / part / "checkpoints" / "00000010.safetensors" for part in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()
    carried = {name for name in load_safetensors(files[0]) if "inner" in name}
    assert {name.partition("/inner/")[2] for name in carried} >= {"params/w", "model/mean", "model/count", "variant/init_scale"}
    assert [json.dumps(r) for r in without_speed(tmp_path / "parts")] == [
        json.dumps(r) for r in without_speed(tmp_path / "whole")
    ]


@dataclasses.dataclass(frozen=True)
class FileConfig(TaskConfig):
    """A line through numbers that lie in a file."""

    data_dir: str = operational("")

    def make(self):
        x = np.load(Path(self.data_dir) / "x.npy")

        def loss(params, key, batch):
            return jnp.mean(jnp.square(batch["x"] @ params["w"] - 1.0))

        return Task(
            name="file",
            init=lambda key: {"w": jax.random.normal(key, (2,))},
            loss=loss,
            spec=WeightSpec.parse({"w": "w!"}),
            datasets=Datasets(*[ArraySplit({"x": x}, 4)] * 4),
            initial_loss=2.0,
        )


def test_a_run_that_was_copied_goes_on_with_its_data_elsewhere(tmp_path):
    (tmp_path / "here").mkdir()
    np.save(tmp_path / "here" / "x.npy", np.random.default_rng(0).normal(size=(100, 2)).astype(np.float32))
    run = dataclasses.replace(carrying(outer_steps=4), task=FileConfig(str(tmp_path / "here")))
    whole = meta_train(run, tmp_path / "whole", progress=False)
    meta_train(dataclasses.replace(run, outer_steps=2), tmp_path / "here" / "run", progress=False)
    shutil.move(tmp_path / "here", tmp_path / "there")
    moved = dataclasses.replace(
        run,
        task=FileConfig(str(tmp_path / "there")),
        save_every=1,
        keep_checkpoints=2,
        max_skipped=3,
        evaluation=EvaluationConfig(7),
    )
    resumed = meta_train(moved, tmp_path / "there" / "run", progress=False)
    assert_bit_equal(resumed.theta, whole.theta)
    assert checkpoint.steps(tmp_path / "there" / "run") == [3, 4]
    assert load_run(tmp_path / "there" / "run") == moved
    with pytest.raises(ConfigError, match=r"held_out\.every is 0 there, not 2"):
        meta_train(dataclasses.replace(moved, held_out=HeldOutConfig(every=2)), tmp_path / "there" / "run", progress=False)


def test_other_loggers_and_the_environment_of_every_start(tmp_path):
    """A run may take up another logger when it is resumed; it is given the steps before."""
    meta_train(smoke(outer_steps=2), tmp_path, progress=False)
    meta_train(smoke(outer_steps=3, logging=LoggerConfig(("tensorboard",))), tmp_path, progress=False)
    assert list(tmp_path.rglob("*tfevents*"))
    assert [start["outer_step"] for start in read_starts(tmp_path)] == [0, 2]
    argv = ["--config", str(ROOT / "configs" / "smoke.py"), "--run-dir", "r", "--logger", "wandb", "--wandb-mode", "offline"]
    parsed = parse_experiment(argv, prog="p", description="d", config_dir=ROOT / "configs")[0]
    assert parsed.logging == LoggerConfig(("wandb",), "offline")


def test_data_are_sent_again_only_when_they_change():
    source, sharding = Stream(), jax.sharding.SingleDeviceSharding(jax.devices()[0])
    fixed = on_devices(source.at(0), sharding)
    assert fixed(0) is fixed(1)
    data = on_devices(source, sharding)
    first, second = data(0), data(1)
    np.testing.assert_array_equal(second.train.arrays["x"], source.at(1).train.arrays["x"])
    assert not np.array_equal(first.train.arrays["x"], second.train.arrays["x"])


def command(run_dir, *overrides):
    script = [sys.executable, str(ROOT / "scripts" / "meta_train.py"), "--config", str(ROOT / "configs" / "smoke.py")]
    return [*script, "--run-dir", str(run_dir), *overrides]


def log_of(run_dir):
    return run_dir.with_name(f"{run_dir.name}.log")


def start(run_dir, *overrides, **variables):
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "LOPT_NATIVE": "",
        "COLUMNS": "200",
        **variables,
    }
    with log_of(run_dir).open("w") as log:
        return subprocess.Popen(command(run_dir, *overrides), env=environment, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)


def wait_for_checkpoint(process, run_dir, after):
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        found = checkpoint.steps(run_dir)
        if found and found[-1] > after:
            return
        time.sleep(0.01)
    pytest.fail(
        f"no checkpoint after outer step {after}: {process.communicate()[0] if process.poll() is not None else 'timeout'}"
    )


@pytest.mark.slow
def test_killed_and_started_again_ends_bit_identical(tmp_path):
    """SIGKILL at a random moment after some checkpoint, restart, compare with a run that nothing happened to.

    LOPT_KILLS sets how often: 2 unless set, for the time that restarts take.
    """
    kills = int(os.environ.get("LOPT_KILLS", "2"))
    overrides = ("--outer-steps", str(150 * kills), "--save-every", "1")
    # Compiled afresh, where the others may take a program from the cache: the bits must not depend on that either.
    whole = start(tmp_path / "whole", *overrides, JAX_ENABLE_COMPILATION_CACHE="false")
    assert whole.wait(timeout=300) == 0, log_of(tmp_path / "whole").read_text()
    generator, last = random.Random(0), 0
    for _ in range(kills):
        process = start(tmp_path / "killed", *overrides)
        wait_for_checkpoint(process, tmp_path / "killed", last)
        time.sleep(generator.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=60) == -signal.SIGKILL, "the run ended before it was killed: give it more outer steps"
        last = checkpoint.steps(tmp_path / "killed")[-1]
    assert 0 < last < 150 * kills
    process = start(tmp_path / "killed", *overrides)
    assert process.wait(timeout=300) == 0, log_of(tmp_path / "killed").read_text()
    assert_bit_equal(checkpoint.load_theta(tmp_path / "killed"), checkpoint.load_theta(tmp_path / "whole"))
    assert [json.dumps(r) for r in without_speed(tmp_path / "killed")] == [
        json.dumps(r) for r in without_speed(tmp_path / "whole")
    ]


def test_sigint_saves_and_exits_cleanly(tmp_path):
    run_dir = tmp_path / "run"
    process = start(run_dir, "--outer-steps", "100000", "--save-every", "50000")
    deadline = time.monotonic() + 240
    while not (run_dir / "metrics.jsonl").exists() or len((run_dir / "metrics.jsonl").read_bytes()) < 1000:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0, log_of(run_dir).read_text()
    output = log_of(run_dir).read_text()
    assert "all saved" in output
    assert "Traceback" not in output
    assert checkpoint.steps(run_dir)[-1] == metrics.read(run_dir)[-1]["outer_step"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--unroll.horizon", "7"], "multiple of truncation=5, got 7"),
        (["--estimator.no-such-field", "7"], "no-such-field"),
        (["--estimator.sigma", "wide"], "wide"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, overrides, message):
    process = start(tmp_path / "run", *overrides)
    assert process.wait(timeout=120) != 0
    output = log_of(tmp_path / "run").read_text()
    assert message in output
    assert "Traceback" not in output
    assert not (tmp_path / "run").exists()


def test_a_run_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match=r"cannot write the run directory .*file/run"):
        meta_train(SMOKE, tmp_path / "file" / "run", progress=False)


def test_a_directory_belongs_to_a_run_from_its_first_checkpoint_on(tmp_path, monkeypatch):
    """What failed before it leaves the directory free; afterwards another config is refused, and fewer steps change nothing."""
    from lopt.training import trainer

    def fails(*args):
        raise ValueError("the data are not there")

    with monkeypatch.context() as patched:
        patched.setattr(trainer, "set_up", fails)
        with pytest.raises(ValueError, match="the data are not there"):
            meta_train(smoke(seed=3), tmp_path, progress=False)
    assert load_run(tmp_path).seed == 3
    experiment = smoke(outer_steps=2, save_every=1)
    assert meta_train(experiment, tmp_path, progress=False).step == 2
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="seed is 0 there, not 3"):
        meta_train(dataclasses.replace(experiment, seed=3), tmp_path, progress=False)
    result = meta_train(dataclasses.replace(experiment, outer_steps=1), tmp_path, progress=False)
    assert (result.step, result.interrupted) == (2, False)
    jax.tree.map(np.testing.assert_array_equal, result.theta, checkpoint.load_theta(tmp_path))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
