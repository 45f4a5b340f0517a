"""Image classification by a multilayer perceptron: the paper's first task.

A ReLU network on flattened images, 64-32-10 in the paper (Zhou, Finn, Harrison, NeurIPS 2024, section 4.1), trained
on the mean cross entropy of the classes.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lopt.symmetry.spec import WeightSpec
from lopt.task import Task
from tasks.modules import ACTIVATIONS, Activation, check_counts, lecun, pure
from tasks.settings import ImageTaskConfig, Model, Shape

PyTree = Any


class _MLP(nnx.Module):
    """Dense layers `dense0`, `dense1`, ... with the activation between them."""

    def __init__(self, sizes: Sequence[int], activation: str, init_scale: float, rngs: nnx.Rngs):
        for index, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
            setattr(self, f"dense{index}", nnx.Linear(inputs, outputs, kernel_init=lecun(init_scale), rngs=rngs))
        self.depth = len(sizes) - 1
        self.activation = ACTIVATIONS[activation]

    def __call__(self, inputs: jax.Array) -> jax.Array:
        hidden = inputs
        for index in range(self.depth):
            hidden = getattr(self, f"dense{index}")(hidden if index == 0 else self.activation(hidden))
        return hidden


def mlp(
    sizes: Sequence[int], *, activation: Activation = "relu", init_scale: float = 1.0
) -> tuple[Callable[[jax.Array], PyTree], Callable[[PyTree, jax.Array], jax.Array]]:
    """A network of dense layers as a pair of pure functions.

    `x_0 = inputs`, `x_{l+1} = W_l^T act(x_l) + b_l` (no activation of the inputs). Kernels start as LeCun's truncated normal of
    variance init_scale^2 / fan-in, biases as zero: with init_scale 1 the defaults of `flax.nnx.Linear`.

    Args:
      sizes: numbers of units from inputs to outputs, n_0 ... n_L.
      activation: between the layers.
      init_scale: factor on the fresh kernels.

    Returns:
      init: `init(key) -> params`, {"dense0": {"kernel": [n_0, n_1], "bias": [n_1]}, "dense1": ...}, float32.
      apply: `apply(params, inputs [B, n_0]) -> outputs [B, n_L]`, in the dtype of the params.

    Example:
      >>> init, apply = mlp((4, 3, 2))
      >>> apply(init(jax.random.key(0)), jnp.zeros((5, 4))).shape
      (5, 2)
    """
    init, run = pure(lambda rngs: _MLP(sizes, activation, init_scale, rngs))

    def apply(params: PyTree, inputs: jax.Array) -> jax.Array:
        return run(params, inputs.astype(params["dense0"]["kernel"].dtype))

    return init, apply


def mlp_spec(num_hidden: int) -> WeightSpec:
    """The symmetry of `mlp` with that many hidden layers: the units of each may be reordered, pixels and classes may not.

    Example:
      >>> print(mlp_spec(1))
      dense0/bias    hidden0
      dense0/kernel  pixels! hidden0
      dense1/bias    classes!
      dense1/kernel  hidden0 classes!
    """
    units = ["pixels!", *(f"hidden{index}" for index in range(num_hidden)), "classes!"]
    return WeightSpec.parse(
        {
            f"dense{index}": {"kernel": f"{inputs} {outputs}", "bias": outputs}
            for index, (inputs, outputs) in enumerate(itertools.pairwise(units))
        }
    )


@dataclasses.dataclass(frozen=True)
class MLPConfig(ImageTaskConfig):
    """A multilayer perceptron that classifies images.

    Raises:
      ValueError: naming the field that is out of range.

    Example:
      >>> task = MLPConfig(batch_size=32).make()
      >>> params = task.init(jax.random.key(0))
      >>> task.spec.sizes(params)
      {'classes': 10, 'hidden0': 32, 'pixels': 64}
    """

    hidden: tuple[int, ...] = (32,)
    """Units of each hidden layer; none makes the model linear (softmax regression)."""

    def __post_init__(self) -> None:
        """Raise `ValueError` for a field that is out of range."""
        super().__post_init__()
        check_counts(self._field("hidden"), self.hidden)

    def make(self) -> Task:
        """Load the images and build the task, whose params are those of `mlp`; see `ImageTaskConfig.classifier`."""

        def model(shape: Shape, classes: int) -> Model:
            sizes = (math.prod(shape), *self.hidden, classes)
            init, apply = mlp(sizes, activation=self.activation, init_scale=self.init_scale)
            return init, lambda params, images: apply(params, jnp.reshape(images, (-1, sizes[0])))

        return self.classifier("mlp" + "".join(f"_{units}" for units in self.hidden), model, mlp_spec(len(self.hidden)))
