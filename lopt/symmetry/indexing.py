"""Rules for primitives that take parts of axes or look entries up. See `lopt.symmetry.rules` for the table.

Where an axis is cut into parts, or joined from them, each part keeps an order of its own (`Sum`): the two operands of `[x, h] @ W`,
the gates of a recurrent cell. That gates are one order four times is what is then done with them.
"""

from collections.abc import Sequence
from typing import Any

from lopt.symmetry.labels import Label, Uniform, Value
from lopt.symmetry.trace import Trace, shape_of


def _part(trace: Trace, label: Label, size: int, start: int, length: int, stride: int = 1) -> Label:
    """The label of entries `start, start + stride, ...` of an axis."""
    if length == size:
        return label
    if length == 0 or trace.atoms.is_uniform(label):
        trace.atoms.pin(label)
        return (Uniform(length),) if length != 1 else ()
    if stride > 1:
        if start < stride and length * stride == size:
            outer, inner = trace.atoms.divide(label, (length, stride))
            trace.atoms.pin(inner)
            return outer
        trace.atoms.pin(label)
        return trace.atoms.fresh(length, fixed=True)
    return trace.atoms.part(label, start, start + length)


def slice_(trace: Trace, equation: Any, operand: Value) -> Value:
    """A part of each axis; axes taken whole stay as they are."""
    shape, params = shape_of(equation.outvars[0]), equation.params
    strides = params["strides"] or (1,) * len(shape)
    sizes = shape_of(equation.invars[0])
    parts = zip(operand.axes, sizes, params["start_indices"], shape, strides, strict=True)
    return Value(tuple(_part(trace, label, *part) for label, *part in parts))


def split(trace: Trace, equation: Any, operand: Value) -> list[Value]:
    """Several parts of one axis."""
    axis = equation.params["axis"]
    starts = [sum(equation.params["sizes"][:part]) for part in range(len(equation.outvars))]
    size = shape_of(equation.invars[0])[axis]
    results = []
    for variable, start in zip(equation.outvars, starts, strict=True):
        label = _part(trace, operand.axes[axis], size, int(start), shape_of(variable)[axis])
        results.append(Value((*operand.axes[:axis], label, *operand.axes[axis + 1 :])))
    return results


def concatenate(trace: Trace, equation: Any, *operands: Value) -> Value:
    """The operands' parts lie one behind the other; on all other axes they lie on one another."""
    axis, atoms = equation.params["dimension"], trace.atoms
    index = trace.join_index(operands)
    rest = [Value((*value.axes[:axis], *value.axes[axis + 1 :])) for value in operands]
    joined = list(trace.join(rest).axes)
    joined.insert(axis, atoms.add([value.axes[axis] for value in operands]))
    return Value(tuple(joined), index, operands[0].offset)


def pad(trace: Trace, equation: Any, operand: Value, _: Value) -> Value:
    """What is put before and behind is one number everywhere; between entries, and where some are left out, positions count."""
    labels: list[Label] = []
    shape = shape_of(equation.outvars[0])
    for label, (low, high, between), size in zip(operand.axes, equation.params["padding_config"], shape, strict=True):
        if between or low < 0 or high < 0:
            trace.atoms.pin(label)
            labels.append(trace.atoms.fresh(size, fixed=True))
        else:
            around = [(Uniform(width),) if width > 1 else () for width in (low, high)]
            parts = [*([around[0]] if low else []), label, *([around[1]] if high else [])]
            labels.append(trace.atoms.add(parts))
    return Value(tuple(labels))


def dynamic_slice(trace: Trace, equation: Any, operand: Value, *_: Value) -> Value:
    """Where the part is the whole axis, it starts at 0 and nothing is moved; elsewhere the start asks for the order."""
    labels: list[Label] = []
    for label, size, length in zip(operand.axes, shape_of(equation.invars[0]), equation.params["slice_sizes"], strict=True):
        labels.append(label if length == size else _looked_up(trace, operand, label, length))
    return Value(tuple(labels))


def _looked_up(trace: Trace, operand: Value, label: Label, length: int) -> Label:
    """`length` entries of one of the operand's axes, at a place that is not known."""
    if trace.atoms.is_uniform(label):
        return (Uniform(length),) if length != 1 else ()
    trace.atoms.pin(label, "rows" if trace.is_weight(operand) else None)
    return trace.atoms.fresh(length, fixed=True)


def dynamic_update_slice(trace: Trace, equation: Any, operand: Value, update: Value, *_: Value) -> Value:
    """Axes that are written whole are tied to the update's; elsewhere the place counts."""
    labels: list[Label] = []
    acted: list[Label] = []
    sizes = zip(shape_of(equation.invars[0]), shape_of(equation.invars[1]), strict=True)
    for ours, theirs, (size, length) in zip(operand.axes, update.axes, sizes, strict=True):
        if size == length:
            labels.append(trace.atoms.unify(ours, theirs))
        else:
            trace.atoms.pin(theirs)
            labels.append(trace.atoms.pinned(ours))
            acted += [theirs, labels[-1]]
    trace.nesting.acts(acted, [operand, update, Value(tuple(labels))])
    return Value(tuple(labels))


