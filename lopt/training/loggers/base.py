"""One interface to every logger, and the promise that none of them stops a run.

`metrics.jsonl` is the record of a run; loggers show the same numbers elsewhere. One that fails is named in a warning and left
alone until the run is started again: it is then given what it has missed, from metrics.jsonl.
"""

import importlib.util
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

from lopt.config import ConfigError
from lopt.training import metrics


@dataclass(frozen=True)
class LoggerConfig:
    """Where the metrics of a run go besides metrics.jsonl; any of it may change when the run is resumed."""

    logger: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Loggers to use; each needs the package of its name, as in pip install wandb."""
    wandb_mode: Literal["online", "offline", "disabled"] = "offline"
    """Offline, W&B writes into RUN/wandb, and `wandb sync RUN/wandb/offline-run-*` uploads it; online, it uploads as it goes."""
    wandb_project: str = "lopt"
    """Project of W&B to which the run belongs."""
    wandb_entity: str | None = None
    """User or team of W&B; None: the account's default."""
    wandb_name: str | None = None
    """Name of the run in W&B; None: that of the run directory."""

    @property
    def used(self) -> tuple[str, ...]:
        """The loggers to open."""
        return tuple(name for name in dict.fromkeys(self.logger) if name != "wandb" or self.wandb_mode != "disabled")


class Logger(Protocol):
    """What shows the metrics of a run somewhere. Its methods may raise anything."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values of an outer step; steps never fall, and one may be logged in several parts."""
        ...

    def close(self, failed: bool) -> None:
        """Write all that is pending, in a bounded time; called once, after a `write` that raised too.

        Args:
          failed: the run ends by an exception, or the logger has raised one.
        """
        ...


@dataclass(frozen=True)
class Opening:
    """What a logger is told when a run starts or goes on.

    Attributes:
      run_dir: the run directory; nothing is written outside of it.
      experiment: the config, as JSON can hold it.
      environment: the code and the machine of this start, likewise.
      resume_step: the outer step from which the run goes on; 0 for a new run.
    """

    run_dir: Path
    experiment: Mapping[str, Any]
    environment: Mapping[str, Any]
    resume_step: int


def check_loggers(config: LoggerConfig) -> None:
    """Raise if a logger cannot be used here; costs next to nothing, so a run asks before it compiles.

    Raises:
      ConfigError: naming the logger whose package is not installed.
    """
    for name in config.used:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # a folder of that name in the working directory is no package
            raise ConfigError(f"logger '{name}' needs the package of that name: pip install {name}, or leave it out")


def open_loggers(
    config: LoggerConfig,
    run_dir: str | Path,
    experiment: Mapping[str, Any],
    environment: Mapping[str, Any],
    resume_step: int = 0,
) -> "Loggers":
    """Open the loggers of a run; in a run of several processes, one of them does.

    Args:
      config: which ones, and their settings.
      run_dir: the run directory, made if need be; nothing is written outside of it.
      experiment: the config of the run as JSON can hold it, from `lopt.config.to_dict`.
      environment: the code and the machine of this start, from `lopt.runtime.environment`.
      resume_step: the outer step from which the run goes on; 0 for a new run. A logger that lacks steps up to it, because it failed
        or is new to the run, is given them from metrics.jsonl.

    Returns:
      `log(step, values)`, to be used in a `with` statement.

    Raises:
      ConfigError: as `check_loggers`. All that goes wrong later is only warned of.
    """
    check_loggers(config)
    start = Opening(Path(run_dir), experiment, environment, resume_step)
    return Loggers({name: partial(_open, name, config, start) for name in config.used})


def _open(name: str, config: LoggerConfig, start: Opening) -> Logger:
    if name == "wandb":
        from lopt.training.loggers.wandb import WandbLogger

        return WandbLogger(config, start)
    from lopt.training.loggers.tensorboard import TensorBoardLogger  # imports its package, an extra

    return TensorBoardLogger(start)


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that are numbers; a curve can show no others."""
    return {name: float(value) for name, value in values.items() if value is not None and not isinstance(value, str)}


def missing(start: Opening, held: int) -> Iterator[tuple[int, dict[str, float]]]:
    """What a logger lacks of the steps up to the one from which the run goes on, from metrics.jsonl.

    Args:
      start: of the run.
      held: the last outer step that the logger has.

    Yields:
      Outer step and values, to be written.
    """
    path = start.run_dir / metrics.METRICS_FILE
    if held >= start.resume_step or not path.exists():
        return
    for record in metrics.read(path):
        step = record.pop("outer_step")
        if held < step <= start.resume_step:
            yield step, _numbers(record)


class Loggers:
    """All loggers of a run as one function `log(step, values)` that never raises.

    A logger that raises is closed, named in one `RuntimeWarning`, and not called again.

    Args:
      makers: name -> function that opens the logger.

    Example:
      >>> with Loggers({}) as log:
      ...     log(1, {"meta_loss": 0.5, "digits_mlp/meta_loss": 0.5})
    """

    def __init__(self, makers: Mapping[str, Callable[[], Logger]]) -> None:
        self._open: dict[str, Logger] = {}
        for name, make in makers.items():
            with self._guard(name, "could not be opened"):
                self._open[name] = make()

    def __call__(self, step: int, values: Mapping[str, Any]) -> None:
        """Log the values of an outer step.

        Args:
          step: outer steps done.
          values: name -> Python, NumPy or JAX scalar; what is None or text is left out. A name such as "digits_mlp/meta_loss" puts
            the curve into the group "digits_mlp".
        """
        for name, logger in tuple(self._open.items()):
            with self._guard(name, f"failed at outer step {step}"):
                logger.write(step, _numbers(values))

    def close(self, failed: bool = False) -> None:
        """Close every logger; see `Logger.close`."""
        while self._open:
            name, logger = self._open.popitem()
            with self._guard(name, "failed when it was closed"):
                logger.close(failed)

    @contextmanager
    def _guard(self, name: str, what: str) -> Iterator[None]:
        """Turn what is raised inside into a warning, and leave the logger out from then on."""
        try:
            yield
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
            broken = self._open.pop(name, None)
            if broken is not None:
                try:
                    broken.close(True)
                except Exception as second:
                    if str(second) != str(error):
                        problem += f"; closing it failed too: {type(second).__name__}: {second}"
            warnings.warn(
                f"logger '{name}' {what} and is left out from here on; training goes on, and metrics.jsonl holds every step "
                f"({problem})",
                RuntimeWarning,
                stacklevel=4,  # this function, contextlib, a method: its caller
            )

    def __enter__(self) -> "Loggers":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(failed=error is not None)
