"""A run directory in the hands of one start: nobody else writes to it, and nothing that is there is lost in silence."""

import itertools
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from lopt import config
from lopt.config.files import make_directory, remove_leftovers
from lopt.runtime.environment import ENVIRONMENT_FILE, read_starts
from lopt.runtime.locks import LOCK_FILE, only_process
from lopt.training import checkpoint, metrics
from lopt.training.checkpoint import BEST_DIR, CHECKPOINTS_DIR

_HISTORY = (CHECKPOINTS_DIR, metrics.METRICS_FILE, ENVIRONMENT_FILE, BEST_DIR)
_RESTART = "restart=True (--restart) begins anew and keeps what is there under another name"


class HistoryError(config.ConfigError):
    """A run directory that lacks a part of what was in it; the message says which."""


@contextmanager
def claimed(run_dir: Path, experiment: Any, *, restart: bool = False) -> Iterator[str]:
    """While inside, the run directory is this process's: made if need be, with the config in it, and locked.

    Args:
      run_dir: the directory.
      experiment: the config of the run.
      restart: begin anew; a run that is there is kept beside it as `RUN.1` or, if there is such a one, the next number.

    Yields:
      What the lock's file says of the holder.

    Raises:
      BusyError: if another process is on it; names it.
      HistoryError: if there was a run, and its config or all its checkpoints are gone.
      ConfigError: if it holds a run of another config, or cannot be written.
    """
    if restart:
        _set_aside(run_dir)
    with ExitStack() as held:
        try:
            make_directory(run_dir)
            said = held.enter_context(only_process(run_dir / LOCK_FILE, str(run_dir)))
        except OSError as error:
            raise config.ConfigError(f"cannot write the run directory {run_dir}: {error}") from error
        # A directory belongs to a run from its first checkpoint on: an attempt that failed before leaves it free.
        begun = bool(checkpoint.steps(run_dir))
        if begun:
            config.check_run_dir(run_dir, experiment)
        _check_history(run_dir, experiment)
        config.claim_run_dir(run_dir, experiment, begun=begun)
        remove_leftovers(run_dir)
        yield said


def _set_aside(run_dir: Path) -> None:
    here = Path(os.path.abspath(run_dir))
    if not any(os.path.lexists(here / name) for name in (config.CONFIG_FILE, *_HISTORY)):
        return
    numbers = (here.with_name(f"{here.name}.{number}") for number in itertools.count(1))
    place = next(place for place in numbers if not os.path.lexists(place))
    try:
        with only_process(here / LOCK_FILE, str(run_dir)):
            os.rename(here, place)
    except OSError as error:
        raise config.ConfigError(f"{run_dir} cannot be kept as {place}: {error.strerror}") from error
    warnings.warn(f"what was in {run_dir} is kept as {place}", stacklevel=6)


def _check_history(run_dir: Path, experiment: Any) -> None:
    """Raise unless what is there is all of a run, or of one that had not come to its first checkpoint: that begins again, bit for bit."""
    there = [name for name in _HISTORY if os.path.lexists(run_dir / name)]
    if there and not (run_dir / config.CONFIG_FILE).exists():
        raise HistoryError(
            f"{run_dir} holds {', '.join(there)} of a run, but not its {config.CONFIG_FILE}, so that nothing says what was trained: "
            f"put it back, or {_RESTART}"
        )
    if checkpoint.steps(run_dir):
        return
    reached = _steps_reached(run_dir)
    lost = (run_dir / CHECKPOINTS_DIR).is_symlink() and not (run_dir / CHECKPOINTS_DIR).exists()
    # A run may be cut off between the metrics of a step and its checkpoint, but not later.
    if lost or reached > _save_every(run_dir, experiment):
        what = f"{CHECKPOINTS_DIR} is a link to nothing" if lost else f"no file in {CHECKPOINTS_DIR}/ is a checkpoint"
        raise HistoryError(
            f"{run_dir} holds the history of {reached} outer steps, but {what}: put the checkpoints back, or {_RESTART}"
        )
    if reached:
        warnings.warn(f"{run_dir} has no checkpoint yet: the {reached} outer steps that were done are done again", stacklevel=6)


def _steps_reached(run_dir: Path) -> int:
    """The last outer step that anything tells of."""
    found = [0, *checkpoint.steps(run_dir / BEST_DIR)]
    if (run_dir / metrics.METRICS_FILE).exists():
        found += [record["outer_step"] for record in metrics.read(run_dir)]
    if (run_dir / ENVIRONMENT_FILE).exists():
        found += [start.get("outer_step", 0) for start in read_starts(run_dir)]
    return max(found)


def _save_every(run_dir: Path, experiment: Any) -> int:
    """After how many outer steps there was a checkpoint, at the latest."""
    before = json.loads((run_dir / config.CONFIG_FILE).read_bytes()) if (run_dir / config.CONFIG_FILE).exists() else {}
    said = before.get("save_every") if isinstance(before, dict) else None
    return max(experiment.save_every, said if isinstance(said, int) else 0)
