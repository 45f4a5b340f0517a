"""What the configs of tasks share: the settings of tasks on images and on text, their checks, and the way from a model to its task."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lopt.symmetry.spec import WeightSpec
from lopt.task import Batch, Task, TaskConfig, operational
from tasks.datasets import check_images, check_text, load_images, load_text
from tasks.modules import Activation, check_activation, check_count, check_positive, short_name
from tasks.objectives import classification, next_token

PyTree = Any
Model = tuple[Callable[[jax.Array], PyTree], Callable[[PyTree, jax.Array], jax.Array]]  # init, apply
Shape = tuple[int, int, int]  # height, width, colours


@dataclasses.dataclass(frozen=True)
class ModelTaskConfig(TaskConfig):
    """Settings of every task that has one of the models of this package.

    Raises:
      ValueError: naming the field that is out of range.
    """

    activation: Activation = "relu"
    """What follows each hidden layer."""

    init_scale: float = 1.0
    """Factor on what starts at random: kernels of variance 1 / fan-in, embeddings of variance 1."""

    batch_size: int = 128
    """Examples in a batch, drawn with replacement."""

    data_dir: str | None = operational(None)
    """Directory with the data; None looks at the usual places."""

    split_seed: int = 0
    """Seed of the split into train, inner valid and outer valid (and test, where the source has none)."""

    def __post_init__(self) -> None:
        """Raise `ValueError` for a field that is out of range."""
        self._check_counts("batch_size")
        check_count(self._field("split_seed"), self.split_seed, 0)
        check_activation(self._field("activation"), self.activation)
        check_positive(self._field("init_scale"), self.init_scale)

    def _field(self, name: str) -> str:
        return f"{type(self).__name__}.{name}"

    def _check_counts(self, *names: str) -> None:
        for name in names:
            check_count(self._field(name), getattr(self, name))


@dataclasses.dataclass(frozen=True)
class ImageTaskConfig(ModelTaskConfig):
    """Settings of every task on images."""

    dataset: str = "digits"
    """Images: digits (8x8, comes with scikit-learn), fashion_mnist (28x28), cifar10 or another of load_images."""

    image_size: int = 8
    """Height and width in pixels to which the images are shrunk, by area averaging."""

    def __post_init__(self) -> None:
        """Raise `ValueError` for a field that is out of range."""
        super().__post_init__()
        self._check_counts("image_size")
        check_images(self.dataset, self.image_size, self.data_dir)

    def classifier(self, name: str, model: Callable[[Shape, int], Model], spec: WeightSpec) -> Task:
        """The task of predicting the images' classes.

        Args:
          name: what the task's name ends in.
          model: of the shape of an image and the number of classes; its `apply` maps images [B, H, W, C] with white = 1, in the dtype
            of the params or not, to logits [B, classes].
          spec: of its params.

        Returns:
          A `Task` whose batches have "image", uint8 [B, H, W] or [B, H, W, 3], and "label", int32 [B]; the metric is "accuracy".

        Raises:
          DatasetError: if the images cannot be found or read.
        """
        datasets, info = load_images(self.dataset, self.image_size, self.batch_size, self.data_dir, self.split_seed)
        shape = image_shape(info.image_shape)
        init, apply = model(shape, info.num_classes)

        def logits(params: PyTree, batch: Batch) -> jax.Array:
            return apply(params, pixels(batch, shape, info.scale)).astype(jnp.float32)

        loss, metrics = classification(logits)
        return Task(
            name=f"{short_name(info.name)}{self.image_size}_{name}",
            init=init,
            loss=loss,
            spec=spec,
            datasets=datasets,
            initial_loss=math.log(info.num_classes),
            metrics=metrics,
        )


def image_shape(stored: tuple[int, ...]) -> Shape:
    """Height, width and colours, of which an image without a third axis has one."""
    height, width, *colors = stored
    return height, width, math.prod(colors)


def pixels(batch: Batch, shape: Shape, scale: int) -> jax.Array:
    """The images of a batch, float32 [B, H, W, C], from 0 to 1."""
    return jnp.reshape(batch["image"], (-1, *shape)).astype(jnp.float32) / scale


@dataclasses.dataclass(frozen=True)
class TextTaskConfig(ModelTaskConfig):
    """Settings of every task on text."""

    dataset: str = "python_docs"
    """Text to read: python_docs (comes with Python), lm1b (the paper), a file's path, or another of load_text."""

    tokenizer: str = "chars"
    """What a token is: chars, bytes, or bpe:N for a vocabulary of N pieces."""

    length: int = 16
    """T, tokens read and predicted in each example."""

    batch_size: int = 64
    """Examples in a batch."""

    def __post_init__(self) -> None:
        """Raise `ValueError` for a field that is out of range."""
        super().__post_init__()
        self._check_counts("length")
        check_text(self.dataset, self.tokenizer, self.data_dir)

    def language_model(self, name: str, model: Callable[[int], Model], spec: WeightSpec) -> Task:
        """The task of predicting the next token.

        Args:
          name: what the task's name ends in.
          model: of the number V of tokens; its `apply` maps tokens [B, T] to logits [B, T, V].
          spec: of its params.

        Returns:
          A `Task` whose batches have "tokens", int32 [B, T + 1]; the metrics are those of `tasks.objectives.next_token`.

        Raises:
          DatasetError: if the text cannot be found or read.
        """
        datasets, info = load_text(
            self.dataset, self.length, self.batch_size, self.tokenizer, data_dir=self.data_dir, split_seed=self.split_seed
        )
        init, apply = model(info.vocab_size)
        loss, metrics = next_token(apply, self.tokenizer, info.bytes_per_token)
        return Task(
            name=f"{short_name(info.name)}{self.length}_{name}",
            init=init,
            loss=loss,
            spec=spec,
            datasets=datasets,
            initial_loss=math.log(info.vocab_size),
            metrics=metrics,
            files={"tokenizer.json": info.tokenizer.to_json()},
        )
