"""Carrying out an agenda: meta-train and race, one after another; what is done already is left alone."""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from rich.console import Console

from lopt.comparison.config import Agenda, Run
from lopt.comparison.progress import AgendaProgress, Job
from lopt.comparison.races import Bench, Entry, Tuned
from lopt.comparison.state import check_runs, state_of
from lopt.config.errors import LoptError
from lopt.evaluation.baselines import find_baseline
from lopt.runtime.locks import BusyError, only_process
from lopt.runtime.progress import troubles
from lopt.training.trainer import DivergedError, meta_train

Task = Callable[[AgendaProgress], str | None]  # does a job, and says how it ended; None: it is left to another process


class InterruptedComparisonError(LoptError, RuntimeError):
    """Ctrl-C or SIGTERM ended a meta-training between two outer steps; its state is saved. The message says which."""


@dataclasses.dataclass(frozen=True)
class Found:
    """What there is of a comparison.

    Attributes:
      agenda: the whole of it.
      entries: label -> its runs that were raced, by seed; no label of the agenda is missing, but its runs may be.
      tuned: the rivals by hand; the first sets the loss to reach.
    """

    agenda: Agenda
    entries: Mapping[str, tuple[Entry, ...]]
    tuned: tuple[Tuned, ...]


def collect(bench: Bench, race: Callable[[Run], bool] = lambda run: True) -> Found:
    """All runs of an agenda that have a checkpoint, with their races.

    Args:
      bench: of the agenda.
      race: whether a run may be raced now; others are taken where the race of their theta is kept.

    Raises:
      ValueError: if no run has a checkpoint.
    """
    agenda = bench.agenda
    if not any(state_of(run).done for run in agenda.runs):
        raise ValueError(
            f"there is nothing to draw: none of the {len(agenda.runs)} runs of {agenda.name} has a checkpoint, the first of them would be "
            f"{agenda.runs[0].directory}"
        )
    entries = [entry for run in agenda.runs if (entry := bench.entry(run, may_race=race(run))) is not None]
    by_label = {rival.label: tuple(e for e in entries if e.run.label == rival.label) for rival in agenda.config.rivals}
    tuned = tuple(bench.tuned(name, reference=index == 0) for index, name in enumerate(bench.evaluation.baselines))
    return Found(agenda, by_label, tuned)


def carry_out(
    bench: Bench,
    labels: Collection[str],
    *,
    console: Console | None = None,
    after_seed: Callable[[], Any] = lambda: None,
) -> None:
    """Do what is left of an agenda: tune and race the rivals by hand, then for each seed meta-train and race every learned one.

    All that can be wrong with configs and data is found before anything is trained. A meta-training that diverges is left as it is, its
    theta raced all the same, and the agenda goes on. Several processes may carry out one agenda: each leaves alone the run that
    another is on.

    Args:
      bench: of the agenda.
      labels: of the learned optimizers to work on.
      console: where progress is shown; standard output by default.
      after_seed: called when all work on a seed is done, if there was any and it is not the last.

    Raises:
      InterruptedComparisonError: after SIGINT or SIGTERM.
      ConfigError: if a run directory holds a run of another config.
      ValueError: if the data are not there, or a network does not apply to the task.
    """
    agenda, config = bench.agenda, bench.evaluation
    check_runs(agenda)
    inner_steps = bench.inner_steps  # loads the data and builds every optimizer
    runs = [run for run in agenda.runs if run.label in labels]
    jobs: list[Job] = []
    tasks: list[Task] = []
    ends = []  # of each run, the job that is its last
    for index, name in enumerate(config.baselines):
        total = _tuning_steps(bench, name) + config.seeds * config.steps
        done = total if bench.is_tuned(name) else 0
        jobs.append(Job(f"{name}, tuned", "tuned", total, done))
        tasks.append(_tune(bench, name, index == 0))
    for run in runs:
        total, state = run.experiment.outer_steps, state_of(run)
        done = total if state.is_over(total) else state.done
        jobs.append(Job(run.name, run.label, total * inner_steps, done * inner_steps))
        tasks.append(_train(run, inner_steps))
        raced = state.is_over(total) and bench.is_raced(run)
        steps = config.seeds * config.steps
        jobs.append(Job(f"{run.name}, race", f"{run.label} race", steps, steps if raced else 0, like=run.label))
        tasks.append(_race(bench, run))
        ends.append(len(jobs) - 1)
    seed_ends = {job for n, job in enumerate(ends) if n + 1 < len(runs) and runs[n + 1].seed != runs[n].seed}
    worked = False
    with AgendaProgress(jobs, _known_costs(agenda), console=console) as bar:
        for index, (job, task) in enumerate(zip(jobs, tasks, strict=True)):
            if job.done < job.inner_steps:
                bar.begin(index)
                detail = task(bar)
                bar.end(detail or "left to another process", measure=detail is not None)
                worked = True
            if worked and index in seed_ends:
                after_seed()
                worked = False


def _tuning_steps(bench: Bench, name: str) -> int:
    """Inner steps that tuning takes, if the grid is not extended."""
    search = bench.evaluation.search(find_baseline(name))
    return (len(search.grid()) + 2 * search.refinements) * bench.evaluation.tuning_seeds * bench.evaluation.steps


def _known_costs(agenda: Agenda) -> dict[str, float]:
    """Label -> seconds of an inner step, by the newest outer steps of its runs."""
    known = {}
    for run in agenda.runs:
        speeds = [record["inner_steps_per_s"] for record in state_of(run).records[-100:] if record.get("inner_steps_per_s")]
        if speeds:
            known[run.label] = 1.0 / float(np.median(speeds))
    return known


def _tune(bench: Bench, name: str, reference: bool) -> Task:
    def task(bar: AgendaProgress) -> str:
        return f"tuned to {bench.tuned(name, reference=reference).setting}"

    return task


def _race(bench: Bench, run: Run) -> Task:
    def task(bar: AgendaProgress) -> str | None:
        if not state_of(run).is_over(run.experiment.outer_steps):
            return None
        entry = bench.entry(run)
        return None if entry is None else f"raced, {entry.which} theta, of outer step {entry.step:,}"

    return task


def _train(run: Run, inner_steps: int) -> Task:
    total = run.experiment.outer_steps

    def task(bar: AgendaProgress) -> str | None:
        def observe(step: int, info: Mapping[str, Any]) -> None:
            parts = [f"outer step {step:,}/{total:,}", f"meta-loss {info['meta_loss']:.4g}"]
            parts += [f"{info['inner_steps_per_s']:,.0f} inner steps/s"]
            parts += troubles(info["diverged"], info["capped"], info["all_capped"])
            bar.update(step * inner_steps, " | ".join(parts))

        with _alone(run) as alone:
            if not alone or state_of(run).is_over(total):
                return None
            try:
                result = meta_train(run.experiment, run.directory, progress=False, observers=(observe,))
            except BusyError:  # outside the agenda: its run directory has been given to scripts/meta_train.py
                return None
            except DivergedError as error:
                return f"diverged: {error}"
            if result.interrupted:
                raise InterruptedComparisonError(f"{run.name}: stopped after outer step {result.step:,} of {total:,}, all saved")
            return "meta-trained"

    return task


@contextmanager
def _alone(run: Run) -> Iterator[bool]:
    """Whether this is the only process that works on a run of the agenda, until the end of the block."""
    path = run.kept_race.with_suffix(".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(only_process(path, run.name))
        except BusyError:
            yield False
            return
        yield True
