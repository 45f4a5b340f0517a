"""Inner training as a scan: one window of a truncated unroll, its meta-loss, and when a particle starts anew.

An inner training runs for `horizon` steps and then starts from a fresh initialisation. It is cut into windows of `truncation`
steps; an estimator sees one window of every particle at each outer step. Horizons are whole numbers of windows, so that a reset
falls between two windows.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lopt.optimizer import LearnedOptimizer
from lopt.symmetry.spec import PyTree
from lopt.task import Batch, Datasets, Problem, Task, as_family

MetaLoss = Literal["final", "mean"]


@dataclasses.dataclass(frozen=True)
class UnrollConfig:
    """How long inner trainings run and what of them is the meta-loss."""

    horizon: int = 2000
    """T, inner steps from initialisation to reset (the paper: 2000, Transformer 5000); a multiple of truncation."""
    truncation: int = 50
    """K, inner steps of every particle in one outer step (the paper: 50)."""
    meta_loss: MetaLoss = "final"
    """What is minimised: the training loss of the last step (`final`, the paper) or its mean over all steps (`mean`)."""
    loss_cap: float = 1.5
    """Losses above this many times the loss of a constant prediction count as that much (`inf`: no cap); capped steps are counted."""
    stagger: bool = True
    """Give the particles' first inner trainings different lengths, so that at every outer step they stand at different points."""

    def __post_init__(self) -> None:
        if self.truncation < 1:
            raise ValueError(f"truncation must be at least 1 inner step, got {self.truncation}")
        if self.horizon < 1 or self.horizon % self.truncation:
            raise ValueError(f"horizon must be a positive multiple of truncation={self.truncation}, got {self.horizon}")
        if not self.loss_cap > 0:
            raise ValueError(f"loss_cap must be positive, got {self.loss_cap}")
        if self.meta_loss not in ("final", "mean"):
            raise ValueError(f"meta_loss must be 'final' or 'mean', got {self.meta_loss!r}")

    @property
    def windows(self) -> int:
        """Windows in a full inner training, T / K."""
        return self.horizon // self.truncation


class InnerState(NamedTuple):
    """One inner training under way.

    Attributes:
      params: its weights.
      optimizer: state of the optimizer that trains them.
      model: state of the model that is not trained; `()` for most.
      variant: what was drawn of the task family; `()` for a single task.
    """

    params: PyTree
    optimizer: PyTree
    model: PyTree
    variant: PyTree


class Clock(NamedTuple):
    """Where an inner training stands.

    Attributes:
      step: inner steps done, int32 [].
      horizon: inner steps at which it ends, int32 []; shorter than T for the staggered first ones.
    """

    step: jax.Array
    horizon: jax.Array


class Window(NamedTuple):
    """What a window of K inner steps sees: shared by all members of a particle, so that their losses differ by theta alone.

    Attributes:
      keys: [K] typed keys for stochastic models.
      batches: pytree of [K, B, ...].
    """

    keys: jax.Array
    batches: PyTree


class WindowLosses(NamedTuple):
    """The losses of one window, and what was done to them.

    Attributes:
      meta_loss: this window's share of the meta-loss, scaled so that the mean over the windows of an inner training is the whole, [].
      mean: mean loss of the window's steps, after the cap, [].
      capped: steps whose loss was finite but above the cap, int32 [].
      nonfinite: steps whose loss was not finite, int32 [].
    """

    meta_loss: jax.Array
    mean: jax.Array
    capped: jax.Array
    nonfinite: jax.Array


class Unroll(NamedTuple):
    """Inner training of one task by one learned optimizer, as pure functions over one inner training.

    Attributes:
      start: `start(key, theta) -> InnerState`, a fresh initialisation.
      window: `window(key, datasets, variant) -> Window`, for the inner trainings of that variant of the task family.
      run: `run(theta, state, window) -> (state, losses [K])`.
      losses: `losses(losses [K], clock) -> WindowLosses`.
    """

    start: Callable[[jax.Array, PyTree], InnerState]
    window: Callable[[jax.Array, Datasets, PyTree], Window]
    run: Callable[[PyTree, InnerState, Window], tuple[InnerState, jax.Array]]
    losses: Callable[[jax.Array, Clock], WindowLosses]


