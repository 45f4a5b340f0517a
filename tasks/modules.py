"""What the tasks' models share: activations, initial weights, checks of settings, and the way from a flax module to pure functions."""

import pathlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

PyTree = Any
Initializer = Callable[..., jax.Array]  # (key, shape, dtype) -> array

Activation = Literal["relu", "gelu", "silu", "elu", "tanh", "sigmoid"]
ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = MappingProxyType(
    {
        "relu": jax.nn.relu,
        "gelu": jax.nn.gelu,
        "silu": jax.nn.silu,
        "elu": jax.nn.elu,
        "tanh": jnp.tanh,
        "sigmoid": jax.nn.sigmoid,
    }
)


def lecun(scale: float = 1.0) -> Initializer:
    """Truncated normal of variance scale^2 / fan-in: flax's default for `scale` 1. The scale multiplies the deviation."""
    return jax.nn.initializers.variance_scaling(scale**2, "fan_in", "truncated_normal")


def pure(build: Callable[[nnx.Rngs], nnx.Module]) -> tuple[Callable[[jax.Array], PyTree], Callable[..., jax.Array]]:
    """A flax module as a pair of pure functions.

    The module exists while a function is traced and leaves only its arithmetic in the program.

    Args:
      build: `build(rngs) -> module`, whose weights are drawn from the stream `rngs.params`.

    Returns:
      init: `init(key) -> params`, the module's `nnx.Param`s as nested dicts.
      apply: `apply(params, *inputs)`, what the module returns.

    Example:
      >>> init, apply = pure(lambda rngs: nnx.Linear(3, 2, rngs=rngs))
      >>> params = init(jax.random.key(0))
      >>> sorted(params), apply(params, jnp.ones((5, 3))).shape
      (['bias', 'kernel'], (5, 2))
    """

    def module(key: jax.Array) -> nnx.Module:
        return build(nnx.Rngs(params=key))

    graph, _ = nnx.split(nnx.eval_shape(lambda: module(jax.random.key(0))))

    def init(key: jax.Array) -> PyTree:
        return nnx.to_pure_dict(nnx.state(module(key), nnx.Param))

    def apply(params: PyTree, *inputs: jax.Array) -> jax.Array:
        return nnx.merge(graph, nnx.State(params))(*inputs)

    return init, apply


def short_name(dataset: str) -> str:
    """What the name of a task has of its data set: of a path its last part."""
    return pathlib.PurePath(dataset).name


def check_count(field: str, value: Any, smallest: int = 1) -> None:
    """Raise `ValueError`, naming the field, unless the value is an integer of at least `smallest`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
        raise ValueError(f"{field} must be an integer of at least {smallest}, not {value!r}")


def check_counts(field: str, value: Any, fewest: int = 0) -> None:
    """Raise `ValueError`, naming the field and the position, unless the value is a tuple of at least `fewest` positive integers."""
    if not isinstance(value, tuple):
        raise ValueError(f"{field} must be a tuple of integers such as (32,), not {value!r}")
    if len(value) < fewest:
        raise ValueError(f"{field} must have at least {fewest} {'entry' if fewest == 1 else 'entries'}, not {value!r}")
    for index, item in enumerate(value):
        check_count(f"{field}[{index}]", item)


def check_positive(field: str, value: Any) -> None:
    """Raise `ValueError`, naming the field, unless the value is a positive and finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ValueError(f"{field} must be a positive number, not {value!r}")


def check_activation(field: str, value: Any) -> None:
    """Raise `ValueError`, naming the field, unless the value is the name of an activation."""
    if value not in ACTIVATIONS:
        raise ValueError(f"{field} must be one of {', '.join(ACTIVATIONS)}, not {value!r}")
