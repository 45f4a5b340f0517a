"""Task families made of tasks: what varies from one inner training to the next, and mixtures of several tasks.

Each wrapper draws one more thing at the start of an inner training, so that wrappers of wrappers vary several. Drawn and used inside
the compiled program, they cost no compilation and hardly any time.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp

from lopt.symmetry.spec import PyTree
from lopt.task.base import ArraySplit, Batch, Datasets, Problem, Task, TaskConfig, TaskFamily
from lopt.task.splits import RepeatedSplit

Range = tuple[float, float]  # of a scale: drawn log-uniformly from [low, high]
Level = Literal["global", "tensor", "none"]
CELO_LEVELS: tuple[Level, ...] = ("global", "tensor", "none")
CELO_SCALES: tuple[Range, ...] = ((0.001, 1000.0), (0.01, 100.0), (0.1, 10.0))


def vary_init_scale(problem: Problem, scale: Range) -> TaskFamily:
    """The initial weights are multiplied by a scale, `params = s init(key)`, log-uniform in the range."""
    _check_range("scale", scale)

    def change(task: Task, drawn: jax.Array) -> Task:
        def init(key: jax.Array) -> tuple[PyTree, PyTree]:
            params, state = task.init_with_state(key)
            return _times(params, drawn), state

        return task.with_functions(init=init)

    return _wrap(problem, "init_scale", functools.partial(_log_uniform, scale=scale), change)


def vary_input_scale(problem: Problem, field: str, scale: Range) -> TaskFamily:
    """One array of each batch is multiplied by a scale, log-uniform in the range; what is stored as integers becomes float32.

    Raises:
      ValueError: if the batches have no such array.
    """
    _check_range("scale", scale)
    fields = sorted(problem.datasets.at(0).train.batch(jax.random.key(0)))
    if field not in fields:
        raise ValueError(f"batches of '{problem.name}' have no array '{field}' to scale; they have {fields}")

    def change(task: Task, drawn: jax.Array) -> Task:
        def scaled(batch: Batch) -> Batch:
            array = batch[field]
            array = array if jnp.issubdtype(array.dtype, jnp.inexact) else array.astype(jnp.float32)
            return {**batch, field: _times(array, drawn)}

        return task.with_functions(
            loss=lambda params, state, key, batch: task.loss_with_state(params, state, key, scaled(batch)),
            metrics=lambda params, state, key, batch: task.metrics_with_state(params, state, key, scaled(batch)),
        )

    return _wrap(problem, "input_scale", functools.partial(_log_uniform, scale=scale), change)


def vary_examples(problem: Problem, count: int) -> TaskFamily:
    """Each inner training has a training set of its own: `count` of the examples, drawn without replacement.

    Raises:
      ValueError: if there are fewer examples, or they are not arrays on the device.
    """
    train = problem.datasets.at(0).train
    if not isinstance(train, ArraySplit):
        raise ValueError(
            f"examples can be drawn from an ArraySplit, but those of '{problem.name}' are in a {type(train).__name__}"
        )
    if not 1 <= count <= train.num_examples:
        raise ValueError(f"count must be from 1 to the {train.num_examples} training examples of '{problem.name}', got {count}")
    total = train.num_examples

    def view(drawn: jax.Array, datasets: Datasets) -> Datasets:
        split = datasets.train
        arrays = {name: jnp.take(array, drawn, axis=0) for name, array in split.arrays.items()}  # pyright: ignore
        return dataclasses.replace(datasets, train=ArraySplit(arrays, split.batch_size))

    def sample(key: jax.Array) -> jax.Array:
        return jax.random.permutation(key, total)[:count].astype(jnp.int32)

    return _wrap(problem, "examples", sample, lambda task, drawn: task, view)


def vary_batch_size(problem: Problem, sizes: Sequence[int]) -> TaskFamily:
    """The inner training's batches hold a number of different examples that is drawn, each of `sizes` as likely.

    A batch keeps its B rows, so that all sizes are one program: with a size S only S rows are drawn, and each stands B / S times in the
    batch. A mean over the rows, its gradient, and statistics over the batch are exactly those of a batch of S; no loss need know of
    weights or masks. A step costs what one of B examples costs. Held-out batches are not changed.

    Raises:
      ValueError: if there are no sizes, or one does not divide the batch size.
    """
    B = problem.datasets.at(0).train.batch_size
    if not sizes or not all(size >= 1 and B % size == 0 for size in sizes):
        raise ValueError(
            f"batch sizes of '{problem.name}' must be divisors of its batch_size {B}, such as {B}, got {tuple(sizes)}"
        )
    choices = jnp.asarray(sizes, jnp.int32)

    def sample(key: jax.Array) -> jax.Array:
        return choices[jax.random.randint(key, (), 0, len(sizes))]

    def view(drawn: jax.Array, datasets: Datasets) -> Datasets:
        return dataclasses.replace(datasets, train=RepeatedSplit(datasets.train, drawn))

    return _wrap(problem, "batch_size", sample, lambda task, drawn: task, view)


def reparametrize(
    problem: Problem,
    levels: Sequence[Level] = CELO_LEVELS,
    scales: Sequence[Range] = CELO_SCALES,
) -> TaskFamily:
    """Task augmentation: the same function of rescaled weights, which asks an optimizer for other step sizes.

    What is trained is `p'` with `p_i = s_i p'_i` for each tensor i: `init' = init / s`, `loss'(p') = loss(s p')`. For each inner
    training a level and a range are drawn, each as likely, and from them the scales, log-uniform: one for all tensors (`global`), one
    a tensor (`tensor`), or 1 (`none`). The defaults are Celo's. It knows a level of one scale a weight as well; that breaks the
    symmetry of the weights, which the spec must tell the truth about, and is left out.

    Args:
      problem: a task, or a family.
      levels: the levels to draw from.
      scales: the ranges to draw from.

    Raises:
      ValueError: for an unknown level or a range without numbers above zero; or if there are none.

    References:
      Moudgil, Knyazev, Lajoie, Belilovsky, "Celo: Training Versatile Learned Optimizers on a Compute Diet", 2025, and its program.
      Metz et al., "VeLO: Training Versatile Learned Optimizers by Scaling Up", 2022.
    """
    unknown = sorted(set(levels) - set(get_args(Level)))
    if unknown or not levels or not scales:
        raise ValueError(f"levels must be some of {get_args(Level)} and scales some ranges, got {tuple(levels)}, {tuple(scales)}")
    for scale in scales:
        _check_range("scales", scale)
    tensors = len(jax.tree.leaves(problem.param_shapes()))
    log_scales = jnp.log(jnp.asarray(scales, jnp.float32))

    def sample(key: jax.Array) -> jax.Array:
        level_key, range_key, scale_key = jax.random.split(key, 3)
        low, high = log_scales[jax.random.randint(range_key, (), 0, len(scales))]
        drawn = jnp.exp(jax.random.uniform(scale_key, (tensors,), minval=low, maxval=high))
        alternatives = {"tensor": drawn, "global": jnp.full((tensors,), drawn[0]), "none": jnp.ones(tensors)}
        return jnp.stack([alternatives[level] for level in levels])[jax.random.randint(level_key, (), 0, len(levels))]

    def rescaled(params: PyTree, scales: jax.Array) -> PyTree:
        leaves, treedef = jax.tree.flatten(params)
        return jax.tree.unflatten(treedef, [_times(leaf, scale) for leaf, scale in zip(leaves, scales, strict=True)])

    def change(task: Task, drawn: jax.Array) -> Task:
        def init(key: jax.Array) -> tuple[PyTree, PyTree]:
            params, state = task.init_with_state(key)
            return rescaled(params, 1 / drawn), state

        return task.with_functions(
            init=init,
            loss=lambda params, state, key, batch: task.loss_with_state(rescaled(params, drawn), state, key, batch),
            metrics=lambda params, state, key, batch: task.metrics_with_state(rescaled(params, drawn), state, key, batch),
        )

    return _wrap(problem, "reparametrized", sample, change)


def normalized(problem: Problem) -> TaskFamily:
    """The problem with its loss divided by that of a constant prediction, where meta-losses are concerned."""

    def scaled(task: Task) -> Task:
        return dataclasses.replace(task, normalizer=lambda loss: loss / task.initial_loss)

    return TaskFamily(
        name=problem.name,
        sample=problem.sample,
        task_fn=lambda variant: scaled(problem.task_fn(variant)),
        view=problem.view,
    )


def _wrap(
    problem: Problem,
    name: str,
    sample: Callable[[jax.Array], PyTree],
    change: Callable[[Task, Any], Task],
    view: Callable[[Any, Datasets], Datasets] = lambda drawn, datasets: datasets,
) -> TaskFamily:
    """A family whose variants are those of `problem` with something more, drawn by `sample`, that changes its tasks and data."""

    def sample_both(key: jax.Array) -> dict[str, PyTree]:
        inner_key, own_key = jax.random.split(key)
        return {"of": problem.sample(inner_key), name: sample(own_key)}

    return TaskFamily(
        name=f"{problem.name}_{name}",
        sample=sample_both,
        task_fn=lambda variant: change(problem.task_fn(variant["of"]), variant[name]),
        view=lambda variant, datasets: view(variant[name], problem.view(variant["of"], datasets)),
    )


def _times(tree: PyTree, scale: jax.Array) -> PyTree:
    return jax.tree.map(lambda leaf: leaf * scale.astype(leaf.dtype), tree)


def _log_uniform(key: jax.Array, scale: Range) -> jax.Array:
    return jnp.exp(jax.random.uniform(key, (), minval=math.log(scale[0]), maxval=math.log(scale[1])))


def _check_range(name: str, scale: Range) -> None:
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] < math.inf:
        raise ValueError(f"{name} must be a range (low, high) of numbers above zero, got {scale!r}")


@dataclasses.dataclass(frozen=True)
class FamilyConfig(TaskConfig):
    """A task that is varied: every inner training draws a scale, a part of the examples, a batch size or whatever else is set here."""

    task: TaskConfig
    """What is varied."""
    init_scale: Range | None = None
    """Range of a factor on the initial weights; None: 1."""
    input_scale: Range | None = None
    """Range of a factor on the inputs; None: 1."""
    input_field: str | None = None
    """The array of the batches that `input_scale` multiplies; None: image."""
    examples: int | None = None
    """Size of the training set that each inner training draws for itself; None: all examples."""
    batch_sizes: tuple[int, ...] = ()
    """Divisors of the task's batch size, of which each inner training draws one; none: the batch size itself."""
    reparametrize: bool = False
    """Rescale the weights at random without changing what they compute; see `lopt.task.families.reparametrize`."""
    levels: tuple[Level, ...] = CELO_LEVELS
    """What has a scale of its own in a reparametrised training: all weights together (`global`), each tensor, or nothing (`none`);
    each as likely."""
    scales: tuple[Range, ...] = CELO_SCALES
    """Ranges that a reparametrised training draws its scales from, each as likely, log-uniform within."""

    def __post_init__(self) -> None:
        if self.input_field is not None and self.input_scale is None:
            raise ValueError(f"input_field={self.input_field!r} does nothing without input_scale: leave it out")

    def make(self) -> Problem:
        """Load the data and build the family."""
        family = self.task.make()
        if self.examples is not None:
            family = vary_examples(family, self.examples)
        if self.input_scale is not None:
            family = vary_input_scale(family, self.input_field or "image", self.input_scale)
        if self.init_scale is not None:
            family = vary_init_scale(family, self.init_scale)
        if self.batch_sizes:
            family = vary_batch_size(family, self.batch_sizes)
        return reparametrize(family, self.levels, self.scales) if self.reparametrize else family


