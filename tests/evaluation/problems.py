"""A task whose answers are known: loss = h/2 mean_b |w - x_b|^2; without noise in the data, SGD multiplies w by 1 - lr h."""

import functools

import jax
import jax.numpy as jnp
import optax

from lopt.evaluation.evaluate import Evaluation, EvaluationConfig, evaluate
from lopt.evaluation.race import Competitor
from lopt.symmetry.spec import WeightSpec
from lopt.task.base import ArraySplit, Datasets, Task


def quadratic(curvature: float, noise: float = 0.0, examples: int = 64, seed: int = 0) -> Task:
    def split(index: int) -> ArraySplit:
        x = noise * jax.random.normal(jax.random.fold_in(jax.random.key(seed), index), (examples, 3))
        return ArraySplit({"x": x}, batch_size=4)

    def loss(params, key, batch):
        return 0.5 * curvature * jnp.mean(jnp.sum(jnp.square(params["w"][None] - batch["x"]), axis=1))

    return Task(
        name="quadratic",
        init=lambda key: {"w": 1.0 + 0.1 * jax.random.normal(key, (3,))},
        loss=loss,
        spec=WeightSpec.parse({"w": "weights!"}),
        datasets=Datasets(split(0), split(1), split(2), split(3)),
        initial_loss=1.5 * curvature,
        metrics=lambda params, key, batch: {"distance": jnp.sqrt(jnp.sum(jnp.square(params["w"])))},
    )


def sgd(rate) -> optax.GradientTransformation:
    return optax.sgd(rate)


def needs_value(rate) -> optax.GradientTransformationExtraArgs:
    """Follows the gradient with a step proportional to the loss, which it must be told."""

    def update(updates, state, params=None, *, value, **extra):
        return jax.tree.map(lambda g: -rate * value * g, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: (), update)


SMALL = EvaluationConfig(steps=20, seeds=3, tuning_seeds=2)


@functools.cache
def quadratic_evaluation() -> Evaluation:
    """A learned optimizer that is right, one that is the same with a useless theta, one that breaks, and the real baselines."""
    task = quadratic(10.0, noise=0.05)
    learned = [
        Competitor("meta-trained", needs_value, jnp.float32(0.01)),
        Competitor("before meta-training", needs_value, jnp.float32(0.0)),
        Competitor("broken", sgd, jnp.float32(5.0)),
    ]
    return evaluate(task, learned, EvaluationConfig(steps=60, seeds=3, tuning_seeds=2), seed=0)
