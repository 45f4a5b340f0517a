"""What an inner problem must offer: `Task`, the `TaskFamily` it may be one of, and the `Datasets` that feed it.

The nouns and argument orders are those of `learned_optimization.tasks.base.Task`.
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from lopt.symmetry.spec import WeightSpec
from lopt.task.data import ArraySplit, Batch, Datasets, DataStream, Split, uniform_index

__all__ = [
    "ArraySplit",
    "Batch",
    "DataStream",
    "Datasets",
    "Problem",
    "PyTree",
    "Split",
    "Start",
    "Task",
    "TaskConfig",
    "TaskFamily",
    "uniform_index",
]

PyTree = Any


@dataclasses.dataclass(frozen=True)
class _Derived:
    """A function of a task made of its other functions. Marked, so that `dataclasses.replace` of those makes it anew."""

    fn: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        return self.fn(*args)


_NOT_GIVEN = _Derived(lambda *args: None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One inner problem, as pure functions.

    A model without state gives `init`, `loss` and perhaps `metrics`. A model with state that is not trained, such as the running
    statistics of batch normalisation, gives the three that end in `with_state` instead. Either way all six can be called: of a task
    without state, the state is `()`; of one with state, `loss` and `metrics` take that of an initialisation.

    Attributes:
      name: for logs and tables.
      init: `init(key) -> params`, a pytree of weights.
      loss: `loss(params, key, batch) -> scalar` float32; `key` is for stochastic models, such as dropout.
      metrics: `metrics(params, key, batch) -> {name: scalar}`, such as accuracy in [0, 1]. Evaluation reports them on the test split,
        with the loss; one named "loss" takes its place, for a model that behaves otherwise in training.
      init_with_state: `init_with_state(key) -> (params, state)`, the state a pytree of arrays.
      loss_with_state: `loss_with_state(params, state, key, batch) -> (loss, state)`, the new state of the same shapes and dtypes.
      metrics_with_state: `metrics_with_state(params, state, key, batch) -> {name: scalar}`.
      spec: the true symmetry of `loss`: a group element leaves the loss unchanged.
      datasets: where batches come from; `datasets.at(step)` are those of an outer step, and an evaluation's are `datasets.at(0)`.
      initial_loss: loss of a constant prediction (ln of the number of classes): the scale against which losses are capped.
      normalizer: maps a loss to a scale common to all tasks; the identity unless tasks are mixed.
      files: name -> text of files that belong to the task, such as its tokenizer; a run keeps them.

    Raises:
      ValueError: if the functions given are neither `init` and `loss` nor `init_with_state` and `loss_with_state`.
    """

    name: str
    init: Callable[[jax.Array], PyTree] = _NOT_GIVEN
    loss: Callable[[PyTree, jax.Array, Batch], jax.Array] = _NOT_GIVEN
    metrics: Callable[[PyTree, jax.Array, Batch], dict[str, jax.Array]] = _NOT_GIVEN
    init_with_state: Callable[[jax.Array], tuple[PyTree, PyTree]] = _NOT_GIVEN
    loss_with_state: Callable[[PyTree, PyTree, jax.Array, Batch], tuple[jax.Array, PyTree]] = _NOT_GIVEN
    metrics_with_state: Callable[[PyTree, PyTree, jax.Array, Batch], dict[str, jax.Array]] = _NOT_GIVEN
    spec: WeightSpec
    datasets: Datasets | DataStream
    initial_loss: float
    normalizer: Callable[[jax.Array], jax.Array] = lambda loss: loss
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make the functions that were not given of those that were."""
        plain, stateful = ("init", "loss", "metrics"), ("init_with_state", "loss_with_state", "metrics_with_state")
        given = {name for name in plain + stateful if not isinstance(getattr(self, name), _Derived)}
        has_state = not given.isdisjoint(stateful)
        kept, others = (stateful, plain) if has_state else (plain, stateful)
        if not {*kept[:2]} <= given or not given.isdisjoint(others):
            raise ValueError(
                f"task '{self.name}' is given {', '.join(sorted(given)) or 'no functions'}; it needs init and loss (and may have "
                "metrics), or, for a model with state, init_with_state and loss_with_state (and may have metrics_with_state)"
            )
        derived = dict(zip(others, (_without_state if has_state else _with_empty_state)(self), strict=True))
        if kept[2] not in given:
            derived[kept[2]] = lambda *args: {}
        for name, fn in derived.items():
            object.__setattr__(self, name, _Derived(fn))

    def with_functions(
        self,
        init: Callable[[jax.Array], tuple[PyTree, PyTree]] | None = None,
        loss: Callable[[PyTree, PyTree, jax.Array, Batch], tuple[jax.Array, PyTree]] | None = None,
        metrics: Callable[[PyTree, PyTree, jax.Array, Batch], dict[str, jax.Array]] | None = None,
    ) -> "Task":
        """The task with other functions `init_with_state`, `loss_with_state` and `metrics_with_state`, for wrappers of tasks."""
        return dataclasses.replace(
            self,
            init=_NOT_GIVEN,
            loss=_NOT_GIVEN,
            metrics=_NOT_GIVEN,
            init_with_state=init or _given(self.init_with_state),
            loss_with_state=loss or _given(self.loss_with_state),
            metrics_with_state=metrics or _given(self.metrics_with_state),
        )

    def param_shapes(self) -> PyTree:
        """Shapes and dtypes of the params, without computing them."""
        return jax.eval_shape(self.init, jax.random.key(0))

    # What a `TaskFamily` offers: a task is the family of itself alone, so that nobody need ask which of the two a problem is.

    @property
    def example(self) -> "Task":
        """The task itself."""
        return self

    def sample(self, key: jax.Array) -> PyTree:
        """Nothing is drawn."""
        del key
        return ()

    def task_fn(self, variant: PyTree) -> "Task":
        """The task itself."""
        del variant
        return self

    def view(self, variant: PyTree, datasets: Datasets) -> Datasets:
        """All of the data."""
        del variant
        return datasets

    def start(self, key: jax.Array) -> "Start":
        """Initialise."""
        return Start((), *self.init_with_state(key))

    def __repr__(self) -> str:
        """Without the data: a task stands in messages."""
        return f"Task({self.name!r}, {len(self.spec.paths)} leaves)"


def _given(fn: Callable[..., Any]) -> Callable[..., Any]:
    return fn.fn if isinstance(fn, _Derived) else fn


def _with_empty_state(task: Task) -> tuple[Callable[..., Any], ...]:
    return (
        lambda key: (task.init(key), ()),
        lambda params, state, key, batch: (task.loss(params, key, batch), state),
        lambda params, state, key, batch: task.metrics(params, key, batch),
    )


def _without_state(task: Task) -> tuple[Callable[..., Any], ...]:
    def state(key: jax.Array) -> PyTree:
        return task.init_with_state(key)[1]

    return (
        lambda key: task.init_with_state(key)[0],
        lambda params, key, batch: task.loss_with_state(params, state(key), key, batch)[0],
        lambda params, key, batch: task.metrics_with_state(params, state(key), key, batch),
    )


class Start(NamedTuple):
    """What an inner training starts from.

    Attributes:
      variant: what was drawn of the family; `()` of a single task.
      params: initial weights.
      state: initial state of the model.
    """

    variant: PyTree
    params: PyTree
    state: PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskFamily:
    """Tasks of one shape that differ in what is drawn of the family at the start of each inner training: its *variant*.

    A variant is a pytree of arrays, such as a scale of the initial weights or the indices of the examples to train on. It is drawn
    and used inside compiled programs, so that all inner trainings of a family are one program. Alike in all tasks of a family are
    the shapes and the spec of the params, the datasets, `initial_loss` and `normalizer`.

    Attributes:
      name: for logs and tables.
      sample: `sample(key) -> variant`.
      task_fn: `task_fn(variant) -> Task`; the variant may be traced.
      view: `view(variant, datasets) -> datasets`, what this task sees of the data; all of them, unless given. Batches must have the
        same shapes in all variants.
    """

    name: str
    sample: Callable[[jax.Array], PyTree]
    task_fn: Callable[[PyTree], Task]
    view: Callable[[PyTree, Datasets], Datasets] = lambda variant, datasets: datasets

    @functools.cached_property
    def example(self) -> Task:
        """One of the tasks, for what is alike in all."""
        with jax.ensure_compile_time_eval():  # kept, so it must not hold tracers of whoever asks first
            return self.task_fn(self.sample(jax.random.key(0)))

    @property
    def spec(self) -> WeightSpec:
        return self.example.spec

    @property
    def datasets(self) -> Datasets | DataStream:
        return self.example.datasets

    def param_shapes(self) -> PyTree:
        """Shapes and dtypes of the params, without computing them."""
        return self.example.param_shapes()

    def start(self, key: jax.Array) -> Start:
        """Draw a variant and initialise its task: params are `init(key)`'s, whatever the family."""
        variant = self.sample(jax.random.fold_in(key, _VARIANT))
        return Start(variant, *self.task_fn(variant).init_with_state(key))


_VARIANT = zlib.crc32(b"lopt.task.base.variant")  # far from the small numbers that initialisers fold into their key
Problem = Task | TaskFamily  # what can be meta-trained on and raced; both offer what a family does


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """Base of every task's config: the fields are the task's settings, `make` builds it."""

    def make(self) -> Problem:
        """Load the data and build the task, or the family of tasks.

        Raises:
          NotImplementedError: by a config that does not say how its task is made.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define make()")
