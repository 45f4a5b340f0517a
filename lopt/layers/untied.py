"""The UNF layer with coefficients of their own for every index of an axis whose order carries meaning.

Where a term of the relaxed basis keeps a fixed index (the same class, the same window position on both sides), its coefficient
depends on that index, as does the bias; across indices the layer still pools. theta grows with the size n of a fixed axis, where
folding it into channels (`lopt.layers.folded`) grows with n^2 and mixes every pair of indices freely.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from lopt.layers.apply_plan import apply_plan
from lopt.layers.base import Features, Layer, PyTree, expand_factors, feature_sizes, over_blocks
from lopt.layers.unf import init_coefficients
from lopt.symmetry.basis import make_plan
from lopt.symmetry.spec import SpecError, WeightSpec


@over_blocks
def untied_unf_layer(spec: WeightSpec, c_in: int, c_out: int, sizes: Mapping[str, int]) -> Layer:
    """The equivariant layer of the relaxed spec with kept fixed indices untied.

    Args:
      spec: the true symmetry.
      c_in: channels of the input features.
      c_out: channels of the output features.
      sizes: of the names, as `spec.sizes(params)` gives them: theta depends on those of the fixed ones.

    Returns:
      A `Layer`. theta is `{"weights": {group label: [n, ..., V c_in, G c_out]}, "bias": {path: [n, ..., c_out]}}`, an axis n for each
      fixed index that the group keeps or the leaf has. It commutes with the permutations of the spec, not with those of fixed axes.

    Raises:
      SpecError: by `apply`, if a fixed name has another size than theta was made for.

    Example:
      >>> layer = untied_unf_layer(WeightSpec.parse({"w": "position! hidden"}), 1, 2, {"position": 5, "hidden": 4})
      >>> theta = layer.init(jax.random.key(0))
      >>> theta["weights"]["hidden position"].shape, theta["bias"]["w"].shape
      ((5, 1, 2), (5, 2))
      >>> layer.apply(theta, {"w": jnp.ones((5, 4, 1))})["w"].shape
      (5, 4, 2)
    """
    plan = make_plan(spec.relax())
    fixed = set(spec.names) - set(spec.permutable)
    untied = {group.label: tuple(i for i, name in enumerate(group.names) if name in fixed) for group in plan.groups}
    copies = {group.label: tuple(sizes[group.names[i]] for i in untied[group.label]) for group in plan.groups}
    inputs, outputs = dict.fromkeys(spec.paths, c_in), dict.fromkeys(spec.paths, c_out)

    def init(key: jax.Array) -> PyTree:
        def bias(path: str) -> jax.Array:
            return jnp.zeros((*(sizes[factor.name] for factor in spec.factors(path) if factor.fixed), c_out), jnp.float32)

        return {**init_coefficients(key, plan, inputs, outputs, copies), "bias": {path: bias(path) for path in spec.paths}}

    def apply(theta: PyTree, features: Features) -> dict[str, jax.Array]:
        found = feature_sizes(spec, features)
        other = {name: (sizes[name], found[name]) for name in sorted(fixed) if sizes[name] != found[name]}
        if other:
            raise SpecError(f"theta was made for other sizes of fixed names (then, now): {other}")
        x = expand_factors(spec, features, found)
        no_bias = jnp.zeros(len(spec.paths) * c_out, next(iter(x.values())).dtype)
        out = apply_plan(plan, {"weights": theta["weights"], "bias": no_bias}, x, inputs, outputs, untied)

        def with_bias(path: str) -> jax.Array:
            shape = [found[factor.name] if factor.fixed else 1 for factor in spec.factors(path)]
            y = out[path] + jnp.broadcast_to(jnp.reshape(theta["bias"][path], (*shape, c_out)), out[path].shape)
            return jnp.reshape(y, (*features[path].shape[:-1], c_out))

        return {path: with_bias(path) for path in features}

    return Layer(init, apply)
