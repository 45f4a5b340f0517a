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
