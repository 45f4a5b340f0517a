"""Rivals are tuned to what is best for them, once, and by one program."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopt.evaluation import baselines
from lopt.evaluation import evaluate as evaluate_module
from lopt.evaluation import rollout as frozen
from lopt.evaluation.baselines import Baseline
from lopt.evaluation.evaluate import tune_baseline
from lopt.evaluation.tuning import TuningError
from tests.evaluation.problems import SMALL, quadratic, sgd


@pytest.fixture
def plain_sgd(monkeypatch):
    rivals = {**baselines.BASELINES, "sgd": Baseline("SGD", sgd, low=1e-3, high=3.0)}
    monkeypatch.setattr(baselines, "BASELINES", rivals)


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
