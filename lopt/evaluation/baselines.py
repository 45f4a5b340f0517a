"""Hand-designed rivals: functions of a learning rate, and perhaps of a momentum and a schedule, to optax transforms.

All of these may be traced values, so that one compiled training serves a whole search (`tuning`). Rivals with a name of their
own are in `BASELINES`; every other optimizer of optax is known by the name that it has there.
"""

import dataclasses
import difflib
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from lopt.optimizers.muon import has_window, is_matrix
from lopt.optimizers.shampoo import scale_by_shampoo
from lopt.symmetry.spec import PyTree

ScheduleName = Literal["constant", "cosine", "warmup_cosine"]


class Schedule(NamedTuple):
    """How a learning rate changes over a training, in numbers, so that one program serves every schedule.

    Attributes:
      warmup: part of the training in which it rises linearly, in [0, 1).
      decay: 0: it then stays; 1: it then falls to zero along half a cosine.
      steps: T.
    """

    warmup: float | jax.Array
    decay: float | jax.Array
    steps: float | jax.Array


SCHEDULES: Mapping[str, tuple[float, float]] = MappingProxyType(  # warmup and decay of each
    {"constant": (0.0, 0.0), "cosine": (0.0, 1.0), "warmup_cosine": (0.1, 1.0)}
)


class Hyper(NamedTuple):
    """What a rival is a function of; what is None is what the rival has by default.

    Attributes:
      learning_rate: the largest of the training, where there is a schedule.
      momentum: decay of the momentum, in [0, 1).
      schedule: None: constant.
    """

    learning_rate: float | jax.Array
    momentum: float | jax.Array | None = None
    schedule: Schedule | None = None


def factor(schedule: Schedule, step: jax.Array) -> jax.Array:
    """The learning rate at a step, in units of the largest: float32 [], of an integer step from 0.

    `min(1, (t + 1) / W) (1 - d + d/2 (1 + cos(pi max(0, t - W) / (T - W))))`, W = warmup T, without the first factor if W = 0.

    Example:
      >>> [round(float(factor(Schedule(0.0, 1.0, 4.0), jnp.int32(t))), 3) for t in range(5)]
      [1.0, 0.854, 0.5, 0.146, 0.0]
    """
    warmup, decay, T = (jnp.asarray(value, jnp.float32) for value in schedule)
    t, W = step.astype(jnp.float32), warmup * T
    rise = jnp.where(W > 0, jnp.minimum(1.0, (t + 1) / jnp.maximum(W, 1.0)), 1.0)
    progress = jnp.clip((t - W) / jnp.maximum(T - W, 1.0), 0.0, 1.0)
    return rise * (1 - decay + 0.5 * decay * (1 + jnp.cos(jnp.pi * progress)))


@dataclasses.dataclass(frozen=True)
class Baseline:
    """A rival and where the search for its learning rate starts.

    Attributes:
      title: how tables and figures call it.
      opt_fn: `opt_fn(hyper) -> optax transform`, of a learning rate or a `Hyper`.
      low: smallest learning rate of the first grid.
      high: largest one.
      learning_rate: the one to use; None: the best that a search finds.
      start: the learning rate that one tries who has a single trial.
      has_momentum: `hyper.momentum` may be given.
      has_schedule: `hyper.schedule` may be given.
      schedules: the schedules that it is tuned with; None: those of whoever tunes it.
    """

    title: str
    opt_fn: Callable[[Any], optax.GradientTransformationExtraArgs]
    low: float = 1e-4
    high: float = 1.0
    learning_rate: float | None = None
    start: float = 1e-3
    has_momentum: bool = False
    has_schedule: bool = False
    schedules: tuple[ScheduleName, ...] | None = None

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


def _driven(factory: Callable[..., optax.GradientTransformation]) -> Callable[[Any], optax.GradientTransformationExtraArgs]:
    """`opt_fn` of a rival that `factory(learning_rate=..., momentum=...)` makes; the momentum is left out where none is given."""

    def opt_fn(hyper: float | jax.Array | Hyper) -> optax.GradientTransformationExtraArgs:
        rate, momentum, schedule = hyper if isinstance(hyper, Hyper) else Hyper(hyper)
        given = {} if momentum is None else {"momentum": momentum}
        if schedule is None:
            return _promoting(factory(learning_rate=rate, **given))
        return _promoting(factory(learning_rate=lambda step: rate * factor(schedule, step), **given))

    return opt_fn


def _sgdm(learning_rate: Any, momentum: Any = 0.9) -> optax.GradientTransformation:
    return optax.sgd(learning_rate, momentum=momentum)


def _muon(learning_rate: Any) -> optax.GradientTransformation:
    """Muon as its authors use it: of a convolution the window and the inputs are one side; optax would leave that to Adam."""

    def sides(params: PyTree) -> PyTree:
        def of(w: jax.Array) -> Any:
            if not is_matrix(w):
                return None
            inputs = tuple(range(w.ndim - 1)) if has_window(w.shape) else w.ndim - 2
            return optax.contrib.MuonDimensionNumbers(inputs, w.ndim - 1)

        return jax.tree.map(of, params)

    return optax.contrib.muon(learning_rate, muon_weight_dimension_numbers=sides)


