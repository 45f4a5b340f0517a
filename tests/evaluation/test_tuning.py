import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopt.evaluation import tuning_cache
from lopt.evaluation.baselines import Hyper
from lopt.evaluation.tuning import Search, Setting, Tuning, TuningError, learning_rates, tune
from lopt.evaluation.tuning_cache import cached, digest, identity


def parabola(best: float, momentum: float | None = None, schedule: str = "constant"):
    """Lowest at `best`, as steep on both sides in log space; the same for the distance of the momentum from 1."""

    def one(setting: Setting) -> float:
        score = abs(math.log10(setting.learning_rate) - math.log10(best)) + (setting.schedule != schedule)
        if momentum is not None:
            assert setting.momentum is not None
            score += 0.5 * abs(math.log10(1 - setting.momentum) - math.log10(1 - momentum))
        return score

    return lambda settings: [one(setting) for setting in settings]


def rates(tuning: Tuning) -> list[float]:
    return [setting.learning_rate for setting, _ in tuning.tried]


COARSE = Search(1e-3, 3.0, refinements=0)


def test_grids_are_rungs_of_one_ladder():
    assert learning_rates(1e-3, 3.0) == (0.001, 0.0032, 0.01, 0.032, 0.1, 0.32, 1.0, 3.2)
    assert learning_rates(1e-4, 0.3)[-1] == 0.32
    assert learning_rates(0.1, 1.0, points_per_decade=4) == (0.1, 0.18, 0.32, 0.56, 1.0)
    assert set(learning_rates(1e-2, 1e-1)) <= set(learning_rates(1e-3, 3.0))


@pytest.mark.parametrize("points_per_decade", range(1, 11))
def test_rungs_are_distinct_and_evenly_spaced(points_per_decade):
    found = np.array(learning_rates(1e-4, 10.0, points_per_decade))
    assert len(found) == 5 * points_per_decade + 1
    steps = np.diff(np.log10(found)) * points_per_decade
    np.testing.assert_allclose(steps, 1.0, atol=0.25)  # rounding to two digits


@pytest.mark.parametrize(("low", "high", "points"), [(0.0, 1.0, 2), (-1.0, 1.0, 2), (1.0, 0.1, 2), (0.1, 1.0, 0), (0.1, 1.0, 11)])
def test_a_senseless_grid_is_refused(low, high, points):
    with pytest.raises(ValueError, match=r"low <= high|points_per_decade"):
        learning_rates(low, high, points)


def test_the_best_inside_the_grid_is_found():
    tuning = tune(parabola(0.04), COARSE)
    assert tuning.learning_rate == 0.032
    assert not tuning.at_edge
    assert tuning.extensions == 0
    assert rates(tuning) == list(learning_rates(1e-3, 3.0))
    assert dict(tuning.tried)[Setting(0.1)] == pytest.approx(math.log10(0.1 / 0.04))


def test_a_refinement_halves_the_distance_around_the_best():
    once, twice = (tune(parabola(0.045), dataclasses.replace(COARSE, refinements=n)) for n in (1, 2))
    assert set(rates(once)) - set(learning_rates(1e-3, 3.0)) == {0.018, 0.056}
    assert once.learning_rate == 0.056
    assert set(rates(twice)) - set(rates(once)) == {0.042, 0.075}
    assert twice.learning_rate == 0.042


@pytest.mark.parametrize(("best", "ends"), [(12.0, (0.001, 32.0)), (1e-4, (3.2e-5, 3.2))])
def test_a_grid_whose_best_is_at_an_edge_is_extended_beyond_it(best, ends):
    tuning = tune(parabola(best), COARSE)
    assert abs(math.log10(tuning.learning_rate / best)) <= 0.25 + 1e-9
    assert not tuning.at_edge
    assert tuning.extensions > 0
    assert (rates(tuning)[0], rates(tuning)[-1]) == ends


