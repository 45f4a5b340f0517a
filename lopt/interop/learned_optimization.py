"""The package `learned_optimization`: its tasks under our estimators and evaluations, our optimizers under its trainer.

Its `Task` has the nouns of ours, and its `LearnedOptimizer` too. The differences bridged here: its data are host iterators, its
optimizers' states own the params, its keys are untyped, and its code expects JAX's default promotions.

Version 0.0.1, the only release, asks for packages of 2022. With Python 3.11 or later install what it imports, then it alone:

    pip install -e '.[interop]'                            # in a clone; elsewhere pip install 'lopt[interop] @ git+ADDRESS'
    pip install --no-deps learned-optimization==0.0.1

and call `restore_jax_names` before importing it. What of it cannot be imported even so: docs/interop.md.

References:
  Metz, Freeman, Harrison, Maheswaranathan, Sohl-Dickstein, "Practical tradeoffs between memory, compute, and performance in learned
  optimizers" (CoLLAs 2022), and its package.
"""

import contextlib
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lopt.optimizers.momentum import LearnedOptimizer
from lopt.symmetry.spec import PyTree, WeightSpec
from lopt.task.base import Batch, Datasets, Task
from lopt.task.from_loss import task_from_loss
from lopt.task.splits import BatchSplit


def restore_jax_names() -> list[str]:
    """Put back on the `jax` module the names that version 0.0.1 uses and JAX has since removed; names that are there stay.

    Returns:
      The names that were missing.
    """
    trees = ("map", "leaves", "flatten", "unflatten", "structure")
    names: dict[str, Any] = {f"tree_{name}": getattr(jax.tree, name) for name in trees}
    names |= {"tree_multimap": jax.tree.map, "ShapedArray": jax.ShapeDtypeStruct}
    missing = [name for name in names if not hasattr(jax, name)]
    for name in missing:
        setattr(jax, name, names[name])
    if not hasattr(jax.lib, "xla_client"):  # used in annotations
        jax.lib.xla_client = types.SimpleNamespace(Device=jax.Device)  # pyright: ignore[reportAttributeAccessIssue]
        missing.append("lib.xla_client")
    return missing


