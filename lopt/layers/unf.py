"""The UNF layer: all linear maps on a weight space that commute with its permutations.

"Universal Neural Functionals" (Zhou, Finn, Harrison, NeurIPS 2024), Theorem 3.1 and Algorithm 1, with channels: each basis term
carries a c_in x c_out matrix, each output tensor one bias vector. Averages stand where the text has sums, as in the released code.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from lopt.layers.base import Features, Layer, PyTree
from lopt.layers.pooling import PooledViews, broadcast_kept, write_blocks
from lopt.symmetry.basis import Blocks, Group, Plan, make_plan
from lopt.symmetry.spec import WeightSpec

PerOutput = Mapping[str, Mapping[tuple[str, Blocks], np.ndarray]]  # output path -> {(input path, partition): [c_in, c_out]}


def unf_layer(spec: WeightSpec, c_in: int, c_out: int) -> Layer:
    """The full equivariant linear layer over the tensors of a spec.

        out_l = bias_l + sum over m and valid partitions B of (l, m):  term_B(in_m) @ coefficient_B

    Computed from pooled views: every view once, then one matmul for each tuple of kept names (`lopt.symmetry.basis`).

    Args:
      spec: the symmetry; fixed names are treated as permutable, the paper's setting.
      c_in: channels of the input features.
      c_out: channels of the output features.

    Returns:
      A `Layer`. theta is `{"weights": {group label: [V, c_in, G, c_out]}, "bias": [tensors, c_out]}`, V views and G targets a
      group, bias in the order of `spec.paths`. `apply` maps leaf path -> [*leaf.shape, c_in] to leaf path -> [*leaf.shape, c_out].

    Raises:
      SpecError: by `apply`, if the features do not have the spec's leaves and ranks.

    Example:
      >>> layer = unf_layer(WeightSpec.parse({"kernel": "inputs hidden", "bias": "hidden"}), c_in=2, c_out=3)
      >>> theta = layer.init(jax.random.key(0))
      >>> out = layer.apply(theta, {"kernel": jnp.ones((5, 4, 2)), "bias": jnp.ones((4, 2))})
      >>> out["kernel"].shape, out["bias"].shape
      ((5, 4, 3), (4, 3))
    """
    plan = make_plan(spec.relax())

    def init(key: jax.Array) -> PyTree:
        return init_coefficients(key, plan, c_in, c_out)

    def apply(theta: PyTree, features: Features) -> dict[str, jax.Array]:
        return apply_plan(plan, theta, features)

    return Layer(init, apply)


def init_coefficients(key: jax.Array, plan: Plan, c_in: int, c_out: int) -> PyTree:
    """Coefficients ~ N(0, 1 / (c_in * terms of the output tensor)), so that outputs of unit-variance inputs stay of order one."""
    num_terms = {path: len(plan.terms(path)) for path in plan.spec.paths}
    weights = {}
    for index, group in enumerate(plan.groups):
        shape = (len(group.views), c_in, len(group.targets), c_out)
        scale = jnp.asarray([(c_in * num_terms[target.path]) ** -0.5 for target in group.targets])
        weights[group.label] = jax.random.normal(jax.random.fold_in(key, index), shape) * scale[None, None, :, None]
    return {"weights": weights, "bias": jnp.zeros((len(plan.spec.paths), c_out))}


def apply_plan(plan: Plan, theta: PyTree, features: Features) -> dict[str, jax.Array]:
    """Apply coefficients to features along a plan; see `unf_layer` for the shapes."""
    spec = plan.spec
    sizes = spec.sizes({path: jax.ShapeDtypeStruct(x.shape[:-1], x.dtype) for path, x in features.items()})
    factor_shape = {path: [sizes[factor.name] for factor in spec.factors(path)] for path in spec.paths}
    views = PooledViews({path: jnp.reshape(features[path], [*factor_shape[path], -1]) for path in spec.paths})
    # Targets of one tensor with the same blocks share one write: their broadcasts are summed first.
    written: dict[tuple[str, Blocks], jax.Array] = {}
    for group in plan.groups:
        for target, y in zip(group.targets, _contract(group, theta["weights"][group.label], views), strict=True):
            block_sizes = [factor_shape[target.path][block[0]] for block in target.blocks]
            y = broadcast_kept(y, target, block_sizes)
            known = written.get((target.path, target.blocks))
            written[target.path, target.blocks] = y if known is None else known + y
    out: dict[str, jax.Array] = {}
    for (path, blocks), y in written.items():
        y = write_blocks(y, blocks)
        out[path] = out[path] + y if path in out else y
    c_out = theta["bias"].shape[-1]
    for index, path in enumerate(spec.paths):
        bias = jnp.broadcast_to(theta["bias"][index], out[path].shape)
        out[path] = jnp.reshape(out[path] + bias, [*features[path].shape[:-1], c_out])
    return out


def _contract(group: Group, weights: jax.Array, views: PooledViews) -> list[jax.Array]:
    """All targets of a group from all its views in one matmul: G arrays of [kept axes, c_out]."""
    num_views, c_in, num_targets, c_out = weights.shape
    stacked = jnp.concatenate([views(view) for view in group.views], axis=-1)
    y = stacked @ jnp.reshape(weights, (num_views * c_in, num_targets * c_out))
    return jnp.split(y, num_targets, axis=-1)


def coefficients_from_terms(plan: Plan, per_output: PerOutput, bias: Mapping[str, np.ndarray]) -> PyTree:
    """theta from one coefficient matrix per basis term: for checks against other implementations.

    Args:
      plan: the layer's plan.
      per_output: output path -> {(input path, partition): [c_in, c_out]}; partitions as in `Term.partition`.
      bias: output path -> [c_out].

    Raises:
      ValueError: if the given terms are not exactly the plan's.
    """
    c_in, c_out = np.shape(next(iter(next(iter(per_output.values())).values())))
    weights = {group.label: np.zeros((len(group.views), c_in, len(group.targets), c_out), np.float32) for group in plan.groups}
    for path in plan.spec.paths:
        given = dict(per_output[path])
        for term in plan.terms(path):
            matrix = given.pop((term.input, term.partition), None)
            if matrix is None:
                raise ValueError(f"no coefficient for the term {term.input} -> {path} with partition {term.partition}")
            weights[plan.groups[term.group].label][term.view, :, term.target, :] = matrix
        if given:
            raise ValueError(f"{path} has coefficients for {len(given)} terms that are not in the plan: {list(given)[:3]}")
    return jax.tree.map(jnp.asarray, {"weights": weights, "bias": np.stack([bias[path] for path in plan.spec.paths])})
