"""The weight spec of any JAX function, read off its jaxpr.

Every weight's axes start as permutable, each by a permutation of its own. The jaxpr is then read once, and every equation ties,
splits or pins axes as it must to commute with the permutations that are left (`rules.RULES`). What the data touch, and what the
function returns, is pinned: a group element may move weights only. The result is a group under which the function is invariant:
it may be too small, never wrong. What is known to be lost:

- Where each index of one axis may permute another in its own way (the width within an attention head, the hidden units of each
  expert), the inner name is nested in the outer one: `dim@heads`. One level of it is found (`lopt.symmetry.nesting`).
- An axis of very many parts, one behind the other (`lopt.symmetry.labels.MOST_PARTS`), is fixed. One of few (`[x, h] @ W`) is
  `(inputs! | hidden)`: each part has an order of its own.
- What a loop does with values that its own steps number or group (an index that is counted up) is fixed.
- A dropout mask is data, so an axis that is dropped out is fixed: the loss for one key does change, though its distribution
  does not. Infer the spec of the deterministic mode.
- An argmax or top-k fixes the axis that it looks along, as ties are broken by position, unless `ignore_ties` is set.

Symmetries other than permutations (signs, scales) are not looked for.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import partial_eval

from lopt.symmetry.check import drop_failing
from lopt.symmetry.labels import Label, Value
from lopt.symmetry.names import Leaf, name_spec
from lopt.symmetry.rules import INDEX_AWARE, MAPS, RULES
from lopt.symmetry.spec import PyTree, SpecError, WeightSpec, named_leaves
from lopt.symmetry.trace import Trace

# For three evaluations: what is saved in compiling a deep network is far more than what they take longer.
_COMPILED_FAST = {"xla_backend_optimization_level": 0, "xla_disable_hlo_passes": "fusion"}


def infer_spec(
    fn: Callable[..., Any],
    params: PyTree,
    *inputs: PyTree,
    check: bool = True,
    key: jax.Array | None = None,
    ignore_ties: bool = False,
) -> WeightSpec:
    """The permutations of the axes of `params` that leave `fn(params, *inputs)` unchanged, whatever the inputs.

    Axes that must move together share a name; axes whose order carries meaning end in `!`. Names come from the weight that
    introduces them.

    Args:
      fn: a loss or forward pass, traceable by JAX. All that it returns must stay unchanged, so let it return no statistics or
        other state that has weights' axes.
      params: pytree of arrays, or of `jax.ShapeDtypeStruct`s; integer arrays are left fixed, leaves that are no arrays are
        passed to `fn` as they are.
      *inputs: pytrees of arrays (or `jax.ShapeDtypeStruct`s, with `check=False`), such as a key and a batch; all their
        axes are fixed.
      check: also evaluate `fn` at random weights, with and without random group elements; a name under which the value changes
        is fixed, with a warning.
      key: for the check.
      ignore_ties: let argmax and top-k follow a permutation. True but where two of the compared entries are equal; needed to
        find the experts of a sparsely routed mixture interchangeable.

    Returns:
      the spec, which describes `params`.

    Raises:
      SpecError: if `params` has no leaves.
      ValueError: if `check` is asked for inputs without values.

    Warns:
      UserWarning: naming the primitives without a rule, whose operands are taken to be fixed; naming the weights that are fixed by
        arrays which `fn` closes over, such as running statistics; naming what failed the check.

    Example:
      >>> params = {"hidden": jnp.ones((4, 3)), "head": jnp.ones((3, 2))}
      >>> print(infer_spec(lambda params, x: jnp.tanh(x @ params["hidden"]) @ params["head"], params, jnp.ones((5, 4))))
      head    hidden head.out!
      hidden  hidden.in! hidden

    References:
      Zhou, Finn, Harrison, "Universal Neural Functionals", NeurIPS 2024, section 3: specs, there written by hand.
    """
    flat = named_leaves(params)
    if not flat:
        raise SpecError("the params have no leaves, so there is nothing to infer a spec of")
    if check and any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(inputs)):
        raise ValueError("the check evaluates fn, but some inputs are shapes without values: give arrays, or check=False")
    call, weights, data = _over_arrays(fn, params, inputs)
    closed = jax.make_jaxpr(call)(weights, data)

    def interpret(**options: Callable[[Any], bool]) -> tuple[Trace, list[Value]]:
        trace = Trace(RULES, INDEX_AWARE, MAPS, ignore_ties=ignore_ties, **options)
        return trace, _interpret(trace, closed, weights, data)

    trace, values = interpret()
    trace.report()
    spec = name_spec(trace.atoms, _leaves(trace, flat, values), trace.nesting.owners(trace.atoms, values))
    if trace.constants:
        _report_constants([path for path, leaf in flat if _is_array(leaf)], trace, values, interpret)
    if not check:
        return spec
    run = jax.jit(core.jaxpr_as_fun(closed), compiler_options=_COMPILED_FAST)
    return drop_failing(lambda params: run(*_arrays(params), *data), spec, params, jax.random.key(0) if key is None else key)


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def _arrays(tree: PyTree) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(tree) if _is_array(leaf)]


def _over_arrays(fn: Callable[..., Any], params: PyTree, inputs: PyTree) -> tuple[Callable[..., Any], list[Any], list[Any]]:
    """`fn` as a function of the arrays in its arguments alone, with those arrays; other leaves (flags, functions) are kept."""

    def fill(tree: PyTree, arrays: Sequence[Any]) -> PyTree:
        given = iter(arrays)
        return jax.tree.map(lambda leaf: next(given) if _is_array(leaf) else leaf, tree)

    def call(weights: Sequence[Any], data: Sequence[Any]) -> list[Any]:
        return jax.tree.leaves(fn(fill(params, weights), *fill(inputs, data)))

    return call, _arrays(params), _arrays(inputs)


def _interpret(trace: Trace, closed: Any, weights: Sequence[Any], data: Sequence[Any]) -> list[Value]:
    """Run the trace over what the results depend on; returns the weights' values, constrained."""
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars), instantiate=True)

    def weight(array: Any) -> Value:
        fixed = not jnp.issubdtype(array.dtype, jnp.inexact)
        return trace.watch(Value(tuple(trace.atoms.fresh(size, fixed=fixed) for size in array.shape)))

    values = [weight(array) for array in weights]
    operands = [*values, *(trace.fixed(array.shape) for array in data)]
    for result in trace.run(jaxpr, operands, [trace.constant(const) for const in closed.consts]):
        trace.pin(result)
    return values


