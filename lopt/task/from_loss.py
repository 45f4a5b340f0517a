"""A task of anybody's own: an initialiser, a loss and data; its symmetry is inferred."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from lopt.symmetry import SpecError, WeightSpec, infer_spec
from lopt.symmetry.check import failing_names
from lopt.symmetry.spec import PyTree, named_leaves
from lopt.task.base import Batch, Datasets, DataStream, Task
from lopt.task.splits import split_arrays

_DRAWS = 8  # initialisations whose mean loss is the initial loss
_KEYS = 256  # of a loss with noise, whose mean a spec must leave unchanged


def task_from_loss(
    init: Callable[[jax.Array], PyTree],
    loss: Callable[..., Any],
    datasets: Datasets | DataStream | Mapping[str, ArrayLike],
    *,
    name: str = "task",
    metrics: Callable[..., dict[str, jax.Array]] | None = None,
    has_state: bool = False,
    spec: WeightSpec | None = None,
    initial_loss: float | None = None,
    normalizer: Callable[[jax.Array], jax.Array] | None = None,
    batch_size: int = 128,
    split_seed: int = 0,
) -> Task:
    """A task of any JAX loss, whatever library its model is written in.

    Args:
      init: `init(key) -> params`, a pytree whose leaves are all arrays of real floats. Of a model that holds other things too
        (activations, sizes), give its arrays, and put it together again in the loss: `equinox.partition` and `combine`,
        `flax.nnx.split` and `merge`.
      loss: `loss(params, key, batch) -> scalar`; `key` is a typed key, for dropout and the like.
      datasets: what batches are drawn from: a `Datasets`, a `DataStream`, or arrays of N examples, name -> [N, ...], which are split
        into train, inner valid, outer valid and test, 70 : 10 : 10 : 10, and moved to the device.
      name: for logs and tables.
      metrics: `metrics(params, key, batch) -> {name: scalar}`, reported on the test split.
      has_state: the model has a state that is not trained (running statistics): then `init(key) -> (params, state)`,
        `loss(params, state, key, batch) -> (loss, state)` and `metrics(params, state, key, batch)`.
      spec: the symmetry of the loss, which is checked by random group elements. None: inferred from it. A dropped-out axis is then
        fixed, as a mask moves the loss of one key; give `infer_spec` of the loss without dropout to have it permutable.
      initial_loss: loss of a constant prediction (ln of the number of classes), against which losses are capped. None: the mean loss
        of some initialisations on training batches.
      normalizer: maps a loss to a scale common to all tasks that are mixed; None: the identity.
      batch_size: B, where `datasets` are arrays.
      split_seed: of the split, where `datasets` are arrays.

    Returns:
      A `Task`.

    Raises:
      ValueError: if a leaf of the params is not an array of real floats, the loss or a metric is not a scalar, the loss of the
        initialisations is not finite, or not positive and `initial_loss` is not given, or the arrays do not fit together.
      SpecError: if the params have no leaves, or the spec does not describe them, or the loss changes under its permutations.

    Example:
      >>> x = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
      >>> def init(key):
      ...     return {"w0": jax.random.normal(key, (3, 4)), "w1": jnp.ones((4, 2))}
      >>> def loss(params, key, batch):
      ...     error = jnp.tanh(batch["x"] @ params["w0"]) @ params["w1"] - batch["y"]
      ...     return jnp.mean(error**2)
      >>> print(task_from_loss(init, loss, {"x": x, "y": x[:, :2]}, batch_size=8).spec)
      w0  w0.in! w0
      w1  w0 w1.out!
    """
    data = _splits(name, datasets, batch_size, split_seed)
    suffix = "_with_state" if has_state else ""
    functions = {f"init{suffix}": init, f"loss{suffix}": loss, f"metrics{suffix}": metrics, "normalizer": normalizer}
    given: dict[str, Any] = {field: fn for field, fn in functions.items() if fn is not None}

    def start(key: jax.Array) -> tuple[PyTree, PyTree]:
        return init(key) if has_state else (init(key), ())

    def loss_alone(params: PyTree, state: PyTree, key: jax.Array, batch: Batch) -> jax.Array:
        return loss(params, state, key, batch)[0] if has_state else loss(params, key, batch)

    key = jax.random.key(0)
    params, state = start(key)
    _check_params(name, params)
    batch = data.at(0).train.batch(key)
    _check_loss(name, jax.eval_shape(loss_alone, params, state, key, batch))
    if metrics is not None:
        _check_metrics(name, jax.eval_shape(metrics, params, *((state,) if has_state else ()), key, batch))
    if spec is None:
        spec = infer_spec(loss_alone, params, state, key, batch)
    else:
        spec.validate(params)
        _check_spec(name, spec, params, lambda params, key: loss_alone(params, state, key, batch))
    if initial_loss is None:
        initial_loss = _mean_initial_loss(name, start, loss_alone, data.at(0))
    return Task(name=name, spec=spec, datasets=data, initial_loss=initial_loss, **given)


def _splits(name: str, datasets: Any, batch_size: int, seed: int) -> Datasets | DataStream:
    if isinstance(datasets, Datasets | DataStream):
        return datasets
    if isinstance(datasets, Mapping):
        return split_arrays(datasets, batch_size, seed=seed)
    raise ValueError(
        f"the datasets of task '{name}' are of type {type(datasets).__name__}; give arrays by name, such as {{'x': x, 'y': y}}, which "
        "the loss finds under the same names in its batch (or a lopt.task.Datasets or DataStream)"
    )


def _check_params(name: str, params: PyTree) -> None:
    for path, leaf in named_leaves(params):
        if not isinstance(leaf, jax.Array | np.ndarray):
            raise ValueError(
                f"init of task '{name}' returns at '{path}' {leaf!r}, which is not an array; let it return the arrays alone and put "
                "the model together in the loss, as equinox.partition and equinox.combine or flax.nnx.split and flax.nnx.merge do"
            )
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            advice = (
                "its real and its imaginary part are two leaves, from which the loss makes the complex number"
                if jnp.issubdtype(leaf.dtype, jnp.complexfloating)
                else "what is not trained belongs into the loss, or into the state that has_state=True asks for"
            )
            raise ValueError(
                f"init of task '{name}' returns at '{path}' an array of {leaf.dtype}, but weights are real floats: {advice}"
            )


def _check_loss(name: str, loss: Any) -> None:
    if getattr(loss, "shape", None) != () or not jnp.issubdtype(loss.dtype, jnp.floating):
        raise ValueError(f"the loss of task '{name}' is to be a scalar of a real float type, but it is {loss}")


def _check_metrics(name: str, metrics: Any) -> None:
    if not isinstance(metrics, Mapping):
        raise ValueError(f"the metrics of task '{name}' are to be a dict, name -> scalar, but they are {metrics}")
    for metric, value in metrics.items():
        if getattr(value, "shape", None) != ():
            raise ValueError(
                f"metric '{metric}' of task '{name}' is to be a scalar, but it is {value}; take its mean, or give parts names"
            )


def _check_spec(name: str, spec: WeightSpec, params: PyTree, loss: Callable[[PyTree, jax.Array], jax.Array]) -> None:
    """Raise `SpecError` where the loss changes under the spec's permutations; under dropout, where its mean over keys does."""
    keys = jax.random.split(jax.random.key(1), _KEYS)
    losses = jax.jit(lambda params, keys: jax.lax.map(lambda key: loss(params, key), keys))
    few = np.asarray(losses(params, keys[:2]))
    noisy = bool(few[0] != few[1])

    def close(before: np.ndarray, after: np.ndarray) -> bool:
        error = np.sqrt((np.var(before) + np.var(after)) / len(before))
        return bool(abs(np.mean(before) - np.mean(after)) <= 6.0 * error + 1e-4 * abs(np.mean(before)))

    def evaluate(params: PyTree) -> np.ndarray:
        return np.asarray(losses(params, keys if noisy else keys[:2]), np.float64)

    wrong = failing_names(evaluate, spec, params, jax.random.key(0), close)
    if wrong:
        leaves = {n: [path for path in spec.paths if n in {factor.name for factor in spec.factors(path)}] for n in wrong}
        listing = "; ".join(f"'{n}' (in {', '.join(paths)})" for n, paths in leaves.items())
        raise SpecError(
            f"the spec of task '{name}' is not true of its loss, which changes under permutations of {listing}: fix them with `!`, tie "
            "what must move with them by the same name, or leave spec out, to have it inferred"
        )


def _mean_initial_loss(name: str, start: Callable[[jax.Array], Any], loss: Callable[..., jax.Array], datasets: Datasets) -> float:
    def one(datasets: Datasets, key: jax.Array) -> jax.Array:
        init_key, batch_key, loss_key = jax.random.split(key, 3)
        return loss(*start(init_key), loss_key, datasets.train.batch(batch_key)).astype(jnp.float32)

    keys = jax.random.split(jax.random.key(0), _DRAWS)
    mean = float(jnp.mean(jax.jit(lambda datasets: jax.lax.map(functools.partial(one, datasets), keys))(datasets)))
    if not math.isfinite(mean) or mean <= 0:
        raise ValueError(
            f"the loss of task '{name}' is {mean} on average over {_DRAWS} initialisations, which says nothing about its scale; "
            "give initial_loss, the loss of a constant prediction"
            + ("" if math.isfinite(mean) else ", and see that init gives weights at which the loss is finite")
        )
    return mean
