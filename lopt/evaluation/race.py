"""The race itself: every competitor from the same initialisations on the same minibatches."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lopt.evaluation.rollout import OptFn, metrics_fn, race_fn, seed_keys
from lopt.evaluation.summary import Curve
from lopt.symmetry.spec import PyTree
from lopt.task.base import Problem


@dataclasses.dataclass(frozen=True)
class Competitor:
    """An optimizer in a race: the function that makes its optax transform, and the theta or learning rate that it makes it of.

    Attributes:
      name: how tables and figures call it.
      opt_fn: `opt_fn(theta) -> optax transform`; competitors that share it share one compilation.
      theta: pytree of arrays: the meta-parameters, or a learning rate.
      reference: its final loss is what the others are timed to.
    """

    name: str
    opt_fn: OptFn
    theta: PyTree
    reference: bool = False


def measured_steps(steps: int, count: int) -> list[int]:
    """Numbers of steps from 0 to T at which to measure: `count` evenly spaced above 0, and as many by their logarithm.

    Example:
      >>> measured_steps(1000, 4)
      [0, 1, 10, 100, 250, 500, 750, 1000]
    """
    linear = np.linspace(0, steps, count + 1)
    return [int(n) for n in np.unique(np.rint([*linear, *np.geomspace(1, steps, count)]).astype(int))]


def check_names(names: Sequence[str]) -> None:
    """Raise unless all competitors have different names.

    Raises:
      ValueError: naming those that are given twice.
    """
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"competitors need different names; these are given twice: {repeated}")


def race(
    problem: Problem,
    competitors: Sequence[Competitor],
    key: jax.Array,
    *,
    steps: int,
    seeds: int,
    measurements: int = 1,
    measured_batches: int = 1,
    whole_test: bool = True,
    progress: Callable[[str], None] = lambda message: None,
) -> tuple[Curve, ...]:
    """Train every competitor from the same initialisations on the same minibatches.

    Args:
      problem: what is trained: a task, or a family of which each seed draws a task.
      competitors: of different names.
      key: of the seeds.
      steps: T.
      seeds: K.
      measurements: how often to look at held-out data, as `measured_steps` takes it.
      measured_batches: how many batches of it to look at.
      whole_test: whether the trained weights are measured on the whole test split too, which is one batch; else `Curve.test` is empty.
      progress: called with a line of text before each competitor starts.

    Returns:
      A curve for each competitor, in their order.

    Raises:
      ValueError: if two competitors have one name.
    """
    check_names([competitor.name for competitor in competitors])
    keys, datasets, metrics = seed_keys(key, seeds), problem.datasets.at(0), metrics_fn(problem)
    at = measured_steps(steps, measurements)
    compiled: dict[Any, jax.stages.Compiled] = {}  # theta of another structure is another program
    curves = []
    for competitor in competitors:
        progress(f"racing {competitor.name}: {seeds} seeds x {steps} steps")
        # Tied to no devices: a theta that was just trained lies on those of its training, which need not be those of the race.
        theta = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), competitor.theta)
        program = competitor.opt_fn, jax.tree.structure(theta)
        if program not in compiled:
            train = race_fn(problem, competitor.opt_fn, steps, at, measured_batches)
            compiled[program] = train.lower(theta, keys, datasets).compile()
        start = time.perf_counter()
        trained, losses, held_out = jax.block_until_ready(compiled[program](theta, keys, datasets))
        seconds = time.perf_counter() - start
        test = jax.tree.map(np.asarray, metrics(None, (trained, keys), datasets)) if whole_test else {}
        held_out = jax.tree.map(np.asarray, held_out)
        per_step = seconds / (seeds * steps)
        curves.append(Curve(competitor.name, np.asarray(losses), test, per_step, competitor.reference, np.asarray(at), held_out))
    return tuple(curves)
