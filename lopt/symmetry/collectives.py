"""Rules for programs over named axes: `shard_map`, and the sums, gathers and the like over a `vmap`'s or a mesh's axis.

Devices are ordered. Every one of them runs the same program on its part of the operands, so a permutation within the parts acts
on all alike, and what is sent from device to device keeps its labels. See `lopt.symmetry.rules` for the table.
"""

import math
from typing import Any

from lopt.symmetry.labels import Label, Value
from lopt.symmetry.trace import Trace, shape_of


def _names(entry: Any) -> tuple[Any, ...]:
    """The mesh axes that one entry of a partition spec names."""
    return () if entry is None else entry if isinstance(entry, tuple) else (entry,)


def shard_map(trace: Trace, equation: Any, *operands: Value) -> list[Value]:
    """An axis that is divided among devices is (devices!, part); inside the function it is the part."""
    params, atoms = equation.params, trace.atoms
    sizes, devices = dict(params["mesh"].shape), dict[tuple[Any, ...], Label]()

    def count(names: tuple[Any, ...]) -> int:
        return math.prod(sizes[name] for name in names)

    def among(names: tuple[Any, ...]) -> Label:
        return devices.setdefault(names, atoms.fresh(count(names), fixed=True))

    def divided(value: Value, spec: Any) -> Value:
        axes = list(value.axes)
        for axis, names in enumerate(map(_names, spec)):
            if names:
                outer, axes[axis] = atoms.divide(axes[axis], (count(names), atoms.total(axes[axis]) // count(names)))
                atoms.unify(atoms.pinned(outer), among(names))
        return Value(tuple(axes))

    def joined(value: Value, spec: Any) -> Value:
        entries = (*map(_names, spec), *(() for _ in range(len(value.axes) - len(spec))))
        return Value(tuple((*among(names), *label) if names else label for names, label in zip(entries, value.axes, strict=True)))

    for value in operands:
        trace.consume([value])
    inside = [divided(value, spec) for value, spec in zip(operands, params["in_specs"], strict=True)]
    results = trace.run(params["jaxpr"], inside)
    for result in results:
        if result.index is not None:
            atoms.pin(result.index)
    return [joined(result, spec) for result, spec in zip(results, params["out_specs"], strict=True)]


def reduce(trace: Trace, equation: Any, *operands: Value) -> list[Value]:
    """Over an axis of a `vmap`, a reduction of that axis; over devices, entry by entry."""
    axes = equation.params["axes"]
    positions = [axis for axis in axes if isinstance(axis, int)]
    if positions and equation.params.get("axis_index_groups") is not None:
        return trace.opaque(equation, operands)
    return [Value(tuple(label for axis, label in enumerate(value.axes) if axis not in positions)) for value in operands]


def gather(trace: Trace, equation: Any, operand: Value) -> Value:
    """The devices' parts one behind the other, on an axis of their own or before one of the operand's."""
    params, axes = equation.params, list(operand.axes)
    devices, place = trace.atoms.fresh(params["axis_size"], fixed=True), params["all_gather_dimension"]
    axes[place : place + params["tiled"]] = [devices + axes[place] if params["tiled"] else devices]
    return Value(tuple(axes))


def scatter(trace: Trace, equation: Any, operand: Value) -> Value:
    """A sum of which each device keeps one part."""
    params, axes = equation.params, list(operand.axes)
    place, size = params["scatter_dimension"], params["axis_size"]
    outer, inner = trace.atoms.divide(axes[place], (size, trace.atoms.total(axes[place]) // size))
    trace.atoms.pin(outer)
    trace.nesting.acts([outer], [operand])
    axes[place : place + 1] = [inner] if params["tiled"] else []
    return Value(tuple(axes))


def place(trace: Trace, equation: Any) -> Value:
    """The number of the device, one for all entries."""
    return Value(trace.atoms.fresh_fixed(shape_of(equation.outvars[0])))
