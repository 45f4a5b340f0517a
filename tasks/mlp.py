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
from lopt.task import Batch, Task, TaskConfig, operational
from tasks.datasets import check_images, load_images
from tasks.modules import (
    ACTIVATIONS,
    Activation,
    check_activation,
    check_count,
    check_counts,
    check_positive,
    lecun,
    pure,
    short_name,
)
from tasks.objectives import classification

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
class MLPConfig(TaskConfig):
    """A multilayer perceptron that classifies images.

    Raises:
      ValueError: naming the field that is out of range.

    Example:
      >>> task = MLPConfig(batch_size=32).make()
      >>> params = task.init(jax.random.key(0))
      >>> task.spec.sizes(params)
      {'classes': 10, 'hidden0': 32, 'pixels': 64}
    """

    dataset: str = "digits"
    """Images to classify: digits (8x8, comes with scikit-learn), fashion_mnist or mnist (28x28)."""

    image_size: int = 8
    """Height and width in pixels to which the images are shrunk, by area averaging."""

    hidden: tuple[int, ...] = (32,)
    """Units of each hidden layer; none makes the model linear (softmax regression)."""

    activation: Activation = "relu"
    """Between the layers."""

    init_scale: float = 1.0
    """Factor on the fresh kernels, whose variance is its square over the fan-in."""

    batch_size: int = 128
    """Examples in a batch, drawn with replacement."""

    data_dir: str | None = operational(None)
    """Directory with IDX files or a data set prepared by tfds; None looks at the usual places."""

    split_seed: int = 0
    """Seed of the split into train, inner valid and outer valid (and test, for digits)."""

    def __post_init__(self) -> None:
        """Raise `ValueError` for a field that is out of range."""
        for field in ("image_size", "batch_size"):
            check_count(f"MLPConfig.{field}", getattr(self, field))
        check_counts("MLPConfig.hidden", self.hidden)
        check_count("MLPConfig.split_seed", self.split_seed, 0)
        check_activation("MLPConfig.activation", self.activation)
        check_positive("MLPConfig.init_scale", self.init_scale)
        check_images(self.dataset, self.image_size, self.data_dir)

    def make(self) -> Task:
        """Load the images and build the task.

        Returns:
          A `Task` whose params are those of `mlp`; batches have "image", uint8 [B, H, W] or [B, H, W, 3], and "label", int32 [B];
          the metric is "accuracy".

        Raises:
          DatasetError: if the images cannot be found or read.
        """
        datasets, info = load_images(self.dataset, self.image_size, self.batch_size, self.data_dir, self.split_seed)
        sizes = (math.prod(info.image_shape), *self.hidden, info.num_classes)
        init, apply = mlp(sizes, activation=self.activation, init_scale=self.init_scale)

        def logits(params: PyTree, batch: Batch) -> jax.Array:
            pixels = jnp.reshape(batch["image"], (-1, sizes[0])).astype(jnp.float32) / info.scale
            return apply(params, pixels).astype(jnp.float32)

        loss, metrics = classification(logits)
        return Task(
            name=f"{short_name(info.name)}{self.image_size}_mlp" + "".join(f"_{units}" for units in self.hidden),
            init=init,
            loss=loss,
            spec=mlp_spec(len(self.hidden)),
            datasets=datasets,
            initial_loss=math.log(info.num_classes),
            metrics=metrics,
        )
