"""An agenda is carried out once: it stops anywhere and goes on, leaves what is done alone, and finds what is wrong before it begins."""

import dataclasses
import fcntl
import io
import json
import shutil
import signal
import warnings

import jax
import numpy as np
import pytest
from rich.console import Console

from lopt.comparison import races, work
from lopt.comparison.config import make_agenda
from lopt.comparison.kept import kept_race
from lopt.comparison.progress import AgendaProgress
from lopt.comparison.races import Bench
from lopt.comparison.report import comparison_table, readme, write_comparison
from lopt.comparison.results import rows
from lopt.comparison.state import has_diverged, state_of
from lopt.comparison.work import InterruptedComparisonError, carry_out, collect
from lopt.config import ConfigError, claim_run_dir
from lopt.evaluation.evaluate import RACE
from lopt.evaluation.race import Competitor, race
from lopt.task.base import ArraySplit, Datasets
from lopt.training import checkpoint, metrics
from lopt.training.trainer import meta_train
from tests.comparison.toy import COMPARISON, EXPERIMENT

LABELS = ("SGDM", "DeepSets")


def bench_in(directory, budget="tiny", comparison=COMPARISON):
    return Bench(make_agenda("toy", comparison, budget, directory))


def quiet():
    return Console(file=io.StringIO(), width=200)


def run_plan(bench, labels=LABELS, **options):
    console = quiet()
    carry_out(bench, labels, console=console, **options)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """An agenda that was carried out, and what was printed."""
    directory, reports = tmp_path_factory.mktemp("runs"), []
    bench = bench_in(directory)
    printed = run_plan(bench, after_seed=lambda: reports.append([run.name for run in bench.agenda.runs if state_of(run).done]))
    return directory, printed, reports


def begun_in(printed):
    """The jobs that were begun, by the lines about them."""
    return [line.split(": ")[1].split(" | ")[0] for line in printed.splitlines() if " | starting" in line]


def thetas(agenda):
    return [checkpoint.load_theta(run.directory) for run in agenda.runs]


