"""A view of a list of unequal stages for the terminal, plain lines elsewhere: what is being done, how much is done, the time left."""

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from lopt.runtime.text import plain


class Stages:
    """Shows the stage that is under way.

    On a terminal it is a line and a bar that are redrawn in place; elsewhere a line for each stage. The time left is guessed from the
    stages that are done, by their weights.

    Args:
      total: of the weights of all stages.
      console: where to print; standard output by default.
      clock: seconds, monotonic.
    """

    def __init__(self, total: float, *, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._clock, self._start = max(total, 1e-9), clock, clock()
        self._done, self._current, self._message = 0.0, 0.0, "starting"
        self._console = Console() if console is None else console
        redraws = self._console.is_terminal and not self._console.is_dumb_terminal
        self._live = Live(console=self._console, get_renderable=self._render, refresh_per_second=2) if redraws else None

    def stage(self, message: str, weight: float) -> None:
        """A stage starts, which ends the one before it."""
        self._done, self._current, self._message = self._done + self._current, weight, message
        if self._live is None:
            self._console.print(self._text(), soft_wrap=True, highlight=False, markup=False)
            self._console.file.flush()

    def _text(self) -> str:
        part = min(self._done / self._total, 1.0)
        spent = self._clock() - self._start
        left = f" | about {_duration(spent * (1 - part) / part)} left" if part > 0 else ""
        return f"{part:4.0%} | {plain(self._message)}{left}"

    def _render(self) -> Group:
        return Group(Text(self._text()), ProgressBar(self._total, min(self._done, self._total)))

    def __enter__(self) -> "Stages":
        self._start = self._clock()
        if self._live is not None:
            self._live.start(refresh=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._done = self._done + self._current if error is None else self._done
            self._live.stop()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
