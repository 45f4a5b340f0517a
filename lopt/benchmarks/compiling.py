"""What it takes to trace, compile and run an update network."""

import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lopt.benchmarks.machine import peak_megabytes
from lopt.features.base import WeightFeatures
from lopt.features.presets import PaperFeatures
from lopt.networks.update import NetworkConfig
from lopt.symmetry.basis import make_plan
from lopt.symmetry.spec import WeightSpec


def compile_cost(spec: WeightSpec, sizes: Mapping[str, int], network: NetworkConfig, repeats: int = 5) -> dict[str, Any]:
    """What it takes to trace, compile and run an update network over the weights of a spec, once, in this process.

    Args:
      spec: of the weights, without composed axes.
      sizes: of its names.
      network: the update network f.
      repeats: runs of which the median is taken.

    Returns:
      `tensors`, `weights` and `parameters` (of f) by number, `terms` of a full UNF basis, `plan_s` (spec to network), `trace_s`,
      `compile_s`, `run_ms`, and `peak_mb`, the largest memory of this process so far.
    """
    shapes = {path: tuple(sizes[factor.name] for factor in spec.factors(path)) for path in spec.paths}
    start = time.perf_counter()
    seen = PaperFeatures().make()
    init, apply, *_ = network.make(spec, seen, 1, sizes)
    planned = time.perf_counter()
    theta = jax.eval_shape(init, jax.random.key(0))
    channels = {path: (jnp.ones(shape),) * len(seen.channels) for path, shape in shapes.items()}
    features = WeightFeatures(channels, {}, jnp.ones(seen.num_shared))
    before = time.perf_counter()
    lowered = jax.jit(apply).lower(theta, features)
    traced = time.perf_counter()
    compiled = lowered.compile()
    done = time.perf_counter()
    ones = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), theta), features
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(compiled(*ones))
        seconds.append(time.perf_counter() - began)
    return {
        "tensors": len(shapes),
        "weights": sum(int(np.prod(shape)) for shape in shapes.values()),
        "terms": make_plan(spec.relax()).num_terms,
        "parameters": sum(x.size for x in jax.tree.leaves(theta)),
        "plan_s": round(planned - start, 3),
        "trace_s": round(traced - before, 3),
        "compile_s": round(done - traced, 3),
        "run_ms": round(1e3 * float(np.median(seconds)), 3),
        "peak_mb": round(peak_megabytes(), 1),
    }