def assert_bit_equal(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def test_a_plan_meta_trains_and_races_all(done):
    directory, printed, reports = done
    found = collect(bench_in(directory))
    assert {label: len(entries) for label, entries in found.entries.items()} == {"SGDM": 2, "DeepSets": 2}
    begun = begun_in(printed)
    assert begun[:2] == ["adam, tuned", "sgdm, tuned"]
    assert begun[2:] == [name for run in found.agenda.runs for name in (run.name, f"{run.name}, race")]
    assert reports == [["SGDM, seed 0", "DeepSets, seed 0"]]  # a report after the first seed; the last is the caller's
    assert printed.splitlines()[-1].startswith("100% | 10 of 10: DeepSets, seed 1, race | raced, best theta")
    assert [tuned.curve.name for tuned in found.tuned] == ["tuned Adam", "tuned SGDM"]
    assert [tuned.curve.reference for tuned in found.tuned] == [True, False]


def test_a_run_of_a_plan_is_what_meta_train_makes(done, tmp_path):
    agenda = bench_in(done[0]).agenda
    run = agenda.runs[3]
    result = meta_train(run.experiment, tmp_path / "alone", progress=False)
    assert_bit_equal(checkpoint.load_theta(run.directory), result.theta)


def test_the_best_theta_is_raced_on_seeds_common_to_all(done):
    bench = bench_in(done[0])
    entry = bench.entry(bench.agenda.runs[1])
    assert (entry.which, entry.step) == ("best", checkpoint.steps(entry.run.directory / "best")[-1])
    opt_fn = bench.optimizers["DeepSets"].opt_fn
    theta = checkpoint.load_theta(entry.run.directory / "best")
    key = jax.random.fold_in(jax.random.key(0), RACE)
    again = race(bench.problem, [Competitor("x", opt_fn, theta)], key, steps=20, seeds=3)[0]
    np.testing.assert_allclose(entry.curve.losses, again.losses, rtol=1e-6)
    others = [bench.entry(run).curve.losses[:, 0] for run in bench.agenda.runs]
    for first in [*others, *(bench.tuned(name, reference=False).curve.losses[:, 0] for name in ("adam", "sgdm"))]:
        np.testing.assert_allclose(first, entry.curve.losses[:, 0], rtol=1e-6)  # the same weights, the same first batch


def test_what_is_done_is_left_alone(done, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("this was done already")

    bench = bench_in(done[0])
    files = {path: path.stat().st_mtime_ns for path in done[0].rglob("*") if path.is_file()}
    for module, name in ((work, "meta_train"), (races, "race"), (races, "tuned_rival")):
        monkeypatch.setattr(module, name, fail)
    assert run_plan(bench, after_seed=fail) == ""
    monkeypatch.setattr(type(EXPERIMENT.task), "make", fail)  # to draw what is there takes no data
    assert len(rows(collect(bench_in(done[0])))) == 4
    assert {path: path.stat().st_mtime_ns for path in done[0].rglob("*") if path.is_file()} == files


def test_an_interrupted_plan_goes_on_to_the_same_thetas(done, tmp_path, monkeypatch):
    seen = []

    def interrupting(self, inner_steps, detail):
        seen.append(detail)
        if len(seen) == 15:  # in the third of four runs
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(AgendaProgress, "update", interrupting)
    with pytest.raises(InterruptedComparisonError, match=r"SGDM, seed 1: stopped after outer step 3 of 6, all saved"):
        run_plan(bench_in(tmp_path))
    bench = bench_in(tmp_path)
    assert [state_of(run).done for run in bench.agenda.runs] == [6, 6, 3, 0]
    # What there is so far can be drawn, and says so.
    part = collect(bench)
    assert [(row.seeds, row.planned, row.outer_steps) for row in rows(part)][:2] == [(2, 2, (6, 3)), (1, 2, (6,))]
    assert "Not run yet: DeepSets, seed 1." in readme(part)
    assert "| SGDM | 2 of 2 |" in readme(part)
    assert "| 6, 3 of 6 |" in readme(part)
    printed = run_plan(bench)
    assert "SGDM, seed 0 | starting" not in printed
    assert len(seen) == 15 + 3 + 6
    for one, other in zip(thetas(bench.agenda), thetas(bench_in(done[0]).agenda), strict=True):
        assert_bit_equal(one, other)
    finals = [[row.final_loss for row in rows(collect(b))] for b in (bench, bench_in(done[0]))]
    assert finals[0] == finals[1]


def test_a_theta_that_changed_is_raced_again(done, tmp_path):
    shutil.copytree(done[0], tmp_path / "runs")
    bench = bench_in(tmp_path / "runs")
    run = bench.agenda.runs[0]
    entry = bench.entry(run)
    checkpoint.save(run.directory / "best", 6, {"theta": jax.tree.map(lambda leaf: 1.01 * leaf, entry.theta)}, keep=1)
    assert not bench.is_raced(run)
    assert bench.entry(run, may_race=False) is None
    printed = run_plan(bench)
    assert begun_in(printed) == ["SGDM, seed 0, race"]
    assert bench.is_raced(run)
    assert not np.array_equal(bench.entry(run).curve.losses, entry.curve.losses)


def test_on_other_data_of_the_same_name_all_is_raced_again(done, tmp_path, monkeypatch):
    shutil.copytree(done[0], tmp_path / "runs")
    plain = type(EXPERIMENT.task).make
    other = Datasets(*[ArraySplit({"x": part}, batch_size=4) for part in jax.random.normal(jax.random.key(7), (4, 32, 3))])
    before = collect(bench_in(tmp_path / "runs"))
    monkeypatch.setattr(type(EXPERIMENT.task), "make", lambda self: dataclasses.replace(plain(self), datasets=other))
    begun = begun_in(run_plan(bench_in(tmp_path / "runs")))
    assert begun == ["adam, tuned", "sgdm, tuned", *(f"{run.name}, race" for run in bench_in(tmp_path / "runs").agenda.runs)]
    assert rows(collect(bench_in(tmp_path / "runs")))[0].final_loss != rows(before)[0].final_loss
    assert run_plan(bench_in(tmp_path / "runs")) == ""


def test_the_step_is_that_of_the_theta_that_is_raced(done, tmp_path, monkeypatch):
    shutil.copytree(done[0], tmp_path / "runs")
    run = bench_in(tmp_path / "runs").agenda.runs[0]
    shutil.rmtree(run.directory / "best")
    theta = checkpoint.load_theta(run.directory, 4)
    load = checkpoint.load_theta

    def load_while_it_trains(source, step=None):
        found = load(source, step)
        checkpoint.save(run.directory, 8, {"theta": jax.tree.map(lambda leaf: 2 * leaf, theta)})
        return found

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "load_theta", load_while_it_trains)
        assert checkpoint.chosen_theta(run.directory)[1:] == (6, "newest")
    for file in (run.directory / checkpoint.CHECKPOINTS_DIR).iterdir():
        if "4." not in file.name:
            file.write_bytes(file.read_bytes()[:100])
    with pytest.warns(RuntimeWarning, match="looking for an earlier"):
        found, step, which = checkpoint.chosen_theta(run.directory)
    assert (step, which) == (4, "newest")
    assert_bit_equal(found, theta)


def test_rivals_that_are_not_asked_for_are_left_alone_but_drawn(done, tmp_path):
    shutil.copytree(done[0], tmp_path / "runs")
    bench = bench_in(tmp_path / "runs")
    for run in bench.agenda.runs:
        if run.label == "DeepSets":
            shutil.rmtree(run.directory)
    assert "DeepSets" not in run_plan(bench, ["SGDM"])
    assert [state_of(run).done for run in bench.agenda.runs] == [6, 0, 6, 0]
    found = collect(bench, lambda run: run.label == "DeepSets")
    assert len(found.entries["SGDM"]) == 2  # its races are kept
    for run in bench.agenda.runs:
        run.kept_race.unlink()
    assert not collect(bench, lambda run: run.label == "DeepSets").entries["SGDM"]


def test_a_run_of_another_config_is_refused_before_anything_is_trained(tmp_path):
    bench = bench_in(tmp_path)
    other = dataclasses.replace(EXPERIMENT, seed=1, estimator=dataclasses.replace(EXPERIMENT.estimator, sigma=0.5))
    claim_run_dir(bench.agenda.runs[3].directory, other)
    with pytest.raises(
        ConfigError, match=r"toy-tiny-DeepSets-1 holds a run of another config: estimator.sigma is 0.5 there, not 0.01"
    ):
        run_plan(bench)
    assert [path.name for path in tmp_path.iterdir()] == ["toy-tiny-DeepSets-1"]


def test_data_that_are_missing_are_named_before_anything_is_trained(tmp_path):
    with pytest.raises(ValueError, match="look under the bed"):
        run_plan(bench_in(tmp_path / "runs", "missing"))
    assert not (tmp_path / "runs").exists()


def test_with_nothing_there_is_nothing_to_draw(tmp_path):
    with pytest.raises(ValueError, match=r"nothing to draw: none of the 4 runs of toy-tiny has a checkpoint.*toy-tiny-SGDM-0"):
        collect(bench_in(tmp_path))


def test_meta_trainings_that_diverge_do_not_stop_the_plan(tmp_path):
    bench = bench_in(tmp_path, "wild")
    printed = run_plan(bench)
    assert "SGDM, seed 0 | diverged: every particle diverged" in printed
    assert "DeepSets, seed 0, race | raced" in printed
    found = collect(bench)
    learned = rows(found)[:2]
    assert [(row.diverged_runs, row.outer_steps) for row in learned] == [(1, (2,)), (1, (2,))]
    assert [row.diverged for row in learned] == [3, 3]
    assert rows(found)[2].diverged == 0
    assert "nan, 3 of 3 seeds diverged" in comparison_table(found)[1]
    assert "3 of 3; 1 of 1 meta-trainings" in comparison_table(found)[1]
    assert (write_comparison(found, tmp_path / "report")[0]).read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "report" / "table.json").read_text())["rows"][0]["final_loss"]["mean"] is None
    assert run_plan(bench) == ""  # a run that was given up is not taken up again
    assert [record["outer_step"] for record in metrics.read(bench.agenda.runs[0].directory)] == [1, 2]


