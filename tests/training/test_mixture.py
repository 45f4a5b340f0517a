"""One theta over several problems: weighted gradients, unions of theta, refusals, held-out evaluation, and the run as a whole."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopt.config import ConfigError, load_run
from lopt.estimators.base import Estimator
from lopt.estimators.nres import NRESConfig
from lopt.estimators.pes import PESConfig
from lopt.evaluation.evaluate import EvaluationConfig, evaluate
from lopt.evaluation.race import Competitor
from lopt.networks.update import DeepSetsConfig, UNFConfig
from lopt.optimizers.config import LearnedOptimizerConfig
from lopt.optimizers.gated import NominalRule
from lopt.optimizers.momentum import LearnedMomentumConfig, LearnedSGDMConfig
from lopt.optimizers.nominals import MomentumNominal
from lopt.optimizers.schedules import ScheduleConfig
from lopt.task.families import MixtureConfig
from lopt.training import checkpoint, metrics
from lopt.training.checkpoint import BEST_DIR
from lopt.training.held_out import HeldOutConfig, make_held_out
from lopt.training.mixture import combine, joint_optimizer, optimizer_of, set_up
from lopt.training.outer import OuterConfig
from lopt.training.trainer import MetaTrainConfig, meta_train
from lopt.unroll import UnrollConfig
from tasks.cnn import CNNConfig
from tasks.mlp import MLPConfig
from tasks.rnn import RNNConfig

SMALL, DEEP = MLPConfig(hidden=(3,), batch_size=8), MLPConfig(hidden=(4, 4), batch_size=8)
WIDE = MLPConfig(hidden=(6,), batch_size=8)


def experiment(tasks, network, **changes):
    settings = {
        "task": MixtureConfig(tasks, (3.0, 1.0)),
        "optimizer": LearnedMomentumConfig(network=network),
        "estimator": NRESConfig(particles=2),
        "unroll": UnrollConfig(horizon=6, truncation=3, meta_loss="mean"),
        "outer_steps": 4,
        "save_every": 2,
        "outer": OuterConfig(learning_rate=1e-2),
    }
    return MetaTrainConfig(**{**settings, **changes})


def constant_estimator(gradient, loss, count, finished=True):
    def step(key, theta, datasets, state):
        final = jnp.where(finished, loss + 1, jnp.nan)
        info = {
            "meta_loss": loss,
            "final_loss": final,
            "all_diverged": jnp.bool(finished),
            "all_capped": jnp.bool(finished),
            **dict.fromkeys(COUNTS, jnp.int32(count)),
        }
        return {"x": jnp.float32(gradient) * datasets}, state + 1, info

    return Estimator(lambda key, theta: jax.random.uniform(key), step, inner_steps=10)


COUNTS = ("finished", "diverged", "capped", "nonfinite")
SLOW = (pytest.mark.slow, pytest.mark.compiles)


def test_gradients_and_losses_are_weighted_and_counts_added():
    one, two = constant_estimator(1.0, jnp.float32(2.0), 1), constant_estimator(5.0, jnp.float32(4.0), 2, finished=False)
    both = combine({"one": one, "two": two}, (0.75, 0.25))
    theta = {"x": jnp.float32(0)}
    state = both.init(jax.random.key(0), theta)
    gradient, after, info = both.step(jax.random.key(1), theta, {"one": 1.0, "two": 2.0}, state)
    assert float(gradient["x"]) == 0.75 * 1 + 0.25 * 10
    assert both.inner_steps == 20
    assert float(info["meta_loss"]) == 0.75 * 2 + 0.25 * 4
    assert float(info["final_loss"]) == 3, "of those that have one"
    assert float(info["one/meta_loss"]), float(info["two/meta_loss"]) == (2, 4)
    assert [int(info[name]) for name in COUNTS] == [3] * 4
    assert not info["all_diverged"]
    assert not info["all_capped"]
    assert jax.tree.map(lambda a, b: round(float(b - a)), state, after) == {"one": 1, "two": 1}
    alone = combine({"two": two}, (1.0,)).init(jax.random.key(0), theta)
    assert float(alone["two"]) == float(state["two"]), "a problem's randomness does not depend on what stands beside it"


@pytest.mark.parametrize(
    ("tasks", "network"),
    [
        pytest.param((SMALL, DEEP), DeepSetsConfig((4,)), id="deep_sets"),
        pytest.param((SMALL, DEEP), UNFConfig((4,), share="role"), id="shared by role", marks=SLOW),
        pytest.param((SMALL, WIDE), UNFConfig((4,)), id="plain UNF of one spec", marks=SLOW),
    ],
)
def test_a_mixture_trains_resumes_and_reports_every_task(tmp_path, tasks, network):
    full = experiment(tasks, network)
    whole = meta_train(full, tmp_path / "whole", progress=False)
    records = metrics.read(tmp_path / "whole")
    names = [task.make().name for task in tasks]
    assert all(np.isfinite(record[f"{name}/meta_loss"]) for record in records for name in names)
    for record in records:
        expected = 0.75 * record[f"{names[0]}/meta_loss"] + 0.25 * record[f"{names[1]}/meta_loss"]
        assert record["meta_loss"] == pytest.approx(expected, rel=1e-5)
        assert 0.3 < record["meta_loss"] < 1.6, "losses are in units of a constant prediction's"
    if network != DeepSetsConfig((4,)):
        return
    meta_train(dataclasses.replace(full, outer_steps=2), tmp_path / "broken", progress=False)
    resumed = meta_train(full, tmp_path / "broken", progress=False)
    jax.tree.map(np.testing.assert_array_equal, resumed.theta, whole.theta)
    assert load_run(tmp_path / "broken") == full


@pytest.mark.slow
@pytest.mark.compiles
@pytest.mark.long
def test_one_theta_trains_a_perceptron_convolutions_and_recurrence_in_one_outer_step(tmp_path):
    tasks = (SMALL, CNNConfig(channels=(2, 3), batch_size=8), RNNConfig(hidden=(3,), embedding=2, length=3, batch_size=4))
    held_out = HeldOutConfig(every=2, steps=2, seeds=1, tasks=(CNNConfig(channels=(2, 2, 2), batch_size=8),))
    run = experiment(tasks, UNFConfig((4,), share="role"), held_out=held_out, outer_steps=2)
    run = dataclasses.replace(run, task=MixtureConfig(tasks))
    before = set_up(run.task, run.optimizer, run.estimator, run.unroll).optimizer.init
    result = meta_train(run, tmp_path / "run", progress=False)
    last = metrics.read(tmp_path / "run")[-1]
    curves = {name.split("/")[0]: value for name, value in last.items() if name.endswith("/meta_loss")}
    assert len(curves) == 3
    assert all(np.isfinite(value) for value in curves.values())
    assert last["meta_loss"] == pytest.approx(np.mean(list(curves.values())), rel=1e-5)
    assert np.isfinite(last["held_out/digits8_cnn_2_2_2"])
    start = before(jax.random.fold_in(jax.random.key(run.seed), 0))
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), result.theta, start)
    assert all(jax.tree.leaves(moved)), "every part of theta is for some task"


def test_a_theta_that_cannot_serve_all_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"is not compatible with both 'digits8_mlp_3' and 'digits8_mlp_4_4'.*share='role'"):
        meta_train(experiment((SMALL, DEEP), UNFConfig((4,))), tmp_path / "run", progress=False)


def test_a_rule_that_must_know_the_length_of_the_training_is_told_everywhere(tmp_path):
    rule = NominalRule(nominal=MomentumNominal(), schedule=ScheduleConfig(base="warmup_cosine", time=False, fraction=True))
    optimizer = LearnedOptimizerConfig(rule=rule, features=None, network=None)
    held_out = HeldOutConfig(every=2, steps=4, seeds=1)
    run = experiment((SMALL, WIDE), None, optimizer=optimizer, outer_steps=2, held_out=held_out)
    result = meta_train(run, tmp_path / "run", progress=False)
    assert result.step == 2
    problem = SMALL.make()
    competitor = Competitor("scheduled", optimizer_of(optimizer, problem).opt_fn, result.theta)
    race = evaluate(problem, [competitor], EvaluationConfig(steps=4, seeds=1, baselines=("sgdm:0.1",), cost_turns=1), 0)
    assert np.isfinite(race.curves[0].losses).all()
    assert race.costs["scheduled"].seconds > 0


def test_the_theta_of_a_mixture_is_the_union():
    config = LearnedMomentumConfig(network=UNFConfig((4,), share="role"))
    optimizers = {task.hidden: optimizer_of(config, task.make()) for task in (SMALL, DEEP)}
    key = jax.random.key(0)
    union = joint_optimizer(optimizers).init(key)["network"]["last"]["terms"]["weights"]
    parts = [optimizer.init(key)["network"]["last"]["terms"]["weights"] for optimizer in optimizers.values()]
    assert union.keys() == parts[0].keys() | parts[1].keys()
    assert len(union) > len(parts[0])


HELD = HeldOutConfig(every=2, steps=10, seeds=2, tasks=(WIDE,))


@pytest.mark.slow
@pytest.mark.compiles
def test_held_out_evaluation_is_logged_and_the_best_is_kept(tmp_path):
    held = dataclasses.replace(HELD, every=1)
    outer = OuterConfig(learning_rate=0.3, average=0.5)
    full = experiment((SMALL, DEEP), DeepSetsConfig((4,)), held_out=held, outer=outer, outer_steps=6)
    run_dir = tmp_path / "run"
    meta_train(full, run_dir, progress=False)
    scores = [record["held_out/score"] for record in metrics.read(run_dir)]
    assert len(set(scores)) == 6
    best = int(np.argmin(scores)) + 1
    assert checkpoint.steps(run_dir / BEST_DIR) == [best]
    evaluate = make_held_out(held, full.optimizer, {}, None or checkpoint.load_theta(run_dir), full.seed)
    assert evaluate(checkpoint.load_theta(run_dir / BEST_DIR))["held_out/score"] == pytest.approx(min(scores), rel=1e-6)
    assert evaluate(checkpoint.load_theta(run_dir))["held_out/score"] == pytest.approx(scores[-1], rel=1e-6)
    name = WIDE.make().name
    assert metrics.read(run_dir)[0][f"held_out/{name}"] == pytest.approx(scores[0] * np.log(10), rel=1e-5)
    # Broken after a worse score and resumed: the best is still the best.
    broken = tmp_path / "broken"
    meta_train(dataclasses.replace(full, outer_steps=4), broken, progress=False)
    meta_train(full, broken, progress=False)
    assert [record["held_out/score"] for record in metrics.read(broken)] == scores
    assert checkpoint.steps(broken / BEST_DIR) == [best]


def test_a_held_out_task_that_theta_cannot_serve_is_refused_before_training(tmp_path):
    held = dataclasses.replace(HELD, tasks=(DEEP,))
    single = experiment((), UNFConfig((4,)), task=SMALL, held_out=held)
    with pytest.raises(ValueError, match="is not compatible with the weights of 'digits8_mlp_4_4'"):
        meta_train(single, tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_run_without_finite_meta_gradients_gives_up(tmp_path, monkeypatch):
    def broken(self, unroll, mesh):
        made = PESConfig(2).make(unroll, mesh)

        def step(key, theta, datasets, state):
            gradient, state, info = made.step(key, theta, datasets, state)
            return jax.tree.map(lambda g: g * jnp.nan, gradient), state, info

        return Estimator(made.init, step, made.inner_steps)

    monkeypatch.setattr(NRESConfig, "make", broken)
    single = experiment((), DeepSetsConfig((4,)), task=SMALL, optimizer=LearnedSGDMConfig(), max_skipped=3, outer_steps=9)
    with pytest.raises(RuntimeError, match="the meta-gradient was not finite in each of the last 3 outer steps"):
        meta_train(single, tmp_path / "run", progress=False)
    assert checkpoint.steps(tmp_path / "run")[-1] == 3


def test_settings_that_make_no_sense_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"held_out\.seeds must be at least 1, got 0"):
        HeldOutConfig(seeds=0)
    with pytest.raises(ConfigError, match="max_skipped must be at least 1"):
        meta_train(experiment((SMALL, DEEP), DeepSetsConfig((4,)), max_skipped=0), tmp_path, progress=False)


@pytest.mark.slow
def test_a_run_keeps_what_belongs_to_its_tasks(tmp_path):
    from tasks.datasets import load_tokenizer
    from tasks.rnn import RNNConfig

    text = tmp_path / "text.txt"
    text.write_text("abc abd " * 200)
    task = RNNConfig(dataset=str(text), hidden=(3,), embedding=2, length=4, batch_size=2)
    meta_train(experiment((), DeepSetsConfig((4,)), task=task, outer_steps=1), tmp_path / "one", progress=False)
    tokenizer = load_tokenizer(tmp_path / "one")
    assert tokenizer.decode(tokenizer.encode("bad cab")) == "bad cab"
    meta_train(experiment((SMALL, task), DeepSetsConfig((4,)), outer_steps=1), tmp_path / "both", progress=False)
    (file,) = (tmp_path / "both").glob("*.tokenizer.json")
    assert load_tokenizer(file) == tokenizer