@contextlib.contextmanager
def _default_promotions() -> Iterator[None]:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def from_lo_task(lo_task: Any, spec: WeightSpec | None = None, *, batches: int = 64, initial_loss: float | None = None) -> Task:
    """A task of `learned_optimization` as one of ours, for meta-training, racing and inspecting.

    Its model state is carried along; the scalars of its `loss_and_aux` are the metrics of a task without one.

    Args:
      lo_task: an instance of its `Task`.
      spec: the symmetry of its loss; None: inferred.
      batches: M. Its data are host iterators without an end: the next M batches of each of the four splits are read and kept on the
        device, and drawn from there. Its iterators have no seed, so another process reads other batches: a run that is to be
        resumed bit for bit needs a task whose iterators start alike.
      initial_loss: loss of a constant prediction; None: the mean loss of some initialisations.

    Raises:
      ValueError: as `task_from_loss`; or if the batches of a split differ in shape.
    """

    def init(key: jax.Array) -> tuple[PyTree, PyTree]:
        with _default_promotions():
            return lo_task.init_with_state(jax.random.key_data(key))

    def loss(params: PyTree, state: PyTree, key: jax.Array, batch: Batch) -> tuple[jax.Array, PyTree]:
        with _default_promotions():
            return lo_task.loss_with_state(params, state, jax.random.key_data(key), batch)

    def metrics(params: PyTree, state: PyTree, key: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        if state is not None:
            return {}
        with _default_promotions():
            _, aux = lo_task.loss_and_aux(params, jax.random.key_data(key), batch)
        return {name: value for name, value in aux.items() if jnp.ndim(value) == 0}

    def normalizer(loss: jax.Array) -> jax.Array:
        with _default_promotions():
            return lo_task.normalizer(loss)

    return task_from_loss(
        init,
        loss,
        _read_datasets(lo_task.datasets, batches),
        name=lo_task.name,
        metrics=metrics,
        normalizer=normalizer,
        has_state=True,
        spec=spec,
        initial_loss=initial_loss,
    )


def _read_datasets(lo_datasets: Any, batches: int) -> Datasets:
    if lo_datasets is None:
        return Datasets(*[BatchSplit({}, 1)] * 4)
    names = ("train", "inner_valid", "outer_valid", "test")
    return Datasets(*(BatchSplit.read(iter(lo_datasets.split(name)), batches) for name in names))


class LOState(NamedTuple):
    """State of one of our optimizers under their interface, which owns the params.

    Attributes:
      params: weights.
      state: state of the model; None for most.
      optimizer: state of the transform.
      iteration: steps done, int32 [].
      num_steps: how many the training has, []; None where that is not told.
    """

    params: PyTree
    state: PyTree
    optimizer: PyTree
    iteration: jax.Array
    num_steps: jax.Array | None = None


def as_lo_optimizer(optimizer: LearnedOptimizer, name: str = "lopt") -> Any:
    """One of our learned optimizers as a `LearnedOptimizer` of `learned_optimization`, for its gradient estimators and trainer.

    Args:
      optimizer: one that fits the params of the tasks it is to train; `from_lo_task(lo_task).spec` is what to make it for.
      name: of the optimizer, for their logs.

    Returns:
      An instance of their class: `init(key) -> theta`, `opt_fn(theta, is_training) -> Optimizer`.

    Raises:
      ImportError: if the package cannot be imported, saying how to install it.
    """
    bases = _import_bases()

    class Optimizer(bases.optimizer):
        """An optax transform under their interface."""

        def __init__(self, transform: optax.GradientTransformationExtraArgs):
            self._transform = transform

        def init(
            self, params: PyTree, model_state: PyTree = None, num_steps: Any = None, key: Any = None, **unused: Any
        ) -> LOState:
            del key, unused
            told = None if num_steps is None else jnp.asarray(num_steps, jnp.float32)
            return LOState(params, model_state, self._transform.init(params), jnp.zeros((), jnp.int32), told)

        def update(
            self, opt_state: LOState, grad: PyTree, loss: Any = None, model_state: PyTree = None, key: Any = None, **unused: Any
        ) -> LOState:
            del key, unused
            told = {} if opt_state.num_steps is None else {"num_steps": opt_state.num_steps}
            updates, state = self._transform.update(grad, opt_state.optimizer, opt_state.params, value=loss, **told)
            params = optax.apply_updates(opt_state.params, updates)
            return LOState(params, model_state, state, opt_state.iteration + 1, opt_state.num_steps)

        @property
        def name(self) -> str:
            return name

    class Learned(bases.learned_optimizer):
        """Our learned optimizer under their interface."""

        def init(self, key: jax.Array) -> PyTree:
            typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
            return optimizer.init(key if typed else jax.random.wrap_key_data(key))

        def opt_fn(self, theta: PyTree, is_training: bool = False) -> Optimizer:
            del is_training
            return Optimizer(optimizer.opt_fn(theta))

    return Learned()


class _Bases(NamedTuple):
    optimizer: Any
    learned_optimizer: Any


def _import_bases() -> _Bases:
    try:
        from learned_optimization.learned_optimizers import base as learned_optimizers  # pyright: ignore[reportMissingImports]
        from learned_optimization.optimizers import base as optimizers  # pyright: ignore[reportMissingImports]
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f"learned_optimization cannot be imported ({error}): pip install -e '.[interop]' in the clone, or pip install "
            "'lopt[interop] @ git+ADDRESS' with its address; pip install --no-deps learned-optimization==0.0.1; and call "
            "lopt.interop.learned_optimization.restore_jax_names() first"
        ) from error
    return _Bases(optimizers.Optimizer, learned_optimizers.LearnedOptimizer)
