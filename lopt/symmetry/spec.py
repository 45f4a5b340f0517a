"""Weight specs: which permutation acts on which axis of which weight.

A weight space is a set of tensors; permutations `s_1 ... s_N` act on their axes (Zhou, Finn, Harrison, "Universal Neural
Functionals", NeurIPS 2024, section 3). A `WeightSpec` names the permutation of every axis in the notation of einops:

    {"dense": {"kernel": "pixels! hidden", "bias": "hidden"}}    `!`: the order carries meaning, not permutable
    {"rnn":   {"kernel": "hidden hidden"}}                         same name: the axes move together
    {"head":  {"kernel": "(h! w! c) classes!"}}                    one array axis made of three named factors, row-major
    {"norm":  {"scale": "1 embed", "count": ""}}                   `1`: an axis of size one; "": a rank-0 leaf
    {"query": {"kernel": "embed heads dim@heads"}}                 `@`: each head permutes its own `dim`
    {"lstm":  {"kernel": "(inputs! | hidden) (gates! hidden)"}}    `|`: one array axis made of parts, one behind the other

A weight with an axis in parts is as many weights as it has blocks, which happen to lie in one array: `WeightSpec.blocks` is the spec
of these, without parts, for which alone the equivariant basis and the layers are written.

`lopt.symmetry.notation` reads and writes the strings.
"""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lopt.symmetry.action import GroupElement, check_element, move_leaf
from lopt.symmetry.notation import (
    Axis,
    Factor,
    Part,
    Segments,
    SpecError,
    bind_owners,
    format_axis,
    map_factors,
    parse_leaf,
    parts_of,
)

__all__ = ["Axis", "Factor", "GroupElement", "PyTree", "SpecError", "WeightSpec", "is_under", "named_leaves", "unknown_prefixes"]

PyTree = Any


