"""The UNF layer with coefficients shared by role: theta does not grow with depth, and is compatible with networks it has never seen.

The basis of "Universal Neural Functionals" (NeurIPS 2024, Algorithm 1) has one coefficient for every pair of tensors and valid
partition, so theta grows with the square of the number of tensors. Here pairs of tensors that stand in the same relation share
their coefficients. A relation is what can be seen of a pair without its names:

    the axes of the output and the input tensor, equal letters for equal names, `!` for fixed ones:   ab<-bc!
    how far apart they are: 0 the same tensor, 1 two that share a name, 2 two that both share one with a third, 3 further
    the partition: the blocks of axis positions, output's first

Terms of the same relation that feed the same target are averaged, so that a deeper network is not a louder one.
"""

import functools
import itertools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np

from lopt.layers.base import Layer, PyTree, over_blocks
from lopt.layers.unf import coefficient_layer
from lopt.symmetry.basis import Blocks, Group, Plan, join_blocks, make_plan
from lopt.symmetry.spec import Factor, WeightSpec

MAX_DISTANCE = 3


def pattern(*tensors: tuple[Factor, ...]) -> tuple[str, ...]:
    """The axes of tensors without their names: letters in the order in which names first appear.

    Example:
      >>> pattern((Factor("in"), Factor("out")), (Factor("out"), Factor("classes", fixed=True)))
      ('ab', 'bc!')
    """
    letters: dict[str, str] = {}
    marks: dict[str, str] = {}
    for factors in tensors:
        for factor in factors:
            letters.setdefault(factor.name, chr(ord("a") + len(letters)))
    for factors in tensors:
        for factor in factors:
            marks[factor.name] = letters[factor.name] + "!" * factor.fixed
            marks[factor.name] += f"@{letters[factor.owner]}" if factor.owner else ""
    return tuple("".join(marks[factor.name] for factor in factors) for factors in tensors)


def distances(spec: WeightSpec) -> dict[tuple[str, str], int]:
    """How far apart two tensors are in the graph whose edges join tensors that share a name, up to `MAX_DISTANCE`."""
    names = {path: {factor.name for factor in spec.factors(path)} for path in spec.paths}
    by_name: dict[str, set[str]] = {}
    for path, found in names.items():
        for name in found:
            by_name.setdefault(name, set()).add(path)
    near = {path: set().union(*(by_name[name] for name in found)) if found else set() for path, found in names.items()}
    result = {}
    for path in spec.paths:
        reached, frontier = {path: 0}, {path}
        for distance in range(1, MAX_DISTANCE):
            frontier = {other for one in frontier for other in near[one]} - reached.keys()
            reached |= dict.fromkeys(frontier, distance)
        result |= {(path, other): reached.get(other, MAX_DISTANCE) for other in spec.paths}
    return result


@over_blocks
def shared_unf_layer(spec: WeightSpec, c_in: int, c_out: int) -> Layer:
    """The equivariant layer whose coefficients depend on the relation of two tensors alone.

    Args:
      spec: the true symmetry; fixed names are treated as permutable, but are a role of their own.
      c_in: channels of the input features.
      c_out: channels of the output features.

    Returns:
      A `Layer`. theta is `{"weights": {relation: [c_in, c_out]}, "bias": {axes of the output: [c_out]}}`. `apply` takes the theta of
      a layer over any other spec too: relations that it does not know contribute nothing.

    Example:
      >>> shallow = WeightSpec.parse({"k0": "i! a", "k1": "a o!"})
      >>> deep = WeightSpec.parse({"k0": "i! a", "k1": "a b", "k2": "b c", "k3": "c o!"})
      >>> theta = shared_unf_layer(deep, 1, 1).init(jax.random.key(0))
      >>> shared_unf_layer(shallow, 1, 1).apply(theta, {"k0": jnp.ones((5, 4, 1)), "k1": jnp.ones((4, 3, 1))})["k1"].shape
      (4, 3, 1)
    """
    plan = make_plan(spec.relax())
    relations = _relations(spec, plan)
    labels = sorted({label for table in relations for label in table.flat})
    roles = {path: pattern(spec.factors(path))[0] for path in spec.paths}
    indices = [np.searchsorted(labels, table) for table in relations]
    shares = _shares(plan, relations)

    def init(key: jax.Array) -> PyTree:
        fan_in = Counter(label.split("<-")[0] for label in labels)  # relations into an output of these axes, at most
        normal = jax.random.normal(key, (len(labels), c_in, c_out), jnp.float32)
        weights = {label: normal[i] * (c_in * fan_in[label.split("<-")[0]]) ** -0.5 for i, label in enumerate(labels)}
        return {"weights": weights, "bias": {role: jnp.zeros(c_out, jnp.float32) for role in sorted(set(roles.values()))}}

    def coefficients(theta: PyTree) -> PyTree:
        dtype = next(iter(theta["weights"].values())).dtype
        zero, no_bias = jnp.zeros((c_in, c_out), dtype), jnp.zeros(c_out, dtype)
        table = jnp.stack([theta["weights"].get(label, zero) for label in labels])
        weights = {}
        for group, index, share in zip(plan.groups, indices, shares, strict=True):
            matrix = table[index] * jnp.asarray(share, dtype)[:, :, None, None]  # [V, G, c_in, c_out]
            rows, columns = len(group.views) * c_in, len(group.targets) * c_out
            weights[group.label] = jnp.reshape(jnp.transpose(matrix, (0, 2, 1, 3)), (rows, columns))
        return {"weights": weights, "bias": jnp.concatenate([theta["bias"].get(roles[path], no_bias) for path in spec.paths])}

    return coefficient_layer(spec, plan, c_in, c_out, init, coefficients)


def _relations(spec: WeightSpec, plan: Plan) -> list[np.ndarray]:
    """The label of every term: one array [V, G] of strings a group."""
    distance, factors = distances(spec), {path: spec.factors(path) for path in spec.paths}

    @functools.cache
    def axes(*tensors: tuple[Factor, ...]) -> str:
        return "<-".join(pattern(*tensors))

    @functools.cache
    def blocks(target: tuple[Blocks, tuple[int, ...]], view: tuple[Blocks, tuple[int, ...]]) -> str:
        return " ".join("".join(map(str, block)) for block in join_blocks(*target, *view))

    tables = []
    for group in plan.groups:
        table = np.empty((len(group.views), len(group.targets)), object)
        for (v, view), (g, target) in itertools.product(enumerate(group.views), enumerate(group.targets)):
            relation = blocks((target.blocks, target.kept), (view.blocks, view.kept))
            names = axes(factors[target.path], factors[view.path])
            table[v, g] = f"{names} {distance[target.path, view.path]} {relation}"
        tables.append(table)
    return tables


def _shares(plan: Plan, relations: list[np.ndarray]) -> list[np.ndarray]:
    """1 / the number of terms of the same relation into the same output tensor: [V, G] a group."""

    def outputs(group: Group) -> list[str]:
        return [target.path for target in group.targets]

    count: Counter[tuple[str, str]] = Counter()
    for group, table in zip(plan.groups, relations, strict=True):
        for path, column in zip(outputs(group), table.T, strict=True):
            count.update((path, label) for label in column)
    return [
        np.asarray(
            [[1 / count[path, label] for path, label in zip(outputs(group), row, strict=True)] for row in table], np.float32
        )
        for group, table in zip(plan.groups, relations, strict=True)
    ]