@dataclasses.dataclass(frozen=True)
class TaskMixture:
    """Several inner problems, of any shapes, and what each counts for.

    Attributes:
      problems: tasks and families.
      probabilities: the part of the meta-loss that each has; they add up to 1.
    """

    problems: tuple[Problem, ...]
    probabilities: tuple[float, ...]


def mixture(problems: Sequence[Problem], weights: Sequence[float] | None = None) -> TaskMixture:
    """Several inner problems that count in proportion to their weights; all the same, unless given.

    Raises:
      ValueError: if there are no problems, two have one name, or the weights are not one positive number for each.
    """
    names = [problem.name for problem in problems]
    weights = [1.0] * len(names) if weights is None else list(weights)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"a mixture needs problems, of different names; got {names}")
    if len(weights) != len(names) or not all(0 < weight < math.inf for weight in weights):
        raise ValueError(f"a mixture needs a positive weight for each of {names}, got {weights}")
    return TaskMixture(tuple(problems), tuple(weight / sum(weights) for weight in weights))


@dataclasses.dataclass(frozen=True)
class MixtureConfig:
    """Several inner problems to meta-train on.

    Every problem's loss is divided by that of a constant prediction, so that none counts for more because its losses are larger.
    """

    tasks: tuple[TaskConfig, ...]
    """The problems."""
    weights: tuple[float, ...] | None = None
    """What each counts for, in proportion; None: all the same."""
    GONE: ClassVar[Mapping[str, Any]] = MappingProxyType({"normalize": True})

    def make(self) -> TaskMixture:
        """Load the data and build the problems.

        Raises:
          ValueError: if there are no problems, two have one name, or the weights are not one positive number for each.
        """
        return mixture([normalized(task.make()) for task in self.tasks], self.weights)
