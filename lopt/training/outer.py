"""One outer step: the optimizer of theta, any of optax's, its schedule, what of theta is frozen, and the average that is evaluated."""

import dataclasses
import difflib
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lopt.estimators.base import Estimator
from lopt.optimizers.momentum import LearnedOptimizer
from lopt.symmetry.spec import PyTree, is_under, named_leaves, unknown_prefixes
from lopt.task.base import Datasets


@dataclasses.dataclass(frozen=True)
class OuterConfig:
    """The optimizer of theta: by default Adam on the clipped meta-gradient, at a constant step size or one that rises and falls."""

    learning_rate: float = 1e-4
    """Largest step size (not stated in the paper; 1e-4 in a follow-up with the same set-up)."""
    clip_norm: float = 1.0
    """The meta-gradient is scaled down to this global norm (the paper: 1.0; `inf`: never)."""
    decay_steps: int | None = None
    """Outer steps over which the step size falls along a cosine, to stay there; None: constant. Apart from `outer_steps`, which may
    grow. A warm-up is part of them."""
    optimizer: str = "adam"
    """Name of an optimizer of optax that takes a learning rate."""
    options: tuple[tuple[str, float], ...] = ()
    """Other arguments of the optimizer, such as ('b2', 0.99)."""
    warmup_steps: int = 0
    """Outer steps over which the step size rises linearly from zero."""
    final_fraction: float | None = None
    """The step size after decay_steps, as a part of learning_rate; None: 0.1."""
    freeze: tuple[tuple[str, int], ...] = ()
    """Parts of theta, by the beginning of their path, that stay as they are for so many outer steps, such as ('network', 200): first the
    scalars are trained, then f as well."""
    average: float | None = None
    """Decay of an exponential average of theta, such as 0.99, which then is what is evaluated and loaded; None: theta itself."""

    def __post_init__(self) -> None:
        if not self.learning_rate > 0 or not self.clip_norm > 0:
            raise ValueError(
                f"outer.learning_rate and outer.clip_norm must be positive, got {self.learning_rate}, {self.clip_norm}"
            )
        if self.warmup_steps < 0:
            raise ValueError(f"outer.warmup_steps must not be negative, got {self.warmup_steps}")
        if self.decay_steps is not None and self.decay_steps <= self.warmup_steps:
            raise ValueError(
                f"outer.decay_steps must be None or more than outer.warmup_steps={self.warmup_steps}, got {self.decay_steps}"
            )
        if self.final_fraction is not None and not 0 <= self.final_fraction <= 1:
            raise ValueError(f"outer.final_fraction must lie in [0, 1], got {self.final_fraction}")
        if self.final_fraction is not None and self.decay_steps is None:
            raise ValueError(f"outer.final_fraction={self.final_fraction} does nothing without outer.decay_steps: leave it out")
        if self.average is not None and not 0 <= self.average < 1:
            raise ValueError(f"outer.average must lie in [0, 1) or be None, got {self.average}")
        _factory(self.optimizer, dict(self.options))

    def schedule(self) -> float | Callable[[Any], Any]:
        """The step size, or what it is as a function of the outer step."""
        rate = self.learning_rate
        if self.decay_steps is not None:
            final = 0.1 if self.final_fraction is None else self.final_fraction
            later = optax.cosine_decay_schedule(rate, self.decay_steps - self.warmup_steps, alpha=final)
        else:
            later = optax.constant_schedule(rate)
        if self.warmup_steps:
            return optax.join_schedules([optax.linear_schedule(0.0, rate, self.warmup_steps), later], [self.warmup_steps])
        return later if self.decay_steps is not None else rate

    def make(self) -> optax.GradientTransformation:
        """The optax transform of theta."""
        optimizer = _factory(self.optimizer, dict(self.options))(self.schedule())
        return optax.chain(optax.clip_by_global_norm(self.clip_norm), optimizer)


