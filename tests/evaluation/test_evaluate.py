import csv
import dataclasses
import html
import io
import itertools
import json
import math
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

from lopt import config
from lopt.evaluation import baselines
from lopt.evaluation import costs as costs_module
from lopt.evaluation import evaluate as evaluate_module
from lopt.evaluation import rollout as frozen
from lopt.evaluation.baselines import Baseline, find_baseline
from lopt.evaluation.costs import measure_costs
from lopt.evaluation.evaluate import (
    RACE,
    TUNE,
    Competitor,
    Evaluation,
    EvaluationConfig,
    evaluate,
    measured_steps,
    metrics_fn,
    race,
    seed_keys,
    train_fn,
    tune_baseline,
)
from lopt.evaluation.rollout import race_fn
from lopt.evaluation.summary import Curve, Estimate, markdown_table, rich_table, steps_to_reach, summarize, trailing_mean
from lopt.evaluation.tuning import Search, TuningError
from lopt.reporting.report import curve_arrays, summary_markdown, terminal_table, write_report
from lopt.reporting.tables import csv_text, json_text
from lopt.symmetry.spec import WeightSpec
from lopt.task.base import ArraySplit, Datasets, Task
from lopt.training import checkpoint
from lopt.training.metrics import MetricsWriter

# --- A task whose answers are known: loss = h/2 mean_b |w - x_b|^2; without noise in the data, SGD multiplies w by 1 - lr h.


def quadratic(curvature: float, noise: float = 0.0, examples: int = 64, seed: int = 0) -> Task:
    def split(index: int) -> ArraySplit:
        x = noise * jax.random.normal(jax.random.fold_in(jax.random.key(seed), index), (examples, 3))
        return ArraySplit({"x": x}, batch_size=4)

    def loss(params, key, batch):
        return 0.5 * curvature * jnp.mean(jnp.sum(jnp.square(params["w"][None] - batch["x"]), axis=1))

    return Task(
        name="quadratic",
        init=lambda key: {"w": 1.0 + 0.1 * jax.random.normal(key, (3,))},
        loss=loss,
        spec=WeightSpec.parse({"w": "weights!"}),
        datasets=Datasets(split(0), split(1), split(2), split(3)),
        initial_loss=1.5 * curvature,
        metrics=lambda params, key, batch: {"distance": jnp.sqrt(jnp.sum(jnp.square(params["w"])))},
    )


def sgd(rate) -> optax.GradientTransformation:
    return optax.sgd(rate)


def needs_value(rate) -> optax.GradientTransformationExtraArgs:
    """Follows the gradient with a step proportional to the loss, which it must be told."""

    def update(updates, state, params=None, *, value, **extra):
        return jax.tree.map(lambda g: -rate * value * g, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: (), update)


@pytest.fixture
def plain_sgd(monkeypatch):
    rivals = {**baselines.BASELINES, "sgd": Baseline("SGD", sgd, low=1e-3, high=3.0)}
    monkeypatch.setattr(baselines, "BASELINES", rivals)


SMALL = EvaluationConfig(steps=20, seeds=3, tuning_seeds=2)


# --- Training


def test_training_is_a_plain_loop_over_steps_for_each_seed():
    task, rate, steps, seeds = quadratic(0.7, noise=0.5), jnp.float32(0.3), 6, 3  # three seeds on two devices
    keys = seed_keys(jax.random.key(3), seeds)
    trained, losses = train_fn(task, needs_value, steps)(rate, keys, task.datasets)
    tests = metrics_fn(task)(None, (trained, keys), task.datasets)
    assert losses.shape == (seeds, steps)
    for seed in range(seeds):
        init_key, run_key, _ = jax.random.split(keys[seed], 3)
        w = np.asarray(task.init(init_key)["w"])
        for t in range(steps):
            batch_key, _ = jax.random.split(jax.random.fold_in(run_key, t))
            x = np.asarray(task.datasets.train.batch(batch_key)["x"])
            loss = 0.35 * np.mean(np.sum((w - x) ** 2, axis=1))
            np.testing.assert_allclose(losses[seed, t], loss, rtol=1e-5)
            w = w - 0.3 * loss * 0.7 * (w - np.mean(x, axis=0))
        np.testing.assert_allclose(trained.params["w"][seed], w, rtol=1e-4)
        x = np.asarray(task.datasets.test.arrays["x"])  # the whole split
        np.testing.assert_allclose(tests["loss"][seed], 0.35 * np.mean(np.sum((w - x) ** 2, axis=1)), rtol=1e-4)
        np.testing.assert_allclose(tests["distance"][seed], np.linalg.norm(w), rtol=1e-4)


def test_a_seed_does_not_depend_on_how_many_there_are():
    few, many = (np.asarray(jax.random.key_data(seed_keys(jax.random.key(3), K))) for K in (3, 5))
    np.testing.assert_array_equal(few, many[:3])
    assert len(np.unique(many, axis=0)) == 5


def test_held_out_data_are_looked_at_on_the_way():
    task, rate, seeds, batches, at = quadratic(0.7, noise=0.5), jnp.float32(0.3), 3, 5, [0, 1, 4, 6]
    keys = seed_keys(jax.random.key(3), seeds)
    trained, losses, measured = race_fn(task, sgd, 6, at, batches)(rate, keys, task.datasets)
    same, expected = train_fn(task, sgd, 6)(rate, keys, task.datasets)
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    np.testing.assert_allclose(trained.params["w"], same.params["w"], rtol=1e-6)
    assert {name: values.shape for name, values in measured.items()} == {"loss": (seeds, 4), "distance": (seeds, 4)}
    for index, steps in enumerate(at):
        w = task.init(jax.random.split(keys[1], 3)[0])["w"]
        if steps:
            w = train_fn(task, sgd, steps)(rate, keys, task.datasets)[0].params["w"][1]
        np.testing.assert_allclose(measured["distance"][1, index], np.linalg.norm(w), rtol=1e-5)
        x = np.asarray(task.datasets.outer_valid.arrays["x"])
        whole = 0.35 * np.mean(np.sum((np.asarray(w) - x) ** 2, axis=1))
        assert measured["loss"][1, index] == pytest.approx(whole, rel=0.3)  # 20 of 64 examples
    for bad in ([], [0, 5], [0, 3, 3, 6], [-1, 6]):
        with pytest.raises(ValueError, match="rising numbers of steps"):
            race_fn(task, sgd, 6, bad, 1)