def _shampoo(learning_rate: Any) -> optax.GradientTransformation:
    """Shampoo with decays of .95 and .9, which optax has not; of Muon's size, so that rates are Muon's."""
    return optax.chain(scale_by_shampoo(), optax.scale_by_learning_rate(learning_rate))


BASELINES: Mapping[str, Baseline] = MappingProxyType(
    {
        "adam": Baseline("Adam", _driven(optax.adam), low=1e-4, high=0.3, has_schedule=True),
        "sgdm": Baseline("SGDM", _driven(_sgdm), low=1e-3, high=3.0, start=0.1, has_momentum=True, has_schedule=True),
        "muon": Baseline("muon", _driven(_muon), start=0.02, has_schedule=True),
        "shampoo": Baseline("shampoo", _driven(_shampoo), start=0.02, has_schedule=True),
    }
)


# Where a rival of optax's is not tried at 0.001 first: its authors' example.
_STARTS: Mapping[str, float] = MappingProxyType({"sgd": 0.1, "lion": 1e-4, "prodigy": 1.0, "dadapt_adamw": 1.0})


def find_baseline(name: str) -> Baseline:
    """The rival of a name, such as "adam", "adamw:1e-3" or "adam@constant".

    Args:
      name: in `BASELINES`, or of another optimizer in `optax` or `optax.contrib`, which then has its default settings; with a learning rate
        after a colon that is given rather than searched for, or after an @ the one schedule that it is tuned with.

    Raises:
      ValueError: if there is none, with the names that are near; if the learning rate is no positive number; if there is no such
        schedule; if the optimizer cannot be driven by a learning rate, gradients, weights and the loss.

    Example:
      >>> find_baseline("adam").label, find_baseline("adamw:1e-3").label, find_baseline("adam@constant").label
      ('tuned Adam', 'adamw 0.001', 'tuned Adam, constant rate')
    """
    name, at, schedule = name.partition("@")
    if at:
        return _with_schedule(find_baseline(name), schedule)
    name, colon, text = name.partition(":")
    baseline = BASELINES[name] if name in BASELINES else _of_optax(name)
    return dataclasses.replace(baseline, learning_rate=_rate(name, text)) if colon else baseline


def _with_schedule(baseline: Baseline, schedule: str) -> Baseline:
    if schedule not in SCHEDULES:
        raise ValueError(f"'@{schedule}': the schedule after the @ must be one of {', '.join(SCHEDULES)}")
    if baseline.learning_rate is not None or not baseline.has_schedule:
        raise ValueError(f"{baseline.label} is not tuned with a schedule, so '@{schedule}' says nothing of it")
    title = f"{baseline.title}, {schedule.replace('_', ' ')} rate"
    return dataclasses.replace(baseline, title=title, schedules=(schedule,))


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
            is_function = inspect.isfunction(value) or isinstance(value, functools.partial)  # nadamw is one
            if is_function and not name.startswith(("_", "scale_by_")):
                parameters = inspect.signature(value).parameters.values()
                if {p.name for p in parameters if p.default is p.empty} <= {"learning_rate"} <= {p.name for p in parameters}:
                    found[name] = value
    return found


@functools.cache  # of one name always the same function, so that what is compiled for it is found again
def _of_optax(name: str) -> Baseline:
    factories = _optax_factories()
    if name not in factories:
        near = difflib.get_close_matches(name, list({**BASELINES, **factories}), n=3, cutoff=0.5)
        raise ValueError(
            f"there is no baseline '{name}'"
            + (f"; did you mean {' or '.join(near)}?" if near else ".")
            + f" There are {', '.join(sorted(BASELINES))}, and every optimizer of optax and optax.contrib (here version "
            f"{optax.__version__}) that is made of a learning rate, such as adamw or lion"
        )
    opt_fn = _driven(factories[name])
    if reason := _fault(opt_fn, Hyper(0.0)):
        raise ValueError(f"optax's {name} cannot be driven by a learning rate, gradients, weights and the loss alone ({reason})")
    start = _STARTS.get(name, 1e-3)
    return Baseline(name, opt_fn, start=start, has_schedule=not _fault(opt_fn, Hyper(0.0, schedule=Schedule(0.0, 0.0, 1.0))))


def _fault(opt_fn: Callable[[Any], optax.GradientTransformationExtraArgs], hyper: Hyper) -> str:
    """What an optimizer raises when it is driven by traced numbers, "" if it works."""

    def trial(hyper: Hyper, params: PyTree) -> PyTree:
        transform = opt_fn(hyper)
        return transform.update(params, transform.init(params), params, value=jnp.float32(1.0))

    shapes = {"kernel": jax.ShapeDtypeStruct((2, 3), jnp.float32), "bias": jax.ShapeDtypeStruct((3,), jnp.float32)}
    try:
        jax.eval_shape(trial, jax.tree.map(lambda _: jax.ShapeDtypeStruct((), jnp.float32), hyper), shapes)
    except Exception as error:  # whatever an optimizer raises that needs more than it is given
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    return ""
