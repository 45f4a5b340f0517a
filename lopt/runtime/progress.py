"""A live view of the outer loop for the terminal, plain lines elsewhere. Nothing else in lopt prints while it meta-trains."""

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

_SECONDS_BETWEEN_LINES = 10.0
_SHARE_BETWEEN_LINES = 0.1


def duration(seconds: float) -> str:
    """Seconds as `M:SS` or `H:MM:SS`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Progress:
    """Shows outer step, meta-loss, inner steps a second, diverged particles and capped losses if any, and the time left.

    On a terminal it is a line and a bar that are redrawn in place; elsewhere, lines are printed for the first update, the last,
    and between them whenever 10 seconds or a tenth of the outer steps have passed.

    Args:
      total: how many outer steps the run has, those already done included.
      start: the outer step from which it goes on.
      enabled: if False, nothing is shown.
      console: where to print; standard output by default.
      clock: seconds, monotonic.
    """

    def __init__(
        self,
        total: int,
        start: int = 0,
        *,
        enabled: bool = True,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total = total
        self._enabled = enabled
        self._clock = clock
        self._step = start
        self._text = f"outer step {start}/{total} | compiling"
        self._measured_from: tuple[int, float] | None = None  # the first update: before it lies compilation
        self._printed: tuple[int, float] | None = None  # step and time of the last plain line
        self._console = Console() if console is None else console
        redraws = enabled and self._console.is_terminal and not self._console.is_dumb_terminal
        self._live = Live(console=self._console, get_renderable=self._render, refresh_per_second=4) if redraws else None

    def _render(self) -> Group:
        return Group(Text(self._text), ProgressBar(self.total, self._step))

    def update(
        self,
        step: int,
        *,
        meta_loss: float | None = None,
        inner_steps_per_s: float | None = None,
        diverged: int = 0,
        capped: int = 0,
    ) -> None:
        """Show a new state.

        Args:
          step: outer steps done.
          meta_loss: of this outer step.
          inner_steps_per_s: over all particles.
          diverged: particles that were reset; shown if not 0.
          capped: losses that count as the cap, as they were above it; shown if not 0.
        """
        now = self._clock()
        if self._measured_from is None:
            self._measured_from = (step, now)
        parts = [f"outer step {step}/{self.total}"]
        if meta_loss is not None:
            parts.append(f"meta-loss {meta_loss:.4g}")
        if inner_steps_per_s is not None:
            parts.append(f"{inner_steps_per_s:,.0f} inner steps/s")
        parts += [f"{count:,} {what}" for what, count in (("diverged", diverged), ("capped", capped)) if count]
        first_step, first_time = self._measured_from
        if first_step < step < self.total:
            parts.append(f"{duration((self.total - step) * (now - first_time) / (step - first_step))} left")
        self._step, self._text = step, " | ".join(parts)
        if self._enabled and self._live is None and self._is_due(now):
            self._print(now)

    def _is_due(self, now: float) -> bool:
        if self._printed is None or self._step >= self.total:
            return True
        last_step, last_time = self._printed
        return now - last_time >= _SECONDS_BETWEEN_LINES or self._step - last_step >= _SHARE_BETWEEN_LINES * self.total

    def _print(self, now: float) -> None:
        # An update is a line of its own whatever the width, without colours: logs are read by tools too.
        self._console.print(self._text, soft_wrap=True, highlight=False, markup=False)
        self._console.file.flush()
        self._printed = (self._step, now)

    def __enter__(self) -> "Progress":
        if self._live is not None:
            self._live.start(refresh=True)  # so that something is seen while the first step compiles
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()
        elif self._printed is not None and self._printed[0] != self._step:
            self._print(self._clock())