@pytest.mark.parametrize(("steps", "count"), [(1, 1), (7, 12), (300, 12), (5000, 3)])
def test_measurements_are_at_logarithmic_and_linear_steps(steps, count):
    at = measured_steps(steps, count)
    assert at == sorted(set(at))
    assert (at[0], at[-1]) == (0, steps)
    assert len(at) <= 2 * count + 1
    assert 1 in at


def test_data_are_an_argument_of_the_program():
    task, other = quadratic(1.0, noise=0.5), quadratic(1.0, noise=0.5, seed=1)
    train, metrics, keys = train_fn(task, sgd, 5), metrics_fn(task), seed_keys(jax.random.key(0), 2)
    trained, losses = train(jnp.float32(0.1), keys, task.datasets)
    assert not np.allclose(losses, train(jnp.float32(0.1), keys, other.datasets)[1])
    large = quadratic(1.0, noise=0.5, examples=100_000)
    assert len(train.lower(jnp.float32(0.1), keys, large.datasets).as_text()) < 100_000
    tests = metrics(None, (trained, keys), task.datasets), metrics(None, (trained, keys), other.datasets)
    assert not np.allclose(tests[0]["loss"], tests[1]["loss"])


# --- Racing


def test_all_competitors_have_the_same_weights_and_batches():
    task = quadratic(1.0, noise=0.5)
    competitors = [
        Competitor("still", sgd, jnp.float32(0.0)),
        Competitor("as still", needs_value, jnp.float32(0.0)),
        Competitor("moving", sgd, jnp.float32(0.5)),
    ]
    still, as_still, moving = race(task, competitors, jax.random.key(0), steps=8, seeds=3)
    np.testing.assert_array_equal(still.losses, as_still.losses)
    np.testing.assert_array_equal(still.losses[:, 0], moving.losses[:, 0])
    assert np.all(still.losses[:, 1:] != moving.losses[:, 1:])
    assert len(np.unique(still.losses)) == still.losses.size  # a new batch at each step, other seeds other batches


def test_competitors_that_share_a_function_share_its_compilation():
    calls = []

    def counted(rate):
        calls.append(rate)
        return optax.sgd(rate)

    competitors = [Competitor(str(rate), counted, jnp.float32(rate)) for rate in (0.1, 0.2, 0.3)]
    curves = race(quadratic(1.0), competitors, jax.random.key(0), steps=3, seeds=2)
    assert len(calls) == 1
    final = [curve.losses[0, -1] for curve in curves]
    np.testing.assert_allclose(np.array(final) / curves[0].losses[0, 0], [(1 - rate) ** 4 for rate in (0.1, 0.2, 0.3)], rtol=1e-4)


def test_costs_are_those_of_adam_for_adam():
    adam = find_baseline("adam").opt_fn
    costs = measure_costs(quadratic(1.0), {"mine": (adam, jnp.float32(0.1)), "plain": (sgd, jnp.float32(0.1))}, turns=3)
    assert costs["mine"].state_bytes == pytest.approx(2 * 4 + 4 / 3)  # two moments of three weights, and a count
    assert costs["plain"].state_bytes == 0
    assert 0.2 < costs["mine"].time_ratio < 5.0  # the same program, on a machine that others use
    assert costs["plain"].memory_ratio < costs["mine"].memory_ratio == 1.0
    assert all(0 < cost.seconds < 1 for cost in costs.values())


def test_costs_of_a_schedule_are_not_those_of_a_given_rate():
    adam, scheduled = find_baseline("adam"), Search(1e-3, 1e-1, schedules=("constant", "cosine"))
    theta = scheduled.theta(scheduled.grid()[0], 10)
    optimizers = {"tuned": (adam.opt_fn, theta), "given": (adam.opt_fn, jnp.float32(0.1))}
    costs = measure_costs(quadratic(1.0), optimizers, turns=1)
    assert costs["tuned"].state_bytes == pytest.approx(costs["given"].state_bytes + 4 / 3)  # the schedule counts steps too
    assert costs["given"].memory_ratio == 1.0


def test_a_call_that_is_kept_waiting_does_not_settle_how_long_a_turn_is(monkeypatch):
    """One step is a matter of microseconds: where another process has the core meanwhile, it says nothing of the step."""
    call, calls = costs_module._Steps._call, itertools.count()
    monkeypatch.setattr(costs_module._Steps, "_call", lambda self: call(self) + 1.0 * (next(calls) == 1))
    steps = costs_module._Steps(sgd, jnp.float32(0.1), {"w": jnp.ones(3)})
    assert steps._steps > 100


def test_names_that_are_given_twice_are_found_before_anything_is_tuned():
    said = []
    competitors = [Competitor("twice", sgd, jnp.float32(0.1))] * 2
    with pytest.raises(ValueError, match=r"given twice: \['twice'\]"):
        evaluate(quadratic(1.0), competitors, SMALL, seed=0, progress=said.append)
    assert not said


def test_names_must_differ():
    competitor = Competitor("twice", sgd, jnp.float32(0.1))
    with pytest.raises(ValueError, match="twice"):
        race(quadratic(1.0), [competitor, competitor], jax.random.key(0), steps=1, seeds=1)


def test_seeds_of_race_tuning_and_meta_training_are_disjoint():
    root = jax.random.key(0)
    keys = [
        seed_keys(jax.random.fold_in(root, RACE), 50),
        seed_keys(jax.random.fold_in(root, TUNE), 50),
        seed_keys(root, 1000),  # what a meta-training may fold in: small numbers such as outer steps
        jax.random.split(root, 50),
    ]
    data = [set(map(tuple, np.asarray(jax.random.key_data(group)).tolist())) for group in keys]
    for a, b in itertools.combinations(data[:3], 2):
        assert not a & b
    assert not (data[0] | data[1]) & data[3]
    assert len(data[0]) == len(data[1]) == 50
    assert min(RACE, TUNE) > 10**8


# --- Tuning


