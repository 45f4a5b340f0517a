"""Perceptrons of any width and depth on data that are made up: models that grow along one axis at a time."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lopt.symmetry.spec import WeightSpec
from lopt.task.base import Batch, Task, TaskConfig
from lopt.task.data import ArraySplit, Datasets

PyTree = Any
INPUTS, CLASSES = 64, 10  # of the paper's MLP
_EXAMPLES = 1024


def hidden_width(weights: int, layers: int) -> int:
    """Units of every hidden layer so that a perceptron has about that many weights.

    Args:
      weights: N, kernels and biases together.
      layers: of weights, at least 2.

    Returns:
      the h >= 1 whose N = (layers - 2) h^2 + (inputs + classes + layers - 1) h + classes is nearest.

    Example:
      >>> hidden_width(2_410, layers=2)
      32
    """
    a, b, c = layers - 2, INPUTS + CLASSES + layers - 1, CLASSES - weights
    root = -c / b if a == 0 else (math.sqrt(max(b * b - 4 * a * c, 0)) - b) / (2 * a)
    return max(1, round(root))


def perceptron(hidden: Sequence[int]) -> tuple[Callable[[jax.Array], PyTree], WeightSpec]:
    """`init(key) -> params` of a perceptron from 64 inputs to 10 classes, and its spec."""
    sizes = (INPUTS, *hidden, CLASSES)
    units = ("inputs!", *(f"hidden{index}" for index in range(len(hidden))), "classes!")

    def init(key: jax.Array) -> PyTree:
        keys = jax.random.split(key, len(sizes) - 1)
        return {
            f"dense{index}": {
                "kernel": jax.random.normal(keys[index], shape, jnp.float32) * (2 / shape[0]) ** 0.5,
                "bias": jnp.zeros(shape[1], jnp.float32),
            }
            for index, shape in enumerate(itertools.pairwise(sizes))
        }

    axes = {f"dense{index}": {"kernel": f"{a} {b}", "bias": b} for index, (a, b) in enumerate(itertools.pairwise(units))}
    return init, WeightSpec.parse(axes)


@dataclasses.dataclass(frozen=True)
class SyntheticMLPConfig(TaskConfig):
    """A ReLU perceptron that classifies random vectors by a random linear map: in memory at once, of any size.

    Example:
      >>> SyntheticMLPConfig(hidden=(32,)).make().name
      'synthetic_mlp_32x1'
    """

    hidden: tuple[int, ...] = (32,)
    """Units of each hidden layer."""
    batch_size: int = 128
    """Examples in a batch."""

    def make(self) -> Task:
        """Draw the data and build the task; all splits are the same."""
        init, spec = perceptron(self.hidden)
        key, map_key = jax.random.split(jax.random.key(0))
        inputs = jax.random.normal(key, (_EXAMPLES, INPUTS), jnp.float32)
        labels = jnp.argmax(inputs @ jax.random.normal(map_key, (INPUTS, CLASSES), jnp.float32), axis=1)
        split = ArraySplit({"inputs": inputs, "label": labels}, self.batch_size)

        def loss(params: PyTree, key: jax.Array, batch: Batch) -> jax.Array:
            x = batch["inputs"]
            for index in range(len(self.hidden) + 1):
                layer = params[f"dense{index}"]
                x = (jax.nn.relu(x) if index else x) @ layer["kernel"] + layer["bias"][None]
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(x, batch["label"]))

        return Task(
            name="synthetic_mlp" + "".join(f"_{units}" for units in self.hidden[:1]) + f"x{len(self.hidden)}",
            init=init,
            loss=loss,
            spec=spec,
            datasets=Datasets(split, split, split, split),
            initial_loss=math.log(CLASSES),
        )