def make_inner_step(
    task: Task, transform: optax.GradientTransformationExtraArgs
) -> Callable[[InnerState, jax.Array, Batch], tuple[InnerState, jax.Array]]:
    """`inner_step(state, key, batch) -> (state, loss)`: one step of an inner training, and the loss whose gradient it takes."""
    loss_and_grads = jax.value_and_grad(task.loss_with_state, has_aux=True)

    def inner_step(state: InnerState, key: jax.Array, batch: Batch) -> tuple[InnerState, jax.Array]:
        (loss, model), grads = loss_and_grads(state.params, state.model, key, batch)
        updates, optimizer_state = transform.update(grads, state.optimizer, state.params, value=loss)
        return InnerState(optax.apply_updates(state.params, updates), optimizer_state, model, state.variant), loss

    return inner_step


def make_unroll(config: UnrollConfig, problem: Problem, optimizer: LearnedOptimizer) -> Unroll:
    """Inner training of a task, or of tasks that a family draws at each start, by `optimizer`.

    The loss of inner step t is that of the batch whose gradient step t takes, before its update: the meta-loss costs nothing extra.
    """
    steps, family = config.truncation, as_family(problem)
    cap = config.loss_cap * family.example.normalizer(jnp.float32(family.example.initial_loss))

    def start(key: jax.Array, theta: PyTree) -> InnerState:
        variant, params, model = family.start(key)
        return InnerState(params, optimizer.opt_fn(theta).init(params), model, variant)

    def window(key: jax.Array, datasets: Datasets, variant: PyTree) -> Window:
        batch_key, loss_key = jax.random.split(key)
        # All batches of the window in one gather, outside the scan.
        batches = jax.vmap(family.view(variant, datasets).train.batch)(jax.random.split(batch_key, steps))
        return Window(jax.random.split(loss_key, steps), batches)

    def run(theta: PyTree, state: InnerState, window: Window) -> tuple[InnerState, jax.Array]:
        task = family.task_fn(state.variant)
        inner_step = make_inner_step(task, optimizer.opt_fn(theta))

        def step(state: InnerState, window: Window) -> tuple[InnerState, jax.Array]:
            state, loss = inner_step(state, window.keys, window.batches)
            return state, task.normalizer(loss)

        return jax.lax.scan(step, state, window)

    def losses(losses: jax.Array, clock: Clock) -> WindowLosses:
        finite = jnp.isfinite(losses)
        capped = jnp.where(finite, jnp.minimum(losses, cap), cap)
        return WindowLosses(
            meta_loss=_meta_loss(config.meta_loss, capped, clock),
            mean=jnp.mean(capped),
            capped=jnp.sum(finite & (losses > cap), dtype=jnp.int32),
            nonfinite=jnp.sum(~finite, dtype=jnp.int32),
        )

    return Unroll(start, window, run, losses)


def _meta_loss(kind: MetaLoss, losses: jax.Array, clock: Clock) -> jax.Array:
    """This window's share: over the windows of an inner training, the mean of the shares is the meta-loss."""
    if kind == "mean":
        return jnp.mean(losses)
    windows = (clock.horizon // losses.shape[0]).astype(jnp.float32)
    is_last = clock.step + losses.shape[0] >= clock.horizon
    return jnp.where(is_last, losses[-1] * windows, jnp.float32(0))


def first_clock(config: UnrollConfig, particle: jax.Array, particles: int) -> Clock:
    """The clock of a particle's first inner training: with `stagger`, the P particles' resets are spread evenly over the windows."""
    windows = jnp.int32(config.windows)
    if config.stagger:
        windows = windows - (particle * config.windows) // particles
    return Clock(jnp.int32(0), (windows * config.truncation).astype(jnp.int32))


def advance(config: UnrollConfig, clock: Clock, diverged: jax.Array) -> tuple[Clock, jax.Array]:
    """The clock after a window, and whether the particle starts anew: at its horizon, or because it diverged."""
    step = clock.step + config.truncation
    restart = (step >= clock.horizon) | diverged
    return Clock(jnp.where(restart, 0, step), jnp.where(restart, config.horizon, clock.horizon)), restart
