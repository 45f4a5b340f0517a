"""The numerical check of a spec: does a function really keep its value under the spec's permutations?"""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lopt.symmetry.spec import PyTree, WeightSpec


def drop_failing(evaluate: Callable[[PyTree], Any], spec: WeightSpec, params: PyTree, key: jax.Array) -> WeightSpec:
    """Fix every name under whose permutations `evaluate` changes, with a warning that lists them.

    Every name is tried with two elements that generate all permutations of its indices, a cycle and a transposition, randomly
    relabelled. The weights are random, as freshly initialised ones (zero biases, unit scales) are more symmetric than others.

    Args:
      evaluate: maps params to any pytree of arrays, such as a loss.
      spec: describes `params`.
      params: arrays or `jax.ShapeDtypeStruct`s; arrays set the scale of the random weights.
      key: draws weights and permutations.

    Returns:
      the spec with the names that failed fixed.
    """
    weights_key, element_key = jax.random.split(key)
    weights, before = _generic_point(evaluate, params, weights_key)
    if not _finite(before):
        warnings.warn("the inferred spec could not be checked: the function's value is not finite at these params", stacklevel=3)
        return spec
    tolerance = _tolerance(params)
    sizes = spec.sizes(params)
    failing = []
    for index, name in enumerate(spec.permutable):
        elements = _generators(jax.random.fold_in(element_key, index), sizes[name])
        if not all(_close(before, evaluate(spec.permute(weights, {name: element})), tolerance) for element in elements):
            failing.append(name)
    if failing:
        warnings.warn(
            f"the function's value changes under permutations of {failing}, which are now fixed in the inferred spec. Either the "
            "function is too sensitive to rounding for this check, or a rule of lopt.symmetry.rules is wrong: please report it",
            stacklevel=3,
        )
    return _fix(spec, frozenset(failing))


def _fix(spec: WeightSpec, names: frozenset[str]) -> WeightSpec:
    leaves = tuple(
        (
            path,
            tuple(
                tuple(dataclasses.replace(factor, fixed=factor.fixed or factor.name in names) for factor in axis) for axis in axes
            ),
        )
        for path, axes in spec.leaves
    )
    return dataclasses.replace(spec, leaves=leaves)


def _generators(key: jax.Array, size: int) -> list[np.ndarray]:
    """Two permutations that generate all of `size` indices."""
    relabel = np.asarray(jax.random.permutation(key, size))
    cycle, swap = np.arange(size), np.arange(size)
    cycle[relabel] = np.roll(relabel, 1)
    swap[relabel[:2]] = relabel[:2][::-1]
    return [cycle, swap]


def _generic_point(evaluate: Callable[[PyTree], Any], params: PyTree, key: jax.Array) -> tuple[PyTree, Any]:
    """Random weights of the params' scale and signs, and the value there; the params themselves if it is not finite there."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    weights = structure.unflatten([_random_like(key, leaf) for key, leaf in zip(keys, leaves, strict=True)])
    value = evaluate(weights)
    abstract = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    return (weights, value) if abstract or _finite(value) else (params, evaluate(params))


def _random_like(key: jax.Array, leaf: Any) -> Any:
    """Entries keep their sign (variances stay positive) and are scaled by a random factor; zeros become small numbers."""
    if not hasattr(leaf, "dtype") or (not jnp.issubdtype(leaf.dtype, jnp.inexact) and not isinstance(leaf, jax.ShapeDtypeStruct)):
        return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return jnp.zeros(leaf.shape, leaf.dtype)
        return (0.3 * jax.random.normal(key, leaf.shape)).astype(leaf.dtype)
    noise = 0.3 * jax.random.normal(key, leaf.shape)
    return jnp.where(leaf == 0, (0.3 * noise).astype(leaf.dtype), leaf * jnp.exp(noise).astype(leaf.dtype))


def _finite(value: PyTree) -> bool:
    numbers = (leaf for leaf in jax.tree.leaves(value) if jnp.issubdtype(leaf.dtype, jnp.inexact))
    return all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in numbers)


def _tolerance(params: PyTree) -> float:
    """Relative: permuted sums round differently, in the coarsest float type of the params."""
    types = [leaf.dtype for leaf in jax.tree.leaves(params) if jnp.issubdtype(getattr(leaf, "dtype", int), jnp.inexact)]
    return max([1e-4, *(16 * float(jnp.finfo(dtype).eps) for dtype in types)])


def _close(before: PyTree, after: PyTree, tolerance: float) -> bool:
    def close(one: jax.Array, other: jax.Array) -> bool:
        if not jnp.issubdtype(one.dtype, jnp.inexact):
            return bool(jnp.all(one == other))
        scale = float(jnp.max(jnp.abs(one), initial=0.0))
        return float(jnp.max(jnp.abs(one - other), initial=0.0)) <= tolerance * scale

    return all(map(close, jax.tree.leaves(before), jax.tree.leaves(after)))
