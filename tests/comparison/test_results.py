"""Figures over meta-seeds: means of means, errors over meta-seeds, and nothing that diverged or never got there is hidden."""

import csv
import dataclasses
import io
import json
import math

import numpy as np
import pytest

from lopt.comparison.arrays import metric_arrays, npz
from lopt.comparison.report import comparison_table, csv_text, json_text, readme, write_comparison
from lopt.comparison.results import differences, entries_of, goal, mean_curve, rows
from lopt.comparison.words import captions, hours, speedup_text
from lopt.config import load_run
from lopt.evaluation.summary import Estimate
from lopt.training import checkpoint
from tests.comparison.toy import EVALUATION, curve, found, records

WINDOW = EVALUATION.smoothing
ALL = {"SGDM": 3, "DeepSets": 3, "UNF": 3, "NFN": 3}


def plain_steps(losses, target):
    """Steps to a loss, step by step."""
    for n in range(WINDOW, len(losses) + 1):
        if np.mean(losses[n - WINDOW : n], dtype=np.float64) <= target:
            return float(n)
    return math.nan


def diverging(seed, entry, upto=2):
    """An entry whose first racing seeds diverge."""
    losses = entry.curve.losses.copy()
    losses[:upto, 100:] = np.nan
    return dataclasses.replace(entry, curve=dataclasses.replace(entry.curve, losses=losses))


def given_up(seed, entry):
    """A meta-training that diverged after 600 outer steps, in the last seed alone."""
    if seed < 1:
        return entry
    state = dataclasses.replace(entry.state, done=600, records=records(600, 1.3, diverged_at=581), diverged=True)
    return dataclasses.replace(entry, state=state, step=300)


def test_figures_are_means_over_meta_seeds_of_means_over_racing_seeds():
    comparison = found(ALL)
    target, to_reach = goal(comparison)
    adam = comparison.tuned[0].curve
    assert target == pytest.approx(adam.losses[:, -WINDOW:].mean())
    for row in rows(comparison)[:4]:
        curves = [entry.curve for entry in comparison.entries[row.label]]
        finals = [one.losses[:, -WINDOW:].mean() for one in curves]
        assert row.final_loss.mean == pytest.approx(np.mean(finals))
        assert row.final_loss.error == pytest.approx(np.std(finals, ddof=1) / math.sqrt(3), rel=1e-4)
        ends = [np.mean(of_seed[-WINDOW:], dtype=np.float64) for of_seed in adam.losses]
        base = np.array([plain_steps(of_seed, end) for of_seed, end in zip(adam.losses, ends, strict=True)])
        np.testing.assert_array_equal(to_reach.steps, base)
        steps = np.array([[plain_steps(of_seed, end) for of_seed, end in zip(one.losses, ends, strict=True)] for one in curves])
        assert (row.raced, row.reached) == (9, np.isfinite(steps).sum())
        means = [np.nanmean(base / of_seed) for of_seed in steps if np.isfinite(of_seed).any()]
        assert row.speedup.count == len(means)
        if means:
            assert row.speedup.mean == pytest.approx(np.mean(means))
        assert row.test["accuracy"].mean == pytest.approx(np.mean([one.test["accuracy"].mean() for one in curves]))
        assert (row.parameters, row.seeds, row.planned, row.seconds) == (2, 3, 3, pytest.approx(3 * 1000 * 16 / 1000))


def test_a_single_meta_seed_has_its_error_over_racing_seeds_and_the_caption_says_so():
    comparison = found({"UNF": 1, "SGDM": 2})
    row = next(row for row in rows(comparison) if row.label == "UNF")
    finals = comparison.entries["UNF"][0].curve.losses[:, -WINDOW:].mean(axis=1)
    assert row.final_loss.error == pytest.approx(np.std(finals, ddof=1) / math.sqrt(3), rel=1e-4)
    text = captions(comparison)[0]
    assert "over 2 meta-seeds for SGDM" in text
    assert "over 3 racing seeds of a single meta-seed for UNF" in text
    assert "a single meta-seed" not in captions(found(ALL))[0]


