"""The report of an evaluation: its files, and how its figures are said to have come about."""

import csv
import dataclasses
import html
import io
import json
import math
import os

import jax
import numpy as np
import pytest
from rich.console import Console

from lopt.evaluation.evaluate import Evaluation
from lopt.evaluation.summary import markdown_table
from lopt.reporting.report import curve_arrays, summary_markdown, terminal_table, write_report
from lopt.reporting.tables import csv_text, json_text
from tests.evaluation.problems import quadratic_evaluation


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return quadratic_evaluation()


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