def test_extension_is_bounded_and_says_so():
    tuning = tune(parabola(1e6), Search(0.1, 1.0, max_extensions=3, refinements=0))
    assert tuning.at_edge
    assert tuning.learning_rate == 32.0
    assert (len(tuning.tried), tuning.extensions) == (3 + 3, 3)
    assert tune(parabola(1e6), Search(0.1, 1.0, max_extensions=0, refinements=0)).learning_rate == 1.0


def test_momenta_and_schedules_are_a_grid_with_the_learning_rates():
    search = Search(0.01, 1.0, momenta=(0.5, 0.9, 0.99), schedules=("constant", "cosine"), refinements=0)
    tuning = tune(parabola(0.1, 0.9, "cosine"), search)
    assert tuning.best == Setting(0.1, 0.9, "cosine")
    assert str(tuning.best) == "0.1, momentum 0.9, cosine"
    assert len(tuning.tried) == len({setting for setting, _ in tuning.tried}) == 5 * 3 * 2
    refined = tune(parabola(0.1, 0.95, "cosine"), dataclasses.replace(search, refinements=1))
    assert refined.best.momentum == pytest.approx(0.968, abs=0.001)  # halfway to 0.99, of 1 - m
    assert refined.best.learning_rate == 0.1


@pytest.mark.parametrize(("best", "found"), [(0.9975, 0.9975), (0.1, 0.0)])
def test_momenta_are_extended_too(best, found):
    search = Search(0.01, 1.0, momenta=(0.5, 0.9, 0.99), refinements=0)
    tuning = tune(parabola(0.1, best), search)
    assert tuning.best.momentum == pytest.approx(found)
    limited = tune(parabola(0.1, 0.99999), dataclasses.replace(search, max_extensions=1))
    assert limited.at_edge


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_worse_than_anything(bad):
    tuning = tune(lambda settings: [1e9 if s.learning_rate < 0.05 else bad for s in settings], Search(0.01, 1.0))
    assert tuning.learning_rate < 0.05
    assert dict(tuning.tried)[Setting(1.0)] == math.inf


def test_where_all_diverge_the_search_goes_down():
    search = Search(0.01, 1.0, refinements=0)
    tuning = tune(lambda settings: [1.0 / s.learning_rate if s.learning_rate < 0.005 else math.nan for s in settings], search)
    assert tuning.learning_rate == 0.0032


def test_where_nothing_trains_there_is_an_error():
    with pytest.raises(TuningError, match=r"every learning rate from 0\.001 to 1 diverged"):
        tune(lambda settings: [math.nan] * len(settings), Search(0.01, 1.0, max_extensions=2))


def test_all_settings_of_a_search_are_of_one_structure():
    full = Search(0.01, 1.0, momenta=(0.5, 0.9), schedules=("constant", "warmup_cosine"))
    thetas = [full.theta(setting, 50) for setting in full.grid()]
    assert len({jax.tree.structure(theta) for theta in thetas}) == 1
    assert all(leaf.dtype == jnp.float32 for theta in thetas for leaf in jax.tree.leaves(theta))
    assert isinstance(thetas[0], Hyper)
    assert float(thetas[-1].schedule.steps) == 50
    assert np.shape(COARSE.theta(Setting(0.1), 50)) == ()


# --- What is kept of searches


def about(**changed):
    given = {"title": "Adam", "problem": "toy", "search": COARSE, "program": "x + 1", "inputs": [jnp.ones(3)]}
    return identity(**{**given, "steps": 10, "seeds": 2, "window": 1, **changed})


def test_a_search_is_made_once(tmp_path):
    calls = []

    def search() -> Tuning:
        calls.append(None)
        return tune(lambda settings: [math.inf if s.learning_rate > 0.5 else s.learning_rate for s in settings], COARSE)

    first, again = cached(tmp_path / "new", about(), search), cached(tmp_path / "new", about(), search)
    assert len(calls) == 1
    assert (first.cached, again.cached) == (False, True)
    assert dataclasses.replace(again, cached=False) == first
    assert not cached(None, about(), search).cached