def _report_constants(
    paths: Sequence[str], trace: Trace, values: Sequence[Value], interpret: Callable[..., tuple[Trace, list[Value]]]
) -> None:
    """Warn of arrays that alone fix weights, if all of their axes lie on weights': so do those of a model's state, not a batch's."""

    def free_atoms(trace: Trace, labels: Iterable[Label]) -> set[int]:
        return {atom for label in labels for atom in trace.atoms.atoms(label) if not trace.atoms.is_fixed((atom,))}

    free, freed = interpret(free=lambda array: True)
    moved = free_atoms(free, (label for value in freed for label in value.axes))
    state = [array for array, value in free.constants if all(moved.issuperset(free.atoms.atoms(label)) for label in value.axes)]
    free, freed = interpret(free=lambda array: any(array is one for one in state))
    reasons: dict[int, set[int]] = {}
    for array, value in free.constants:
        reasons.setdefault(id(array), set()).update(free_atoms(free, value.axes))
    shapes, fixed = set[tuple[int, ...]](), set[str]()
    for path, value, other in zip(paths, values, freed, strict=True):
        for label, movable in zip(value.axes, other.axes, strict=True):
            here = free_atoms(free, [movable]) if trace.atoms.is_fixed(label) else set()
            found = [array for array in state if reasons[id(array)] & here]
            shapes.update(array.shape for array in found)
            fixed.update([path] if found else [])
    if fixed:
        warnings.warn(
            f"arrays that the function closes over, of shapes {sorted(shapes)}, fix axes of {sorted(fixed)}. If they belong to "
            "the model, such as running statistics, pass them as a part of the params, so that they move along: "
            "infer_spec(lambda p, *inputs: fn(p['params'], p['state'], *inputs), {'params': params, 'state': state}, ...)",
            stacklevel=3,
        )


def _leaves(trace: Trace, flat: Sequence[tuple[str, Any]], values: Sequence[Value]) -> list[Leaf]:
    """The atoms of every leaf of the params; leaves that are no arrays have no axes."""
    for value in values:
        for label in value.axes:
            trace.atoms.settle(label)
    remaining = iter(values)
    leaves = []
    for path, leaf in flat:
        if not _is_array(leaf):
            leaves.append(Leaf(path, (), len(flat)))
            continue
        value = next(remaining)
        axes = tuple(map(trace.atoms.segments, value.axes))
        leaves.append(Leaf(path, axes, trace.order.get(id(value), len(flat))))
    return leaves
