"""How good theta is while it is being trained: short inner trainings on seeds, and on tasks, that meta-training never sees."""

import dataclasses
import zlib
from collections.abc import Callable, Mapping

import jax
import numpy as np
import optax

from lopt.evaluation.rollout import OptFn, seed_keys, train_fn
from lopt.evaluation.summary import final_losses
from lopt.optimizers.momentum import OptimizerConfig
from lopt.symmetry.spec import PyTree
from lopt.task.base import Problem, TaskConfig
from lopt.training.mixture import check_compatible, optimizer_of

HELD_OUT = zlib.crc32(b"lopt.training.held_out")  # folded into the root key, far beyond any outer step


@dataclasses.dataclass(frozen=True)
class HeldOutConfig:
    """How theta is evaluated during meta-training, on initialisations and perhaps tasks that it is not trained on.

    The theta that does best is kept in `best/` of the run directory, and is what `lopt.load` takes.

    None of it may change when a run is resumed: it decides which theta is the best.
    """

    every: int = 0
    """Outer steps between two evaluations; 0: none."""
    tasks: tuple[TaskConfig, ...] = ()
    """Tasks that are not trained on; none: those of the training, from initialisations of their own."""
    steps: int = 300
    """Inner steps of each training."""
    seeds: int = 4
    """Initialisations of each task."""
    multiples: tuple[float, ...] = (1.0,)
    """Multiples of theta's steps, each of which every task is trained at; the best counts. For a direction, whose rate is the user's:
    a score at one rate chooses the theta that this rate suits."""

    def __post_init__(self) -> None:
        if not self.multiples or not all(multiple > 0 for multiple in self.multiples):
            raise ValueError(f"held_out.multiples must be positive numbers, got {self.multiples}")
        for name, least in (("every", 0), ("steps", 1), ("seeds", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"held_out.{name} must be at least {least}, got {getattr(self, name)}")


def make_held_out(
    config: HeldOutConfig, optimizer: OptimizerConfig, trained_on: Mapping[str, Problem], theta: PyTree, seed: int
) -> Callable[[PyTree], dict[str, float]]:
    """`evaluate(theta) -> metrics`: the final training loss on each task, and their mean relative to a constant prediction.

    A loss is averaged over seeds and the last tenth of the steps; one that is not finite counts as that of a constant prediction, or
    as the loss at which it was last finite if that is larger.

    Args:
      config: tasks, steps, seeds.
      optimizer: the learned optimizer.
      trained_on: the problems of the training, by name.
      theta: of the shapes that `evaluate` will get.
      seed: of the run.

    Returns:
      A function whose metrics are `held_out/TASK` and, the smaller the better, `held_out/score`; with several multiples also
      `held_out/TASK/multiple`, the best one.

    Raises:
      ValueError: naming the task that theta is not compatible with.
    """
    made = [task.make() for task in config.tasks]
    problems = {problem.name: problem for problem in made} or dict(trained_on)
    if made and len(problems) < len(made):
        raise ValueError(f"two held-out tasks have the same name: {[problem.name for problem in made]}")
    key = jax.random.fold_in(jax.random.key(seed), HELD_OUT)
    races = {}
    for name, problem in problems.items():
        learned = optimizer_of(optimizer, problem)
        check_compatible(learned, theta, problem)
        keys = seed_keys(jax.random.fold_in(key, zlib.crc32(name.encode())), config.seeds)
        races[name] = (train_fn(problem, _multiplied(learned.opt_fn), config.steps), keys, problem)
    window = max(1, config.steps // 10)

    def evaluate(theta: PyTree) -> dict[str, float]:
        found, relative = {}, []
        for name, (train, keys, problem) in races.items():
            scale = problem.example.initial_loss
            finals = []
            for multiple in config.multiples:
                losses = np.asarray(train((theta, np.float32(multiple)), keys, problem.datasets.at(0))[1])
                largest = np.max(losses, axis=1, where=np.isfinite(losses), initial=scale)
                losses = np.where(np.isfinite(losses), losses, largest[:, None])
                finals.append(float(final_losses(losses, window).mean()))
            found[f"held_out/{name}"] = min(finals)
            if len(finals) > 1:
                found[f"held_out/{name}/multiple"] = config.multiples[int(np.argmin(finals))]
            relative.append(min(finals) / scale)
        return found | {"held_out/score": float(np.mean(relative))}

    return evaluate


def _multiplied(opt_fn: OptFn) -> OptFn:
    """`opt_fn((theta, multiple))`: steps times a multiple."""

    def of(given: tuple[PyTree, jax.Array]) -> optax.GradientTransformationExtraArgs:
        theta, multiple = given
        return optax.chain(opt_fn(theta), optax.scale(multiple))

    return of