def test_a_run_that_another_process_is_on_is_left_to_it(done, tmp_path):
    """The lock is this process's, of another open file: to the system that is another holder."""
    shutil.copytree(done[0], tmp_path / "runs")
    bench = bench_in(tmp_path / "runs")
    run = bench.agenda.runs[1]
    for directory in (run.directory, bench.agenda.runs[3].directory):
        shutil.rmtree(directory)
    with run.kept_race.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        printed = run_plan(bench)
        assert "DeepSets, seed 0 | left to another process" in printed
        assert "DeepSets, seed 0, race | left to another process" in printed
        assert [state_of(run).done for run in bench.agenda.runs] == [6, 0, 6, 6]
    assert begun_in(run_plan(bench)) == ["DeepSets, seed 0", "DeepSets, seed 0, race"]
    assert_bit_equal(thetas(bench.agenda)[1], thetas(bench_in(done[0]).agenda)[1])


def test_a_run_is_given_up_only_after_so_many_steps_in_a_row():
    records = [{"outer_step": n, "all_diverged": n in (2, 3, 4), "skipped": 0} for n in range(1, 6)]
    assert not has_diverged(records, 3)
    assert has_diverged(records[:4], 3)
    assert not has_diverged(records[1:4], 4)
    assert has_diverged([{"all_diverged": False, "skipped": 1}] * 2, 2)


def test_a_damaged_race_is_warned_of_and_run_again(done, tmp_path):
    bench = bench_in(done[0])
    run, kept = bench.agenda.runs[0], bench.agenda.runs[0].kept_race
    content, entry = kept.read_bytes(), bench.entry(bench.agenda.runs[0])
    flipped = [content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :] for at in range(0, len(content), 61)]
    for bad in flipped:  # whatever bit it is, and whatever the archive's reader makes of it
        kept.write_bytes(bad)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            bench.entry(run, may_race=False)
    for damaged in (content[:100], b"", b"no race"):
        kept.write_bytes(damaged)
        with pytest.warns(UserWarning, match="SGDM-0.npz is damaged and run again"):
            again = bench.entry(run)
        np.testing.assert_allclose(again.curve.losses, entry.curve.losses, rtol=1e-6)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert bench.is_raced(run)
    assert kept_race(kept, {"another": "identity"}) is None
