"""Rules for integers that are indices themselves (`Value.index`): an iota, an argmax, and what look-ups make of them.

An index of n entries with an offset c is a number of c, ..., c + n - 1, which a group element permutes. So it stays one when a
number is added, and whether it lies below a number outside this range is known: `jnp.where(i < 0, i + n, i)`, with which every
look-up of `jax.numpy` begins, is `i`. See `lopt.symmetry.rules` for the table.
"""

import dataclasses
import functools
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from lopt.symmetry.labels import Label, Uniform, Value
from lopt.symmetry.trace import Trace, shape_of

_COMPARISONS = {
    "lt": operator.lt,
    "lt_to": operator.lt,
    "le": operator.le,
    "le_to": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}


def elementwise(trace: Trace, equation: Any, *operands: Value) -> Value | list[Value]:
    """Entry by entry: axes that lie on one another are tied. Scalars and axes of size 1 broadcast, and tie nothing."""
    shape = shape_of(equation.outvars[0])
    if any(value.axes and len(value.axes) != len(shape) for value in operands) or len(equation.outvars) != 1:
        return trace.opaque(equation, operands)
    return Value(tuple(_aligned(trace, axis, size, operands) for axis, size in enumerate(shape)))


def _aligned(trace: Trace, axis: int, size: int, operands: Sequence[Value]) -> Label:
    labels = [value.axes[axis] for value in operands if value.axes and value.axes[axis]]
    if not labels:
        return (Uniform(size),) if size > 1 else ()
    return functools.reduce(trace.atoms.unify, labels)


def _pin_indices(trace: Trace, operands: Sequence[Value]) -> None:
    for value in operands:
        if value.index is not None:
            trace.atoms.pin(value.index)


def _range(trace: Trace, value: Value) -> tuple[float, float] | None:
    """The least and the greatest number that the entries may be, where that is known."""
    if value.number is not None:
        return value.number, value.number
    if value.index is not None:
        return value.offset, value.offset + trace.atoms.total(value.index) - 1
    return None


def equal(trace: Trace, equation: Any, *operands: Value) -> Value | list[Value]:
    """Two indices into one range are equal before a permutation exactly when they are after it (one-hot encodings)."""
    trace.join_index(operands)
    return elementwise(trace, equation, *operands)


def compare(trace: Trace, equation: Any, one: Value, other: Value) -> Value | list[Value]:
    """An index compared with a number beyond its range is a known answer; otherwise its order is asked for."""
    result = elementwise(trace, equation, one, other)
    ranges, holds = (_range(trace, one), _range(trace, other)), _COMPARISONS[equation.primitive.name]
    if ranges[0] is not None and ranges[1] is not None:
        answers = {bool(holds(low, high)) for low in ranges[0] for high in ranges[1]}
        if len(answers) == 1 and isinstance(result, Value):  # comparisons are monotone, so the ends tell
            return dataclasses.replace(result, number=answers.pop())
    _pin_indices(trace, (one, other))
    return result


def shift(trace: Trace, equation: Any, one: Value, other: Value) -> Value | list[Value]:
    """A number added to an index, or taken from it, moves its range."""
    result = elementwise(trace, equation, one, other)
    sign = -1 if equation.primitive.name == "sub" else 1
    if one.index is None and sign == 1:
        one, other = other, one
    dtype = equation.outvars[0].aval.dtype
    if isinstance(result, Value) and one.index is not None and isinstance(other.number, int) and np.issubdtype(dtype, np.integer):
        offset = one.offset + sign * other.number
        if np.iinfo(dtype).min <= offset and offset + trace.atoms.total(one.index) - 1 <= np.iinfo(dtype).max:
            return Value(result.axes, one.index, offset)
    _pin_indices(trace, (one, other))
    return result


def bound(trace: Trace, equation: Any, *operands: Value) -> Value | list[Value]:
    """The greater, the lesser, or the middle one, of an index and numbers that it cannot pass is the index."""
    result = elementwise(trace, equation, *operands)
    indices, ranges = [value for value in operands if value.index is not None], [_range(trace, value) for value in operands]
    if len(indices) == 1 and isinstance(result, Value) and all(found is not None for found in ranges):
        lowers, uppers = {"max": ([0, 1], []), "min": ([], [0, 1]), "clamp": ([0], [2])}[equation.primitive.name]
        place = operands.index(indices[0])
        low, high = ranges[place]  # type: ignore[misc]
        kept = equation.primitive.name != "clamp" or place == 1
        kept &= all(ranges[other][1] <= low for other in lowers if other != place)  # type: ignore[index]
        kept &= all(ranges[other][0] >= high for other in uppers if other != place)  # type: ignore[index]
        if kept:
            return Value(result.axes, indices[0].index, indices[0].offset)
    _pin_indices(trace, operands)
    return result


def select(trace: Trace, equation: Any, which: Value, *cases: Value) -> Value | list[Value]:
    """Entry by entry; a choice between indices into one range is such an index, and a choice that is known is no choice."""
    if which.number is not None:
        return cases[int(which.number)]
    if which.index is not None:
        trace.atoms.pin(which.index)
    index = trace.join_index(cases)
    result = elementwise(trace, equation, which, *cases)
    return Value(result.axes, index, cases[0].offset) if isinstance(result, Value) else result


def convert(trace: Trace, equation: Any, operand: Value) -> Value:
    """An index stays one in any integer type that can hold it."""
    dtype, index = equation.params["new_dtype"], operand.index
    if index is not None:
        low, high = operand.offset, operand.offset + trace.atoms.total(index) - 1
        if not (np.issubdtype(dtype, np.integer) and np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max):
            trace.atoms.pin(index)
            index = None
    number = operand.number
    whole = isinstance(number, int) and np.issubdtype(dtype, np.integer) and np.iinfo(dtype).min <= number <= np.iinfo(dtype).max
    return Value(operand.axes, index, operand.offset, number if whole else None)


def iota(trace: Trace, equation: Any) -> Value:
    """Counts along one axis: an index that permutes with the axis it stands on, so long as only equality is asked of it."""
    shape, axis = equation.params["shape"], equation.params["dimension"]
    label = trace.atoms.fresh(shape[axis])
    labels = ((Uniform(size),) if size > 1 else () for size in shape)
    return Value(tuple(label if other == axis else uniform for other, uniform in enumerate(labels)), label or None)