@pytest.mark.parametrize(("curvature", "best"), [(10.0, 0.1), (0.1, 10.0)])
def test_tuning_finds_the_analytic_optimum_one_over_the_curvature(plain_sgd, curvature, best):
    tuning = tune_baseline(quadratic(curvature), "sgd", SMALL, jax.random.key(0))
    assert tuning.learning_rate == best  # beyond the grid's edge for the last
    assert not tuning.at_edge
    scores = {setting.learning_rate: score for setting, score in tuning.tried}
    # Known for every learning rate: the loss shrinks by (1 - lr h)^2 a step; the window is of two steps.
    start = scores[0.001] / np.mean([(1 - 0.001 * curvature) ** (2 * t) for t in (18, 19)])
    for rate, score in scores.items():
        expected = start * np.mean([(1 - rate * curvature) ** (2 * t) for t in (18, 19)])
        assert score == math.inf if expected > 3e38 else score == pytest.approx(expected, rel=1e-3, abs=1e-9)


def test_a_schedule_is_found_where_it_helps():
    """Steps of the rate's size, whatever the gradient, end near the minimum only if the rate falls."""
    config = dataclasses.replace(SMALL, steps=60, schedules=("constant", "cosine"), refinements=0)
    tuning = tune_baseline(quadratic(1.0), "sign_sgd", config, jax.random.key(0))
    assert tuning.best.schedule == "cosine"
    best = {name: min(score for setting, score in tuning.tried if setting.schedule == name) for name in ("constant", "cosine")}
    assert best["cosine"] < 0.2 * best["constant"]


def test_accelerators_train_a_whole_grid_at_once(monkeypatch):
    """As on CPU one after another: the same scores, from one program, also where a group is smaller than the grid."""
    config, calls = dataclasses.replace(SMALL, schedules=("constant", "cosine")), []
    expected = tune_baseline(quadratic(10.0), "sgdm", config, jax.random.key(0))
    for module in (frozen, evaluate_module):
        monkeypatch.setattr(module, "on_cpu", lambda: False)
    grid_fn = frozen.grid_fn

    def counted(*args):
        calls.append(args)
        return grid_fn(*args)

    monkeypatch.setattr(evaluate_module, "grid_fn", counted)
    found = tune_baseline(quadratic(10.0), "sgdm", config, jax.random.key(0))
    assert len(calls) == 1
    assert [setting for setting, _ in found.tried] == [setting for setting, _ in expected.tried]
    np.testing.assert_allclose([score for _, score in found.tried], [score for _, score in expected.tried], rtol=1e-4, atol=1e-12)


def test_momenta_are_searched_where_there_are_any(plain_sgd):
    config = dataclasses.replace(SMALL, momenta=(0.0, 0.5, 0.9), schedules=("constant", "cosine"), refinements=0)
    tuning = tune_baseline(quadratic(1.0), "sgdm", config, jax.random.key(0))
    assert {setting.momentum for setting, _ in tuning.tried} >= {0.0, 0.5, 0.9}
    assert tuning.best.momentum == 0.0  # of a quadratic with one curvature, a rate of 1 and no momentum is the best
    plain = tune_baseline(quadratic(1.0), "sgd", config, jax.random.key(0))  # takes neither, as it was made here
    assert {(setting.momentum, setting.schedule) for setting, _ in plain.tried} == {(None, "constant")}


def test_what_was_tuned_before_is_not_tuned_again(plain_sgd, tmp_path):
    key, cold = jax.random.key(0), []

    def tuned(task=None, key=key, **changed):
        config = dataclasses.replace(SMALL, refinements=0, **changed)
        found = tune_baseline(quadratic(1.0, noise=0.1) if task is None else task, "sgd", config, key, tmp_path)
        cold.append(not found.cached)
        return found

    first = tuned()
    assert dataclasses.replace(tuned(), cached=False) == first
    assert cold == [True, False]
    tuned(quadratic(2.0, noise=0.1))  # another loss
    tuned(quadratic(1.0, noise=0.1, seed=1))  # other data
    tuned(key=jax.random.key(1))
    tuned(steps=21)
    tuned(tuning_seeds=3)
    tuned(points_per_decade=1)
    assert cold[2:] == [True] * 6


def test_a_baseline_that_never_trains_is_named(plain_sgd):
    task = dataclasses.replace(quadratic(1.0), loss=lambda params, key, batch: jnp.sum(params["w"]) * jnp.nan)
    with pytest.raises(TuningError, match="SGD on quadratic: every learning rate"):
        tune_baseline(task, "sgd", SMALL, jax.random.key(0))


def test_one_compilation_serves_the_whole_grid(plain_sgd):
    task, traces = quadratic(1.0), []

    def loss(params, key, batch):
        traces.append(key)
        return task.loss(params, key, batch)

    def traced(points_per_decade: int) -> int:
        traces.clear()
        config = dataclasses.replace(SMALL, points_per_decade=points_per_decade)
        tune_baseline(dataclasses.replace(task, loss=loss), "sgd", config, jax.random.key(0))
        return len(traces)

    assert 0 < traced(1) == traced(4)


# --- Figures from curves


def brute_steps(losses: np.ndarray, target: float, window: int) -> list[float]:
    found = []
    for seed in losses:
        reached = [n for n in range(window, len(seed) + 1) if np.mean(seed[n - window : n]) <= target]
        found.append(float(reached[0]) if reached else math.nan)
    return found


def test_steps_to_reach_are_counted_as_defined():
    losses = np.array([[5.0, 4, 3, 2, 1, 1], [5, 5, 5, 5, 5, 5], [1, 1, 9, 9, 9, 9], [5, 5, 5, 5, 5, 1]])
    np.testing.assert_array_equal(steps_to_reach(losses, 2.5, 2), [4, np.nan, 2, np.nan])
    np.testing.assert_array_equal(steps_to_reach(losses, 2.5, 1), [4, np.nan, 1, 6])
    np.testing.assert_array_equal(steps_to_reach(losses, 3.0, 2), [4, np.nan, 2, 6])
    assert np.isnan(steps_to_reach(losses, math.nan, 2)).all()


@pytest.mark.parametrize("window", [1, 3, 7])
def test_steps_to_reach_agree_with_brute_force_where_some_losses_are_not_finite(window):
    rng = np.random.default_rng(0)
    losses = np.exp(-np.linspace(0, 2, 40))[None] + 0.3 * rng.standard_normal((20, 40))
    losses[3, 5], losses[4, 7:], losses[5, 0], losses[6, 20] = np.nan, np.inf, np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        expected = brute_steps(losses, 0.3, window)
    np.testing.assert_array_equal(steps_to_reach(losses, 0.3, window), expected)
    assert 0 < np.isnan(expected).sum() < 20


