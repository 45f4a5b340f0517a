"""The search that a fair race gives a rival: a log-spaced grid, extended where its best lies at an edge, refined around the winner.

The grid is the product of learning rates, momenta and schedules. Trials are handed out in groups, so that an accelerator can train a
whole grid at once.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from lopt.config.errors import LoptError
from lopt.evaluation.baselines import SCHEDULES, Hyper, Schedule


class TuningError(LoptError, RuntimeError):
    """No setting that was tried trains without diverging."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One point of a search.

    Attributes:
      learning_rate: the largest of the training, where there is a schedule.
      momentum: None: what the rival has by default.
      schedule: a key of `lopt.evaluation.baselines.SCHEDULES`.
    """

    learning_rate: float
    momentum: float | None = None
    schedule: str = "constant"

    def __str__(self) -> str:
        parts = [f"{self.learning_rate:g}"]
        parts += [f"momentum {self.momentum:g}"] if self.momentum is not None else []
        parts += [self.schedule.replace("_", " ")] if self.schedule != "constant" else []
        return ", ".join(parts)


@dataclasses.dataclass(frozen=True)
class Search:
    """Where a search looks, and how far.

    Attributes:
      low: smallest learning rate of the first grid.
      high: largest one.
      points_per_decade: of the first grid: 2 for half decades.
      momenta: of the first grid; none: the rival's default.
      schedules: keys of `lopt.evaluation.baselines.SCHEDULES`.
      refinements: how many times the distance of learning rates (and momenta) is halved around the best.
      max_extensions: how many times the grid may be extended beyond its edges.
      max_trials: how many settings may be tried in all; None: as many as the above ask for.
    """

    low: float
    high: float
    points_per_decade: int = 2
    momenta: tuple[float, ...] = ()
    schedules: tuple[str, ...] = ("constant",)
    refinements: int = 1
    max_extensions: int = 4
    max_trials: int | None = None

    @classmethod
    def from_start(cls, start: float, trials: int, schedule: str = "constant") -> "Search":
        """A search by one learning rate after another: from a first one downhill in half decades, then ever closer around the best.

        What it tries next depends on what it has seen alone, so that a search of fewer trials is the beginning of a longer one.

        Example:
          >>> search = Search.from_start(1e-3, trials=4)
          >>> [s.learning_rate for s in tune(lambda settings: [abs(math.log(s.learning_rate)) for s in settings], search).order]
          [0.001, 0.00032, 0.0032, 0.01]
        """
        return cls(start, start, schedules=(schedule,), refinements=trials, max_extensions=trials, max_trials=trials)

    @property
    def is_plain(self) -> bool:
        """Whether it is over learning rates alone."""
        return not self.momenta and self.schedules == ("constant",)

    def grid(self) -> list[Setting]:
        """The first grid."""
        rates = learning_rates(self.low, self.high, self.points_per_decade)
        return [Setting(rate, m, s) for s in self.schedules for m in self.momenta or (None,) for rate in rates]

    def theta(self, setting: Setting, steps: int) -> jax.Array | Hyper:
        """What a rival's `opt_fn` is called with: of the same structure for all settings of the search, so that they are one program."""
        rate = jnp.float32(setting.learning_rate)
        if self.is_plain:
            return rate
        momentum = None if setting.momentum is None else jnp.float32(setting.momentum)
        if self.schedules == ("constant",):
            return Hyper(rate, momentum)
        warmup, decay = SCHEDULES[setting.schedule]
        return Hyper(rate, momentum, Schedule(jnp.float32(warmup), jnp.float32(decay), jnp.float32(steps)))


@dataclasses.dataclass(frozen=True)
class Tuning:
    """What a search found.

    Attributes:
      best: the setting with the lowest score.
      tried: `(setting, score)` of every trial, by schedule, momentum and learning rate; the score of a trial that diverged is infinite.
      at_edge: no learning rate (or no momentum, of several) was tried on one side of the best, so that a better one may lie beyond.
      extensions: how many times the grid was extended.
      cached: it was not searched for now, but read.
      order: the settings of `tried` in the order in which they were.
    """

    best: Setting
    tried: tuple[tuple[Setting, float], ...]
    at_edge: bool
    extensions: int = 0
    cached: bool = False
    order: tuple[Setting, ...] = ()

    @property
    def learning_rate(self) -> float:
        return self.best.learning_rate

    def best_of(self, trials: int) -> Setting:
        """The setting of the lowest score among the first so many that were tried; of those that diverged, the first."""
        scores = dict(self.tried)
        return min(self.order[:trials], key=scores.__getitem__)


def _rung(index: int, points_per_decade: int) -> float:
    return float(f"{10.0 ** (index / points_per_decade):.1e}")  # two significant digits: what one would type


def learning_rates(low: float, high: float, points_per_decade: int = 2) -> tuple[float, ...]:
    """A log-spaced grid: the rungs of the ladder `10^(k / points_per_decade)` from the one nearest `low` to that nearest `high`.

    Rungs are rounded to two significant digits. The ladder does not depend on the ends, so that grids of different rivals and
    extensions of a grid share their points.

    Example:
      >>> learning_rates(0.01, 0.3)
      (0.01, 0.032, 0.1, 0.32)
    """
    if not 0.0 < low <= high:
        raise ValueError(f"a grid of learning rates needs 0 < low <= high, got low={low}, high={high}")
    if not 1 <= points_per_decade <= 10:
        raise ValueError(f"points_per_decade must be from 1 to 10, got {points_per_decade}")
    first, last = (round(points_per_decade * math.log10(end)) for end in (low, high))
    return tuple(_rung(index, points_per_decade) for index in range(first, last + 1))


