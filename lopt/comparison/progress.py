"""One bar over a whole agenda of unequal jobs, plain lines elsewhere: which job is on, how far it is, and the time left for all."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console

from lopt.runtime.progress import View, duration

_SECONDS_BETWEEN_LINES = 60.0
_SHARE_BETWEEN_LINES = 0.1


@dataclasses.dataclass(frozen=True)
class Job:
    """A part of an agenda.

    Attributes:
      name: of the job, for people.
      kind: jobs of one kind cost the same for an inner step.
      inner_steps: in all.
      done: how many of them were done before.
      like: another kind, whose cost is taken while that of this kind is not known.
    """

    name: str
    kind: str
    inner_steps: int
    done: int = 0
    like: str = ""


class AgendaProgress(View):
    """Shows the job that is on and the time left for the agenda.

    A job counts by its inner steps times what an inner step of its kind costs: measured here, or known from earlier, or as that of the
    kind that it is like, or the mean of what is known. On a terminal it is a line and a bar that are redrawn in place; elsewhere lines
    are printed where a job begins and ends and, between, whenever a minute or a tenth of it has passed.

    Args:
      jobs: in the order of work, those that are done included.
      known: kind -> seconds of an inner step, from earlier runs.
      console: where to print; standard output by default.
      clock: seconds, monotonic.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        known: Mapping[str, float] | None = None,
        *,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._jobs = list(jobs)
        self._done = [job.done for job in jobs]
        self._cost = dict(known or {})
        self._current = 0
        self._began = 0.0
        self._first: tuple[int, float] | None = None  # inner steps and time of the job's first update: before it lies compilation
        self._detail = ""
        self._printed: tuple[int, float] = (0, 0.0)
        super().__init__(console=console, clock=clock)

    def begin(self, index: int, detail: str = "starting") -> None:
        """A job begins.

        Args:
          index: of the job.
          detail: what is to be said of it.
        """
        self._current, self._began, self._first, self._detail = index, self._clock(), None, detail
        self._print()

    def update(self, done: int, detail: str) -> None:
        """So many inner steps of the job are done in all."""
        now, index = self._clock(), self._current
        self._done[index], self._detail = done, detail
        if self._first is None:
            self._first = done, now
        elif done > self._first[0]:
            self._cost[self._jobs[index].kind] = (now - self._first[1]) / (done - self._first[0])
        last, at = self._printed
        if now - at >= _SECONDS_BETWEEN_LINES or done - last >= _SHARE_BETWEEN_LINES * self._jobs[index].inner_steps:
            self._print()

    def end(self, detail: str = "done", measure: bool = True) -> None:
        """The job is over, all of it or as much as there will be.

        Args:
          detail: how it ended.
          measure: the time that it took, if it had no updates, is that of its inner steps.
        """
        index, job = self._current, self._jobs[self._current]
        if measure and self._first is None and job.inner_steps > self._done[index]:
            self._cost[job.kind] = (self._clock() - self._began) / (job.inner_steps - self._done[index])
        self._done[index], self._detail = job.inner_steps, detail
        self._print()

    def _cost_of(self, job: Job) -> float:
        """Seconds of an inner step; 1 where nothing is known, so that parts are right though the time is not."""
        mean = sum(self._cost.values()) / len(self._cost) if self._cost else 1.0
        return self._cost.get(job.kind, self._cost.get(job.like, mean))

    def _parts(self) -> tuple[float, float]:
        """Seconds that what is done would take, and what is left."""
        done = sum(n * self._cost_of(job) for job, n in zip(self._jobs, self._done, strict=True))
        return done, sum(job.inner_steps * self._cost_of(job) for job in self._jobs) - done

    def text(self) -> str:
        """The line."""
        done, left = self._parts()
        name = self._jobs[self._current].name
        parts = [f"{done / max(done + left, 1e-9):4.0%}", f"{self._current + 1} of {len(self._jobs)}: {name}", self._detail]
        parts += [f"about {duration(left)} left"] if self._cost and left > 0 else []
        return " | ".join(filter(None, parts))

    def bar(self) -> tuple[float, float]:
        """How much there is in all, and how much of it is done, in seconds."""
        done, left = self._parts()
        return max(done + left, 1e-9), done

    def _print(self) -> None:
        self._printed = self._done[self._current], self._clock()
        super()._print()