def test_a_window_recovers_after_a_value_that_is_not_finite():
    smooth = trailing_mean(np.array([[1.0, np.inf, 1.0, 1.0, 3.0]]), 2)
    np.testing.assert_array_equal(smooth, [[np.inf, np.inf, 1.0, 2.0]])
    for window in (0, 6):
        with pytest.raises(ValueError, match="1 to the 5 steps"):
            trailing_mean(np.ones((1, 5)), window)


def test_estimates_have_the_standard_error_of_the_mean():
    values = np.array([1.0, 2.0, 4.0])
    estimate = Estimate.of(values)
    assert estimate.mean == pytest.approx(7 / 3)
    assert estimate.error == pytest.approx(math.sqrt(((4 / 3) ** 2 + (1 / 3) ** 2 + (5 / 3) ** 2) / 2 / 3))
    assert Estimate.of(np.array([1.0, np.nan, 2.0, 4.0])) == estimate
    assert Estimate.of(np.array([5.0])).count == 1
    assert math.isnan(Estimate.of(np.array([5.0])).error)
    assert math.isnan(Estimate.of(np.array([np.nan])).mean)


@pytest.mark.parametrize(
    ("mean", "error", "text"),
    [
        (0.012345, 0.00123, "0.0123 ± 0.0012"),
        (142.31, 5.12, "142.3 ± 5.1"),
        (1234.5, 99.9, "1234 ± 100"),
        (0.5, 0.0, "0.5"),
        (3.0, math.nan, "3"),
        (math.nan, math.nan, "nan"),
        (2.5e9, 1e8, "2.50e+09 ± 1e+08"),
    ],
)
def test_estimates_are_printed_to_two_digits_of_their_error(mean, error, text):
    assert str(Estimate(mean, error, 3)) == text


def synthetic() -> list[Curve]:
    """Ten steps, two seeds, a window of two: Adam ends at 2.0; `fast` is there after 4 and 5 steps."""

    def curve(name: str, losses: list[list[float]], accuracy: float = 0.5, reference: bool = False) -> Curve:
        test = {"loss": np.full(2, 0.7), "accuracy": np.full(2, accuracy)}
        return Curve(name, np.array(losses), test, 0.0123, reference)

    return [
        curve("fast", [[9, 9, 2, 2, 1, 1, 1, 1, 1, 1], [9, 9, 9, 2, 2, 1, 1, 1, 1, 1.5]], accuracy=0.9),
        curve("half", [[9, 9, 2, 2, 1, 1, 1, 1, 1, 1], [9] * 10]),
        curve("slow", [[9] * 10, [8] * 10]),
        curve("Adam", [[9, 9, 9, 9, 9, 9, 9, 9, 2, 2], [9, 9, 9, 9, 9, 9, 9, 9, 1.8, 2.2]], reference=True),
        curve("broken", [[9, 9, math.nan, math.nan, math.nan, math.nan, math.nan, math.nan, math.nan, math.nan], [3] * 10]),
    ]


def test_the_summary_of_known_curves():
    fast, half, slow, adam, broken = summarize(synthetic(), window=2)
    assert adam.final_loss.mean == pytest.approx(2.0)
    assert (fast.steps.mean, fast.steps.error, fast.steps.count) == (4.5, 0.5, 2)
    assert fast.speedup.mean == pytest.approx((10 / 4 + 10 / 5) / 2)
    assert fast.final_loss.mean == pytest.approx((1 + 1.25) / 2)
    assert (half.steps.mean, half.steps.count) == (4.0, 1)
    assert slow.steps.count == 0
    assert math.isnan(slow.speedup.mean)
    assert (adam.steps.mean, adam.speedup.mean) == (10.0, 1.0)
    early = synthetic()
    early[3] = dataclasses.replace(
        early[3], losses=np.array([[9, 9, 9, 9, 9, 9, 9, 2, 2, 2], [9, 9, 9, 9, 9, 1.8, 3, 1.8, 1.8, 1.8]])
    )
    fast, *_, adam, _ = summarize(early, window=1)
    assert adam.steps.mean == (8 + 6) / 2  # where it first was what it ends at, in each seed
    assert fast.speedup.mean == pytest.approx((8 / 3 + 6 / 6) / 2)  # in the second 2 is not enough
    assert (broken.diverged, broken.final_loss.mean, broken.final_loss.count) == (1, 3.0, 1)
    assert [row.diverged for row in (fast, half, slow, adam)] == [0, 0, 0, 0]


def test_what_trains_as_the_reference_does_has_a_speed_up_of_one():
    """However much seeds differ in how low they get, and losses from step to step."""
    random = np.random.default_rng(0)
    losses = np.exp(-np.linspace(0, 3, 200))[None] * random.uniform(0.7, 1.3, (10, 1)) * random.uniform(0.8, 1.2, (10, 200))
    adam, same = (Curve(name, losses.astype(np.float32), {}, 0.0, name == "Adam") for name in ("Adam", "same"))
    worse = Curve("worse", (1.02 * losses).astype(np.float32), {}, 0.0)
    reference, of_same, of_worse = summarize([adam, same, worse], window=20)
    assert (of_same.speedup.mean, of_same.speedup.error, of_same.speedup.count) == (1.0, 0.0, 10)
    assert of_same.steps == reference.steps
    assert of_worse.steps.count == 0 or of_worse.speedup.mean <= 1.0
    lost = dataclasses.replace(adam, losses=np.where(np.arange(10)[:, None] == 3, np.float32(np.nan), adam.losses))
    assert [row.steps.count for row in summarize([lost, same], window=20)] == [9, 9]  # no loss to reach in this seed


def cells(text: str) -> dict[str, dict[str, str]]:
    lines = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines()]
    return {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines[2:]}


def test_the_table_says_what_was_reached_and_what_was_not():
    table = cells(markdown_table(summarize(synthetic(), window=2)))
    steps = "steps to Adam's final loss"
    assert table["fast"]["test accuracy"] == "0.9"
    assert table["fast"][steps] == "4.50 ± 0.50"
    assert table["fast"]["speed-up"] == "2.25 ± 0.25"
    assert table["half"][steps] == "4, never (1 of 2)"
    assert table["half"]["speed-up"] == "2.5 (1 of 2)"
    assert table["slow"][steps] == "never (2 of 2)"
    assert table["slow"]["speed-up"] == "-"
    assert table["Adam"][steps] == "10 (target)"
    assert table["fast"]["diverged"] == "0"
    assert table["fast"]["ms / step"] == "12"
    assert "test loss" not in table["fast"]