def test_networks_are_compared_within_racing_seeds_and_over_meta_seeds():
    comparison = found({"SGDM": 2, "DeepSets": 3, "UNF": 2}, UNF=lambda seed, entry: diverging(seed, entry, upto=1))
    of_seeds, of_all = differences(comparison)[:-1], differences(comparison)[-1]
    assert [(one.label, one.other, one.seed) for one in of_seeds] == [("UNF", "DeepSets", 0), ("UNF", "DeepSets", 1)]
    for one in of_seeds:
        unf, deep_sets = (comparison.entries[label][one.seed].curve for label in ("UNF", "DeepSets"))
        kept = ~unf.diverged
        change = (unf.losses - deep_sets.losses)[kept].astype(float)
        for estimate, values in ((one.final, change[:, -WINDOW:].mean(axis=1)), (one.whole, change.mean(axis=1))):
            assert (estimate.mean, estimate.count) == (pytest.approx(values.mean(), rel=1e-4), kept.sum())
            assert estimate.error == pytest.approx(np.std(values, ddof=1) / math.sqrt(kept.sum()), rel=1e-3)
        assert one.below == (change[:, -WINDOW:].mean(axis=1) < 0).sum()
    for name in ("final", "whole"):
        means = [getattr(one, name).mean for one in of_seeds]
        assert (getattr(of_all, name).mean, getattr(of_all, name).count) == (pytest.approx(np.mean(means)), 2)
        assert getattr(of_all, name).error == pytest.approx(np.std(means, ddof=1) / math.sqrt(2))
    assert (of_all.seed, of_all.below) == (None, sum(one.final.mean < 0 for one in of_seeds))
    assert "| UNF - DeepSets | all 2 |" in readme(comparison)
    assert len(json.loads(json_text(comparison))["differences"]) == 3
    assert differences(found({"SGDM": 3, "DeepSets": 3})) == []  # a rule without a network is no other network
    assert "What the network changes" not in readme(found({"SGDM": 3, "DeepSets": 3}))


def test_curves_are_means_over_meta_seeds_with_their_error():
    curves = [entry.curve for entry in found(ALL).entries["UNF"]]
    steps, mean, error = mean_curve(curves, 4)
    ends = np.array([one.losses[:, -4:].mean() for one in curves], float)
    assert (steps[0], steps[-1]) == (4, 200)
    assert mean[-1] == pytest.approx(ends.mean())
    assert error[-1] == pytest.approx(ends.std(ddof=1) / math.sqrt(3), rel=1e-4)
    single = mean_curve(curves[:1], 4)[2][-1]
    assert single == pytest.approx(curves[0].losses[:, -4:].mean(axis=1).std(ddof=1) / math.sqrt(3), rel=1e-4)


def test_what_diverged_or_never_got_there_is_said():
    comparison = found(ALL, UNF=diverging, DeepSets=given_up, SGDM=lambda seed, entry: diverging(seed, entry, upto=3))
    lines = {line[0]: line for line in comparison_table(comparison)}
    assert lines["UNF"][2].startswith("nan (others: 0.")
    assert lines["UNF"][2].endswith("6 of 9 seeds diverged")
    assert lines["SGDM"][2] == "nan, 9 of 9 seeds diverged"
    assert "2 of 3 meta-trainings" in lines["DeepSets"][5]
    assert lines["DeepSets"][7] == "1,000, 600, 600 of 1,000"
    slow = found({"SGDM": 1}, SGDM=lambda seed, entry: dataclasses.replace(entry, curve=curve("SGDM", 1e-4)))
    assert speedup_text(rows(slow)[0]) == "never (3 of 3)"
    some = dataclasses.replace(rows(slow)[0], reached=1, speedup=Estimate(1.5, math.nan, 1))
    assert speedup_text(some) == "1.5x, never in 2 of 3"
    record = next(csv.DictReader(io.StringIO(csv_text(slow))))
    assert (record["speed_up"], record["reached"], record["meta_seeds"]) == ("", "0", "1")


