"""Hand-designed rivals, and the search for the learning rate that a fair race gives them.

A rival is a function of one scalar, its learning rate, to an optax transform. The learning rate may be a traced value, so that
one compiled training serves a whole search. Rivals with a name of their own are in `BASELINES`; every other optimizer of optax is
known by the name that it has there.
"""

import dataclasses
import difflib
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

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
      learning_rate: the one to use; None: the best that a search finds.
    """

    title: str
    opt_fn: Callable[[float | jax.Array], optax.GradientTransformationExtraArgs]
    low: float = 1e-4
    high: float = 1.0
    learning_rate: float | None = None

    @property
    def label(self) -> str:
        """How a race calls it: `tuned Adam`, or `Adam 0.001` where the learning rate was given."""
        return f"tuned {self.title}" if self.learning_rate is None else f"{self.title} {self.learning_rate:g}"


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
    """The rival of a name, such as "adam", or "adamw:1e-3" for one whose learning rate is given rather than searched for.

    Args:
      name: in `BASELINES`, or of an optimizer in `optax` or `optax.contrib`, which then has its default settings.

    Raises:
      ValueError: if there is none, with the names that are near; if the learning rate is no positive number; if the optimizer cannot
        be driven by a learning rate, gradients, weights and the loss.

    Example:
      >>> find_baseline("adam").label, find_baseline("adamw:1e-3").label
      ('tuned Adam', 'adamw 0.001')
    """
    name, colon, text = name.partition(":")
    baseline = BASELINES[name] if name in BASELINES else _of_optax(name)
    return dataclasses.replace(baseline, learning_rate=_rate(name, text)) if colon else baseline


def _rate(name: str, text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise ValueError(f"'{name}:{text}': the learning rate after the colon must be a positive number, as in '{name}:1e-3'")
    return rate


def _optax_factories() -> dict[str, Callable[..., optax.GradientTransformation]]:
    """What optax has that makes an optimizer of a learning rate, by name."""
    found: dict[str, Callable[..., optax.GradientTransformation]] = {}
    for module in (optax.contrib, optax):
        for name, value in vars(module).items():
            if inspect.isfunction(value) and not name.startswith(("_", "scale_by_")):
                parameters = inspect.signature(value).parameters.values()
                if {p.name for p in parameters if p.default is p.empty} <= {"learning_rate"} <= {p.name for p in parameters}:
                    found[name] = value
    return found


@functools.cache  # of one name always the same function, so that what is compiled for it is found again
def _of_optax(name: str) -> Baseline:
    factories = _optax_factories()
    if name not in factories:
        near = difflib.get_close_matches(name, [*BASELINES, *factories], n=3, cutoff=0.5)
        raise ValueError(
            f"there is no baseline '{name}'"
            + (f"; did you mean {' or '.join(near)}?" if near else ".")
            + f" There are {', '.join(sorted(BASELINES))}, and every optimizer of optax and optax.contrib that is made of a "
            "learning rate, such as adamw, lion or muon"
        )

    def opt_fn(rate: float | jax.Array) -> optax.GradientTransformationExtraArgs:
        return _promoting(factories[name](learning_rate=rate))

    def trial(rate: jax.Array, params: PyTree) -> PyTree:
        transform = opt_fn(rate)
        return transform.update(params, transform.init(params), params, value=jnp.float32(1.0))

    shapes = {"kernel": jax.ShapeDtypeStruct((2, 3), jnp.float32), "bias": jax.ShapeDtypeStruct((3,), jnp.float32)}
    try:
        jax.eval_shape(trial, jax.ShapeDtypeStruct((), jnp.float32), shapes)
    except Exception as error:  # whatever an optimizer raises that needs more than it is given
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        raise ValueError(
            f"optax's {name} cannot be driven by a learning rate, gradients, weights and the loss alone ({reason})"
        ) from error
    return Baseline(name, opt_fn)


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