def _next_rate(rate: float, points_per_decade: int, step: int) -> float:
    return _rung(round(points_per_decade * math.log10(rate)) + step, points_per_decade)


def _momentum(of_one: float) -> float:
    """The momentum whose distance from 1 is this number, to two significant digits."""
    return round(1.0 - float(f"{of_one:.1e}"), 6)


def _row(scores: dict[Setting, float], best: Setting) -> list[float]:
    """The learning rates tried with the best's momentum and schedule."""
    return sorted(s.learning_rate for s in scores if (s.momentum, s.schedule) == (best.momentum, best.schedule))


def _momenta(scores: dict[Setting, float]) -> list[float]:
    return sorted({s.momentum for s in scores if s.momentum is not None})


def _momentum_edge(scores: dict[Setting, float], best: Setting) -> int:
    """1 if the best momentum is the largest of several, -1 if it is the smallest and above 0, otherwise 0."""
    momenta = _momenta(scores)
    if best.momentum is None or len(momenta) < 2:
        return 0
    return 1 if best.momentum == momenta[-1] else -1 if best.momentum == momenta[0] > 0 else 0


def _beyond(scores: dict[Setting, float], best: Setting, points_per_decade: int) -> list[Setting]:
    """What to try where the best is at an edge: the next learning rate; a momentum with the best rate and its neighbours; or nothing."""
    rates = _row(scores, best)
    if best.learning_rate in (rates[0], rates[-1]):
        step = -1 if best.learning_rate == rates[0] else 1
        return [dataclasses.replace(best, learning_rate=_next_rate(best.learning_rate, points_per_decade, step))]
    if not (edge := _momentum_edge(scores, best)):
        return []
    assert best.momentum is not None  # it has an edge
    momentum = _momentum((1 - best.momentum) / 2) if edge > 0 else 0.0
    near = [_next_rate(best.learning_rate, points_per_decade, step) for step in (-1, 0, 1)]
    return [dataclasses.replace(best, learning_rate=rate, momentum=momentum) for rate in near]


def _between(scores: dict[Setting, float], best: Setting, points_per_decade: int) -> list[Setting]:
    """The learning rates on both sides of the best, and the momenta halfway (of 1 - m, in logarithm) to those on both sides."""
    found = [dataclasses.replace(best, learning_rate=_next_rate(best.learning_rate, points_per_decade, step)) for step in (-1, 1)]
    momenta = _momenta(scores)
    if best.momentum is not None:
        index = momenta.index(best.momentum)
        sides = momenta[max(0, index - 1) : index] + momenta[index + 1 : index + 2]
        found += [dataclasses.replace(best, momentum=_momentum(math.sqrt((1 - side) * (1 - best.momentum)))) for side in sides]
    return [setting for setting in found if setting not in scores]


def tune(score: Callable[[Sequence[Setting]], Sequence[float]], search: Search) -> Tuning:
    """Search for the setting of the lowest score.

    Every point of `search.grid()` is tried. While the best lies at an edge, what lies beyond it is tried too: the next learning rate;
    then, of several momenta, half the distance to 1, or 0. At last the neighbours of the best at half the distance are tried, as often
    as `search.refinements` says, half the distance each time. A score that is not finite counts as worse than any other; where all
    are, the search goes down. With `search.max_trials` it ends when so many settings have been tried.

    Args:
      score: `score(settings) -> scores`, lower is better, such as mean final training losses over some seeds.
      search: where to look.

    Raises:
      TuningError: if no setting tried has a finite score.
      ValueError: if the grid's description is senseless.

    Example:
      >>> search = Search(1e-3, 1e-2)
      >>> tune(lambda settings: [(s.learning_rate - 0.1) ** 2 for s in settings], search).best
      Setting(learning_rate=0.1, momentum=None, schedule='constant')
    """
    scores: dict[Setting, float] = {}

    def attempt(settings: Sequence[Setting]) -> None:
        if search.max_trials is not None:
            settings = settings[: search.max_trials - len(scores)]
        if not settings:
            return
        values = [float(value) for value in score(settings)]
        scores.update((s, value if math.isfinite(value) else math.inf) for s, value in zip(settings, values, strict=True))

    def best() -> Setting:
        return min(sorted(scores, key=_order), key=scores.__getitem__)

    attempt(search.grid())
    extensions = 0
    while (
        extensions < search.max_extensions
        and len(scores) != search.max_trials
        and (beyond := _beyond(scores, best(), search.points_per_decade))
    ):
        attempt(beyond)
        extensions += 1
    found = best()
    if math.isinf(scores[found]):
        rates = sorted(s.learning_rate for s in scores)
        raise TuningError(
            f"every learning rate from {rates[0]:g} to {rates[-1]:g} diverged; lower the grid's ends, or check that the loss is "
            "finite at initialisation"
        )
    at_edge = bool(_beyond(scores, found, search.points_per_decade))
    for halvings in range(1, search.refinements + 1):
        if between := _between(scores, best(), search.points_per_decade * 2**halvings):
            attempt(between)
    tried = tuple((s, scores[s]) for s in sorted(scores, key=_order))
    return Tuning(best(), tried, at_edge, extensions, order=tuple(scores))


def _order(setting: Setting) -> tuple[str, float, float]:
    return setting.schedule, -1.0 if setting.momentum is None else setting.momentum, setting.learning_rate
