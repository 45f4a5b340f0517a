"""A spec as the rows of tables: its leaves, its permutations, and what an equivariant layer over it costs."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from lopt.symmetry.basis import Plan, make_plan
from lopt.symmetry.spec import PyTree, WeightSpec, named_leaves


@dataclasses.dataclass(frozen=True)
class LeafRow:
    """One weight.

    Attributes:
      path: of the leaf.
      shape: of the leaf.
      axes: its axis names, in the notation of specs.
      terms: basis terms of a UNF layer that write to it.
    """

    path: str
    shape: tuple[int, ...]
    axes: str
    terms: int


@dataclasses.dataclass(frozen=True)
class NameRow:
    """One name of a spec.

    Attributes:
      name: of the permutation, or of the axis whose order carries meaning.
      fixed: whether it is the latter.
      size: number of indices.
      leaves: paths of the weights that it moves, in flatten order.
    """

    name: str
    fixed: bool
    size: int
    leaves: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class LayerCount:
    """What a UNF layer over the spec is made of, all names treated as permutable (the paper's setting).

    Attributes:
      terms: basis terms into each output leaf.
      views: pooled arrays that are computed, each once.
    """

    terms: Mapping[str, int]
    views: int

    @property
    def num_terms(self) -> int:
        return sum(self.terms.values())

    def parameters(self, c_in: int, c_out: int) -> int:
        """A c_in x c_out matrix for each term and c_out biases for each output leaf."""
        return c_in * c_out * self.num_terms + c_out * len(self.terms)


@dataclasses.dataclass(frozen=True)
class Description:
    """The tables of one spec."""

    leaves: tuple[LeafRow, ...]
    names: tuple[NameRow, ...]
    layer: LayerCount


def count_layer(spec: WeightSpec) -> LayerCount:
    """Count the terms and pooled views of a UNF layer.

    Example:
      >>> count = count_layer(WeightSpec.parse({"kernel": "inputs! hidden", "bias": "hidden"}))
      >>> count.num_terms, count.views, count.parameters(c_in=32, c_out=1)
      (10, 6, 322)
    """
    plan = make_plan(spec.relax().blocks)
    return LayerCount(_terms_by_output(plan), len(_pooled(plan)))


def _terms_by_output(plan: Plan) -> dict[str, int]:
    terms = dict.fromkeys(plan.spec.paths, 0)
    for group in plan.groups:
        for target in group.targets:
            terms[target.path] += len(group.views)
    return terms


def _pooled(plan: Plan) -> set[object]:
    """Views that differ in the order of their kept blocks alone are transposes of one pooled array."""
    return {(view.path, view.blocks, frozenset(view.kept)) for group in plan.groups for view in group.views}


def describe(spec: WeightSpec, params: PyTree) -> Description:
    """The rows of a spec's tables.

    Args:
      spec: describes `params`.
      params: pytree of arrays or `jax.ShapeDtypeStruct`s.

    Returns:
      leaves in flatten order; names with the permutations first, each kind by name.

    Raises:
      SpecError: naming the leaf, if the spec does not describe the params.

    Example:
      >>> found = describe(WeightSpec.parse({"kernel": "inputs! hidden"}), {"kernel": np.zeros((4, 3))})
      >>> [(row.name, row.size, row.fixed) for row in found.names]
      [('hidden', 3, False), ('inputs', 4, True)]
    """
    sizes, layer = spec.sizes(params), count_layer(spec)
    shapes = {path: tuple(np.shape(leaf)) for path, leaf in named_leaves(params)}
    terms, moved = dict.fromkeys(spec.paths, 0), {name: dict[str, None]() for name in spec.names}
    for (path, _), block in zip(spec.block_places(), spec.blocks.paths, strict=True):
        terms[path] += layer.terms[block]
        for factor in spec.blocks.factors(block):
            moved[factor.name][path] = None
    leaves = tuple(LeafRow(path, shapes[path], spec.notation(path), terms[path]) for path in spec.paths)
    fixed = sorted(set(spec.names) - set(spec.permutable))
    names = tuple(NameRow(name, name in fixed, sizes[name], tuple(moved[name])) for name in (*spec.permutable, *fixed))
    return Description(leaves, names, layer)