def test_a_diverged_seed_shows_in_the_table():
    table = cells(markdown_table(summarize(synthetic(), window=2)))
    assert table["broken"]["diverged"] == "1 of 2"
    assert table["broken"]["final training loss"] == "nan (others: 3)"
    assert table["broken"]["test accuracy"] == "nan (others: 0.5)"


def test_a_test_loss_that_is_not_finite_is_divergence():
    curve = synthetic()[0]
    bad = dataclasses.replace(curve, test={**curve.test, "loss": np.array([0.1, np.inf])})
    np.testing.assert_array_equal(bad.diverged, [False, True])


def test_where_the_reference_diverged_nothing_is_reached():
    curves = synthetic()
    curves[3] = dataclasses.replace(curves[3], losses=np.full((2, 10), np.nan))
    table = cells(markdown_table(summarize(curves, window=2)))
    assert table["Adam"]["final training loss"] == "nan"
    assert table["fast"]["steps to Adam's final loss"] == "never (2 of 2)"


def test_a_task_without_metrics_shows_its_test_loss():
    curves = [dataclasses.replace(curve, test={"loss": curve.test["loss"]}) for curve in synthetic()]
    assert cells(markdown_table(summarize(curves, window=2)))["fast"]["test loss"] == "0.7"


def test_a_table_with_two_metrics_fits_80_columns_too():
    curves = [
        dataclasses.replace(curve, name=name, test={**curve.test, "bits_per_character": np.array([2.7412, 2.9317])})
        for curve, name in zip(synthetic(), ["meta-trained", "before meta-training", "slow", "tuned Adam", "broken"], strict=True)
    ]
    rows = summarize(curves, window=2)
    assert cells(markdown_table(rows))["slow"]["test bits per character"] == "2.836 ± 0.095"
    output = io.StringIO()
    Console(file=output, width=80).print(rich_table(rows, "title", "caption"))
    assert max(map(len, output.getvalue().splitlines())) <= 80
    for shown in ("meta-training", "character", "accuracy", "2.836", "never", "step", "12"):
        assert shown in output.getvalue()
    assert "…" not in output.getvalue()


@pytest.mark.parametrize("references", [0, 2])
def test_one_competitor_sets_the_target(references):
    curves = [dataclasses.replace(curve, reference=index < references) for index, curve in enumerate(synthetic())]
    with pytest.raises(ValueError, match="exactly one"):
        summarize(curves, window=2)


def test_a_curve_checks_its_shapes():
    with pytest.raises(ValueError, match=r"'a'.*\(3,\)"):
        Curve("a", np.zeros(3), {}, 0.0)
    with pytest.raises(ValueError, match="accuracy of 'a'"):
        Curve("a", np.zeros((3, 2)), {"accuracy": np.zeros(2)}, 0.0)


@pytest.mark.parametrize("first", ["meta-trained", "docs/reproduction/mlp-cpu/theta/DeepSets-0"])
def test_the_terminal_table_fits_80_columns_and_hides_nothing(first):
    names = [first, "before meta-training", "slow", "tuned Adam", "broken"]
    curves = [dataclasses.replace(curve, name=name) for curve, name in zip(synthetic(), names, strict=True)]
    output = io.StringIO()
    Console(file=output, width=80).print(rich_table(summarize(curves, window=2), "title", "caption"))
    text = output.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for shown in (
        "meta-training",
        "4.50",
        "± 0.50",
        "never",
        "(1 of 2)",
        "1 of 2",
        "nan",
        "title",
        "caption",
        "speed-up",
        "diverged",
        "ms /",
    ):
        assert shown in text


# --- Config


@pytest.mark.parametrize("field", ["steps", "seeds", "tuning_seeds", "points_per_decade", "window", "measurements"])
def test_a_config_out_of_range_names_the_field(field):
    with pytest.raises(ValueError, match=f"evaluation.{field}"):
        EvaluationConfig(**{field: 0})


def test_a_config_names_baselines_that_exist():
    with pytest.raises(ValueError, match="'adan_'"):
        EvaluationConfig(baselines=("adam", "adan_"))
    with pytest.raises(ValueError, match=r"names these twice: Adam 0\.001"):
        EvaluationConfig(baselines=("adam", "adam:1e-3", "adam:0.001"))
    with pytest.raises(ValueError, match="empty"):
        EvaluationConfig(baselines=())
    with pytest.raises(ValueError, match=r"evaluation.points_per_decade must be at most 10, got 11"):
        EvaluationConfig(points_per_decade=11)
    for field, value in (("max_extensions", -1), ("refinements", -1), ("cost_turns", -1)):
        with pytest.raises(ValueError, match=field):
            EvaluationConfig(**{field: value})
    for momenta in ((), (0.5, 0.5), (1.0,), (-0.1,)):
        with pytest.raises(ValueError, match="momenta"):
            EvaluationConfig(momenta=momenta)
    for schedules in ((), ("cosine", "cosine"), ("linear",)):
        with pytest.raises(ValueError, match="schedules must be some of constant, cosine"):
            EvaluationConfig(schedules=schedules)


@pytest.mark.parametrize(("steps", "window"), [(2000, 100), (1000, 100), (300, 30), (5, 1), (1, 1)])
def test_the_window_is_at_most_a_tenth_of_the_steps(steps, window):
    assert EvaluationConfig(steps=steps).smoothing == window


# --- From end to end


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    """A learned optimizer that is right, one that is the same with a useless theta, one that breaks, and the real baselines."""
    task = quadratic(10.0, noise=0.05)
    learned = [
        Competitor("meta-trained", needs_value, jnp.float32(0.01)),
        Competitor("before meta-training", needs_value, jnp.float32(0.0)),
        Competitor("broken", sgd, jnp.float32(5.0)),
    ]
    return evaluate(task, learned, EvaluationConfig(steps=60, seeds=3, tuning_seeds=2), seed=0)


