"""The numerical check of a spec: does a function really keep its value under the spec's permutations?

Weights are drawn and permuted in numpy, so that the function is all that is compiled.
"""

import concurrent.futures
import dataclasses
import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lopt.symmetry.spec import PyTree, WeightSpec, named_leaves

_PIECE = 1 << 16  # numbers drawn at a time


def drop_failing(evaluate: Callable[[PyTree], Any], spec: WeightSpec, params: PyTree, key: jax.Array) -> WeightSpec:
    """Fix every name under whose permutations `evaluate` changes, with a warning that lists them.

    All names are moved at once, by a random cycle of all indices, and those of few indices, of which a smaller group may hold a
    random cycle, also by a transposition; the two generate all permutations. Only if the value changes is each name tried by
    itself. The weights are random, as freshly initialised ones (zero biases, unit scales) are more symmetric than others.

    Args:
      evaluate: maps params to any pytree of arrays, such as a loss.
      spec: describes `params`.
      params: arrays or `jax.ShapeDtypeStruct`s; arrays set the scale of the random weights.
      key: draws weights and permutations.

    Returns:
      the spec with the names that failed fixed.
    """
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    weights, before = _generic_point(evaluate, params, rng)
    if not _finite(before):
        warnings.warn("the inferred spec could not be checked: the function's value is not finite at these params", stacklevel=3)
        return spec
    sizes, tolerance = spec.sizes(params), _tolerance(params)

    def orders(name: str) -> tuple[np.ndarray, np.ndarray]:
        if name not in spec.nested:
            return _generators(rng, sizes[name])
        one, other = (np.stack([rng.permutation(sizes[name]) for _ in range(sizes[spec.nested[name]])]) for _ in range(2))
        return one, other

    def holds(spec: WeightSpec, elements: Iterable[Mapping[str, np.ndarray]]) -> bool:
        return all(_close(before, evaluate(_permute(spec, sizes, weights, element)), tolerance) for element in elements)

    both = {name: orders(name) for name in spec.permutable}
    few = {name: pair[1] for name, pair in both.items() if sizes[name] < 8}
    for element in ({name: pair[0] for name, pair in both.items()}, few):
        _move_in_place(spec, sizes, dict(named_leaves(weights)), element)
        after = evaluate(weights) if element else before
        if not _close(before, after, tolerance):
            before = after
            break
    else:
        return spec
    together = [name for name in spec.nested if not holds(spec, [{name: order} for order in both[name]])]
    if together:
        warnings.warn(
            f"the function's value changes when {together} are permuted differently for different indices of their owners; they are "
            "no longer nested in the inferred spec. The analysis of lopt.symmetry.nesting may be wrong: please report it",
            stacklevel=3,
        )
        spec = spec.with_factors(lambda factor: dataclasses.replace(factor, owner=None) if factor.name in together else factor)
    alone = [name for name in spec.permutable if name not in spec.nested]
    failing = [name for name in alone if not holds(spec, [{name: order} for order in orders(name)])]
    if failing:
        warnings.warn(
            f"the function's value changes under permutations of {failing}, which are now fixed in the inferred spec. Either the "
            "function is too sensitive to rounding for this check, or a rule of lopt.symmetry.rules is wrong: please report it",
            stacklevel=3,
        )
    return spec.with_factors(lambda factor: dataclasses.replace(factor, fixed=factor.fixed or factor.name in failing))


def failing_names(
    evaluate: Callable[[PyTree], Any],
    spec: WeightSpec,
    params: PyTree,
    key: jax.Array,
    close: Callable[[Any, Any], bool] | None = None,
) -> list[str]:
    """The names of a spec under whose permutations `evaluate` changes.

    Each name is tried as `drop_failing` does: by a cycle and a transposition, at random weights; a nested one by random permutations,
    one for each index of its owner.

    Args:
      evaluate: maps params to any pytree of arrays, such as a loss.
      spec: describes `params`.
      params: arrays; they set the scale of the random weights.
      key: draws weights and permutations.
      close: whether two values are the same; None: but for rounding.

    Returns:
      the names; none where the function's value is not finite, which says nothing.
    """
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    weights, before = _generic_point(evaluate, params, rng)
    if not _finite(before):
        return []
    sizes, tolerance = spec.sizes(params), _tolerance(params)

    def orders(name: str) -> list[np.ndarray]:
        if name in spec.nested:
            return [np.stack([rng.permutation(sizes[name]) for _ in range(sizes[spec.nested[name]])]) for _ in range(2)]
        return list(_generators(rng, sizes[name]))

    def same(after: Any) -> bool:
        return _close(before, after, tolerance) if close is None else close(before, after)

    return [
        name
        for name in spec.permutable
        if not all(same(evaluate(_permute(spec, sizes, weights, {name: order}))) for order in orders(name))
    ]


def _permute(spec: WeightSpec, sizes: Mapping[str, int], params: PyTree, element: Mapping[str, np.ndarray]) -> PyTree:
    """`WeightSpec.permute` in numpy."""
    moved = spec.move(np, dict(named_leaves(params)), sizes, element)
    return jax.tree.unflatten(jax.tree.structure(params), [moved[path] for path, _ in named_leaves(params)])