def _factory(name: str, options: dict[str, float]) -> Callable[..., optax.GradientTransformation]:
    found = getattr(optax, name, None)
    parameters = inspect.signature(found).parameters if inspect.isfunction(found) else {}
    if found is None or "learning_rate" not in parameters:
        known = [
            n for n, f in vars(optax).items() if inspect.isfunction(f) and "learning_rate" in inspect.signature(f).parameters
        ]
        near = difflib.get_close_matches(name, known, n=3)
        raise ValueError(
            f"outer.optimizer must name an optimizer of optax that takes a learning rate, got {name!r}; "
            + (f"did you mean {' or '.join(near)}?" if near else "such as adam, adamw, sgd")
        )
    unknown = sorted(set(options) - set(parameters) | set(options) & {"learning_rate"})
    if unknown:
        raise ValueError(f"outer.options has {unknown}; optax.{name} takes {sorted(set(parameters) - {'learning_rate'})}")
    return lambda rate: found(rate, **options)


def check_freeze(config: OuterConfig, theta: PyTree) -> None:
    """Raise `ValueError` if a frozen path begins no part of theta."""
    unknown = unknown_prefixes((prefix for prefix, _ in config.freeze), theta)
    if unknown:
        raise ValueError(f"outer.freeze names {unknown}, but theta has the parts {[path for path, _ in named_leaves(theta)]}")


def thaw(config: OuterConfig, step: jax.Array, tree: PyTree) -> PyTree:
    """A gradient or update with zeros for the parts of theta that are frozen at this outer step."""
    if not config.freeze:
        return tree
    leaves = []
    for path, leaf in named_leaves(tree):
        until = max((steps for prefix, steps in config.freeze if is_under(path, prefix)), default=0)
        leaves.append(jnp.where(step >= until, leaf, jnp.zeros_like(leaf)) if until else leaf)
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


class MetaTrainState(NamedTuple):
    """All that a run must carry from one outer step to the next.

    Attributes:
      theta: the meta-parameters.
      outer: state of their optimizer.
      estimator: the particles.
      average: exponential average of theta, or None.
      best: the best held-out score so far, [].
    """

    theta: PyTree
    outer: PyTree
    estimator: PyTree
    average: PyTree
    best: jax.Array

    @property
    def evaluated(self) -> PyTree:
        """What evaluations take for theta."""
        return self.theta if self.average is None else self.average


def make_outer_step(
    seed: int, estimator: Estimator, config: OuterConfig, optimizer: LearnedOptimizer, shardings: MetaTrainState | None = None
) -> jax.stages.Wrapped:
    """The jitted outer step `(step, datasets, state) -> (state, info)`; the state is donated.

    With `shardings` the state that comes out lies as they say: XLA would put an array without elements elsewhere than it was.

    The key of outer step n is a function of the seed and n alone. An outer gradient that is not finite leaves theta unchanged and is
    counted in `info["skipped"]`; one that is zero, so that nothing is learned, is told by `info["no_gradient"]`.
    """
    key, outer = jax.random.fold_in(jax.random.key(seed), 2), config.make()
    decay = config.average

    def outer_step(step: jax.Array, datasets: Datasets, state: MetaTrainState):
        gradient, particles, info = estimator.step(jax.random.fold_in(key, step), state.theta, datasets, state.estimator)
        flat = optax.tree.norm(gradient) == 0  # of all of theta, whatever of it is frozen
        gradient = thaw(config, step, gradient)
        norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(norm)
        with jax.numpy_dtype_promotion("standard"):  # optax's Adam raises a float to an integer power
            updates, outer_state = outer.update(gradient, state.outer, state.theta)
        theta, outer_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (optax.apply_updates(state.theta, thaw(config, step, updates)), outer_state),
            (state.theta, state.outer),
        )
        average = state.average
        if decay is not None:
            average = jax.tree.map(lambda old, new, d=decay: d * old + (1 - d) * new, average, theta)
        info |= {"gradient_norm": norm, "skipped": (~finite).astype(jnp.int32), "no_gradient": flat, **optimizer.scalars(theta)}
        return MetaTrainState(theta, outer_state, particles, average, state.best), info

    return jax.jit(outer_step, donate_argnums=2, out_shardings=None if shardings is None else (shardings, None))
