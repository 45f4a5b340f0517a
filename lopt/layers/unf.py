"""The UNF layer: all linear maps on a weight space that commute with its permutations.

"Universal Neural Functionals" (Zhou, Finn, Harrison, NeurIPS 2024), Theorem 3.1 and Algorithm 1, with channels: each basis term
carries a c_in x c_out matrix, each output tensor one bias vector. Averages stand where the text has sums, as in the released code.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from lopt.layers.apply_plan import Channels, apply_plan, plan_needs
from lopt.layers.base import Early, Features, Layer, PyTree, expand_factors, over_blocks, shape_sizes
from lopt.layers.digest import Digest, Needs
from lopt.symmetry.basis import Blocks, Plan, make_plan
from lopt.symmetry.spec import WeightSpec

PerOutput = Mapping[str, Mapping[tuple[str, Blocks], np.ndarray]]  # output path -> {(input path, partition): [c_in, c_out]}


@over_blocks
def unf_layer(spec: WeightSpec, c_in: int, c_out: int, sizes: Mapping[str, int] | None = None) -> Layer:
    """The full equivariant linear layer over the tensors of a spec.

        out_l = bias_l + sum over m and valid partitions B of (l, m):  term_B(in_m) @ coefficient_B

    Computed from pooled views: every view once, then one matmul for each tuple of kept names (`lopt.symmetry.basis`).

    Args:
      spec: the symmetry; fixed names are treated as permutable, the paper's setting.
      c_in: channels of the input features.
      c_out: channels of the output features.
      sizes: of the names; if given, linearly dependent terms are left out, and theta is for these sizes and larger ones.

    Returns:
      A `Layer`. theta is `{"weights": {group label: [V c_in, G c_out]}, "bias": [tensors * c_out]}`, V views and G targets a group
      with channels fastest, bias in the order of `spec.paths`. `apply` maps leaf path -> [*leaf.shape, c_in] to [*leaf.shape, c_out].

    Raises:
      SpecError: by `apply`, if the features do not have the spec's leaves and ranks.

    Example:
      >>> layer = unf_layer(WeightSpec.parse({"kernel": "inputs hidden", "bias": "hidden"}), c_in=2, c_out=3)
      >>> theta = layer.init(jax.random.key(0))
      >>> out = layer.apply(theta, {"kernel": jnp.ones((5, 4, 2)), "bias": jnp.ones((4, 2))})
      >>> out["kernel"].shape, out["bias"].shape
      ((5, 4, 3), (4, 3))
    """
    plan = make_plan(spec.relax(), sizes)
    inputs, outputs = dict.fromkeys(spec.paths, c_in), dict.fromkeys(spec.paths, c_out)

    def init(key: jax.Array) -> PyTree:
        return init_coefficients(key, plan, inputs, outputs)

    return coefficient_layer(spec, plan, c_in, c_out, init, lambda theta: theta)


def coefficient_layer(
    spec: WeightSpec,
    plan: Plan,
    c_in: int,
    c_out: int,
    init: Callable[[jax.Array], PyTree],
    coefficients: Callable[[PyTree], PyTree],
) -> Layer:
    """The layer that applies coefficients along a plan.

    Args:
      spec: of the leaves.
      plan: of the spec, relaxed.
      c_in: channels of the input features.
      c_out: channels of the output features.
      init: `init(key) -> theta`.
      coefficients: `coefficients(theta)`, as `init_coefficients` makes them.
    """
    inputs, outputs = dict.fromkeys(spec.paths, c_in), dict.fromkeys(spec.paths, c_out)

    def apply(theta: PyTree, features: Features) -> dict[str, jax.Array]:
        return from_digests(theta, features, {})

    def from_digests(theta: PyTree, features: Features, digests: Mapping[str, Digest]) -> dict[str, jax.Array]:
        shapes = {path: x.shape[:-1] for path, x in features.items()}
        shapes |= {path: digest.shape for path, digest in digests.items()}
        x = expand_factors(spec, features, shape_sizes(spec, shapes))
        out = apply_plan(plan, coefficients(theta), x, inputs, outputs, digests=digests)
        return {path: jnp.reshape(out[path], (*shape, c_out)) for path, shape in shapes.items()}

    def needs(theta: PyTree, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Needs]:
        sizes = shape_sizes(spec, shapes)
        expanded = {path: tuple(sizes[factor.name] for factor in spec.factors(path)) for path in spec.paths}
        return plan_needs(plan, coefficients(theta), expanded, inputs, outputs)

    return Layer(init, apply, Early(needs, from_digests))


def init_coefficients(
    key: jax.Array, plan: Plan, c_in: Channels, c_out: Channels, copies: Mapping[str, tuple[int, ...]] | None = None
) -> PyTree:
    """Coefficients ~ N(0, 1 / fan-in of the output tensor), so that outputs of unit-variance inputs stay of order one; no bias.

    `copies` are leading axes of groups that have a matrix for each index of some of their kept axes, by label.
    """
    fan_in = dict.fromkeys(plan.spec.paths, 0)
    for group in plan.groups:
        for target in group.targets:
            fan_in[target.path] += sum(c_in[view.path] for view in group.views)
    weights = {}
    for index, group in enumerate(plan.groups):
        rows = sum(c_in[view.path] for view in group.views)
        scale = np.concatenate([np.full(c_out[target.path], fan_in[target.path] ** -0.5) for target in group.targets])
        shape = (*(copies or {}).get(group.label, ()), rows, scale.size)
        normal = jax.random.normal(jax.random.fold_in(key, index), shape, jnp.float32)
        weights[group.label] = normal * jnp.broadcast_to(jnp.asarray(scale, jnp.float32), shape)
    return {"weights": weights, "bias": jnp.zeros(sum(c_out[path] for path in plan.spec.paths), jnp.float32)}


def coefficients_from_terms(plan: Plan, per_output: PerOutput, bias: Mapping[str, np.ndarray]) -> PyTree:
    """theta from one coefficient matrix per basis term: for checks against other implementations.

    Args:
      plan: the layer's plan.
      per_output: output path -> {(input path, partition): [c_in, c_out]}; partitions as in `Term.partition`.
      bias: output path -> [c_out].

    Raises:
      ValueError: if the given terms are not exactly the plan's.
    """
    c_in = next((np.shape(matrix)[0] for terms in per_output.values() for matrix in terms.values()), 0)
    c_out = np.size(next(iter(bias.values())))
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
    flat = {label: w.reshape(w.shape[0] * c_in, w.shape[2] * c_out) for label, w in weights.items()}
    return jax.tree.map(jnp.asarray, {"weights": flat, "bias": np.concatenate([bias[path] for path in plan.spec.paths])})
