"""What an inner problem must offer: `Task`, and the `Datasets` that feed it.

The nouns and argument orders are those of `learned_optimization.tasks.base.Task`.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from lopt.symmetry.spec import WeightSpec

PyTree = Any
Batch = Mapping[str, jax.Array]  # name -> [B, ...]


class Split(Protocol):
    """Where batches of one split come from: a pytree of arrays on the device, so that batches are made inside the compiled loop."""

    @property
    def batch_size(self) -> int:
        """B, examples a batch."""
        ...

    def batch(self, key: jax.Array) -> Batch:
        """A random batch, name -> [B, ...]: the same for the same key on any device."""
        ...

    def all(self) -> Batch:
        """Every example as one batch, name -> [N, ...], for evaluation."""
        ...


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

    train: Split
    inner_valid: Split
    outer_valid: Split
    test: Split

    def at(self, step: int) -> "Datasets":
        """The data of an outer step: these, whichever it is. A `DataStream` gives others at each."""
        return self


class DataStream(abc.ABC):
    """Data too large for the device: for each outer step the host gives the part that this step's inner steps draw from.

    The part is a function of the outer step alone (and of what the stream was built with, such as a seed), so that a resumed run
    sees the same data as an unbroken one with no position to save.
    """

    @abc.abstractmethod
    def at(self, step: int) -> Datasets:
        """The data of outer step `step`, from 0: of the same structure, shapes and dtypes at every step.

        Called once a step, from the thread that trains, while the device computes the step before; a stream that has more to do than
        to slice an array reads ahead in a thread of its own. Where it returns the object of the step before, nothing is transferred.
        """


@dataclasses.dataclass(frozen=True)
class Task:
    """One inner problem, as pure functions.

    Attributes:
      name: for logs and tables.
      init: `init(key) -> params`, a pytree of weights.
      loss: `loss(params, key, batch) -> scalar` float32; `key` is for stochastic models.
      spec: the true symmetry of `loss`: a group element leaves the loss unchanged.
      datasets: where batches come from; `datasets.at(step)` are those of an outer step, and an evaluation's are `datasets.at(0)`.
      metrics: `metrics(params, key, batch) -> {name: scalar}`, such as accuracy in [0, 1].
      normalizer: maps a loss to a scale common to all tasks; the identity unless tasks are mixed.
      initial_loss: loss of a constant prediction (ln of the number of classes): the scale against which losses are capped.
    """

    name: str
    init: Callable[[jax.Array], PyTree]
    loss: Callable[[PyTree, jax.Array, Batch], jax.Array]
    spec: WeightSpec
    datasets: Datasets | DataStream
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
