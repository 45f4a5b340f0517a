"""One window of an inner training: K steps of a learned optimizer on a task, and what their losses come to."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from lopt.optimizers.momentum import LearnedOptimizer
from lopt.symmetry.spec import PyTree
from lopt.task.base import Batch, Datasets, Problem, Task
from lopt.unroll import meta_loss
from lopt.unroll.clock import Clock
from lopt.unroll.config import UnrollConfig


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


class Training(NamedTuple):
    """An inner training and what the meta-loss must remember of it.

    Attributes:
      inner: its state.
      best: the smallest loss so far, after the cap, [].
    """

    inner: InnerState
    best: jax.Array


class Window(NamedTuple):
    """What a window of K inner steps sees: shared by all members of a particle, so that their losses differ by theta alone.

    Attributes:
      keys: [K] typed keys for stochastic models.
      batches: pytree of [K, B, ...].
      meta_batches: as `batches`, from the split that the meta-loss is measured on; None where that is the training batches.
    """

    keys: jax.Array
    batches: PyTree
    meta_batches: PyTree


class WindowLosses(NamedTuple):
    """The losses of one window, and what was done to them.

    Attributes:
      meta_loss: this window's share of the meta-loss, scaled so that the mean over the windows of an inner training is the whole, [].
      mean: mean loss of the window's steps, after the cap, [].
      capped: steps whose loss was finite but above the cap, int32 [].
      nonfinite: steps whose loss was not finite, int32 [].
      uncapped: steps whose loss counts as it is, int32 [].
    """

    meta_loss: jax.Array
    mean: jax.Array
    capped: jax.Array
    nonfinite: jax.Array
    uncapped: jax.Array


class Unroll(NamedTuple):
    """Inner training of one problem by one learned optimizer, as pure functions over one inner training.

    Attributes:
      config: how long they run, and what of them is the meta-loss.
      start: `start(key, theta) -> Training`, a fresh initialisation.
      window: `window(key, datasets, variant) -> Window`, for the inner trainings of that variant of the task family.
      steps: `steps(theta, state, window, num_steps) -> (state, losses [K], meta_losses [K])`, K inner steps of a training that has so
        many in all; differentiable in theta.
      losses: `losses(losses, meta_losses, clock, best) -> (WindowLosses, best)`, what a window's losses come to.
      run: `run(theta, training, window, clock) -> (training, WindowLosses)`, both of these.
    """

    config: UnrollConfig
    start: Callable[[jax.Array, PyTree], Training]
    window: Callable[[jax.Array, Datasets, PyTree], Window]
    steps: Callable[[PyTree, InnerState, Window, jax.Array], tuple[InnerState, jax.Array, jax.Array]]
    losses: Callable[[jax.Array, jax.Array, Clock, jax.Array], tuple[WindowLosses, jax.Array]]
    run: Callable[[PyTree, Training, Window, Clock], tuple[Training, WindowLosses]]


def make_inner_step(
    task: Task, transform: optax.GradientTransformationExtraArgs, num_steps: jax.Array | int
) -> Callable[[InnerState, jax.Array, Batch], tuple[InnerState, jax.Array]]:
    """`inner_step(state, key, batch) -> (state, loss)`: one step of an inner training, and the loss whose gradient it takes.

    The transform is told the loss, and how many steps the training has.
    """
    loss_and_grads = jax.value_and_grad(task.loss_with_state, has_aux=True)

    def inner_step(state: InnerState, key: jax.Array, batch: Batch) -> tuple[InnerState, jax.Array]:
        with jax.named_scope("task"):
            (loss, model), grads = loss_and_grads(state.params, state.model, key, batch)
        with jax.named_scope("optimizer"):
            updates, optimizer_state = transform.update(grads, state.optimizer, state.params, value=loss, num_steps=num_steps)
        return InnerState(optax.apply_updates(state.params, updates), optimizer_state, model, state.variant), loss

    return inner_step


def make_unroll(config: UnrollConfig, problem: Problem, optimizer: LearnedOptimizer) -> Unroll:
    """Inner training, cut into windows, for an estimator: of a task, or of tasks that a family draws anew, by a learned optimizer.

    The loss of inner step t is that of the weights before step t's update: on the batch whose gradient the step takes, the meta-loss
    costs nothing extra.
    """
    steps = config.truncation
    cap = config.loss_cap * problem.example.normalizer(jnp.float32(problem.example.initial_loss))
    held_out = config.meta_data != "train"

    def start(key: jax.Array, theta: PyTree) -> Training:
        variant, params, model = problem.start(key)
        inner = InnerState(params, optimizer.opt_fn(theta).init(params), model, variant)
        return Training(inner, jnp.float32(meta_loss.NOTHING_YET))

    def window(key: jax.Array, datasets: Datasets, variant: PyTree) -> Window:
        batch_key, loss_key = jax.random.split(key)
        seen = problem.view(variant, datasets)
        # All batches of the window in one gather, outside the scan.
        with jax.named_scope("data"):
            batches = jax.vmap(seen.train.batch)(jax.random.split(batch_key, steps))
        meta_batches = None
        if held_out:
            meta_keys = jax.random.split(jax.random.fold_in(batch_key, 1), steps)
            meta_batches = jax.vmap(getattr(seen, config.meta_data).batch)(meta_keys)
        return Window(jax.random.split(loss_key, steps), batches, meta_batches)

    def steps_of(
        theta: PyTree, state: InnerState, window: Window, num_steps: jax.Array
    ) -> tuple[InnerState, jax.Array, jax.Array]:
        task = problem.task_fn(state.variant)
        inner_step = make_inner_step(task, optimizer.opt_fn(theta), num_steps)

        def step(state: InnerState, window: Window) -> tuple[InnerState, tuple[jax.Array, jax.Array]]:
            after, loss = inner_step(state, window.keys, window.batches)
            meta = loss
            if held_out:
                meta, _ = task.loss_with_state(state.params, state.model, window.keys, window.meta_batches)
            return after, (task.normalizer(loss), task.normalizer(meta))

        state, (losses, meta_losses) = jax.lax.scan(step, state, window)
        return state, losses, meta_losses

    def losses_of(losses: jax.Array, meta_losses: jax.Array, clock: Clock, best: jax.Array) -> tuple[WindowLosses, jax.Array]:
        finite = jnp.isfinite(losses) & jnp.isfinite(meta_losses)
        share, best = meta_loss.share(config, _capped(meta_losses, cap), clock, best)
        above = (losses > cap) | (meta_losses > cap)
        counts = (jnp.sum(steps, dtype=jnp.int32) for steps in (finite & above, ~finite, finite & ~above))
        return WindowLosses(share, jnp.mean(_capped(losses, cap)), *counts), best

    def run(theta: PyTree, training: Training, window: Window, clock: Clock) -> tuple[Training, WindowLosses]:
        inner, losses, meta_losses = steps_of(theta, training.inner, window, clock.horizon)
        result, best = losses_of(losses, meta_losses, clock, training.best)
        return Training(inner, best), result

    return Unroll(config, start, window, steps_of, losses_of, run)


def _capped(losses: jax.Array, cap: jax.Array) -> jax.Array:
    return jnp.where(jnp.isfinite(losses), jnp.minimum(losses, cap), cap)
