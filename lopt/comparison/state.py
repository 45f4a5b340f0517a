"""How far the meta-trainings of an agenda are, read from their directories; nothing here trains or writes."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from lopt.comparison.config import Agenda, Run
from lopt.config import check_run_dir
from lopt.runtime.environment import ENVIRONMENT_FILE, read_starts
from lopt.training import checkpoint, metrics
from lopt.training.stall import GAVE_UP

Record = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class RunState:
    """A meta-training as it lies in its directory.

    Attributes:
      done: outer steps of its newest checkpoint; 0: there is none.
      records: its metrics up to there.
      diverged: it gave up: see `has_diverged`.
      starts: the entries of its environment.json.
    """

    done: int
    records: tuple[Record, ...] = ()
    diverged: bool = False
    starts: tuple[Record, ...] = ()

    def is_over(self, outer_steps: int) -> bool:
        """Whether no outer step is left to be made."""
        return self.diverged or self.done >= outer_steps


def has_diverged(records: Sequence[Record], limit: int) -> bool:
    """Whether `meta_train` has given a run up, because nothing was learned in its last outer steps.

    Args:
      records: of metrics.jsonl, in order.
      limit: outer steps in a row, `MetaTrainConfig.max_skipped`, for records of runs that did not say so themselves.

    Example:
      >>> has_diverged([{"outer_step": step, "all_diverged": step > 1, "skipped": 0} for step in range(1, 5)], limit=3)
      True
    """
    if records and records[-1].get(GAVE_UP):
        return True
    last = records[-limit:]
    return len(last) == limit and any(all(record.get(name) for record in last) for name in ("all_diverged", "skipped"))


def state_of(run: Run) -> RunState:
    """The state of a run; one that has not begun has done nothing.

    Raises:
      MetricsError: if a line of its metrics is damaged.
      ConfigError: if its environment.json is damaged.
    """
    done = (checkpoint.steps(run.directory) or [0])[-1]
    if not done:
        return RunState(0)
    # A run that is under way, or was killed, has logged outer steps after its newest checkpoint.
    records = [record for record in metrics.read(run.directory) if record["outer_step"] <= done]
    starts = read_starts(run.directory) if (run.directory / ENVIRONMENT_FILE).exists() else []
    return RunState(done, tuple(records), has_diverged(records, run.experiment.max_skipped), tuple(starts))


def seconds_of(records: Sequence[Record], inner_steps: int) -> float:
    """Seconds that outer steps took, without compilation and held-out evaluations.

    Args:
      records: with `inner_steps_per_s`.
      inner_steps: of an outer step, all particles counted.
    """
    return sum(inner_steps / record["inner_steps_per_s"] for record in records if record.get("inner_steps_per_s"))


def check_runs(agenda: Agenda) -> None:
    """Raise unless every run of the agenda that has begun is of the agenda's config.

    Raises:
      ConfigError: naming the directory and the fields that differ.
    """
    for run in agenda.runs:
        check_run_dir(run.directory, run.experiment)
