"""Hand-designed rivals, and the search for the learning rate that a fair race gives them.

A rival is a function of one scalar, its learning rate, to an optax transform. The learning rate may be a traced value, so that
one compiled training serves a whole search.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import optax

from lopt.symmetry.spec import PyTree


class TuningError(RuntimeError):
    """No learning rate that was tried trains without diverging."""


@dataclasses.dataclass(frozen=True)
class Baseline:
    """A rival and where the search for its learning rate starts.

    Attributes:
      title: how tables and figures call it.
      opt_fn: `opt_fn(learning_rate) -> optax transform`; the learning rate is constant over the training.
      low: smallest learning rate of the first grid.
      high: largest one.
    """

    title: str
    opt_fn: Callable[[float | jax.Array], optax.GradientTransformation]
    low: float
    high: float


def _promoting(transform: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The transform, with updates in the dtype of the gradients and for JAX's strict dtype promotion too.

    Adam's bias correction relies on the standard promotion, by which a learning rate that is an array makes all updates float32.
    """
    transform = optax.with_extra_args_support(transform)

    def update(updates: PyTree, state: PyTree, params: PyTree | None = None, **extra_args: Any) -> tuple[PyTree, PyTree]:
        with jax.numpy_dtype_promotion("standard"):
            steps, state = transform.update(updates, state, params, **extra_args)
        return jax.tree.map(lambda step, grad: step.astype(grad.dtype), steps, updates), state

    return optax.GradientTransformationExtraArgs(transform.init, update)


BASELINES: Mapping[str, Baseline] = MappingProxyType(
    {
        "adam": Baseline("Adam", lambda rate: _promoting(optax.adam(rate)), low=1e-4, high=0.3),
        "sgdm": Baseline("SGDM", lambda rate: _promoting(optax.sgd(rate, momentum=0.9)), low=1e-3, high=3.0),
    }
)


def find_baseline(name: str) -> Baseline:
    """The rival of that name in `BASELINES`.

    Raises:
      ValueError: if there is none, with the names there are.
    """
    if name not in BASELINES:
        raise ValueError(f"there is no baseline '{name}'; lopt.baselines.BASELINES has {sorted(BASELINES)}")
    return BASELINES[name]


@dataclasses.dataclass(frozen=True)
class Tuning:
    """What a search for a learning rate found.

    Attributes:
      learning_rate: the best.
      tried: `(learning rate, score)` of every trial, by learning rate; the score of a trial that diverged is infinite.
      at_edge: no learning rate was tried on one side of the best, so that a better one may lie beyond.
    """

    learning_rate: float
    tried: tuple[tuple[float, float], ...]
    at_edge: bool


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


def tune(
    score: Callable[[float], float], low: float, high: float, *, points_per_decade: int = 2, max_extensions: int = 4
) -> Tuning:
    """Search a log-spaced grid of learning rates for the lowest score, and beyond its edges if the best lies there.

    Every point of `learning_rates(low, high, points_per_decade)` is tried. While the best lies at an edge, the next rung beyond
    that edge is tried too. A score that is not finite counts as worse than any other; where all are, the search goes down.

    Args:
      score: `score(learning_rate)`, lower is better, such as the mean final training loss over some seeds.
      low: smallest learning rate of the first grid.
      high: largest one.
      points_per_decade: 2 for half decades.
      max_extensions: how many learning rates beyond the first grid may be tried.

    Raises:
      TuningError: if no learning rate tried has a finite score.
      ValueError: if the grid's description is senseless.

    Example:
      >>> tune(lambda rate: (rate - 0.1) ** 2, 1e-3, 1e-2).learning_rate
      0.1
    """

    def trial(rate: float) -> float:
        value = float(score(rate))
        return value if math.isfinite(value) else math.inf

    scores = {rate: trial(rate) for rate in learning_rates(low, high, points_per_decade)}
    for _ in range(max_extensions):
        rates = sorted(scores)
        best = min(rates, key=scores.__getitem__)
        if best not in (rates[0], rates[-1]):
            break
        step = -1 if best == rates[0] else 1
        beyond = _rung(round(points_per_decade * math.log10(best)) + step, points_per_decade)
        scores[beyond] = trial(beyond)
    rates = sorted(scores)
    best = min(rates, key=scores.__getitem__)
    if math.isinf(scores[best]):
        raise TuningError(
            f"every learning rate from {rates[0]:g} to {rates[-1]:g} diverged; lower the grid's ends, or check that the loss is "
            "finite at initialisation"
        )
    return Tuning(best, tuple((rate, scores[rate]) for rate in rates), at_edge=best in (rates[0], rates[-1]))