def test_an_evaluation_races_the_tuned_baselines(evaluation):
    assert [curve.name for curve in evaluation.curves] == [
        "meta-trained",
        "before meta-training",
        "broken",
        "tuned Adam",
        "tuned SGDM",
    ]
    assert [curve.reference for curve in evaluation.curves] == [False, False, False, True, False]
    adam = evaluation.curves[3].losses
    assert evaluation.target == pytest.approx(adam[:, -6:].mean(), rel=1e-5)
    scores = dict(evaluation.tunings["Adam"].tried)
    assert scores[evaluation.tunings["Adam"].best] == min(scores.values())
    # Racing at the tuned learning rate, on other seeds, must come out near the tuning score.
    assert 0.2 < evaluation.target / min(scores.values()) < 5.0
    still = evaluation.curves[1].losses
    assert still[:, -1].mean() > 0.5 * still[:, 0].mean()
    assert [row.diverged for row in evaluation.rows] == [0, 0, 3, 0, 0]
    assert all(curve.seconds_per_step > 0 for curve in evaluation.curves)


def test_an_evaluation_can_be_repeated(evaluation):
    learned = [Competitor("meta-trained", needs_value, jnp.float32(0.01))]
    config = dataclasses.replace(evaluation.config, baselines=("sgdm",))
    said = []
    again = evaluate(quadratic(10.0, noise=0.05), learned, config, seed=0, progress=said.append)
    np.testing.assert_array_equal(again.curves[0].losses, evaluation.curves[0].losses)
    np.testing.assert_array_equal(again.curves[1].losses, evaluation.curves[4].losses)
    assert again.curves[1].reference
    assert [line.split(":")[0] for line in said] == [
        "tuning the learning rate of SGDM",
        "racing meta-trained",
        "racing tuned SGDM",
        "timing the optimizers' own steps beside Adam's",
    ]


def test_a_given_learning_rate_is_not_tuned():
    said = []
    config = dataclasses.replace(SMALL, baselines=("sgd:0.05", "adamw:0.2"), cost_turns=0)
    given = evaluate(quadratic(1.0), [], config, seed=0, progress=said.append)
    assert [curve.name for curve in given.curves] == ["sgd 0.05", "adamw 0.2"]
    assert given.curves[0].reference
    assert not given.tunings
    assert not given.costs
    assert [line.split(":")[0] for line in said] == ["racing sgd 0.05", "racing adamw 0.2"]
    losses = given.curves[0].losses
    np.testing.assert_allclose(losses[:, -1] / losses[:, 0], (1 - 0.05) ** (2 * 19), rtol=1e-4)
    text = summary_markdown(given)
    assert "- sgd: **0.05**, as given." in text
    assert "- adamw: **0.2**, as given." in text
    assert "tuning:" not in text
    assert "They were not measured." in text
    output = io.StringIO()
    Console(file=output, width=100).print(terminal_table(given))
    assert "tuned learning rates: none" in output.getvalue()


RECORDS = [{"outer_step": n, "meta_loss": 1.0 / n, "gradient_norm": 1.0, "inner_steps_per_s": 400.0} for n in range(1, 11)]


def test_the_report_is_written(evaluation, tmp_path):
    (tmp_path / "summary.md").write_text("of an earlier evaluation")
    configs = {"task": {"hidden": [32, 16]}}
    paths = write_report(evaluation, tmp_path, records=RECORDS, inner_steps=1600, configs=configs)
    page = html.unescape((tmp_path / "report.html").read_text())
    for title, shown in (("evaluation", '"seed": 0,'), ("evaluation", '"tuning_seeds": 2'), ("task", '"hidden": [')):
        assert shown in page.split(f"<summary>Config of the {title}</summary>")[1].split("</details>")[0]
    stored = json.loads((tmp_path / "table.json").read_text())
    assert (stored["seed"], stored["config"]["steps"], stored["configs"]) == (0, 60, configs)
    pictures, tables = ["curves.png", "held_out.png", "meta_training.png"], ["table.csv", "table.json", "table.md"]
    assert sorted(path.name for path in paths) == sorted([*pictures, *tables, "curves.npz", "report.html", "summary.md"])
    assert sorted(os.listdir(tmp_path)) == sorted(path.name for path in paths)  # nothing temporary is left
    for name in pictures:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "summary.md").read_text() == summary_markdown(evaluation, RECORDS, 1600)
    with np.load(tmp_path / "curves.npz", allow_pickle=False) as stored:
        expected = curve_arrays(evaluation)
        assert sorted(stored) == sorted(expected)
        for name, array in expected.items():
            np.testing.assert_array_equal(stored[name], array)
        assert stored["losses"].shape == (5, 3, 60)
        assert stored["names"][0] == "meta-trained"
        assert stored["test/distance"].shape == (5, 3)
        assert stored["held_out/distance"].shape == (5, 3, len(stored["held_out/at"]))
        assert stored["tuning/Adam/score"].shape == stored["tuning/Adam/learning_rate"].shape


def test_tables_for_programs_hold_the_figures(evaluation):
    rows = {row.name: row for row in evaluation.rows}
    read = {line["optimizer"]: line for line in csv.DictReader(io.StringIO(csv_text(evaluation)))}
    assert list(read) == list(rows)
    for name, line in read.items():
        row, cost = rows[name], evaluation.costs[name]
        assert float(line["diverged"]) == row.diverged
        assert float(line["update_time_over_adam"]) == cost.time_ratio
        for column, value in (("final_training_loss", row.final_loss.mean), ("speed_up", row.speedup.mean)):
            assert line[column] == ("" if math.isnan(value) else str(value))
    assert read["broken"]["final_training_loss"] == ""  # no number, rather than one that hides the divergence
    stored = json.loads(json_text(evaluation))
    assert stored["target"] == evaluation.target
    assert [row["name"] for row in stored["rows"]] == list(rows)
    assert stored["rows"][2]["final_loss"]["mean"] is None
    best = evaluation.tunings["SGDM"].best
    assert stored["tunings"]["SGDM"]["best"] == {"learning_rate": best.learning_rate, "momentum": None, "schedule": "constant"}
    assert stored["environment"]["packages"]["jax"] == jax.__version__


def test_without_records_there_is_no_picture_of_the_meta_training(evaluation, tmp_path):
    write_report(evaluation, tmp_path)
    assert not (tmp_path / "meta_training.png").exists()
    assert "meta-training:" not in (tmp_path / "summary.md").read_text()


