"""Whether a trained optimizer sees the gradients that it is given, or nothing but their signs."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lopt.features.base import Context
from lopt.optimizers.base import OptimizerState
from lopt.optimizers.leaves import pair, weights_of
from lopt.pretrained.load import open_trained
from lopt.symmetry.spec import PyTree

_MANY = 0.5  # of the weights: from here on it is said


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What becomes of the inputs of an update network.

    Attributes:
      clipped: channel -> fraction of the weights, in [0, 1], whose value is beyond the clip: of these the network sees the sign alone.
      vanished: channel -> fraction of the weights whose tensor is so small there that what is added to its root mean square hides it.
    """

    clipped: Mapping[str, float]
    vanished: Mapping[str, float]

    @property
    def is_well(self) -> bool:
        """Whether most weights are seen in most channels."""
        means = [sum(found.values()) / max(len(found), 1) for found in (self.clipped, self.vanished)]
        return max(means) < _MANY and max(self.clipped.get("gradient", 0.0), self.vanished.get("gradient", 0.0)) < _MANY

    def __str__(self) -> str:
        rows = [f"{name:<40} {self.clipped[name]:>8.1%} clipped {self.vanished[name]:>8.1%} vanished" for name in self.clipped]
        advice = (
            "the network sees its inputs"
            if self.is_well
            else "the gradients are on another scale than those of its meta-training: divide the loss by the number of what it sums over, "
            "or scale or clip the gradients before, optax.chain(optax.clip_by_global_norm(1.0), lopt.load(...))"
        )
        return "\n".join([*rows, advice])


def diagnose(source: str | os.PathLike[str], grads: PyTree, params: PyTree, state: Any = None) -> Diagnosis:
    """Whether a trained optimizer sees your gradients: how many of its inputs are beyond their clip, or too small to matter.

    A network knows the gradients of its meta-training. Where those of another loss are a thousand times larger, as of a sum over pixels,
    every input is clipped, and the training diverges within some steps.

    Args:
      source: as for `lopt.load`.
      grads: of a step.
      params: the weights.
      state: of the optimizer before that step, alone or within the state of a chain or a wrapper. None: that of a first step.

    Returns:
      The `Diagnosis`; it is to be printed.

    Raises:
      ValueError: if the optimizer has no network, or the state holds none of a learned optimizer.

    Example:
      >>> params = {"w": jnp.ones((3, 2))}
      >>> found = diagnose("paper-deep-sets", {"w": jnp.full((3, 2), 1e3)}, params)
      >>> found.is_well, found.clipped["gradient"]
      (False, 1.0)
    """
    trained = open_trained(source)
    config: Any = trained.config.parts
    if config.features is None:
        raise ValueError(f"'{trained.name}' has no network whose inputs could be looked at")
    features = config.features.make()
    start = features.init(weights_of(params))
    found = pair(grads, params, lambda weights: len(jax.tree.leaves(weights)) == len(jax.tree.leaves(weights_of(params))))
    context = Context(jnp.int32(0), jnp.float32(1), jnp.float32(1))
    if state is not None:
        own = [x for x in jax.tree.leaves(state, is_leaf=_is_own) if _is_own(x)]
        if not own:
            raise ValueError("the state holds none of a learned optimizer: give that which its init has returned")
        start, context = own[0].features, context._replace(count=own[0].count)
    seen, _ = features.update(found.grads, start, found.weights, context)
    total = max(sum(x.size for x in jax.tree.leaves(found.weights)), 1)
    clipped, vanished = {}, {}
    for i, channel in enumerate(features.channels):
        values = [channels[i] for channels in seen.channels.values()]
        beyond = sum(float(jnp.sum(jnp.abs(x) > channel.clip)) for x in values)
        added = channel.outside + channel.inside**0.5 if channel.over != "nothing" else 0.0
        hidden = sum(x.size for x in values if float(jnp.sqrt(jnp.mean(jnp.square(x)))) < added)
        clipped[channel.name], vanished[channel.name] = beyond / total, hidden / total
    return Diagnosis(clipped, vanished)


def _is_own(x: Any) -> bool:
    return isinstance(x, OptimizerState)