def test_the_report_is_whole_and_small(tmp_path):
    comparison = found(ALL, DeepSets=given_up)
    paths = write_comparison(comparison, tmp_path / "report")
    assert [path.name for path in paths] == [
        *("figure2.png", "README.md", "table.md", "table.csv", "table.json", "curves.npz", "metrics.npz")
    ]
    text = json.loads(paths[4].read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert [row["label"] for row in text["rows"]] == [*ALL, "tuned Adam", "tuned SGDM"]
    assert [run["diverged"] for run in text["runs"]] == [False] * 4 + [True] * 2 + [False] * 6
    assert text["runs"][4]["theta"] == {"which": "best", "outer_step": 300}
    with np.load(paths[5]) as arrays:
        assert arrays["UNF/mean"].shape == (3, 200)
        np.testing.assert_allclose(arrays["UNF/mean"][1], comparison.entries["UNF"][1].curve.losses.mean(axis=0), rtol=1e-5)
        assert arrays["tuned Adam/final_loss"].shape == (1, 3)
        assert arrays["UNF/held_out/loss"].shape == (3, 2)
    for entry in entries_of(comparison):
        directory = tmp_path / "report" / "theta" / f"{entry.run.label}-{entry.run.seed}"
        assert load_run(directory) == entry.run.experiment
        assert checkpoint.steps(directory) == [entry.step]
        assert checkpoint.load_theta(directory).keys() == entry.theta.keys()
    assert write_comparison(found({"UNF": 1}, UNF=lambda seed, entry: dataclasses.replace(entry, step=100)), tmp_path / "report")
    assert checkpoint.steps(tmp_path / "report" / "theta" / "UNF-0") == [100]  # an earlier theta leaves no later one behind


def test_the_readme_has_what_a_reader_asks():
    text = readme(found({"SGDM": 3, "DeepSets": 2}))
    for part in (
        "# a toy: budget `cpu`",
        "| DeepSets | 2 of 3 |",
        "a book",
        "1.27 ± 0.36x",
        "on cpu x 2",
        "80 s of outer steps",  # 5 runs of 1,000 outer steps of 16 inner steps at 1,000 a second
        "- Difference number 7 is told in a sentence of some length, as real ones are.",
        "Not run yet: UNF, seed 0; NFN, seed 0; DeepSets, seed 2;".replace("DeepSets, seed 2;", "UNF, seed 1;"),
        "| SGDM, seed 1 | 1,000 | best, outer step 900 | 16 s | 0.10.2 | cpu x 2 |",
    ):
        assert part in text
    assert "| UNF | not run |" not in text
    assert "| DeepSets | not run |" in readme(found({"SGDM": 1}))


def test_a_budget_says_what_its_runs_began_with():
    comparison = found({"UNF": 1})
    assert "from the theta of" not in readme(comparison)
    budget = comparison.agenda.budget
    begun = dataclasses.replace(budget, experiment=dataclasses.replace(budget.experiment, init_from="runs/first-{seed}"))
    agenda = dataclasses.replace(comparison.agenda, budget=begun)
    text = " ".join(readme(dataclasses.replace(comparison, agenda=agenda)).split())
    assert "a run, from the theta of runs/first-{seed}." in text


def test_metrics_of_long_runs_stay_small():
    """Of twelve runs of the paper's 50,000 outer steps."""
    noise = np.random.default_rng(0).normal(size=(1001, 8))
    names = ("meta_loss", "final_loss", "gradient_norm", "alpha", "beta", "g0", "diverged", "inner_steps_per_s")
    long = tuple({"outer_step": 50 * n, **dict(zip(names, map(float, noise[n]), strict=True))} for n in range(1, 1001))

    def lengthen(seed, entry):
        return dataclasses.replace(entry, state=dataclasses.replace(entry.state, done=50_000, records=long))

    arrays = metric_arrays(found(ALL, **dict.fromkeys(ALL, lengthen)))
    assert list(arrays["UNF-0/outer_step"]) == list(range(250, 50_001, 250))
    np.testing.assert_allclose(arrays["NFN-2/g0"], noise[5::5, 5], rtol=1e-6)
    assert len(npz(arrays)) < 200_000
    short = metric_arrays(found({"UNF": 1}))
    assert list(short["UNF-0/outer_step"]) == list(range(50, 1001, 50))
    assert list(short["UNF-0/held_out/outer_step"]) == list(range(100, 1001, 100))
    assert short["UNF-0/meta_loss"][1] == pytest.approx(records(1000, 1.2)[99]["meta_loss"])


@pytest.mark.parametrize(("seconds", "text"), [(59.4, "59 s"), (600.0, "10 min"), (7200.0, "2.0 h")])
def test_times_are_told_in_their_unit(seconds, text):
    assert hours(seconds) == text
