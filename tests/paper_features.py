"""The paper's features, of momenta that a test gives."""

import jax.numpy as jnp

from lopt.features.base import WeightFeatures
from lopt.features.presets import PaperFeatures
from lopt.features.time import time_features
from lopt.symmetry.spec import named_leaves

SEEN = PaperFeatures().make()


def weight_features(params, grads, momenta, count):
    """Features of params and grads, pytrees of [...], and momenta, of [6, ...], after `count` steps."""
    leaves = zip(named_leaves(params), named_leaves(grads), named_leaves(momenta), strict=True)
    channels = {path: (w.astype(jnp.float32), g.astype(jnp.float32), *m) for (path, w), (_, g), (_, m) in leaves}
    return WeightFeatures(channels, {path: jnp.zeros(0) for path in channels}, time_features(count))


def finished(features, shared):
    """Features [*leaf.shape, 8] that are taken as they are: normalising what has root mean square one changes nothing."""
    channels = {path: tuple(jnp.moveaxis(x, -1, 0)) for path, x in features.items()}
    return WeightFeatures(channels, {}, shared)
