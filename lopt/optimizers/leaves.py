"""Which leaves of somebody's params are weights, and which gradient is of which.

Params may be a whole model, with functions, counters and keys among its leaves. Weights are its arrays of floats; what is not a weight
has no state and no update. A complex weight is two real ones: its real and its imaginary part are leaves of the weights.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lopt.symmetry.spec import PyTree, named_leaves

_HOLDERS = ("/value", "/raw_value")  # flax.nnx puts one of these behind a path, or not, depending on who asks


def plain_path(path: str) -> str:
    """The path of a leaf as specs have it, without what flax.nnx holds it in."""
    return next((path.removesuffix(holder) for holder in _HOLDERS if path.endswith(holder)), path)


def is_weight(leaf: Any) -> bool:
    """Whether a leaf can be trained: an array of floats, real or complex, or a number that is one."""
    dtype = getattr(leaf, "dtype", None)
    return isinstance(leaf, float | complex) if dtype is None else bool(jnp.issubdtype(dtype, jnp.inexact))


def weights_of(params: PyTree) -> PyTree:
    """Params with real arrays as leaves, and None where a leaf is not a weight.

    Example:
      >>> weights = weights_of({"w": jnp.ones(2), "z": jnp.ones(3, jnp.complex64), "act": jnp.tanh, "count": 3})
      >>> jax.tree.map(jnp.shape, weights)
      {'act': None, 'count': None, 'w': (2,), 'z': {'imaginary': (3,), 'real': (3,)}}
    """
    return jax.tree.map(lambda leaf: _real(leaf) if is_weight(leaf) else None, params)


def _is_complex(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating)


def _real(leaf: Any) -> Any:
    if not _is_complex(leaf):
        return leaf if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) else jnp.asarray(leaf)
    return {"real": jnp.real(leaf), "imaginary": jnp.imag(leaf)}


class Pairs(NamedTuple):
    """Weights and their gradients.

    Attributes:
      weights: as `weights_of` has them.
      grads: float32, of the structure of the weights; zero for a weight that has none.
      updates: `updates(steps)`: of the structure of the gradients as they were given, from one step for each leaf of `weights`: None
        where a gradient is None, and zero for a leaf whose gradients have no values (float0).
    """

    weights: PyTree
    grads: PyTree
    updates: Callable[[list[jax.Array]], PyTree]


def pair(updates: PyTree, params: PyTree, has_state: Callable[[PyTree], bool]) -> Pairs:
    """The weights that an optimizer's state is of, each with its gradient.

    Args:
      updates: gradients; None or a float0 where a leaf of the params has none.
      params: all that gradients are of, and more.
      has_state: whether the state is that of such weights. Tried are the leaves that have gradients, then all that are weights.

    Raises:
      ValueError: naming the leaf that has a gradient and is missing or not a weight, or what state and params differ in.
    """
    named, given = named_leaves(params), named_leaves(updates)
    alike = jax.tree.structure(updates) == jax.tree.structure(params)
    if alike:  # though keys may be written otherwise
        given = [(path, g) for (path, _), (_, g) in zip(named, given, strict=True)]
    gradients = {path: g for path, g in given if is_weight(g)}
    leaves = dict(named)
    for path, g in given:
        if path not in leaves:
            raise ValueError(f"there is a gradient for '{path}', which the params lack: they have {list(leaves)}")
        if path in gradients and not is_weight(leaves[path]):
            raise ValueError(
                f"there is a gradient for '{path}', but only arrays of floats are trained, and it is {_shown(leaves[path])}"
            )
        if path not in gradients and is_weight(leaves[path]) and getattr(g, "dtype", None) != jax.dtypes.float0:
            raise ValueError(f"the gradient for '{path}' is {_shown(g)}, not an array of floats")
        if path in gradients and _is_complex(g) and not _is_complex(leaves[path]):
            raise ValueError(f"the gradient for '{path}' is {_shown(g)}, but the weight is real")
        if path in gradients and jnp.shape(g) != jnp.shape(leaves[path]):
            raise ValueError(f"the gradient for '{path}' has shape {jnp.shape(g)}, the weight {jnp.shape(leaves[path])}")
    choices = [gradients.keys(), [path for path, leaf in named if is_weight(leaf)]]
    if alike and len(gradients) == len(named):
        chosen = set(gradients)
    else:
        chosen = next((set(paths) for paths in choices if has_state(_only(params, named, set(paths)))), None)
    if chosen is None:
        without = [path for path in choices[1] if path not in gradients]
        raise ValueError(
            "the optimizer's state was not made for these weights: call init with the params that gradients are of, such as "
            "equinox.filter(model, equinox.is_inexact_array)" + (f"; {without} have no gradients" if without else "")
        )
    weights = _only(params, named, chosen)
    zeros_or = [_gradient(gradients.get(path), leaf) if path in chosen else None for path, leaf in named]
    grads = jax.tree.unflatten(jax.tree.structure(params), zeros_or)

    def back(steps: list[jax.Array]) -> PyTree:
        rest, found = iter(steps), {}
        for path, leaf in named:
            if path in chosen:
                parts = [next(rest) for _ in range(1 + _is_complex(leaf))]  # dicts are sorted: the imaginary part is first
                found[path] = parts[0] if len(parts) == 1 else jax.lax.complex(parts[1], parts[0]).astype(jnp.result_type(leaf))
        kept = [found[path] if path in gradients else jnp.zeros_like(leaves[path]) for path, _ in given]
        return jax.tree.unflatten(jax.tree.structure(updates), kept)

    return Pairs(weights, grads, back)


def _only(params: PyTree, named: list[tuple[str, Any]], paths: set[str]) -> PyTree:
    return weights_of(jax.tree.unflatten(jax.tree.structure(params), [leaf if path in paths else None for path, leaf in named]))


def _gradient(g: Any, leaf: Any) -> Any:
    if g is None:
        return jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), _real(leaf))
    if not _is_complex(leaf):
        return jnp.asarray(g).astype(jnp.float32)
    return {"real": jnp.real(g).astype(jnp.float32), "imaginary": jnp.imag(g).astype(jnp.float32)}


def _shown(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "dtype") else repr(leaf)
