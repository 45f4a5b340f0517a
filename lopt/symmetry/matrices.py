"""Rules for primitives of linear algebra. See `lopt.symmetry.rules` for the table.

A factorisation asks for the order of rows and columns; what stands before them is a batch of matrices, each by itself.
"""

from typing import Any

from lopt.symmetry.labels import Label, Value
from lopt.symmetry.trace import Trace, shape_of

_OF_VECTORS = frozenset({"lu_pivots_to_permutation", "tridiagonal_solve"})  # their first operand is one vector a matrix


def _batch(trace: Trace, operands: tuple[Value, ...], rank: int) -> tuple[Label, ...]:
    """The leading axes of all operands, tied."""
    return trace.join([Value(value.axes[:rank]) for value in operands]).axes


def factorize(trace: Trace, equation: Any, *operands: Value) -> list[Value]:
    """Pinned but for the batch."""
    rank = len(operands[0].axes) - (1 if equation.primitive.name in _OF_VECTORS else 2)
    batch = _batch(trace, operands, rank)
    inside = [label for value in operands for label in value.axes[rank:]]
    for label in inside:
        trace.atoms.pin(label)
    trace.nesting.acts(inside, operands)
    return [Value((*batch, *trace.atoms.fresh_fixed(shape_of(variable)[rank:]))) for variable in equation.outvars]


def triangular_solve(trace: Trace, equation: Any, matrix: Value, right: Value) -> Value:
    """Every right-hand side is solved for by itself."""
    rank = len(matrix.axes) - 2
    batch = _batch(trace, (matrix, right), rank)
    place = rank if equation.params["left_side"] else rank + 1  # of the unknowns; the other axis counts right-hand sides
    for label in (*matrix.axes[rank:], right.axes[place]):
        trace.atoms.pin(label)
    trace.nesting.acts([*matrix.axes[rank:], right.axes[place]], [matrix, right])
    unknowns, sides = trace.atoms.pinned(right.axes[place]), right.axes[2 * rank + 1 - place]
    return Value((*batch, *((unknowns, sides) if place == rank else (sides, unknowns))))


def linear_solve(trace: Trace, equation: Any, *operands: Value) -> list[Value]:
    """A solution is what the function that solves makes of its constants and the right-hand sides."""
    matvec, vecmat, solve, transposed = equation.params["const_lengths"]
    start, sides = matvec + vecmat, operands[matvec + vecmat + solve + transposed :]
    return trace.run(equation.params["jaxprs"].solve, [*operands[start : start + solve], *sides])


def ragged_dot(trace: Trace, equation: Any, left: Value, right: Value, counts: Value, *offset: Value) -> Value:
    """A matrix product whose rows, contracted indices or batches belong to groups, so many to each: these are ordered.

    Groups are ordered, as rows stand in their order; what each group contracts and makes is free, as in a matrix product.
    """
    atoms, numbers = trace.atoms, equation.params["ragged_dot_dimension_numbers"]
    (left_sum, right_sum), (left_batch, right_batch) = numbers.dot_dimension_numbers
    for value in (counts, *offset):
        trace.pin(value)
    ragged, groups = numbers.lhs_ragged_dimensions, numbers.rhs_group_dimensions
    for label in (*(left.axes[axis] for axis in ragged), *(right.axes[axis] for axis in groups)):
        atoms.pin(label)
    contracted = [atoms.unify(left.axes[one], right.axes[other]) for one, other in zip(left_sum, right_sum, strict=True)]
    batch = [atoms.unify(left.axes[one], right.axes[other]) for one, other in zip(left_batch, right_batch, strict=True)]
    rows = [label for axis, label in enumerate(left.axes) if axis not in (*left_sum, *left_batch)]
    columns = [label for axis, label in enumerate(right.axes) if axis not in (*right_sum, *right_batch, *groups)]
    if set(ragged) & {*left_sum, *left_batch}:
        trace.nesting.contraction(contracted, batch, rows, columns)
        trace.nesting.acts([left.axes[axis] for axis in ragged], [left, right])
    else:  # every row meets the matrix of its group
        owners = [atoms.unify(right.axes[groups[0]], counts.axes[-1]), left.axes[ragged[0]]]
        trace.nesting.grouped(owners[1], owners[0], counts)
        trace.nesting.contraction(contracted, [*batch, owners[0]], rows, columns)
    axes = (*batch, *rows, *columns)
    shape = shape_of(equation.outvars[0])
    if len(shape) > len(axes):  # contracted indices belong to groups: a product for each
        axes = (atoms.fresh(shape[0], fixed=True), *axes)
    return Value(axes)
