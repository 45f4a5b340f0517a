"""State and updates that lie on devices as the weights do."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

from lopt.symmetry.spec import PyTree


def unboxed(tree: PyTree) -> PyTree:
    """A pytree without the boxes in which flax keeps arrays with the names of their axes (`nn.Partitioned`, `nnx.Variable`)."""
    return jax.tree.map(lambda x: _inside(x) if _is_box(x) else x, tree, is_leaf=_is_box)


def boxed_like(state: PyTree, init: Callable[[PyTree], PyTree], weights: PyTree) -> PyTree:
    """A state, as `init` makes it of `unboxed(weights)`, whose leaves of a weight's shape are in the weight's box.

    So the axes of a state have the names that they have in weights. What has fewer axes has no box: that would have too many names.
    """
    if not any(map(_is_box, jax.tree.leaves(weights, is_leaf=_is_box))):
        return state

    def put(x: Any, box: Any) -> Any:
        alike = _is_box(box) and jnp.shape(x) == jnp.shape(_inside(box))
        return jax.tree.unflatten(jax.tree.structure(box), [x]) if alike else x

    boxes = jax.tree.map(lambda x: x if not _is_box(x) or len(jax.tree.leaves(x)) == 1 else _inside(x), weights, is_leaf=_is_box)
    return optax.tree.map_params(init, put, state, boxes)


def _is_box(x: Any) -> bool:
    return callable(getattr(x, "unbox", None)) or callable(getattr(x, "get_metadata", None))


def _inside(box: Any) -> PyTree:
    (found,) = jax.tree_util.default_registry.flatten_one_level(box)[0]
    return found


def init_like(init: Callable[[PyTree], PyTree], weights: PyTree) -> PyTree:
    """init(weights), zeros, of which every leaf that stands for a weight and has its shape is sharded as it is, under `jit` too.

    Outside of `jit`, and on meshes with explicit axes, what is made by `zeros_like` is; on others the compiler must be told.
    """
    return optax.tree.map_params(init, _zeros_of, init(weights), weights)


def placed_like(x: Any, w: Any) -> Any:
    """An array sharded as a weight of its shape is."""
    if not _is_untold(x, w):
        return x
    # What an elementwise operation joins is sharded alike. The compiler cannot know which of the two this takes, so it stays there.
    return jax.lax.select(jax.lax.optimization_barrier(jnp.bool_(True)), x, w.astype(x.dtype))


def _is_untold(x: Any, w: Any) -> bool:
    """Whether it is left to the compiler where x lies, though w says where it should."""
    if jax.device_count() == 1 or not isinstance(w, Tracer) or x.shape != w.shape or _explicit(w) is not None:
        return False
    return not jax.sharding.get_abstract_mesh().manual_axes


def _zeros_of(x: Any, w: Any) -> Any:
    # Zeros of one shape are one constant to the compiler, which has one sharding for all of them; these are computed, each from its weight.
    zero = jnp.float32(0)
    return jax.lax.clamp(zero, jax.lax.is_finite(w).astype(jnp.float32), zero).astype(x.dtype) if _is_untold(x, w) else x


def _explicit(x: Any) -> NamedSharding | None:
    """Where an array lies, if that is part of its type."""
    sharding = jax.typeof(x).sharding
    return sharding if sharding.mesh.explicit_axes else None


def on_any_mesh(fn: Callable[..., PyTree], like: PyTree, *args: PyTree) -> PyTree:
    """fn(*args), where arguments may lie on a mesh with explicit axes, which products and reshapes would have to be told of one by one.

    Args:
      fn: pure.
      like: of the structure of what it returns, sharded as that is to be.
      *args: pytrees of arrays.
    """
    found = [sharding for x in jax.tree.leaves(args) if (sharding := _explicit(x)) is not None]
    if not found:
        return fn(*args)
    whole = NamedSharding(found[0].mesh, PartitionSpec())
    out = jax.tree.map(lambda x: _explicit(x) or whole, like)
    return jax.sharding.auto_axes(fn, out_sharding=out)(*args)
