"""The page of a suite: made of outcomes, with what is missing or diverged said."""

import csv
import io
import json

import numpy as np
import pytest

from lopt.evaluation.suite import Outcome, SuiteConfig, SuiteResult, SuiteTask
from lopt.reporting.suite_report import ratios_csv, suite_json, task_table, write_suite
from tasks.mlp import MLPConfig

NAMES = ("nadamw", "muon", "mine")


def outcome(task, name, level, diverged=False):
    losses = np.full((2, 2, 20), level, np.float32) * np.linspace(2, 1, 20, dtype=np.float32)
    if diverged:
        losses[1, 0, 5:] = np.nan
    return Outcome(task, name, (1, 4), ("0.1", "0.2"), losses, np.full((2, 2), level), 1e-3, 310, 1.0)


@pytest.fixture
def result():
    task = SuiteTask("MLP", MLPConfig(), 20)
    config = SuiteConfig((task, task, task), trials=(1, 4), seeds=2, optimizers=NAMES)
    levels = {"nadamw": 1.0, "muon": 0.5, "mine": 2.0}
    outcomes = {(t, n): outcome(t, n, level) for t in ("a", "b", "c") for n, level in levels.items() if (t, n) != ("c", "mine")}
    outcomes["b", "mine"] = outcome("b", "mine", 2.0, diverged=True)
    return SuiteResult(config, {"a": "MLP", "b": "CNN", "c": "MLP"}, dict.fromkeys("abc", 20), NAMES, outcomes)


def test_what_is_missing_or_diverged_is_said(result):
    header, *lines = task_table(result, 4)
    assert header == ["task", "kind", "weights", "T", "nadamw", "muon", "mine"]
    a, b, c = lines
    assert a[:4] == ["a", "MLP", "310", "20"]
    assert a[5].startswith("0.5")
    assert a[5].endswith("(0.2)")
    assert "1 diverged" in b[6]
    assert c[6] == "not raced yet"


def test_the_files(result, tmp_path):
    paths = write_suite(result, tmp_path)
    assert [path.name for path in paths] == ["report.html", "summary.md", "ratios.csv", "suite.json", "profile.png"]
    page = paths[0].read_text()
    for text in (
        "3 optimizers on 2 tasks, 4 trials each (1 tasks are still to come)",
        "With 1 trial",
        "the tables are for 1, 4",
        "1 of 4",
    ):
        assert text in page
    assert page.count("data:image/png;base64,") >= 4
    assert "| muon |" in paths[1].read_text()


def test_every_run_is_in_the_csv(result):
    rows = list(csv.DictReader(io.StringIO(ratios_csv(result))))
    assert len(rows) == 2 * 2 * 3 * 2  # complete tasks, budgets, optimizers, seeds
    ratios = {float(row["ratio"]) for row in rows if row["optimizer"] == "muon"}
    assert ratios == {0.5}
    diverged = [row for row in rows if row["final_loss"] == ""]
    assert [(row["task"], row["optimizer"], row["trials"], row["ratio"]) for row in diverged] == [("b", "mine", "4", "inf")]


def test_the_json_has_all_figures(result):
    whole = json.loads(suite_json(result))
    assert sorted(whole["aggregates"]) == ["1", "4"]
    assert [one["name"] for one in whole["aggregates"]["4"]] == list(NAMES)
    assert whole["aggregates"]["1"][1]["ratio"]["value"] == pytest.approx(0.5)
    assert len(whole["runs"]) == 8 * 2
    assert [run["final_losses"] for run in whole["runs"] if None in run["final_losses"]] != []


def test_without_a_task_that_all_were_raced_on_there_is_no_report(result, tmp_path):
    del result.outcomes["a", "muon"], result.outcomes["b", "muon"]
    with pytest.raises(ValueError, match="no task yet"):
        write_suite(result, tmp_path)