def named_leaves(tree: PyTree) -> list[tuple[str, Any]]:
    """The leaves of a pytree with their paths as `outer/inner` strings, in flatten order; no two have the same path.

    Where keys that hold a `/` would give two leaves one path, every `/` inside a key of this pytree is written `%2F`.

    Raises:
      ValueError: naming two leaves whose keys, though different, are written alike, as an attribute and an entry of one name.

    Example:
      >>> named_leaves({"a/b": {"w": 1}, "list": [2]})
      [('a/b/w', 1), ('list/0', 2)]
      >>> named_leaves({"a/b": {"w": 1}, "a": {"b/w": 2}})
      [('a/b%2Fw', 2), ('a%2Fb/w', 1)]
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    paths = [jax.tree_util.keystr(keys, simple=True, separator="/") for keys, _ in flat]
    if len(set(paths)) < len(paths):
        paths = ["/".join(_escaped(jax.tree_util.keystr((key,), simple=True)) for key in keys) for keys, _ in flat]
        first: dict[str, Any] = {}
        for path, (keys, _) in zip(paths, flat, strict=True):
            if first.setdefault(path, keys) is not keys:
                one, two = (jax.tree_util.keystr(found) for found in (first[path], keys))
                raise ValueError(
                    f"the leaves {one} and {two} both have the path '{path}': rename a key, so that they can be told apart"
                )
    return [(path, leaf) for path, (_, leaf) in zip(paths, flat, strict=True)]


def _escaped(key: str) -> str:
    """A key without what separates keys; a `%` that could be read as the beginning of what stands for it is written `%25`."""
    return re.sub("%(?=2F|25)", "%25", key).replace("/", "%2F")


def is_under(path: str, prefix: str) -> bool:
    """Whether a path begins with another: `network/last/bias` is under `network/last`, and under itself."""
    return path == prefix or path.startswith(f"{prefix}/")


def unknown_prefixes(prefixes: Iterable[str], tree: PyTree) -> list[str]:
    """Those that no leaf of the pytree is under."""
    paths = [path for path, _ in named_leaves(tree)]
    return [prefix for prefix in prefixes if not any(is_under(path, prefix) for path in paths)]


def _block_path(path: str, axes: Sequence[Axis], which: Sequence[int]) -> str:
    places = [str(place) for axis, place in zip(axes, which, strict=True) if isinstance(axis, Segments)]
    return f"{path}[{','.join(places)}]" if places else path


def _part_size(part: Part, sizes: Mapping[str, int]) -> int:
    return math.prod(sizes[factor.name] for factor in part)


_CONTRADICTION: dict[str, int] = {"": -1}


def _solve(axis: Axis, size: int, known: Mapping[str, int]) -> dict[str, int] | None:
    """The size of the one name of an axis that is not known; {} if all are, None if more than one is not."""
    unknown = {factor.name for part in parts_of(axis) for factor in part if factor.name not in known}
    if len(unknown) > 1:
        return None
    left, times = size, 0
    for part in parts_of(axis):
        places = sum(factor.name in unknown for factor in part)
        of_known = math.prod(known[factor.name] for factor in part if factor.name in known)
        if places > 1:
            return None
        left, times = (left, times + of_known) if places else (left - of_known, times)
    if not unknown:
        return {} if left == 0 else _CONTRADICTION
    return {unknown.pop(): left // times} if times and left >= 0 and left % times == 0 else _CONTRADICTION


@dataclasses.dataclass(frozen=True)
class WeightSpec:
    """The symmetry of a model's weights: which permutation acts on which axis of which weight, each by a name.

    Two axes share a name exactly when one permutation must move both. Make one with `WeightSpec.parse`. A spec is hashable
    and holds no arrays, so it may be a static argument of `jax.jit`.

    Attributes:
      leaves: `(path, axes)` for every leaf, in the params' flatten order; paths look like `dense/kernel`.
      known_sizes: `(name, size)` given to `parse`, for factors that only ever stand inside a composed axis.
    """

    leaves: tuple[tuple[str, tuple[Axis, ...]], ...]
    known_sizes: tuple[tuple[str, int], ...] = ()

    @classmethod
    def parse(cls, tree: PyTree, **sizes: int) -> "WeightSpec":
        """Read a pytree of strings, one per weight, in the notation of this module's docstring.

        Args:
          tree: pytree of the params' structure whose leaves are strings.
          **sizes: sizes of factors that cannot be read off the params, as in `einops.rearrange`.

        Raises:
          SpecError: naming the leaf that cannot be read, or the name used both with and without `!`.

        Example:
          >>> spec = WeightSpec.parse({"kernel": "inputs! hidden", "bias": "hidden"})
          >>> spec.sizes({"kernel": jnp.zeros((4, 3)), "bias": jnp.zeros(3)})
          {'hidden': 3, 'inputs': 4}
        """
        leaves = tuple((path, parse_leaf(path, text)) for path, text in named_leaves(tree))
        spec = cls(leaves, tuple(sorted(sizes.items())))
        unknown = sorted(set(sizes) - set(spec.names))
        if unknown:
            raise SpecError(f"sizes are given for {unknown}, which no axis is named after; the names are {list(spec.names)}")
        return spec

    def __post_init__(self) -> None:
        seen: dict[str, tuple[Factor, str]] = {}
        for path, factor in self._factors():
            other, first = seen.setdefault(factor.name, (factor, path))
            if other.fixed != factor.fixed:
                raise SpecError(f"'{factor.name}' is fixed ('!') in one of '{first}' and '{path}' but not in the other")
            if other.owner != factor.owner:
                raise SpecError(f"'{factor.name}' is '{other}' in '{first}' but '{factor}' in '{path}'")
        for name, owner in self.nested.items():
            if owner in self.nested or owner == name:
                raise SpecError(f"'{name}' is nested in '{owner}', which is nested itself: one level is all that specs have")
        blocks: dict[str, str] = {}
        axes = dict(self.leaves)
        for path, block, which in self._blocks():
            bind_owners(path, tuple(factor for part in block for factor in part))
            name = _block_path(path, axes[path], which)
            if blocks.setdefault(name, path) != path:
                raise SpecError(
                    f"leaves '{blocks[name]}' and '{path}' both have a block of the path '{name}': rename one of them"
                )

    def _factors(self) -> Iterator[tuple[str, Factor]]:
        for path, axes in self.leaves:
            for axis in axes:
                for part in parts_of(axis):
                    for factor in part:
                        yield path, factor

    def _blocks(self) -> Iterator[tuple[str, tuple[Part, ...], tuple[int, ...]]]:
        """For every block of every leaf the leaf's path, the part of each axis that the block lies in, and which it is."""
        for path, axes in self.leaves:
            for which in itertools.product(*(range(len(parts_of(axis))) for axis in axes)):
                yield path, tuple(parts_of(axis)[place] for axis, place in zip(axes, which, strict=True)), which

    @functools.cached_property
    def in_parts(self) -> bool:
        """Whether an axis of some leaf is made of parts."""
        return any(isinstance(axis, Segments) for _, axes in self.leaves for axis in axes)

    @functools.cached_property
    def blocks(self) -> "WeightSpec":
        """The spec of the blocks, each a leaf of its own: `path[i]` for part i of a leaf's one axis in parts, `path[i,j]` of two.

        Example:
          >>> print(WeightSpec.parse({"bias": "gates", "kernel": "(x! | h) gates"}).blocks)
          bias       gates
          kernel[0]  x! gates
          kernel[1]  h gates
        """
        if not self.in_parts:
            return self
        axes = dict(self.leaves)
        leaves = tuple((_block_path(path, axes[path], which), block) for path, block, which in self._blocks())
        return WeightSpec(leaves, self.known_sizes)

    def block_places(self) -> list[tuple[str, tuple[int, ...]]]:
        """For every leaf of `blocks` the path of the leaf that it is a block of, and which part of each axis it lies in."""
        return [(path, which) for path, _, which in self._blocks()]

    def split(self, arrays: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
        """The blocks of arrays: path -> array to path of `blocks` -> array. Axes behind those of a leaf, such as channels, are kept."""
        found = {}
        for path, axes in self.leaves:
            if path not in arrays:
                continue
            if not any(isinstance(axis, Segments) for axis in axes):
                found[path] = arrays[path]
                continue
            ends = [list(itertools.accumulate((_part_size(part, sizes) for part in parts_of(axis)), initial=0)) for axis in axes]
            for which in itertools.product(*(range(len(parts_of(axis))) for axis in axes)):
                index = tuple(slice(end[place], end[place + 1]) for end, place in zip(ends, which, strict=True))
                found[_block_path(path, axes, which)] = arrays[path][index]
        return found

    def join(self, xp: Any, blocks: Mapping[str, Any]) -> dict[str, Any]:
        """The arrays of which `split` makes these blocks; `xp` is numpy or jax.numpy."""

        def joined(path: str, axes: tuple[Axis, ...], which: tuple[int, ...]) -> Any:
            if len(which) == len(axes):
                return blocks[_block_path(path, axes, which)]
            parts = [joined(path, axes, (*which, place)) for place in range(len(parts_of(axes[len(which)])))]
            return parts[0] if len(parts) == 1 else xp.concatenate(parts, axis=len(which))

        return {path: joined(path, axes, ()) for path, axes in self.leaves}

    @property
    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        return tuple(sorted({factor.name for _, factor in self._factors()}))

    @property
    def permutable(self) -> tuple[str, ...]:
        """The names without `!`, sorted: the permutations of the group."""
        return tuple(sorted({factor.name for _, factor in self._factors() if not factor.fixed}))

    @property
    def nested(self) -> dict[str, str]:
        """Name -> owner, for the names that every index of another name permutes in its own way."""
        return {factor.name: factor.owner for _, factor in self._factors() if factor.owner is not None}

    @property
    def paths(self) -> tuple[str, ...]:
        """The path of every leaf, in flatten order."""
        return tuple(path for path, _ in self.leaves)

    def factors(self, path: str) -> tuple[Factor, ...]:
        """All factors of a leaf, composed axes expanded: one per axis of the reshaped leaf.

        Raises:
          SpecError: if an axis of the leaf is made of parts, so that `blocks` has to be asked.
        """
        axes = dict(self.leaves)[path]
        if any(isinstance(axis, Segments) for axis in axes):
            raise SpecError(
                f"leaf '{path}' ('{self.notation(path)}') has an axis made of parts: ask for the factors of `spec.blocks`"
            )
        return tuple(factor for axis in axes for factor in parts_of(axis)[0])

    def all_factors(self, path: str) -> tuple[Factor, ...]:
        """The factors of all axes of a leaf, those of parts one after the other."""
        return tuple(factor for axis in dict(self.leaves)[path] for part in parts_of(axis) for factor in part)

    def axis_factors(self, path: str, axis: int) -> tuple[Factor, ...]:
        """The factors of one axis of a leaf, those of parts one after the other."""
        return tuple(factor for part in parts_of(dict(self.leaves)[path][axis]) for factor in part)

    def sides(self, path: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The axes of a leaf that are its layer's inputs, and those that are its outputs.

        Outputs are the axes that the layer's bias has: a leaf of lower rank beside it, all of whose axes it shares, where it is the only
        leaf there of its rank or a higher one. Else they are the last axis, with those that it is nested in. A bias has no inputs.

        Example:
          >>> tree = {"conv": {"kernel": "y! x! a b"}, "linear": {"bias": "c", "weight": "c b"}, "query": "c heads q@heads"}
          >>> spec = WeightSpec.parse(tree)
          >>> [spec.sides(path) for path in spec.paths]
          [((0, 1, 2), (3,)), ((), (0,)), ((1,), (0,)), ((0,), (1, 2))]
        """
        own, parent = dict(self.leaves)[path], path.rpartition("/")[0]
        beside = [axes for other, axes in self.leaves if other != path and other.rpartition("/")[0] == parent]
        biases = [axes for axes in beside if axes and set(axes) <= set(own)]
        if biases and all(len(axes) < len(own) for axes in beside):
            found = max(biases, key=len)
        else:
            owners = {factor.owner for factor in self.axis_factors(path, len(own) - 1)} if own else set()
            found = tuple(axis for axis in own[:-1] if any(f.name in owners for part in parts_of(axis) for f in part)) + own[-1:]
        outputs: list[int] = []
        for axis in reversed(found):  # of two that are alike, as of a recurrent kernel, the last
            outputs.append(max(i for i, other in enumerate(own) if other == axis and i not in outputs))
        return tuple(i for i in range(len(own)) if i not in outputs), tuple(sorted(outputs))

    def batch_axes(self, path: str) -> tuple[int, ...]:
        """The leading axes of a leaf of which each entry has a layer of its own, as of layers that are scanned over, or of experts.

        They stand before all axes of inputs and outputs that are left, and are fixed, or are among the outputs where the layer's bias has
        them too. Which of an unnamed stack and the window of a convolution in one dimension an axis is, no spec tells: it is taken for a
        batch.

        Example:
          >>> stack, experts = {"bias": "layers! b", "kernel": "layers! a b"}, {"bias": "e b", "kernel": "e a b"}
          >>> spec = WeightSpec.parse({"conv": "y! x! a b", "stack": stack, "moe": experts, "query": "c heads q@heads"})
          >>> [(path, spec.batch_axes(path)) for path in spec.paths if path.endswith(("kernel", "conv", "query"))]
          [('conv', (0, 1)), ('moe/kernel', (0,)), ('query', ()), ('stack/kernel', (0,))]
        """
        own = dict(self.leaves)[path]
        inputs, outputs = self.sides(path)
        found: list[int] = []
        for axis in range(len(own)):
            left = [i for i in outputs if i > axis] if axis in outputs else [i for i in inputs if i > axis]
            fixed = all(factor.fixed for factor in self.axis_factors(path, axis))
            if (
                not left
                or not inputs
                or not (fixed or (axis in outputs and all(i > axis for i in inputs) and left[0] > min(inputs)))
            ):
                break
            found.append(axis)
        return tuple(found)

    def owners(self, path: str) -> tuple[int | None, ...]:
        """For each of a leaf's `factors`, the position of the one that it is nested in."""
        return bind_owners(path, self.factors(path))

    def __str__(self) -> str:
        width = max((len(path) for path in self.paths), default=0)
        return "\n".join(f"{path:<{width}}  {self.notation(path)}" for path in self.paths)

    def notation(self, path: str) -> str:
        """The spec string of one leaf, as `parse` reads it."""
        return " ".join(format_axis(axis) for axis in dict(self.leaves)[path])

    def relax(self, *names: str) -> "WeightSpec":
        """Treat fixed names (all of them, or those given) as permutable: the paper's setting.

        A network that is equivariant to the larger group is equivariant to the true one, with fewer parameters.

        Raises:
          SpecError: if a given name is not in the spec.
        """
        unknown = sorted(set(names) - set(self.names))
        if unknown:
            raise SpecError(f"cannot relax {unknown}: the names are {list(self.names)}")

        def relaxed(factor: Factor) -> Factor:
            return dataclasses.replace(factor, fixed=factor.fixed and bool(names) and factor.name not in names)

        return self.with_factors(relaxed)

    def with_factors(self, change: Callable[[Factor], Factor]) -> "WeightSpec":
        """The spec with its factors changed, each by itself."""
        leaves = tuple((path, tuple(map_factors(axis, change) for axis in axes)) for path, axes in self.leaves)
        return dataclasses.replace(self, leaves=leaves)

    def without(self, *names: str) -> "WeightSpec":
        """The spec of the leaves with the axes of these names taken out, as when they become channels.

        Raises:
          SpecError: if a given name is not in the spec, or another one that stays is nested in it.
        """
        unknown = sorted(set(names) - set(self.names))
        if unknown:
            raise SpecError(f"cannot take out {unknown}: the names are {list(self.names)}")
        orphans = sorted(name for name, owner in self.nested.items() if owner in names and name not in names)
        if orphans:
            raise SpecError(
                f"cannot take out {sorted(names)} and leave {orphans}, which are nested in them: take them out together"
            )

        spec = self.blocks  # an axis may be taken out of some blocks of a leaf and not out of others
        return WeightSpec(tuple((path, tuple((f,) for f in spec.factors(path) if f.name not in names)) for path in spec.paths))

    def sizes(self, params: PyTree) -> dict[str, int]:
        """Check that the spec describes `params` and return the size of every name.

        Args:
          params: pytree of arrays or `jax.ShapeDtypeStruct`s.

        Returns:
          name -> size, sorted by name.

        Raises:
          SpecError: naming the leaf that is missing, unexpected, of another rank, or whose size disagrees.
        """
        shapes = self._match(params)
        found: dict[str, tuple[int, str]] = {name: (size, "the given sizes") for name, size in self.known_sizes}

        def record(name: str, size: int, path: str) -> None:
            known, first = found.setdefault(name, (size, f"'{path}'"))
            if known != size:
                raise SpecError(
                    f"leaf '{path}' of shape {shapes[path]} gives '{name}' size {size}, but it has size {known} by {first} "
                    f"(spec '{self.notation(path)}')"
                )

        composed: list[tuple[str, Axis, int]] = []
        for path, axes in self.leaves:
            for axis, size in zip(axes, shapes[path], strict=True):
                if not isinstance(axis, Segments) and len(axis) == 1:
                    record(axis[0].name, size, path)
                else:
                    composed.append((path, axis, size))
        # A composed axis determines its last unknown factor; repeat until nothing new is learned.
        while composed:
            pending = []
            for path, axis, size in composed:
                solved = _solve(axis, size, {name: known for name, (known, _) in found.items()})
                if solved is None:
                    pending.append((path, axis, size))
                elif solved == _CONTRADICTION:
                    sizes = {f.name: found[f.name][0] for part in parts_of(axis) for f in part if f.name in found}
                    raise SpecError(
                        f"leaf '{path}' of shape {shapes[path]}: the axis '{format_axis(axis)}' has size {size}, which does not "
                        f"factor with {sizes}"
                    )
                else:
                    for name, of in solved.items():
                        record(name, of, path)
            if len(pending) == len(composed):
                path, axis, _ = pending[0]
                raise SpecError(
                    f"leaf '{path}': the factors of '{format_axis(axis)}' have no known size; give all but one of them to "
                    "WeightSpec.parse(tree, name=size)"
                )
            composed = pending
        return {name: found[name][0] for name in sorted(found)}

    def validate(self, params: PyTree) -> None:
        """Raise `SpecError`, naming the leaf, unless the spec describes `params`."""
        self.sizes(params)

    def _match(self, params: PyTree) -> dict[str, tuple[int, ...]]:
        shapes = {path: tuple(np.shape(leaf)) for path, leaf in named_leaves(params)}
        missing = [path for path in self.paths if path not in shapes]
        unexpected = [path for path in shapes if path not in set(self.paths)]
        if missing or unexpected:
            raise SpecError(
                "the spec does not match the params: "
                + "; ".join(
                    f"{what} {leaves}" for what, leaves in (("no leaf for", missing), ("no spec for", unexpected)) if leaves
                )
            )
        for path, axes in self.leaves:
            if len(axes) != len(shapes[path]):
                raise SpecError(
                    f"leaf '{path}' has shape {shapes[path]} of rank {len(shapes[path])}, but its spec '{self.notation(path)}' "
                    f"has {len(axes)} axes"
                )
        return shapes

    def permute(self, params: PyTree, element: GroupElement) -> PyTree:
        """Apply a group element: `(g W)[i, j, ...] = W[g_a[i], g_b[j], ...]` for a leaf with axes `a b ...`.

        Args:
          params: pytree that the spec describes.
          element: name -> permutation of that name's indices, int [n]; names left out stay in place. For a name nested in an owner
            of m indices, a permutation for each of them, int [m, n]; they act first, then the owner moves the whole.

        Raises:
          SpecError: if the spec does not describe the params, or an entry is not a permutation of its name's size.
        """
        sizes = self.sizes(params)
        check_element(element, sizes, self.nested)
        moved = self.move(jnp, dict(named_leaves(params)), sizes, element)
        return jax.tree.unflatten(jax.tree.structure(params), [moved[path] for path, _ in named_leaves(params)])

    def move(self, xp: Any, leaves: Mapping[str, Any], sizes: Mapping[str, int], element: GroupElement) -> dict[str, Any]:
        """`permute` for path -> array, in numpy or jax.numpy, of what is known to fit."""
        spec, blocks = self.blocks, self.split(leaves, sizes)
        moved = {path: move_leaf(xp, blocks[path], spec.factors(path), spec.owners(path), sizes, element) for path in spec.paths}
        return self.join(xp, moved)

    def sample(self, key: jax.Array, params: PyTree) -> dict[str, jax.Array]:
        """A uniformly random group element: a permutation of int [n] for each permutable name, [m, n] for a nested one."""
        sizes, nested = self.sizes(params), self.nested

        def draw(name: str, key: jax.Array) -> jax.Array:
            if name not in nested:
                return jax.random.permutation(key, sizes[name])
            each = [jax.random.permutation(jax.random.fold_in(key, index), sizes[name]) for index in range(sizes[nested[name]])]
            return jnp.stack(each) if each else jnp.zeros((0, sizes[name]), jnp.int32)

        return {name: draw(name, jax.random.fold_in(key, index)) for index, name in enumerate(self.permutable)}
