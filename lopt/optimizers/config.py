"""Rule x features x network: three choices that make a learned optimizer."""

import dataclasses

from lopt.features.base import FeaturesConfig
from lopt.networks.update import NetworkConfig, Sizes
from lopt.optimizers.base import LearnedOptimizer, OptimizerConfig, RuleConfig, learned_optimizer
from lopt.symmetry.spec import WeightSpec


@dataclasses.dataclass(frozen=True)
class LearnedOptimizerConfig(OptimizerConfig):
    """A learned optimizer: how a step is made, what the network sees of each weight, and the network."""

    rule: RuleConfig
    """How a step is made of what the network and a nominal transform give."""
    features: FeaturesConfig | None
    """What the network sees of each weight; None where the rule has no network."""
    network: NetworkConfig | None
    """The update network f; None where the rule has none."""

    def make(self, spec: WeightSpec, sizes: Sizes = None) -> LearnedOptimizer:
        """Build the optimizer for the weight spaces of a spec.

        Raises:
          ValueError: if the rule wants a network and there is none, or the other way round.
        """
        rule = type(self.rule).__name__
        if self.rule.outputs == 0:
            if self.features is not None or self.network is not None:
                raise ValueError(f"{rule} has no network: set features and network to None")
            return learned_optimizer(self.rule, None, None, spec)
        if self.features is None or self.network is None:
            raise ValueError(f"{rule} needs a network and its features: set both")
        features = self.features.make()
        return learned_optimizer(self.rule, features, self.network.make(spec, features, self.rule.outputs, sizes), spec)

    def left_to_xla(self, spec: WeightSpec, sizes: Sizes = None) -> str:
        if self.features is None or self.network is None:
            return ""
        reason, name = self.features.make().left_to_xla, type(self.network).__name__
        if reason:
            return reason
        if type(self.network).make is not NetworkConfig.make:
            return f"{name} makes a network of its own"
        layer = self.network.last_layer(spec, self.rule.outputs, sizes)
        return "" if layer.early is not None else f"the last layer of {name} needs all features of all weights at once"
