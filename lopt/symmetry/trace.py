"""Abstract interpretation of a jaxpr: labels in, labels out, one rule of `rules.RULES` per equation.

What is kept true: for every equation and every element of the group that the atoms still allow, permuting the operands as
their labels say permutes the results as theirs say. A rule may pin or tie as much as it likes to make that so.
"""

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from lopt.symmetry.labels import Atoms, Label, Uniform, Value
from lopt.symmetry.nesting import Record

Rule = Callable[..., Value | list[Value]]  # rule(trace, eqn, *operands) -> one result or a list of them


def _is_identity(entries: np.ndarray, one: int, other: int) -> bool:
    """Whether a constant that varies along two axes has one value where their indices are equal, and one elsewhere."""
    matrix = np.moveaxis(entries, (one, other), (0, 1)).reshape(entries.shape[one], entries.shape[other], -1)[:, :, 0]
    if matrix.shape[0] != matrix.shape[1]:
        return False
    diagonal = np.eye(len(matrix), dtype=bool)
    return all(len(np.unique(matrix[where])) == 1 for where in (diagonal, ~diagonal))


def shape_of(variable: Any) -> tuple[int, ...]:
    """The shape of a variable of a jaxpr; tokens and the like have none."""
    return tuple(getattr(variable.aval, "shape", ()))


