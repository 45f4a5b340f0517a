"""Rules for reductions, and for primitives that ask for the order along an axis. See `lopt.symmetry.rules` for the table."""

from typing import Any

from jax.extend import core

from lopt.symmetry.labels import Label, Value
from lopt.symmetry.trace import Trace, shape_of


def reduce(trace: Trace, equation: Any, operand: Value) -> Value:
    """A sum, product, extremum, all or any does not ask for the order of what it reduces."""
    return Value(tuple(label for axis, label in enumerate(operand.axes) if axis not in equation.params["axes"]))


def argument(trace: Trace, equation: Any, operand: Value) -> Value:
    """An argmax permutes as an index, but for ties: the first of equal entries is not the first after a permutation."""
    labels = [operand.axes[axis] for axis in equation.params["axes"]]
    rest = tuple(label for axis, label in enumerate(operand.axes) if axis not in equation.params["axes"])
    if trace.ignore_ties and len(labels) == 1 and trace.atoms.varies(labels[0]):
        return Value(rest, labels[0])
    for label in labels:
        trace.atoms.pin(label)
    return Value(rest)


def cumulative(trace: Trace, equation: Any, operand: Value) -> Value:
    """What comes before what matters along the axis; the result lies on the same axis."""
    axis = equation.params["axis"]
    label = trace.atoms.pinned(operand.axes[axis])
    return Value((*operand.axes[:axis], label, *operand.axes[axis + 1 :]))


def reverse(trace: Trace, equation: Any, operand: Value) -> Value:
    """Only the order of the reversed axes matters."""
    for axis in equation.params["dimensions"]:
        trace.atoms.pin(operand.axes[axis])
    return operand


def fourier(trace: Trace, equation: Any, operand: Value) -> Value:
    """Frequencies and positions are ordered; other axes are batch axes."""
    kept = len(operand.axes) - len(equation.params["fft_lengths"])
    for label in operand.axes[kept:]:
        trace.atoms.pin(label)
    return Value(operand.axes[:kept] + trace.atoms.fresh_fixed(shape_of(equation.outvars[0])[kept:]))


def sort(trace: Trace, equation: Any, *operands: Value) -> list[Value]:
    """Sorted entries do not show the order they came in, unless others are carried along and decide between equal keys."""
    axis = equation.params["dimension"]
    labels = trace.join([Value(value.axes) for value in operands]).axes
    (length,) = trace.atoms.fresh_fixed(shape_of(equation.outvars[0])[axis : axis + 1])
    if len(operands) > 1:
        trace.atoms.pin(labels[axis])
    return [Value((*labels[:axis], length, *labels[axis + 1 :])) for _ in operands]


def top_k(trace: Trace, equation: Any, operand: Value) -> list[Value]:
    """The values are sorted, the indices those of an argmax."""
    axis = equation.params.get("axis", len(operand.axes) - 1)
    label = operand.axes[axis]
    axes = (*operand.axes[:axis], trace.atoms.fresh(equation.params["k"], fixed=True), *operand.axes[axis + 1 :])
    if trace.ignore_ties and trace.atoms.varies(label):
        return [Value(axes), Value(axes, label)]
    if not isinstance(equation.outvars[1], core.DropVar):
        trace.atoms.pin(label)
    return [Value(axes), Value(axes)]


def window(trace: Trace, equation: Any, operand: Value, *_: Value) -> Value:
    """Pooling: ordered along the axes over which a window slides, a plain reduction where one window covers an axis."""
    params, shape = equation.params, shape_of(equation.outvars[0])
    sizes = shape_of(equation.invars[0])
    keys = ("window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation")
    labels: list[Label] = []
    for axis, (width, stride, padding, *dilations) in enumerate(zip(*(params[key] for key in keys), strict=True)):
        plain = tuple(padding) == (0, 0) and dilations == [1, 1]
        if plain and (width, stride) == (1, 1):
            labels.append(operand.axes[axis])
        elif plain and width == sizes[axis]:
            labels.append(())
        else:
            trace.atoms.pin(operand.axes[axis])
            labels.append(trace.atoms.fresh(shape[axis], fixed=True))
    return Value(tuple(labels))