def _move_in_place(
    spec: WeightSpec, sizes: Mapping[str, int], weights: Mapping[str, Any], element: Mapping[str, np.ndarray]
) -> None:
    """`_permute` where the weights lie: with memory for one leaf, as for large networks fresh memory is what takes the time."""
    touched = (path for path in spec.paths if any(factor.name in element for factor in spec.all_factors(path)))
    moved = [path for path in touched if weights[path].size]
    scratch = np.empty(max((weights[path].nbytes for path in moved), default=0), np.uint8)
    for path in moved:
        leaf = weights[path]
        alone = WeightSpec(((path, dict(spec.leaves)[path]),))
        if alone.nested or alone.in_parts:
            leaf[...] = alone.move(np, {path: leaf}, sizes, element)[path]
            continue
        factors = alone.factors(path)
        source = leaf.reshape([sizes[factor.name] for factor in factors])
        target = scratch[: leaf.nbytes].view(leaf.dtype).reshape(source.shape)
        assert np.shares_memory(source, leaf), f"'{path}' is not contiguous"
        places = [position for position, factor in enumerate(factors) if factor.name in element]
        for position in places:
            # Indices are within bounds; only with a mode that says what is done otherwise does numpy write to `out` at once.
            np.take(source, element[factors[position].name], axis=position, out=target, mode="clip")
            source, target = target, source
        if len(places) % 2:
            target[...] = source


def _generators(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Two permutations that generate all of `size` indices."""
    relabel = rng.permutation(size)
    cycle, swap = np.arange(size), np.arange(size)
    cycle[relabel] = np.roll(relabel, 1)
    swap[relabel[:2]] = relabel[:2][::-1]
    return cycle, swap


def _generic_point(evaluate: Callable[[PyTree], Any], params: PyTree, rng: np.random.Generator) -> tuple[PyTree, Any]:
    """Random weights of the params' scale and signs, and the value there; the params themselves if it is not finite there."""
    leaves, structure = jax.tree.flatten(params)
    largest = max((math.prod(leaf.shape) for leaf in leaves if _is_inexact(leaf)), default=1)
    # Numbers that leaves take from a place of their own on, and over again: a period that is a prime shifts them from row to row.
    noise = 0.3 * rng.standard_normal(100_003 if largest < 100_003 else 1_000_003, np.float32)
    places = rng.integers(len(noise), size=len(leaves))
    factors, small = np.exp(noise), 0.3 * noise
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        drawn = pool.map(lambda leaf, place: _random_like(noise, factors, small, leaf, place), leaves, places)
        weights = jax.tree.unflatten(structure, list(drawn))
    value = evaluate(weights)
    if _finite(value) or any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params)):
        return weights, value
    return jax.tree.map(lambda leaf: np.array(leaf) if _is_inexact(leaf) else leaf, params), evaluate(params)


def _is_inexact(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)


def _random_like(noise: np.ndarray, factors: np.ndarray, small: np.ndarray, leaf: Any, place: int) -> Any:
    """Entries keep their sign (variances stay positive) and are scaled by a random factor; zeros become small numbers.

    Noise, and what is made of it, is taken from `place` on and over again, a piece at a time, which stays in the cache.
    """
    if not _is_inexact(leaf):
        return np.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf
    drawn = np.empty(leaf.shape, leaf.dtype)
    out = drawn.reshape(-1)
    entries = None if isinstance(leaf, jax.ShapeDtypeStruct) else np.asarray(leaf).reshape(-1)
    done = 0
    while done < out.size:
        begin = (done + place) % len(noise)
        piece = slice(begin, min(begin + _PIECE, len(noise), begin + out.size - done))
        here = slice(done, done + piece.stop - piece.start)
        if entries is None:
            out[here] = noise[piece]
        else:
            np.multiply(entries[here], factors[piece].astype(leaf.dtype), out=out[here])
            np.copyto(out[here], small[piece].astype(leaf.dtype), where=entries[here] == 0)
        done = here.stop
    return drawn


def _finite(value: PyTree) -> bool:
    numbers = (leaf for leaf in jax.tree.leaves(value) if _is_inexact(leaf))
    return all(bool(np.all(np.isfinite(np.asarray(leaf)))) for leaf in numbers)


def _tolerance(params: PyTree) -> float:
    """Relative: permuted sums round differently, in the coarsest float type of the params."""
    types = [leaf.dtype for leaf in jax.tree.leaves(params) if _is_inexact(leaf)]
    return max([1e-4, *(16 * float(jnp.finfo(dtype).eps) for dtype in types)])


def _close(before: PyTree, after: PyTree, tolerance: float) -> bool:
    def close(one: np.ndarray, other: np.ndarray) -> bool:
        if not jnp.issubdtype(one.dtype, jnp.inexact):
            return bool(np.array_equal(one, other))
        scale = np.max(np.abs(one), initial=0)
        return bool(np.max(np.abs(one - other), initial=0) <= tolerance * scale)

    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    return all(close(np.asarray(one), np.asarray(other)) for one, other in pairs)
