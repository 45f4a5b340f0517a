"""The UNF layer with some axes folded into channels: their indices are not permuted, every pair of them has its own coefficient.

For axes whose order carries meaning, such as the positions of a convolution's window or the classes of an output. A tensor of k
folded indices carries k times the channels, as Zhou et al. do in "Permutation Equivariant Neural Functionals" (NeurIPS 2023).
"""

import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from lopt.layers.apply_plan import apply_plan
from lopt.layers.base import Features, Layer, PyTree, expand_factors, feature_sizes, over_blocks
from lopt.layers.unf import init_coefficients
from lopt.symmetry.basis import make_plan
from lopt.symmetry.spec import SpecError, WeightSpec


@over_blocks
def folded_unf_layer(
    spec: WeightSpec, c_in: int, c_out: int, sizes: Mapping[str, int], fold: Sequence[str], *, bias: bool = True
) -> Layer:
    """The full equivariant layer after the indices of some names have become channels.

    Args:
      spec: the symmetry; fixed names that are not folded are treated as permutable.
      c_in: channels of the input features.
      c_out: channels of the output features.
      sizes: of the names, as `spec.sizes(params)` gives them: theta depends on those of the folded names.
      fold: the names.
      bias: with a bias for each output tensor and folded index.

    Returns:
      A `Layer`; theta as that of `unf_layer`, with `k c` channels for a tensor of k folded indices.

    Raises:
      SpecError: if a name is not in the spec, or, by `apply`, has another size than theta was made for.

    Example:
      >>> layer = folded_unf_layer(WeightSpec.parse({"w": "position! hidden"}), 1, 2, {"position": 5, "hidden": 4}, ["position"])
      >>> theta = layer.init(jax.random.key(0))
      >>> theta["weights"]["hidden"].shape, layer.apply(theta, {"w": jnp.ones((5, 4, 1))})["w"].shape
      ((5, 10), (5, 4, 2))
    """
    rest = spec.without(*fold).relax()
    positions = {path: _positions(spec, path, fold) for path in spec.paths}
    count = {path: math.prod(sizes[spec.factors(path)[i].name] for i in positions[path][1]) for path in spec.paths}
    plan = make_plan(rest)
    inputs = {path: c_in * count[path] for path in spec.paths}
    outputs = {path: c_out * count[path] for path in spec.paths}

    def init(key: jax.Array) -> PyTree:
        theta = init_coefficients(key, plan, inputs, outputs)
        return theta if bias else {"weights": theta["weights"]}

    def apply(theta: PyTree, features: Features) -> dict[str, jax.Array]:
        found = feature_sizes(spec, features)
        other = {name: (sizes[name], found[name]) for name in fold if sizes[name] != found[name]}
        if other:
            raise SpecError(f"theta was made for other sizes of folded names (then, now): {other}")
        expanded = expand_factors(spec, features, found)
        x = {path: _fold(expanded[path], *positions[path]) for path in spec.paths}
        no_bias = {"bias": jnp.zeros(sum(outputs.values()), next(iter(x.values())).dtype)}
        out = apply_plan(plan, theta if bias else {**theta, **no_bias}, x, inputs, outputs)
        unfolded = {path: _unfold(out[path], c_out, expanded[path].shape[:-1], *positions[path]) for path in spec.paths}
        return {path: jnp.reshape(unfolded[path], (*features[path].shape[:-1], c_out)) for path in features}

    return Layer(init, apply)


def _positions(spec: WeightSpec, path: str, folded: Sequence[str]) -> tuple[list[int], list[int]]:
    """The positions of the factors of a leaf that stay, and of those that become channels."""
    inside = [factor.name in folded for factor in spec.factors(path)]
    return [i for i, fold in enumerate(inside) if not fold], [i for i, fold in enumerate(inside) if fold]


def _fold(x: jax.Array, stay: list[int], fold: list[int]) -> jax.Array:
    x = jnp.transpose(x, (*stay, *fold, x.ndim - 1))
    return jnp.reshape(x, (*x.shape[: len(stay)], math.prod(x.shape[len(stay) :])))


def _unfold(y: jax.Array, channels: int, shape: Sequence[int], stay: list[int], fold: list[int]) -> jax.Array:
    positions = [shape[i] for i in fold]
    y = jnp.reshape(y, (*y.shape[:-1], *positions, channels))
    order = [*stay, *fold]
    return jnp.transpose(y, (*(order.index(i) for i in range(len(order))), len(order)))
