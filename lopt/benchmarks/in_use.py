"""What a learned optimizer costs its user: time and memory of a step, beside those of optax.adam."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lopt.benchmarks.machine import peak_megabytes
from lopt.benchmarks.synthetic import hidden_width, perceptron
from lopt.evaluation.baselines import find_baseline
from lopt.evaluation.costs import Steps, in_turns
from lopt.features.presets import Celo2Features
from lopt.networks.update import DeepSetsConfig, NetworkConfig, UNFConfig
from lopt.optimizers.base import OptimizerConfig
from lopt.optimizers.config import LearnedOptimizerConfig
from lopt.optimizers.direction import DirectionRule
from lopt.optimizers.gated import NominalRule
from lopt.optimizers.momentum import LearnedMomentumConfig
from lopt.optimizers.nominals import MuonNominal, NominalConfig, NoNominal, ShampooNominal

ADAM = "adam"
NETWORKS: dict[str, NetworkConfig] = {
    "unf": UNFConfig(terms=None),  # the published one, 32-32-32
    "unf_bfloat16": UNFConfig(matmul_dtype="bfloat16", terms=None),
    "unf_role": UNFConfig(share="role", terms=None),
    "deep_sets": DeepSetsConfig(),
}
_CELO2 = Celo2Features(), DeepSetsConfig((8, 8))
_SHAMPOO = ShampooNominal(every=4, lengthen=1000.0)


def _direction(nominal: NominalConfig) -> LearnedOptimizerConfig:
    return LearnedOptimizerConfig(DirectionRule(nominal=nominal, gated=True, over="matrix", scale="inputs"), *_CELO2)


RULES: dict[str, OptimizerConfig] = {  # what is shipped, its parts, and nominal steps as rules without f
    "celo2": LearnedOptimizerConfig(DirectionRule(nominal=NoNominal(), over="matrix"), *_CELO2),
    "lopt_direction": _direction(_SHAMPOO),
    "direction": _direction(MuonNominal()),
    "shampoo_nominal": LearnedOptimizerConfig(NominalRule(nominal=_SHAMPOO), None, None),
    "muon_nominal": LearnedOptimizerConfig(NominalRule(nominal=MuonNominal()), None, None),
}
RIVALS = ("muon",)
_LAYERS = 4


def optimizer_called(name: str) -> OptimizerConfig:
    """The learned optimizer of a name: of `RULES`, or one of `NETWORKS` under the paper's rule."""
    return RULES[name] if name in RULES else LearnedMomentumConfig(network=NETWORKS[name])


def in_use(weights: int, names: Sequence[str], repeats: int = 20) -> Iterator[dict[str, Any]]:
    """Steps of optimizers alone, gradients given, on a perceptron of four layers: by the timer of evaluations, `lopt.evaluation.costs`.

    Args:
      weights: of the model, about.
      names: keys of `NETWORKS` (under the paper's rule) and of `RULES`, and `RIVALS`.
      repeats: turns of each, of which the median is taken.

    Yields:
      One record an optimizer, Adam's first: `optimizer`, `weights`, `tensors`, `step_us` (median) and `step_us_range` (middle
      half), `ns_per_weight`, `ratio` (to Adam: median over repeats); bytes a weight: `state_bytes`, `temp_bytes` (temporary buffers
      of the compiled step, as XLA plans them) and `peak_bytes` (those with params, gradients and state); `compile_s`, and `peak_mb`
      of this process, all optimizers together.
    """
    init, spec = perceptron((hidden_width(weights, _LAYERS),) * (_LAYERS - 1))
    params = init(jax.random.key(0))
    programs = {ADAM: Steps.of_adam(params)}
    for name in names:
        if name in RIVALS:
            programs[name] = Steps(find_baseline(name).opt_fn, jnp.float32(1e-3), params)
            continue
        optimizer = optimizer_called(name).make(spec, spec.sizes(params))
        programs[name] = Steps(optimizer.opt_fn, optimizer.init(jax.random.key(1)), params)
    seconds = in_turns(programs, repeats)
    given = 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(params))  # params and gradients
    for name, program in programs.items():
        low, median, high = np.quantile(seconds[name], (0.25, 0.5, 0.75))
        temporary = program.temporary or 0
        yield {
            "optimizer": name,
            "weights": program.weights,
            "tensors": len(jax.tree.leaves(params)),
            "step_us": round(1e6 * float(median), 2),
            "step_us_range": [round(1e6 * float(low), 2), round(1e6 * float(high), 2)],
            "ns_per_weight": round(1e9 * float(median) / program.weights, 3),
            "ratio": round(float(np.median(seconds[name] / seconds[ADAM])), 2),
            "state_bytes": round(program.state / program.weights, 1),
            "temp_bytes": round(temporary / program.weights, 1),
            "peak_bytes": round((given + program.state + temporary) / program.weights, 1),
            "compile_s": round(program.compile_s, 2),
            "peak_mb": round(peak_megabytes(), 1),
        }
