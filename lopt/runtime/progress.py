"""What a long job shows of itself: one line and a bar, redrawn in place on a terminal; lines elsewhere, as tools read logs too."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from lopt.runtime.text import plain

_SECONDS_BETWEEN_LINES = 10.0
_SHARE_BETWEEN_LINES = 0.1


def duration(seconds: float) -> str:
    """Seconds as `M:SS` or `H:MM:SS`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class View:
    """Base of what is shown: a class derived from it says what, and when a line is due where nothing can be redrawn.

    What `text` and `bar` need must be there before `__init__` is called.

    Args:
      enabled: if False, nothing is shown.
      console: where to print; standard output by default.
      clock: seconds, monotonic.
    """

    def __init__(
        self, *, enabled: bool = True, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._console = Console() if console is None else console
        redraws = enabled and self._console.is_terminal and not self._console.is_dumb_terminal
        self._live = Live(console=self._console, get_renderable=self._render, refresh_per_second=4) if redraws else None
        self._prints = enabled and self._live is None

    def text(self) -> str:
        """The line."""
        raise NotImplementedError(f"{type(self).__name__} does not define text()")

    def bar(self) -> tuple[float, float]:
        """How much there is in all, and how much of it is done."""
        raise NotImplementedError(f"{type(self).__name__} does not define bar()")

    def _render(self) -> Group:
        return Group(Text(self.text()), ProgressBar(*self.bar()))

    def _print(self) -> None:
        """Print the line, whatever its width and without colours, unless it is redrawn."""
        if self._prints:
            self._console.print(self.text(), soft_wrap=True, highlight=False, markup=False)
            self._console.file.flush()

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start(refresh=True)  # so that something is seen while the first step compiles
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()


class Progress(View):
    """Of the outer loop: outer step, meta-loss, held-out score, inner steps a second, diverged particles, capped losses, time left.

    Lines are printed for the first update, the last, and between them whenever 10 seconds or a tenth of the outer steps have passed.

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
        self._step = start
        self._text = f"outer step {start}/{total} | compiling"
        self._held_out = ""  # the newest score stays until the next evaluation
        self._measured_from: tuple[int, float] | None = None  # the first update: before it lies compilation
        self._printed: tuple[int, float] | None = None  # step and time of the last plain line
        super().__init__(enabled=enabled, console=console, clock=clock)

    def text(self) -> str:
        return self._text

    def bar(self) -> tuple[float, float]:
        return self.total, self._step

    def update(
        self,
        step: int,
        *,
        meta_loss: float | None = None,
        inner_steps_per_s: float | None = None,
        diverged: int = 0,
        held_out: tuple[float, float] | None = None,
        capped: int = 0,
        all_capped: bool = False,
    ) -> None:
        """Show a new state.

        Args:
          step: outer steps done.
          meta_loss: of this outer step.
          inner_steps_per_s: over all particles.
          held_out: the score of a held-out evaluation that was made now, and the best so far.
          diverged: particles that were reset; shown if not 0.
          capped: losses that count as the cap, as they were above it; shown if not 0.
          all_capped: there were no others, so that nothing was learned.
        """
        now = self._clock()
        if self._measured_from is None:
            self._measured_from = (step, now)
        if held_out is not None:
            self._held_out = f"held-out {held_out[0]:.4g}, best {held_out[1]:.4g}"
        parts = [f"outer step {step}/{self.total}"]
        if meta_loss is not None:
            parts.append(f"meta-loss {meta_loss:.4g}")
        if self._held_out:
            parts.append(self._held_out)
        if inner_steps_per_s is not None:
            parts.append(f"{inner_steps_per_s:,.0f} inner steps/s")
        parts += troubles(diverged, capped, all_capped)
        first_step, first_time = self._measured_from
        if first_step < step < self.total:
            parts.append(f"{duration((self.total - step) * (now - first_time) / (step - first_step))} left")
        self._step, self._text = step, " | ".join(parts)
        last_step, last_time = self._printed or (step, -float("inf"))
        due = now - last_time >= _SECONDS_BETWEEN_LINES or step - last_step >= _SHARE_BETWEEN_LINES * self.total
        if due or step >= self.total:
            self._print()

    def _print(self) -> None:
        super()._print()
        self._printed = self._step, self._clock()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        super().__exit__(kind, error, trace)
        if self._printed is not None and self._printed[0] != self._step:
            self._print()


def troubles(diverged: int, capped: int, all_capped: bool) -> list[str]:
    """What a line says of an outer step besides its figures: arguments as of `Progress.update`.

    Example:
      >>> troubles(0, 1200, False), troubles(2, 1200, True)
      (['1,200 capped'], ['2 diverged', 'every loss at the cap, try a smaller optimizer.alpha'])
    """
    found = [f"{diverged:,} diverged"] if diverged else []
    if all_capped:
        return [*found, "every loss at the cap, try a smaller optimizer.alpha"]
    return [*found, f"{capped:,} capped"] if capped else found


class Stages(View):
    """Of unequal stages: the one that is under way, a line for each, and the time left, guessed from those done by their weights.

    Args:
      total: of the weights of all stages.
      console: where to print; standard output by default.
      clock: seconds, monotonic.
    """

    def __init__(self, total: float, *, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._start = max(total, 1e-9), clock()
        self._done, self._current, self._message = 0.0, 0.0, "starting"
        super().__init__(console=console, clock=clock)

    def stage(self, message: str, weight: float) -> None:
        """A stage starts, which ends the one before it."""
        self._done, self._current, self._message = self._done + self._current, weight, message
        self._print()

    def text(self) -> str:
        part = min(self._done / self._total, 1.0)
        spent = self._clock() - self._start
        left = f" | about {duration(spent * (1 - part) / part)} left" if part > 0 else ""
        return f"{part:4.0%} | {plain(self._message)}{left}"

    def bar(self) -> tuple[float, float]:
        return self._total, min(self._done, self._total)

    def __enter__(self) -> Self:
        self._start = self._clock()
        return super().__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self._done += self._current
        super().__exit__(kind, error, trace)