def gather(trace: Trace, equation: Any, operand: Value, indices: Value) -> Value:
    """A look-up pins the axes that it looks in; axes taken whole, and those of the indices, pass to the result.

    A place in an axis that is taken whole can only be 0, or out of bounds for all of its entries. An index that permutes with
    the axis it looks in (`Value.index`) leaves that axis free.
    """
    atoms, numbers = trace.atoms, equation.params["dimension_numbers"]
    sizes, slice_sizes = shape_of(equation.invars[0]), equation.params["slice_sizes"]
    looked_in = [axis for axis in numbers.start_index_map if slice_sizes[axis] != sizes[axis]]
    single = all(slice_sizes[axis] == 1 for axis in looked_in) and len(looked_in) == len(numbers.start_index_map)
    index = _index_for(trace, operand, indices, looked_in if single else ())
    batch = list(indices.axes[:-1])
    atoms.pin(indices.axes[-1])
    trace.nesting.acts(
        [
            *(
                label
                for axis, label in enumerate(operand.axes)
                if slice_sizes[axis] != sizes[axis] and axis not in numbers.operand_batching_dims
            ),
            *(label for axis, label in enumerate(indices.axes) if axis not in numbers.start_indices_batching_dims),
        ],
        [operand, indices],
    )
    for axis, other in zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True):
        batch[other] = atoms.unify(operand.axes[axis], batch[other])
    offset: list[Label] = []
    for axis, (label, size, length) in enumerate(zip(operand.axes, sizes, slice_sizes, strict=True)):
        if axis in numbers.operand_batching_dims:
            continue
        if axis in looked_in and index is not None:
            atoms.unify(label, index)
            part: Label = ()
        else:
            part = label if length == size else _looked_up(trace, operand, label, length)
        if axis not in numbers.collapsed_slice_dims:
            offset.append(part)
    offsets, batches = iter(offset), iter(batch)
    rank = len(shape_of(equation.outvars[0]))
    return Value(tuple(next(offsets) if axis in numbers.offset_dims else next(batches) for axis in range(rank)))


def _index_for(trace: Trace, looked_in: Value, indices: Value, axes: Sequence[int]) -> Label | None:
    """The indices' own label, if they name single entries of axes of just its size; else they are pinned."""
    index = indices.index
    if index is None:
        return None
    if axes and indices.offset == 0 and all(trace.atoms.total(index) == trace.atoms.total(looked_in.axes[axis]) for axis in axes):
        return index
    trace.atoms.pin(index)
    return None


def scatter(trace: Trace, equation: Any, operand: Value, indices: Value, updates: Value) -> Value:
    """The transpose of a look-up: axes written to by index are pinned, axes written whole are tied to the update's."""
    atoms, numbers = trace.atoms, equation.params["dimension_numbers"]
    sizes, update_sizes = shape_of(equation.invars[0]), shape_of(equation.invars[2])
    inserted, batching = numbers.inserted_window_dims, numbers.operand_batching_dims
    scattered = numbers.scatter_dims_to_operand_dims
    atoms.pin(indices.axes[-1])
    commutes = equation.primitive.name != "scatter"
    index = _index_for(trace, operand, indices, scattered if commutes and all(axis in inserted for axis in scattered) else ())
    update_batch = [axis for axis in range(len(updates.axes)) if axis not in numbers.update_window_dims]
    batch = {axis: atoms.unify(indices.axes[place], updates.axes[axis]) for place, axis in enumerate(update_batch)}
    if not commutes:  # where two updates meet, the later one may win
        for label in batch.values():
            atoms.pin(label)
    labels = list(operand.axes)
    for axis, place in zip(batching, numbers.scatter_indices_batching_dims, strict=True):
        labels[axis] = atoms.unify(labels[axis], batch[update_batch[place]])
    windows = iter(numbers.update_window_dims)
    written_whole: list[int] = []
    acted: list[Label] = []
    for axis, label in enumerate(operand.axes):
        if axis in batching:
            continue
        if axis in inserted:
            labels[axis] = atoms.unify(label, index) if index is not None and axis in scattered else atoms.pinned(label)
            continue
        source = next(windows)
        if update_sizes[source] == sizes[axis]:
            labels[axis] = atoms.unify(label, updates.axes[source])
            written_whole.append(axis)
        else:
            atoms.pin(updates.axes[source])
            labels[axis] = atoms.pinned(label)
            acted.append(updates.axes[source])
    acted += [label for axis, label in enumerate(labels) if axis not in (*batching, *written_whole)]
    acted += [label for axis, label in enumerate(indices.axes) if axis not in numbers.scatter_indices_batching_dims]
    trace.nesting.acts(acted, [operand, indices, updates, Value(tuple(labels))])
    return Value(tuple(labels))
