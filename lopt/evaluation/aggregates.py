"""What a suite of races comes to over many tasks: interquartile means with bootstrap intervals, ranks, profiles.

A run is one seed of one task. Its figure is the final loss over that of the reference in the same run, in logarithm, so that a task
counts the same however low its loss gets; a run that diverged has the ratio infinity. The interquartile mean leaves out the lowest and
the highest quarter of all runs: a few runs that diverge or never converge cannot decide it, nor can a few lucky ones.

References:
  Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice", NeurIPS 2021.
  Dolan, Moré, "Benchmarking optimization software with performance profiles", Mathematical Programming, 2002.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

_RESAMPLES = 2000
_LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Interval:
    """A figure and the interval of its bootstrap.

    Attributes:
      value: of the runs as they are.
      low: end of the 95% interval.
      high: its other end.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{_text(self.value)} ({_text(self.low)} to {_text(self.high)})"

    def exp(self) -> "Interval":
        """Of the exponential: of a mean logarithm the geometric mean."""
        return Interval(*(math.exp(x) for x in dataclasses.astuple(self)))


def _text(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else str(value)


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis without its lowest and its highest quarter, each rounded down: [..., n] -> [...].

    Example:
      >>> float(interquartile_mean(np.array([math.inf, 1.0, 2.0, -9.0])))
      1.5
    """
    ordered = np.sort(values, axis=-1)
    cut = ordered.shape[-1] // 4
    return ordered[..., cut : ordered.shape[-1] - cut].mean(axis=-1)


def mean(values: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    return values.mean(axis=-1)


def bootstrap(values: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray] = interquartile_mean, seed: int = 0) -> Interval:
    """A statistic of all runs, and its interval where tasks, and the seeds of each, are drawn anew with replacement.

    The draws are the same for all arrays of one shape: figures of several optimizers are compared on the same draws.

    Args:
      values: [I, K], of I tasks and K seeds; may be infinite, of one sign.
      statistic: of [..., n].
      seed: of the draws.

    Raises:
      ValueError: if there are no runs, or a value is NaN.

    Example:
      >>> bootstrap(np.ones((3, 2)))
      Interval(value=1.0, low=1.0, high=1.0)
    """
    if values.ndim != 2 or not values.size or np.isnan(values).any():
        raise ValueError(
            f"a bootstrap needs [tasks, seeds] without NaN, got shape {values.shape} with {np.isnan(values).sum()} NaN"
        )
    tasks, seeds = values.shape
    draws = np.random.default_rng(seed)
    of_tasks = draws.integers(tasks, size=(_RESAMPLES, tasks, 1))
    of_seeds = draws.integers(seeds, size=(_RESAMPLES, tasks, seeds))
    found = statistic(values[of_tasks, of_seeds].reshape(_RESAMPLES, -1))
    # The nearest draw, as nothing lies between two infinite ones.
    low, high = np.quantile(found, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2], method="nearest")
    return Interval(float(statistic(values.reshape(-1))), float(low), float(high))


def log_ratios(losses: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """ln(loss / the reference's) of each run; infinite where one of them diverged (is not finite), 0 where both did.

    Example:
      >>> log_ratios(np.array([1.0, math.nan, math.inf, 2.0]), np.array([1.0, 1.0, math.nan, math.nan])).tolist()
      [0.0, inf, 0.0, -inf]
    """
    ours, theirs = (np.where(np.isfinite(x), x, np.inf) for x in (losses, reference))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.isinf(ours) & np.isinf(theirs), 0.0, np.log(ours) - np.log(theirs))


def ranks(losses: np.ndarray) -> np.ndarray:
    """The rank of each optimizer in each run, from 1: [N, ...] -> [N, ...]; equals share theirs, what diverged is last.

    Example:
      >>> ranks(np.array([3.0, 1.0, math.nan, 3.0])).tolist()
      [2.5, 1.0, 4.0, 2.5]
    """
    values = np.where(np.isfinite(losses), losses, np.inf)
    below = (values[None] < values[:, None]).sum(axis=1)
    equal = (values[None] == values[:, None]).sum(axis=1)
    return below + (equal + 1) / 2


def profile(losses: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """The part of the runs in which an optimizer ends within a factor of the lowest loss of all: [N, ...] and [F] to [N, F].

    Example:
      >>> profile(np.array([[1.0, 4.0], [2.0, 2.0]]), np.array([1.0, 2.0])).tolist()
      [[0.5, 1.0], [0.5, 1.0]]
    """
    values = np.where(np.isfinite(losses), losses, np.inf).reshape(len(losses), -1)
    best = values.min(axis=0)
    within = (values[:, None] <= factors[None, :, None] * best[None, None]) & np.isfinite(values)[:, None]
    return within.mean(axis=-1)


@dataclasses.dataclass(frozen=True)
class Aggregate:
    """What one optimizer comes to over a suite, at one budget of trials.

    Attributes:
      name: of the optimizer.
      ratio: interquartile mean of the final training loss over the reference's, as a geometric mean.
      held_out: the same of the loss on held-out batches.
      rank: mean rank among all, from 1.
      speedup: interquartile mean of the reference's steps to its own final loss over those of the optimizer; 0 where it never gets there.
      ahead: tasks on which the geometric mean over seeds of its final loss is below the reference's.
      diverged: runs that diverged.
      runs: of how many.
      time: a step's wall time over that of the reference, geometric mean over tasks.
    """

    name: str
    ratio: Interval
    held_out: Interval
    rank: Interval
    speedup: Interval
    ahead: int
    diverged: int
    runs: int
    time: float


def aggregate(
    losses: Mapping[str, np.ndarray],
    held_out: Mapping[str, np.ndarray],
    speedups: Mapping[str, np.ndarray],
    seconds: Mapping[str, np.ndarray],
    reference: str,
) -> list[Aggregate]:
    """The figures of all optimizers on the tasks that all of them have been raced on.

    Args:
      losses: name -> final training losses [I, K]; not finite where a run diverged.
      held_out: name -> losses on held-out batches, [I, K].
      speedups: name -> [I, K], NaN for never.
      seconds: name -> wall time of a step, [I].
      reference: a name.
    """
    names = list(losses)
    placed = dict(zip(names, ranks(np.stack([losses[name] for name in names])), strict=True))
    found = []
    for name in names:
        ratio = log_ratios(losses[name], losses[reference])
        with np.errstate(invalid="ignore"):
            per_task = ratio.mean(axis=1)  # NaN where one seed is infinitely better and another infinitely worse
        found.append(
            Aggregate(
                name=name,
                ratio=bootstrap(ratio).exp(),
                held_out=bootstrap(log_ratios(held_out[name], held_out[reference])).exp(),
                rank=bootstrap(placed[name], mean),
                speedup=bootstrap(np.nan_to_num(speedups[name], nan=0.0)),
                ahead=int((per_task < 0).sum()),
                diverged=int((~np.isfinite(losses[name])).sum()),
                runs=losses[name].size,
                time=float(np.exp(np.mean(np.log(seconds[name] / seconds[reference])))),
            )
        )
    return found


def suite_table(aggregates: Sequence[Aggregate], reference: str, tasks: int) -> list[list[str]]:
    """The lines of the table, its header first."""
    header = [
        "optimizer",
        f"final loss, {reference} = 1",
        f"held-out loss, {reference} = 1",
        "rank",
        "speed-up",
        "ahead on",
        "diverged",
        f"time a step, {reference} = 1",
    ]
    return [header, *(_cells(one, one.name == reference, tasks) for one in aggregates)]


def _cells(one: Aggregate, is_reference: bool, tasks: int) -> list[str]:
    ratios = ["1", "1"] if is_reference else [str(one.ratio), str(one.held_out)]
    speedup, ahead = ("1", "") if is_reference else (str(one.speedup), f"{one.ahead} of {tasks}")
    diverged = f"{one.diverged} of {one.runs}" if one.diverged else "0"
    return [one.name, *ratios, str(one.rank), speedup, ahead, diverged, f"{one.time:.2g}"]