@pytest.mark.parametrize(
    "changed",
    [
        {"title": "SGDM"},
        {"problem": "other"},
        {"search": dataclasses.replace(COARSE, refinements=1)},
        {"program": "x + 2"},
        {"inputs": [jnp.full(3, 2.0)]},
        {"inputs": [jnp.ones(3, jnp.int32)]},
        {"steps": 11},
        {"seeds": 3},
        {"window": 2},
    ],
)
def test_what_a_search_depends_on_makes_it_another(tmp_path, changed):
    kept = Tuning(Setting(0.1), ((Setting(0.1), 1.0),), False)
    cached(tmp_path, about(), lambda: kept)
    other = dataclasses.replace(kept, best=Setting(0.2))
    assert cached(tmp_path, about(**changed), lambda: other) == other
    assert cached(tmp_path, about(), lambda: other).best == kept.best


def test_versions_are_part_of_it(tmp_path, monkeypatch):
    before = about()
    monkeypatch.setattr(tuning_cache.optax, "__version__", "99.0")
    assert about() != before


@pytest.mark.parametrize("damage", [lambda b: b[:-7], lambda b: b.replace(b"0.1", b"0.3"), lambda b: b"", lambda b: b"x\n{}"])
def test_a_damaged_entry_is_made_again(tmp_path, damage):
    found = Tuning(Setting(0.1, 0.9, "cosine"), ((Setting(0.1, 0.9, "cosine"), 1.0),), True, 4)
    cached(tmp_path, about(), lambda: found)
    [path] = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match=r"the kept search .* is damaged and made again"):
        again = cached(tmp_path, about(), lambda: found)
    assert not again.cached
    assert cached(tmp_path, about(), lambda: found) == dataclasses.replace(found, cached=True)


def test_a_directory_that_cannot_be_written_is_warned_of(tmp_path):
    (tmp_path / "file").write_text("in the way")
    found = Tuning(Setting(0.1), ((Setting(0.1), 1.0),), False)
    with pytest.warns(UserWarning, match=r"file/dir cannot be written .*LOPT_CACHE_DIR"):
        assert cached(tmp_path / "file" / "dir", about(), lambda: found) == found


def test_digests_tell_keys_and_shapes_apart():
    trees = [
        jax.random.key(0),
        jax.random.key(1),
        jnp.zeros((2, 3)),
        jnp.zeros((3, 2)),
        jnp.zeros(6, jnp.uint8),
        np.zeros((2, 3)),
    ]
    assert len({digest(tree) for tree in trees}) == len(trees)
    assert digest({"a": jnp.ones(2)}) == digest({"a": jnp.ones(2)})
    json.dumps(about())


def test_a_search_of_fewer_trials_is_the_beginning_of_a_longer_one():
    score = parabola(0.045)
    longest = tune(score, Search.from_start(1e-3, 16))
    assert longest.order[:4] == (Setting(1e-3), Setting(3.2e-4), Setting(3.2e-3), Setting(1e-2))
    assert len(longest.order) == len(longest.tried) == 16
    for trials in (1, 2, 4, 7, 16):
        shorter = tune(score, Search.from_start(1e-3, trials))
        assert shorter.order == longest.order[:trials]
        assert shorter.best == longest.best_of(trials)
    assert abs(math.log10(longest.learning_rate / 0.045)) < 0.04


def test_trials_are_not_spent_on_what_diverges_upwards():
    """A first rate that is far too high: the search goes down."""
    found = tune(lambda settings: [math.inf if s.learning_rate > 1e-3 else 1.0 for s in settings], Search.from_start(0.1, 8))
    assert found.order[:5] == tuple(Setting(rate) for rate in (0.1, 0.032, 0.01, 0.0032, 0.001))
    assert found.best_of(2) == Setting(0.1)
