"""The UNF layer with position features: axes whose order carries meaning are treated as permutable, and told apart by channels.

Between relaxing a fixed axis (few coefficients, blind to its order) and folding it into channels (a coefficient for each pair of
positions): the layer stays that of the relaxed spec, its inputs say where along each fixed axis a weight stands. The remedy for
over-symmetric weight spaces of Zhou et al., "Permutation Equivariant Neural Functionals" (NeurIPS 2023), appendix.
"""

import jax
import jax.numpy as jnp

from lopt.layers.base import Features, Layer, PyTree, expand_factors, feature_sizes, over_blocks
from lopt.layers.unf import unf_layer
from lopt.symmetry.spec import WeightSpec

FREQUENCIES = (0.5, 1.0, 2.0)  # half-waves along the axis; with sine and cosine, six channels for each fixed axis


@over_blocks
def position_unf_layer(spec: WeightSpec, c_in: int, c_out: int) -> Layer:
    """The UNF layer on features with sines and cosines of the position along each fixed axis as further channels.

    Args:
      spec: the true symmetry; a leaf's first fixed factor fills the first six position channels, its second the next six, ...
      c_in: channels of the input features.
      c_out: channels of the output features.

    Returns:
      A `Layer` with the theta of `unf_layer` for `c_in + 6 F` channels, F the largest number of fixed factors of a leaf. It commutes
      with the permutations of the spec, but not with those of fixed axes.
    """
    fixed = {path: [i for i, factor in enumerate(spec.factors(path)) if factor.fixed] for path in spec.paths}
    most = max(map(len, fixed.values()), default=0)
    inner = unf_layer(_expanded(spec), c_in + 2 * len(FREQUENCIES) * most, c_out)

    def apply(theta: PyTree, features: Features) -> dict[str, jax.Array]:
        expanded = expand_factors(spec, features, feature_sizes(spec, features))
        x = {
            path: jnp.concatenate([expanded[path], _positions(expanded[path], fixed[path], most)], axis=-1) for path in spec.paths
        }
        return {path: jnp.reshape(y, (*features[path].shape[:-1], c_out)) for path, y in inner.apply(theta, x).items()}

    return Layer(inner.init, apply)


def _expanded(spec: WeightSpec) -> WeightSpec:
    """The spec of the leaves with one axis per factor."""
    return WeightSpec(tuple((path, tuple((factor,) for factor in spec.factors(path))) for path in spec.paths))


def _positions(x: jax.Array, fixed: list[int], most: int) -> jax.Array:
    """Position channels of one leaf: [one axis per factor, 6 most], zero where it has fewer fixed factors."""
    channels = []
    for axis in fixed:
        position = (jnp.arange(x.shape[axis], dtype=x.dtype) + 0.5) / x.shape[axis]
        angles = jnp.pi * position[:, None] * jnp.asarray(FREQUENCIES, x.dtype)[None]
        waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        shape = [1] * (x.ndim - 1)
        shape[axis] = x.shape[axis]
        channels.append(jnp.broadcast_to(jnp.reshape(waves, (*shape, -1)), (*x.shape[:-1], waves.shape[-1])))
    missing = 2 * len(FREQUENCIES) * (most - len(fixed))
    return jnp.concatenate([*channels, jnp.zeros((*x.shape[:-1], missing), x.dtype)], axis=-1)
