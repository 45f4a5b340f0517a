"""What a suite comes to: means that outliers cannot decide, intervals that cover, ranks, profiles."""

import math

import numpy as np
import pytest

from lopt.evaluation.aggregates import (
    Interval,
    aggregate,
    bootstrap,
    interquartile_mean,
    log_ratios,
    mean,
    profile,
    ranks,
    suite_table,
)


def test_the_interquartile_mean_leaves_out_a_quarter_on_each_side():
    values = np.arange(16.0)
    assert interquartile_mean(values) == np.mean(np.arange(4, 12))
    spoilt = np.where(values > 12, np.inf, values)
    assert interquartile_mean(spoilt) == interquartile_mean(values)
    assert interquartile_mean(np.where(values > 8, np.inf, values)) == np.inf
    np.testing.assert_allclose(interquartile_mean(np.stack([values, 2 * values])), [7.5, 15.0])


@pytest.mark.parametrize("statistic", [interquartile_mean, mean])
def test_intervals_cover_as_often_as_they_say(statistic):
    """Runs whose tasks differ more than their seeds: the interval must be over tasks too."""
    draws = np.random.default_rng(1)
    covered = []
    for _ in range(60):
        values = draws.normal(size=(24, 1)) + 0.3 * draws.normal(size=(24, 3))
        found = bootstrap(values, statistic)
        covered.append(found.low <= 0.0 <= found.high)
        assert found.low <= found.value <= found.high
    assert 0.83 <= np.mean(covered) <= 1.0
    over_seeds_alone = 2 * 1.96 * 0.3 / math.sqrt(72)
    assert found.high - found.low > 2 * over_seeds_alone


def test_a_bootstrap_of_runs_that_diverge():
    values = np.zeros((4, 3))
    values[0] = np.inf
    found = bootstrap(values)
    assert (found.value, found.low, found.high) == (0.0, 0.0, math.inf)
    assert str(found.exp()) == "1 (1 to inf)"
    assert bootstrap(values) == found, "the same draws for all"
    for bad in (np.full((2, 2), np.nan), np.zeros((0, 3)), np.zeros(3)):
        with pytest.raises(ValueError, match="needs"):
            bootstrap(bad)


def test_ratios_of_what_diverged():
    losses, reference = np.array([2.0, np.nan, 1.0, np.inf]), np.array([1.0, 1.0, np.nan, np.nan])
    np.testing.assert_allclose(log_ratios(losses, reference), [math.log(2), np.inf, -np.inf, 0.0])


def test_ranks_add_up():
    losses = np.random.default_rng(0).normal(size=(4, 5, 2))
    losses[2, 1] = np.nan
    found = ranks(losses)
    np.testing.assert_allclose(found.sum(axis=0), 10.0)
    assert np.all(found[2, 1] == 4)
    assert np.all(np.diff(np.take_along_axis(losses, np.argsort(found, axis=0), axis=0)[:3], axis=0) > 0)


def test_the_profile_counts_runs_within_a_factor_of_the_best():
    losses = np.array([[[1.0, 2.0]], [[1.5, 1.0]], [[np.nan, np.inf]]])
    np.testing.assert_allclose(profile(losses, np.array([1.0, 1.6, 2.0])), [[0.5, 0.5, 1.0], [0.5, 1.0, 1.0], [0, 0, 0]])


def test_aggregates_and_their_table():
    base = np.array([[1.0, 1.0], [2.0, 2.0], [4.0, 4.0], [8.0, 8.0]])
    worse = 2 * base
    worse[0, 0] = np.nan
    losses = {"nadamw": base, "half": base / 2, "worse": worse}
    speedups = {"nadamw": np.ones((4, 2)), "half": np.full((4, 2), 3.0), "worse": np.full((4, 2), np.nan)}
    seconds = {"nadamw": np.full(4, 1e-3), "half": np.full(4, 4e-3), "worse": np.full(4, 1e-3)}
    found = {one.name: one for one in aggregate(losses, losses, speedups, seconds, "nadamw")}
    half = found["half"].ratio
    assert (half.low, half.value, half.high) == pytest.approx((0.5, 0.5, 0.5))
    assert found["nadamw"].ratio == Interval(1.0, 1.0, 1.0)
    assert found["worse"].ratio.value == pytest.approx(2.0)
    assert (found["half"].ahead, found["worse"].ahead) == (4, 0)
    assert (found["half"].rank.value, found["nadamw"].rank.value, found["worse"].rank.value) == (1, 2, 3)
    assert (found["half"].speedup.value, found["worse"].speedup.value) == (3.0, 0.0)
    assert (found["worse"].diverged, found["worse"].runs, found["half"].time) == (1, 8, pytest.approx(4.0))
    header, *lines = suite_table(list(found.values()), "nadamw", 4)
    assert header[1] == "final loss, nadamw = 1"
    assert lines[0] == ["nadamw", "1", "1", "2 (2 to 2)", "1", "", "0", "1"]
    assert lines[1][1:3] == ["0.5 (0.5 to 0.5)"] * 2
    assert lines[1][5] == "4 of 4"
    assert lines[2][6] == "1 of 8"
