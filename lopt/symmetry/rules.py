"""What each primitive of JAX does to labels: the rules, and `RULES`, the table of them all.

A rule takes the trace, the equation and the operands' values, constrains the atoms, and returns the results' values. It must
make the equation hold for every remaining group element: permuting the operands permutes the results in the same way. To
support one more primitive, write such a function and enter it in the table; a primitive that is missing pins all it touches.
"""

import dataclasses
from typing import Any

from lopt.symmetry import collectives, control, indexing, indices, matrices, ordering
from lopt.symmetry.labels import Uniform, Value
from lopt.symmetry.trace import Rule, Trace, shape_of


def dot_general(trace: Trace, equation: Any, left: Value, right: Value) -> Value:
    """Contracted axes are summed together and so tied, batch axes too."""
    (left_sum, right_sum), (left_batch, right_batch) = equation.params["dimension_numbers"]
    for one, other in zip(left_sum, right_sum, strict=True):
        trace.atoms.unify(left.axes[one], right.axes[other])
    batch = [trace.atoms.unify(left.axes[one], right.axes[other]) for one, other in zip(left_batch, right_batch, strict=True)]
    left_free = [axis for axis in range(len(left.axes)) if axis not in (*left_sum, *left_batch)]
    right_free = [axis for axis in range(len(right.axes)) if axis not in (*right_sum, *right_batch)]
    left_labels, right_labels = [left.axes[axis] for axis in left_free], [right.axes[axis] for axis in right_free]
    trace.nesting.contraction([left.axes[axis] for axis in left_sum], batch, left_labels, right_labels)
    return Value((*batch, *left_labels, *right_labels))


