"""What an inner problem must offer: `Task`, and the `Datasets` that feed it.

The nouns and argument orders are those of `learned_optimization.tasks.base.Task`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lopt.symmetry.spec import WeightSpec

PyTree = Any
Batch = Mapping[str, jax.Array]  # name -> [B, ...]


@functools.partial(jax.tree_util.register_dataclass, data_fields=("arrays",), meta_fields=("batch_size",))
@dataclasses.dataclass(frozen=True)
class ArraySplit:
    """Examples that live on the device; batches are gathered inside the compiled loop.

    Attributes:
      arrays: name -> [N, ...], N examples, in the storage type (uint8 for images); the task's loss converts.
      batch_size: B, examples a batch; may exceed N, as examples are drawn with replacement.
    """

    arrays: Mapping[str, jax.Array]
    batch_size: int

    @property
    def num_examples(self) -> int:
        return next(iter(self.arrays.values())).shape[0]

    def batch(self, key: jax.Array) -> Batch:
        """B examples drawn uniformly with replacement: the same batch for the same key on any device."""
        index = jax.random.randint(key, (self.batch_size,), 0, self.num_examples)
        return {name: jnp.take(array, index, axis=0) for name, array in self.arrays.items()}

    def all(self) -> Batch:
        """Every example as one batch, for evaluation."""
        return dict(self.arrays)


@functools.partial(jax.tree_util.register_dataclass, data_fields=("train", "inner_valid", "outer_valid", "test"), meta_fields=())
@dataclasses.dataclass(frozen=True)
class Datasets:
    """Four disjoint splits of one data set, fixed by seed.

    A pytree, so that the arrays are arguments of compiled functions; closed over, they would become constants of the program.

    Attributes:
      train: what the inner training sees.
      inner_valid: held out from the inner training, for meta-losses on unseen data.
      outer_valid: held out from meta-training.
      test: looked at by the final evaluation only.
    """

    train: ArraySplit
    inner_valid: ArraySplit
    outer_valid: ArraySplit
    test: ArraySplit


@dataclasses.dataclass(frozen=True)
class Task:
    """One inner problem, as pure functions.

    Attributes:
      name: for logs and tables.
      init: `init(key) -> params`, a pytree of weights.
      loss: `loss(params, key, batch) -> scalar` float32; `key` is for stochastic models.
      spec: the true symmetry of `loss`: a group element leaves the loss unchanged.
      datasets: where batches come from.
      metrics: `metrics(params, key, batch) -> {name: scalar}`, such as accuracy in [0, 1].
      normalizer: maps a loss to a scale common to all tasks; the identity unless tasks are mixed.
      initial_loss: loss of a constant prediction (ln of the number of classes): the scale against which losses are capped.
    """

    name: str
    init: Callable[[jax.Array], PyTree]
    loss: Callable[[PyTree, jax.Array, Batch], jax.Array]
    spec: WeightSpec
    datasets: Datasets
    initial_loss: float
    metrics: Callable[[PyTree, jax.Array, Batch], dict[str, jax.Array]] = lambda params, key, batch: {}
    normalizer: Callable[[jax.Array], jax.Array] = lambda loss: loss

    def param_shapes(self) -> PyTree:
        """Shapes and dtypes of the params, without computing them."""
        return jax.eval_shape(self.init, jax.random.key(0))


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """Base of every task's config: the fields are the task's settings, `make` builds it."""

    def make(self) -> Task:
        """Load the data and build the task.

        Raises:
          NotImplementedError: by a config that does not say how its task is made.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define make()")