def test_the_summary_says_how_its_figures_came_about(evaluation):
    text = summary_markdown(evaluation, RECORDS, 1600)
    assert markdown_table(evaluation.rows) in text
    assert "3 of 3" in text  # seeds of `broken`
    for title, tuning in evaluation.tunings.items():
        assert f"- {title}: **{tuning.best}**" in text
        assert all(f" {setting}: " in text for setting, _ in tuning.tried)
    assert "10 outer steps of 1,600 inner steps each, 16,000 in all; they took 40 s" in text
    assert "3 seeds of 60 inner steps" in text
    assert "2 other seeds of 60 inner steps" in text
    assert "last 6 minibatch losses" in text
    assert f"{evaluation.target:.4g}" in text
    assert max(len(line) for line in text.split("## Definitions")[1].splitlines()) < 140


def test_a_best_learning_rate_at_the_edge_is_said_to_be(evaluation):
    edge = {"Adam": dataclasses.replace(evaluation.tunings["Adam"], at_edge=True)}
    assert "edge of what was tried" in summary_markdown(dataclasses.replace(evaluation, tunings=edge))
    assert "edge of what was tried" not in summary_markdown(evaluation)


def test_the_terminal_table_names_the_learning_rates(evaluation):
    output = io.StringIO()
    Console(file=output, width=100).print(terminal_table(evaluation))
    for title, tuning in evaluation.tunings.items():
        assert f"{title} {tuning.learning_rate:g}" in output.getvalue()
    assert "60 inner steps, 3 seeds" in output.getvalue()


