"""A noisy quadratic trained by gradient descent: an inner problem whose meta-gradients are known exactly, and which costs nothing."""

import jax.numpy as jnp
import optax

from lopt.optimizers.momentum import LearnedOptimizer, OptimizerConfig
from lopt.symmetry.spec import WeightSpec
from lopt.task.base import ArraySplit, Datasets, Task

SPREAD = 0.2  # s
RATE = 0.1  # theta at its start


def quadratic_task(curvature: float = 1.0, spread: float = SPREAD) -> Task:
    """`loss(w) = c (w - b)^2 / 2` from `w = 1`, with `b = s` or `-s`; on the other splits b is larger by 0.2."""
    split = ArraySplit({"b": jnp.asarray([spread, -spread])}, batch_size=1)
    shifted = ArraySplit({"b": jnp.asarray([spread, -spread]) + 0.2}, batch_size=1)
    return Task(
        name="quadratic",
        init=lambda key: {"w": jnp.ones(())},
        loss=lambda params, key, batch: 0.5 * curvature * jnp.square(params["w"] - batch["b"][0]),
        spec=WeightSpec.parse({"w": ""}),
        datasets=Datasets(split, shifted, shifted, shifted),
        initial_loss=1.0,
    )


def gradient_descent() -> LearnedOptimizer:
    """theta is the learning rate, and two numbers that do nothing."""
    return LearnedOptimizer(
        init=lambda key: {"rate": jnp.float32(RATE), "idle": jnp.zeros(2)},
        opt_fn=lambda theta: optax.with_extra_args_support(optax.sgd(theta["rate"])),
        scalars=lambda theta: {"rate": theta["rate"]},
    )


class GradientDescentConfig(OptimizerConfig):
    """`gradient_descent`, whatever the weights."""

    def make(self, spec: WeightSpec, sizes: object = None) -> LearnedOptimizer:
        return gradient_descent()