class Trace:
    """The state of one interpretation.

    Attributes:
      atoms: the union-find that the rules constrain.
      unknown: primitives met that have no rule.
      order: id of a watched value -> how many were consumed before it.
      nesting: notes on which permutations may differ between the indices of another.
      ignore_ties: whether an argmax may be taken to follow a permutation, which fails where two entries are equal.
      free: whether a constant array of floats may move as weights do, to see what it is the reason of.
      constants: the `jax.Array`s of floats that are not the same everywhere.
    """

    def __init__(
        self,
        rules: dict[str, Rule],
        index_aware: Iterable[str],
        maps: Iterable[str],
        *,
        ignore_ties: bool = False,
        free: Callable[[Any], bool] = lambda array: False,
    ) -> None:
        self.atoms = Atoms()
        self.rules = rules
        self.index_aware = frozenset(index_aware)
        self.maps = frozenset(maps)
        self.nesting = Record()
        self.unknown: list[str] = []
        self.order: dict[int, int] = {}
        self.ignore_ties = ignore_ties
        self.free = free
        self.constants: list[tuple[Any, Value]] = []
        self._watched: dict[int, Value] = {}
        self._used: set[int] = set()

    def watch(self, value: Value) -> Value:
        """Record in `order` when `value` is first consumed."""
        self._watched[id(value)] = value
        return value

    def is_weight(self, value: Value) -> bool:
        return id(value) in self._watched

    def is_used(self, variable: Any) -> bool:
        """Whether a variable of a jaxpr that is being read stands anywhere but where it is made."""
        return id(variable) in self._used

    def consume(self, values: Iterable[Value]) -> None:
        for value in values:
            if self.is_weight(value):
                self.order.setdefault(id(value), len(self.order))

    def uniform(self, shape: Sequence[int]) -> Value:
        return Value(tuple((Uniform(size),) if size > 1 else () for size in shape))

    def fixed(self, shape: Sequence[int]) -> Value:
        """A value that no group element moves, such as data."""
        return Value(self.atoms.fresh_fixed(shape))

    def constant(self, array: Any) -> Value:
        """A concrete array or number: fixed, but for the axes along which it does not vary, and the two of an identity matrix.

        The numbers 0, 1, 2, ... are an index, as an iota is.
        """
        if 0 in np.shape(array) or (hasattr(array, "dtype") and jnp.issubdtype(array.dtype, jax.dtypes.extended)):
            return self.fixed(np.shape(array))
        entries = np.asarray(array)
        if (
            entries.ndim == 1
            and entries.size > 1
            and entries.dtype.kind in "iu"
            and np.array_equal(entries, np.arange(entries.size))
        ):
            label = self.atoms.fresh(entries.size)
            return Value((label,), label)
        varying = [axis for axis in range(entries.ndim) if np.any(entries != np.take(entries, [0], axis=axis))]
        labels: list[Label] = [(Uniform(size),) if size > 1 else () for size in entries.shape]
        if len(varying) == 2 and _is_identity(entries, *varying):
            labels[varying[0]] = labels[varying[1]] = self.atoms.fresh(entries.shape[varying[0]])
        else:
            floats = isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jnp.inexact)
            for axis in varying:
                labels[axis] = self.atoms.fresh(entries.shape[axis], fixed=not (floats and self.free(array)))
            if varying and floats:
                self.constants.append((array, Value(tuple(labels))))
        known = not varying and entries.dtype.kind in "biuf"
        return Value(tuple(labels), number=entries.flat[0].item() if known else None)

    def pin(self, value: Value) -> None:
        """Pin every axis of a value, and its numbers if they are indices."""
        for label in value.axes:
            self.atoms.pin(label)
        if value.index is not None:
            self.atoms.pin(value.index)

    def join(self, values: Sequence[Value]) -> Value:
        """The labels of a value that may be any of several of one shape: all their axes tied, one with one."""
        axes = values[0].axes
        for value in values[1:]:
            axes = tuple(self.atoms.unify(one, other) for one, other in zip(axes, value.axes, strict=True))
        return Value(axes, self.join_index(values), values[0].offset)

    def join_index(self, values: Sequence[Value]) -> Label | None:
        """Tie the index labels of values that take each other's place; pinned unless all are indices of equal range and offset."""
        labels = [value.index for value in values if value.index is not None]
        ranges = {(self.atoms.total(value.index), value.offset) for value in values if value.index is not None}
        if len(labels) == len(values) and len(ranges) == 1:
            index = labels[0]
            for label in labels[1:]:
                index = self.atoms.unify(index, label)
            return index
        for label in labels:
            self.atoms.pin(label)
        return None

    def freedom(self, value: Value) -> tuple[int | bool, ...]:
        """How uniform a value is: what a loop's fixpoint can only lower."""
        return (*map(self.atoms.uniformity, value.axes), value.index is None)

    def fixpoint(self, start: Sequence[Value], body: Callable[[list[Value]], list[Value]]) -> list[Value]:
        """The labels of a loop's carry: those of its start, joined with what the body makes of them until nothing changes."""
        carry = [dataclasses.replace(value, number=None) for value in start]
        while True:
            with self.nesting.loop():
                after = body(carry)
            joined = [self.join(pair) for pair in zip(carry, after, strict=True)]
            if list(map(self.freedom, joined)) == list(map(self.freedom, carry)):
                return joined
            carry = joined

    def run(self, jaxpr: Any, values: Sequence[Value], consts: Sequence[Any] = ()) -> list[Value]:
        """Interpret a `Jaxpr` with abstract constants, or a `ClosedJaxpr` with its own.

        Returns:
          the labels of the results.
        """
        if isinstance(jaxpr, core.ClosedJaxpr):
            jaxpr, consts = jaxpr.jaxpr, [self.constant(const) for const in jaxpr.consts]
        known: dict[Any, Value] = dict(zip(jaxpr.constvars, consts, strict=True))
        known.update(zip(jaxpr.invars, values, strict=True))
        self._used.update(id(atom) for equation in jaxpr.eqns for atom in equation.invars)
        self._used.update(map(id, jaxpr.outvars))
        for value in known.values():
            self.nesting.value(value)

        def read(atom: Any) -> Value:
            return self.constant(atom.val) if isinstance(atom, core.Literal) else known[atom]

        for equation in jaxpr.eqns:
            results = self.apply(equation, [read(atom) for atom in equation.invars])
            known.update(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def apply(self, equation: Any, operands: list[Value]) -> list[Value]:
        """One equation: its rule's results, or, without a rule, everything pinned."""
        name = equation.primitive.name
        rule = self.rules.get(name)
        aware = name in self.index_aware
        for operand in operands:
            if not aware and operand.index is not None:
                self.atoms.pin(operand.index)
        if not any(True for _ in core.jaxprs_in_params(equation.params)):
            self.consume(operands)
        if name not in self.maps:
            self.nesting.opaque(operands)
        if rule is None:
            self.unknown.append(name)
            return self.opaque(equation, operands)
        outcome = rule(self, equation, *operands)
        results = outcome if isinstance(outcome, list) else [outcome]
        for result, variable in zip(results, equation.outvars, strict=True):
            sizes = tuple(map(self.atoms.total, result.axes))
            if sizes != shape_of(variable):
                raise ValueError(f"the rule of '{name}' labels axes of sizes {sizes} in a result of shape {shape_of(variable)}")
            self.nesting.value(result)
        return results

    def opaque(self, equation: Any, operands: Sequence[Value]) -> list[Value]:
        """Results that no group element moves, of operands that none may move."""
        for operand in operands:
            self.pin(operand)
        return [self.fixed(shape_of(variable)) for variable in equation.outvars]

    def report(self) -> None:
        """Warn, once, of the primitives without a rule."""
        if self.unknown:
            names = ", ".join(dict.fromkeys(self.unknown))
            warnings.warn(
                f"infer_spec has no rule for: {names}. Every axis that they touch is taken to be fixed, so the spec may be too "
                "small; a rule can be added to lopt.symmetry.rules.RULES",
                stacklevel=3,
            )