# --- The script

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run_script(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "evaluate.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_the_script_evaluates_a_run(tmp_path):
    from lopt.estimators.pes import PESConfig
    from lopt.optimizers.momentum import LearnedSGDMConfig
    from lopt.training.trainer import MetaTrainConfig
    from lopt.unroll import UnrollConfig
    from tasks.mlp import MLPConfig

    experiment = MetaTrainConfig(
        task=MLPConfig(image_size=4, hidden=(4,), batch_size=8),
        optimizer=LearnedSGDMConfig(alpha=0.001, g0=0.0),
        estimator=PESConfig(particles=3),
        unroll=UnrollConfig(horizon=20, truncation=10),
        evaluation=EvaluationConfig(steps=7, seeds=5, tuning_seeds=1, baselines=("sgdm",)),
    )
    config.save(experiment, tmp_path / config.CONFIG_FILE)
    checkpoint.save(tmp_path, 2, {"theta": {"alpha": jnp.float32(0.1), "g0": jnp.float32(0.9)}})
    with MetricsWriter(tmp_path) as metrics:
        for step in (1, 2, 3):  # killed after logging the third step, before its checkpoint
            metrics.write({"outer_step": step, "meta_loss": 2.0, "gradient_norm": 1.0})

    result = run_script("--run-dir", tmp_path, "--steps", 80, "--seeds", 3)
    assert result.returncode == 0, result.stderr
    for name in ("summary.md", "curves.png", "curves.npz", "meta_training.png", "report.html", "table.csv"):
        assert (tmp_path / name).exists()
        assert str(tmp_path / name) in result.stdout
    assert re.search(r"meta-trained +\d", result.stdout)
    text = (tmp_path / "summary.md").read_text()
    assert "2 outer steps of 60 inner steps each, 120 in all" in text
    with np.load(tmp_path / "curves.npz") as stored:
        assert list(stored["names"]) == ["meta-trained", "before meta-training", "tuned SGDM"]
        assert stored["losses"].shape == (3, 3, 80)
        # theta after meta-training is SGDM at 0.1, before it SGD at 0.001: from the same start, the latter hardly moves.
        np.testing.assert_array_equal(stored["losses"][0, :, 0], stored["losses"][1, :, 0])
        assert stored["losses"][0, :, -5:].mean() < stored["losses"][1, :, -5:].mean() - 0.1


def test_the_script_says_what_is_wrong(tmp_path):
    missing = run_script("--run-dir", tmp_path)
    assert missing.returncode == 1
    assert "config.json" in missing.stderr
    assert "Traceback" not in missing.stderr
    zero = run_script("--run-dir", tmp_path, "--steps", "0")
    assert zero.returncode == 2
    assert "--steps" in zero.stderr


def test_the_script_evaluates_any_task_without_a_run(tmp_path):
    arguments = ("--task", "mlp", "--optimizer", "sgdm:0.1", "lion:0.01", "--steps", 20, "--seeds", 2)
    fields = ("--task.hidden", 6, 5, "--task.image-size", 4, "--task.activation", "tanh", "--out", tmp_path / "new" / "folder")
    result = run_script(*arguments, *fields)
    assert result.returncode == 0, result.stderr
    assert "tuning" not in result.stdout
    assert re.search(r"digits4_mlp_6_5: 20 inner steps, 2 seeds", result.stdout)
    assert sorted(os.listdir(tmp_path / "new" / "folder")) == [
        "curves.npz",
        "curves.png",
        "held_out.png",
        "report.html",
        "summary.md",
        "table.csv",
        "table.json",
        "table.md",
    ]
    assert json.loads((tmp_path / "new" / "folder" / "table.json").read_text())["configs"]["task"]["hidden"] == [6, 5]
    with np.load(tmp_path / "new" / "folder" / "curves.npz") as stored:
        assert list(stored["names"]) == ["SGDM 0.1", "lion 0.01"]
        assert stored["losses"].shape == (2, 2, 20)
        assert stored["losses"][1, :, -1].mean() < stored["losses"][1, :, 0].mean() - 0.1


def test_the_script_races_meta_trained_optimizers_on_other_tasks(tmp_path, monkeypatch):
    from lopt.estimators.pes import PESConfig
    from lopt.networks.update import DeepSetsConfig, UNFConfig
    from lopt.optimizers.momentum import LearnedMomentumConfig
    from lopt.training.trainer import MetaTrainConfig
    from scripts import evaluate as script
    from tasks.mlp import MLPConfig

    other = MLPConfig(image_size=4, hidden=(5, 4)).make()
    for name, network in (("pointwise", DeepSetsConfig((4,))), ("unf", UNFConfig((4,)))):
        task, optimizer = MLPConfig(image_size=4, hidden=(6,)), LearnedMomentumConfig(network=network)
        experiment = MetaTrainConfig(task=task, optimizer=optimizer, estimator=PESConfig())
        (tmp_path / name).mkdir()
        config.save(experiment, tmp_path / name / config.CONFIG_FILE)
        theta = jax.jit(optimizer.make(task.make().spec).init)(jax.random.key(0))
        checkpoint.save(tmp_path / name, 2, {"theta": theta})
    pointwise = str(tmp_path / "pointwise")
    found = script.trained_optimizer(pointwise, other, "best")
    assert found.name == pointwise
    curves = race(other, [found], jax.random.key(0), steps=3, seeds=1)
    assert np.isfinite(curves[0].losses).all()
    with pytest.raises(ValueError, match=r"'.*unf' does not serve the weights of 'digits4_mlp_5_4': .* not shared by role"):
        script.trained_optimizer(str(tmp_path / "unf"), other, "best")
    shipped = script.trained_optimizer("small-mixture-unf", other, "best")
    assert np.isfinite(race(other, [shipped], jax.random.key(0), steps=3, seeds=1)[0].losses).all()
    # The best of a run by its held-out evaluations comes before its newest, unless that is asked for.
    best = jax.tree.map(jnp.zeros_like, found.theta)
    checkpoint.save(tmp_path / "pointwise" / "best", 1, {"theta": best})
    assert float(script.trained_optimizer(pointwise, other, "best").theta["alpha"]) == 0
    assert float(script.trained_optimizer(pointwise, other, "newest").theta["alpha"]) > 0
    monkeypatch.chdir(tmp_path)
    names = ["unf", "adam", "missing/run", "small-mixture-unf", "hf://owner/name"]
    args, _ = script.parse(["--task", "mlp", "--optimizer", *names, "--steps", "7"])
    given, trained = script.overrides(args)
    assert given == {"steps": 7, "baselines": ("adam",)}
    assert trained == ["unf", "missing/run", "small-mixture-unf", "hf://owner/name"]


@pytest.mark.slow
def test_the_script_evaluates_a_mixture_on_each_of_its_tasks(tmp_path):
    from lopt.estimators.pes import PESConfig
    from lopt.optimizers.momentum import LearnedSGDMConfig
    from lopt.task.families import MixtureConfig
    from lopt.training.trainer import MetaTrainConfig
    from scripts import evaluate as script
    from tasks.mlp import MLPConfig

    tasks = tuple(MLPConfig(image_size=4, hidden=hidden, batch_size=8) for hidden in ((3,), (4, 3)))
    evaluation = EvaluationConfig(steps=5, seeds=2, tuning_seeds=1, measurements=1, cost_turns=0, baselines=("sgd:0.1",))
    experiment = MetaTrainConfig(
        task=MixtureConfig(tasks), optimizer=LearnedSGDMConfig(), estimator=PESConfig(particles=1), evaluation=evaluation
    )
    config.save(experiment, tmp_path / config.CONFIG_FILE)
    checkpoint.save(tmp_path, 1, {"theta": {"alpha": jnp.float32(0.1), "g0": jnp.float32(0.9)}})
    with MetricsWriter(tmp_path) as metrics:
        metrics.write({"outer_step": 1, "meta_loss": 2.0, "gradient_norm": 1.0})
    args, _ = script.parse(["--run-dir", str(tmp_path)])
    found = list(script.of_run(args, Console(file=io.StringIO())))
    assert [one.task for one, _ in found] == [task.make().name for task in tasks]
    for one, paths in found:
        assert paths[0] == tmp_path / one.task / "summary.md"
        assert paths[0].is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "mpl"], "no task 'mpl', did you mean mlp"),
        (["--task", "mlp", "--task.hiden", "4"], "--task.hidden"),
        (["--task", "mlp", "--task.hidden", "0"], r"MLPConfig.hidden\[0\]"),
        (["--task", "mlp", "--task.hidden", "wide"], "wide"),
        (["--task", "mlp", "--run-dir", "x"], "not allowed with"),
        (["--run-dir", "x", "--task.hidden", "4"], "unrecognized arguments: --task.hidden 4"),
        (["--task", "mlp", "--seeds", "none"], "'none' is not a whole number"),
        (["--task", "mlp", "--data", "digits"], "--data names what --generalize data races on"),
        (["--task", "mlp", "--generalize", "width", "--data", "digits"], "--data names what --generalize data races on"),
        ([], "--run-dir --task is required"),
    ],
)
def test_wrong_arguments_are_named(arguments, message, capsys):
    from scripts import evaluate as script

    with pytest.raises(SystemExit) as error:
        script.parse(arguments)
    assert error.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_without_the_hubs_client_it_says_what_to_install(monkeypatch):
    from scripts import evaluate as script

    for name in ("use_compilation_cache", "use_all_cores"):  # settings of the process, which other tests share
        monkeypatch.setattr(script, name, lambda: None)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(SystemExit, match=r"evaluate.py: the Hub needs its client: pip install"):
        script.main(["--task", "mlp", "--optimizer", "adam:0.1", "hf://owner/name"])


def test_a_trained_optimizer_alone_races_against_the_default_rivals():
    from scripts import evaluate as script

    args, _ = script.parse(["--task", "mlp", "--optimizer", "small-mixture-unf"])
    given, trained = script.overrides(args)
    assert (given, trained) == ({}, ["small-mixture-unf"])
    given, trained = script.overrides(script.parse(["--task", "mlp", "--optimizer", "small-mixture-unf", "lion"])[0])
    assert (given, trained) == ({"baselines": ("lion",)}, ["small-mixture-unf"])


def test_a_misspelt_shipped_name_is_told_the_right_one():
    from scripts import evaluate as script

    with pytest.raises(
        config.ConfigError, match="no optimizer 'small-mixture-unv'; did you mean the shipped 'small-mixture-unf'"
    ):
        script.overrides(script.parse(["--task", "mlp", "--optimizer", "adam", "small-mixture-unv"])[0])


def test_help_lists_the_fields_of_the_task(capsys):
    from scripts import evaluate as script

    for arguments, shown, hidden in (
        ([], "--run-dir RUN", "Units of each"),
        (["--task", "mlp"], "Units of each hidden layer", "tanh,step"),
    ):
        with pytest.raises(SystemExit) as error:
            script.parse([*arguments, "--help"])
        assert error.value.code == 0
        text = capsys.readouterr().out
        assert shown in text
        assert hidden not in text