def convolution(trace: Trace, equation: Any, image: Value, kernel: Value) -> Value | list[Value]:
    """Channels contract as in a matrix product, within each group of a grouped convolution; positions are ordered.

    Both the image's channels and the kernel's outputs are (groups, channels of the group).
    """
    params, atoms = equation.params, trace.atoms
    if params["batch_group_count"] != 1:
        trace.unknown.append("conv_general_dilated with batch groups")
        return trace.opaque(equation, (image, kernel))
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    kernel_shape, shape = shape_of(equation.invars[1]), shape_of(equation.outvars[0])
    (batch, channel, *positions), (out, inside, *window) = numbers.lhs_spec, numbers.rhs_spec
    image_groups, image_inside = atoms.divide(image.axes[channel], (groups, kernel_shape[inside]))
    out_groups, out_inside = atoms.divide(kernel.axes[out], (groups, kernel_shape[out] // groups))
    atoms.unify(image_inside, kernel.axes[inside])
    places = [image.axes[batch], *(image.axes[axis] for axis in positions)]
    trace.nesting.contraction([image_inside], [image_groups], places, [out_inside])
    labels = [image.axes[batch], atoms.unify(image_groups, out_groups) + out_inside]
    roles = ("h", "w") if len(window) == 2 else tuple(f"x{axis}" for axis in range(len(window)))
    details = zip(
        positions,
        window,
        roles,
        params["window_strides"],
        params["padding"],
        params["lhs_dilation"],
        numbers.out_spec[2:],
        strict=True,
    )
    for position, step, role, stride, padding, dilation, result in details:
        if (kernel_shape[step], stride, tuple(padding), dilation) == (1, 1, (0, 0), 1):
            labels.append(image.axes[position])  # a 1 x 1 convolution is a matrix product at every position
            continue
        atoms.pin(image.axes[position])
        atoms.pin(kernel.axes[step], role)
        labels.append(atoms.fresh(shape[result], fixed=True))
    axes = dict(zip(numbers.out_spec, labels, strict=True))
    return Value(tuple(axes[axis] for axis in range(len(shape))))


def broadcast(trace: Trace, equation: Any, operand: Value, *_: Value) -> Value:
    """New axes, and axes stretched from size 1, are uniform."""
    shape = shape_of(equation.outvars[0])
    source = {to: operand.axes[axis] for axis, to in enumerate(equation.params["broadcast_dimensions"])}
    axes = (source.get(axis) or ((Uniform(size),) if size > 1 else ()) for axis, size in enumerate(shape))
    return dataclasses.replace(operand, axes=tuple(axes))


def reshape(trace: Trace, equation: Any, operand: Value, *_: Value) -> Value | list[Value]:
    """The row-major order of factors is kept; an axis is split into, or merged from, factors."""
    if equation.params["dimensions"] is not None:
        return trace.opaque(equation, (operand,))
    label = tuple(factor for axis in operand.axes for factor in axis)
    return dataclasses.replace(operand, axes=tuple(trace.atoms.divide(label, shape_of(equation.outvars[0]))))


def squeeze(trace: Trace, equation: Any, operand: Value) -> Value:
    """Axes of size 1 carry nothing, and go."""
    gone = equation.params["dimensions"]
    return dataclasses.replace(operand, axes=tuple(label for axis, label in enumerate(operand.axes) if axis not in gone))


def transpose(trace: Trace, equation: Any, operand: Value) -> Value:
    """Labels go with their axes."""
    return dataclasses.replace(operand, axes=tuple(operand.axes[axis] for axis in equation.params["permutation"]))


def tile(trace: Trace, equation: Any, operand: Value) -> Value:
    """Each axis becomes (copies, axis), the copies alike."""
    repeats = equation.params["reps"]
    axes = ((*((Uniform(count),) if count > 1 else ()), *axis) for count, axis in zip(repeats, operand.axes, strict=True))
    return Value(tuple(axes))


def stack(trace: Trace, equation: Any, *operands: Value) -> Value:
    """The operands are tied; which is which is ordered."""
    axes = list(trace.join(operands).axes)
    axes.insert(equation.params["axis"], trace.atoms.fresh(len(operands), fixed=True))
    return Value(tuple(axes))


def unstack(trace: Trace, equation: Any, operand: Value) -> list[Value]:
    """Each result is one place of an ordered axis."""
    axes = list(operand.axes)
    trace.atoms.pin(axes.pop(equation.params["axis"]))
    return [Value(tuple(axes)) for _ in equation.outvars]


def random(trace: Trace, equation: Any, *operands: Value) -> list[Value]:
    """Random bits are data: which unit a dropout mask hits depends on its position, so that axis is fixed."""
    return trace.opaque(equation, operands)


_ELEMENTWISE = """
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e bitcast_convert_type cbrt ceil clamp clz
    complex conj cos cosh digamma div erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igamma_grad_a igammac imag integer_pow
    is_finite le le_to lgamma log log1p log2 logistic lt lt_to max min mul mulhi neg nextafter not one_minus_square or polygamma
    polynomial population_count pow real reduce_precision regularized_incomplete_beta rem round rsqrt shift_left
    shift_right_arithmetic shift_right_logical sign sin sinh sqrt square sub tan tanh xor zeta
"""
_UNCHANGED = """
    copy copy_p device_put layout_constraint name optimization_barrier pbroadcast pcast ppermute preduced pvary
    reduced_vary_cast reduced_vary_cast_p relayout reshard sharding_constraint stop_gradient vary_unreduced_cast
    vary_unreduced_cast_p with_memory_space_constraint
"""
_CALLS = """
    call checkpoint closed_call composite core_call custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr custom_vmap_call jit
    pjit remat remat2 remat_opt
"""
_SCATTERS = "scatter scatter-add scatter-sub scatter-mul scatter-min scatter-max"
_RANDOM = """
    random_bits random_clone random_fold_in random_gamma random_seed random_split random_unwrap random_wrap rng_bit_generator
    rng_uniform threefry2x32
"""


_REDUCTIONS = "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor"
_CUMULATIVE = "cumsum cumprod cummax cummin cumlogsumexp"
_WINDOWS = "reduce_window_sum reduce_window_max reduce_window_min"
_PICKS = "select_and_scatter_add select_and_gather_add"
_FACTORIZATIONS = """
    cholesky cholesky_update eig eigh geqp3 geqrf hessenberg householder_product lu lu_pivots_to_permutation ormqr qr schur svd
    symmetric_product tridiagonal tridiagonal_solve
"""
_COLLECTIVE_SUMS = "pmax pmin psum psum_invariant psum2 unreduced_pmax unreduced_pmin unreduced_psum"
_COLLECTIVE_GATHERS = "all_gather all_gather_invariant all_gather_reduced"
_COLLECTIVE_SCATTERS = "reduce_scatter unreduced_reduce_scatter"


def _table(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: dict[str, Rule] = {
    **_table(indices.elementwise, _ELEMENTWISE),
    **_table(indices.equal, "eq ne eq_to"),
    **_table(indices.compare, "lt lt_to le le_to gt ge"),
    **_table(indices.shift, "add sub"),
    **_table(indices.bound, "max min clamp"),
    **_table(indices.select, "select_n"),
    **_table(indices.convert, "convert_element_type"),
    **_table(control.unchanged, _UNCHANGED),
    **_table(dot_general, "dot_general"),
    **_table(convolution, "conv_general_dilated"),
    **_table(broadcast, "broadcast_in_dim"),
    **_table(reshape, "reshape"),
    **_table(squeeze, "squeeze"),
    **_table(transpose, "transpose"),
    **_table(tile, "tile"),
    **_table(stack, "stack"),
    **_table(unstack, "unstack"),
    **_table(ordering.reduce, _REDUCTIONS),
    **_table(ordering.reduce_by, "reduce"),
    **_table(ordering.argument, "argmax argmin"),
    **_table(ordering.cumulative, _CUMULATIVE),
    **_table(ordering.reverse, "rev"),
    **_table(ordering.fourier, "fft"),
    **_table(ordering.sort, "sort"),
    **_table(ordering.top_k, "top_k"),
    **_table(indices.iota, "iota"),
    **_table(ordering.window, _WINDOWS),
    **_table(ordering.window_by, "reduce_window"),
    **_table(ordering.pick_in_window, _PICKS),
    **_table(indexing.slice_, "slice"),
    **_table(indexing.split, "split"),
    **_table(indexing.concatenate, "concatenate"),
    **_table(indexing.pad, "pad"),
    **_table(indexing.dynamic_slice, "dynamic_slice"),
    **_table(indexing.dynamic_update_slice, "dynamic_update_slice"),
    **_table(indexing.gather, "gather"),
    **_table(indexing.scatter, _SCATTERS),
    **_table(random, _RANDOM),
    **_table(control.call, _CALLS),
    **_table(control.cond, "cond"),
    **_table(control.while_loop, "while"),
    **_table(control.scan, "scan"),
    **_table(control.high, "call_hi_primitive"),
    **_table(control.observe, "check create_token dce_sink debug_callback debug_print empty inspect_sharding platform_index"),
    **_table(matrices.factorize, _FACTORIZATIONS),
    **_table(matrices.triangular_solve, "triangular_solve"),
    **_table(matrices.linear_solve, "custom_linear_solve"),
    **_table(matrices.ragged_dot, "ragged_dot_general"),
    **_table(collectives.shard_map, "shard_map"),
    **_table(collectives.reduce, _COLLECTIVE_SUMS),
    **_table(collectives.gather, _COLLECTIVE_GATHERS),
    **_table(collectives.scatter, _COLLECTIVE_SCATTERS),
    **_table(collectives.place, "axis_index"),
}

# Primitives that map over every axis whose permutations they leave free, or say to the trace's `nesting` which they contract or act
# along.
MAPS = frozenset(
    f"""
    {_ELEMENTWISE} {_UNCHANGED} {_CALLS} {_SCATTERS} {_REDUCTIONS} {_CUMULATIVE} {_WINDOWS} {_PICKS} {_FACTORIZATIONS}
    {_COLLECTIVE_SUMS} {_COLLECTIVE_GATHERS} {_COLLECTIVE_SCATTERS} argmax argmin broadcast_in_dim call_hi_primitive concatenate
    cond conv_general_dilated convert_element_type custom_linear_solve dot_general dynamic_slice dynamic_update_slice eq eq_to fft
    gather ne pad ragged_dot_general reduce reduce_window reshape rev scan select_n shard_map slice sort split squeeze stack tile
    top_k transpose triangular_solve unstack while
    """.split()
)

# Rules that look at `Value.index` themselves; before any other rule an index is pinned, as its numbers are then computed with.
INDEX_AWARE = frozenset(
    f"""
    eq ne eq_to lt lt_to le le_to gt ge add sub max min clamp select_n convert_element_type broadcast_in_dim reshape squeeze
    transpose concatenate gather {_SCATTERS} cond while scan debug_callback debug_print {_UNCHANGED} {_CALLS}
    """.split()
)
