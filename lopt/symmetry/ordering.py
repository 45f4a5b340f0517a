"""Rules for reductions, and for primitives that ask for the order along an axis. See `lopt.symmetry.rules` for the table."""

from typing import Any

from lopt.symmetry.labels import Label, Value
from lopt.symmetry.trace import Trace, shape_of


def reduce(trace: Trace, equation: Any, operand: Value) -> Value:
    """A sum, product, extremum, all or any does not ask for the order of what it reduces."""
    return Value(tuple(label for axis, label in enumerate(operand.axes) if axis not in equation.params["axes"]))


def reduce_by(trace: Trace, equation: Any, *operands: Value) -> list[Value]:
    """A reduction by a function of which nothing is known may ask for the order."""
    arrays = operands[: len(equation.outvars)]
    axes = trace.join(arrays).axes
    reduced = [axes[axis] for axis in equation.params["dimensions"]]
    for label in reduced:
        trace.atoms.pin(label)
    trace.nesting.acts(reduced, arrays)
    rest = tuple(label for axis, label in enumerate(axes) if axis not in equation.params["dimensions"])
    return [Value(rest) for _ in arrays]


def argument(trace: Trace, equation: Any, operand: Value) -> Value:
    """An argmax permutes as an index, but for ties: the first of equal entries is not the first after a permutation."""
    labels = [operand.axes[axis] for axis in equation.params["axes"]]
    rest = tuple(label for axis, label in enumerate(operand.axes) if axis not in equation.params["axes"])
    trace.nesting.acts(labels, [operand])
    if trace.ignore_ties and len(labels) == 1 and trace.atoms.varies(labels[0]):
        return Value(rest, labels[0])
    for label in labels:
        trace.atoms.pin(label)
    return Value(rest)


def cumulative(trace: Trace, equation: Any, operand: Value) -> Value:
    """What comes before what matters along the axis; the result lies on the same axis."""
    axis = equation.params["axis"]
    label = trace.atoms.pinned(operand.axes[axis])
    trace.nesting.acts([label], [operand])
    return Value((*operand.axes[:axis], label, *operand.axes[axis + 1 :]))


def reverse(trace: Trace, equation: Any, operand: Value) -> Value:
    """Only the order of the reversed axes matters."""
    labels = [operand.axes[axis] for axis in equation.params["dimensions"]]
    for label in labels:
        trace.atoms.pin(label)
    trace.nesting.acts(labels, [operand])
    return Value(operand.axes)


def fourier(trace: Trace, equation: Any, operand: Value) -> Value:
    """Frequencies and positions are ordered; other axes are batch axes."""
    kept = len(operand.axes) - len(equation.params["fft_lengths"])
    for label in operand.axes[kept:]:
        trace.atoms.pin(label)
    trace.nesting.acts(operand.axes[kept:], [operand])
    return Value(operand.axes[:kept] + trace.atoms.fresh_fixed(shape_of(equation.outvars[0])[kept:]))


def sort(trace: Trace, equation: Any, *operands: Value) -> list[Value]:
    """Sorted entries do not show the order they came in, unless others are carried along and decide between equal keys."""
    axis = equation.params["dimension"]
    labels = trace.join([Value(value.axes) for value in operands]).axes
    (length,) = trace.atoms.fresh_fixed(shape_of(equation.outvars[0])[axis : axis + 1])
    if len(operands) > 1:
        trace.atoms.pin(labels[axis])
    trace.nesting.acts([labels[axis]], operands)
    return [Value((*labels[:axis], length, *labels[axis + 1 :])) for _ in operands]


def top_k(trace: Trace, equation: Any, operand: Value) -> list[Value]:
    """The values are sorted, the indices those of an argmax."""
    axis = equation.params.get("axis", len(operand.axes) - 1)
    label = operand.axes[axis]
    axes = (*operand.axes[:axis], trace.atoms.fresh(equation.params["k"], fixed=True), *operand.axes[axis + 1 :])
    trace.nesting.acts([label], [operand])
    if not trace.is_used(equation.outvars[1]):
        return [Value(axes), Value(axes)]
    if trace.ignore_ties and trace.atoms.varies(label):
        return [Value(axes), Value(axes, label)]
    trace.atoms.pin(label)
    return [Value(axes), Value(axes)]


def window(trace: Trace, equation: Any, operand: Value) -> Value:
    """Pooling: ordered along the axes over which a window slides, a plain reduction where one window covers an axis."""
    return _window(trace, equation, operand, commutes=True)


def window_by(trace: Trace, equation: Any, *operands: Value) -> list[Value]:
    """Pooling by a function of which nothing is known."""
    arrays = operands[: len(equation.outvars)]
    result = _window(trace, equation, trace.join(arrays), commutes=False)
    return [result for _ in arrays]


def pick_in_window(trace: Trace, equation: Any, one: Value, operand: Value) -> Value:
    """What the gradient of max pooling writes, and what its tangent reads: the order counts where a window is wider than 1."""
    labels: list[Label] = []
    acted: list[Label] = []
    params, shape = equation.params, shape_of(equation.outvars[0])
    for axis, (first, second) in enumerate(zip(one.axes, operand.axes, strict=True)):
        if (params["window_dimensions"][axis], params["window_strides"][axis], tuple(params["padding"][axis])) == (1, 1, (0, 0)):
            labels.append(trace.atoms.unify(first, second))
            continue
        trace.atoms.pin(first)
        trace.atoms.pin(second)
        acted += [first, second]
        labels.append(trace.atoms.fresh(shape[axis], fixed=True))
    trace.nesting.acts(acted, [one, operand])
    return Value(tuple(labels))


def _window(trace: Trace, equation: Any, operand: Value, *, commutes: bool) -> Value:
    params, shape = equation.params, shape_of(equation.outvars[0])
    sizes = shape_of(equation.invars[0])
    keys = ("window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation")
    labels: list[Label] = []
    acted: list[Label] = []
    for axis, (width, stride, padding, *dilations) in enumerate(zip(*(params[key] for key in keys), strict=True)):
        plain = tuple(padding) == (0, 0) and dilations == [1, 1]
        if plain and (width, stride) == (1, 1):
            labels.append(operand.axes[axis])
        elif plain and width == sizes[axis] and commutes:
            labels.append(())
        else:
            trace.atoms.pin(operand.axes[axis])
            labels.append(trace.atoms.fresh(shape[axis], fixed=True))
            acted.append(operand.axes[axis])
    trace.nesting.acts(acted, [operand])
    return Value(tuple(labels))
