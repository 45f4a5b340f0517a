"""Rules for primitives that hold a jaxpr: calls, `cond`, `while` and `scan`. See `lopt.symmetry.rules` for the table."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
from jax.extend import core

from lopt.symmetry.labels import Label, Value
from lopt.symmetry.trace import Trace, shape_of


def call(trace: Trace, equation: Any, *operands: Value) -> list[Value]:
    """A call of one inner function (jit, remat, custom derivatives): interpret it in place."""
    jaxprs = list(core.jaxprs_in_params(equation.params))
    if len(jaxprs) != 1 or len(jaxprs[0].invars) != len(operands) or len(jaxprs[0].outvars) != len(equation.outvars):
        trace.unknown.append(equation.primitive.name)
        return trace.opaque(equation, operands)
    closed = next((param for param in equation.params.values() if isinstance(param, core.ClosedJaxpr)), jaxprs[0])
    return trace.run(closed, operands)


def high(trace: Trace, equation: Any, *operands: Value) -> list[Value]:
    """A primitive that is defined by the others that it stands for: interpret them."""
    lowered = functools.partial(equation.primitive.to_lojax, **equation.params)
    shapes = [jax.ShapeDtypeStruct(shape_of(variable), variable.aval.dtype) for variable in equation.invars]
    return trace.run(jax.make_jaxpr(lowered)(*shapes), operands)


def cond(trace: Trace, equation: Any, which: Value, *operands: Value) -> list[Value]:
    """Any branch may have been taken: their results are joined. `which` is a scalar, hence the same for all permutations."""
    if which.index is not None:
        trace.atoms.pin(which.index)
    results = [trace.run(branch, operands) for branch in equation.params["branches"]]
    return [trace.join(values) for values in zip(*results, strict=True)]


def while_loop(trace: Trace, equation: Any, *operands: Value) -> list[Value]:
    """The carry's labels are a fixpoint of the body. The number of steps is the same for all permutations, as is any scalar."""
    test_count, body_count = equation.params["cond_nconsts"], equation.params["body_nconsts"]
    test_consts, operands = operands[:test_count], operands[test_count:]
    body_consts, start = operands[:body_count], operands[body_count:]
    carry = trace.fixpoint(start, lambda carry: trace.run(equation.params["body_jaxpr"], [*body_consts, *carry]))
    (again,) = trace.run(equation.params["cond_jaxpr"], [*test_consts, *carry])
    trace.pin(again)
    return carry


def scan(trace: Trace, equation: Any, *operands: Value) -> list[Value]:
    """The scanned axis is one index shared by all that is sliced and stacked.

    With a carry its order is the order of time (or of layers); without one every step stands alone, as in `lax.map`, and the
    axis permutes as a batch axis does.
    """
    body = equation.params["jaxpr"]
    # Which operands are sliced and which results stacked is read off the ranks: JAX's own counts changed their place in 0.12.
    inner = getattr(body, "jaxpr", body)
    sliced_count = _count_rank_changes(equation.invars, inner.invars)
    carry_count = len(equation.outvars) - _count_rank_changes(equation.outvars, inner.outvars)
    consts_count = len(operands) - sliced_count - carry_count
    consts, start = operands[:consts_count], operands[consts_count : consts_count + carry_count]
    sliced = operands[consts_count + carry_count :]
    trace.consume(sliced)
    steps: Label | None = functools.reduce(trace.atoms.unify, [value.axes[0] for value in sliced]) if sliced else None
    if carry_count or steps is None:
        for value in sliced:
            trace.atoms.pin(value.axes[0], "step")
        length = trace.atoms.fresh(equation.params["length"], fixed=True) if steps is None else steps
        steps = trace.atoms.pinned(length)
    slices = [dataclasses.replace(value, axes=value.axes[1:]) for value in sliced]
    stacked: list[Value] = []

    def step(carry: list[Value]) -> list[Value]:
        with trace.nesting.within(steps):
            results = trace.run(body, [*consts, *carry, *slices])
        stacked[:] = results[carry_count:]
        return results[:carry_count]

    carry = trace.fixpoint(start, step)
    return [*carry, *(Value((steps, *value.axes), value.index, value.offset) for value in stacked)]


def _count_rank_changes(outside: Sequence[Any], inside: Sequence[Any]) -> int:
    """How many values have another rank outside a loop than inside."""
    return sum(len(shape_of(out)) != len(shape_of(inner)) for out, inner in zip(outside, inside, strict=True))


def unchanged(trace: Trace, equation: Any, *operands: Value) -> list[Value]:
    """Values passed through, each by itself."""
    return list(operands)


def observe(trace: Trace, equation: Any, *operands: Value) -> list[Value]:
    """Printing and other side effects that return nothing constrain nothing."""
    return [trace.fixed(shape_of(variable)) for variable in equation.outvars]
