"""What update networks see of each weight: kinds of features, and sets of them that are known by a name."""

from lopt.features.base import Accumulator, Context, Features, FeaturesConfig, Kind, Leaf, WeightFeatures
from lopt.features.factored import FactoredGradient, FactoredMomenta, FactoredMoments
from lopt.features.momenta import Momenta
from lopt.features.presets import AdafactorFeatures, Celo2Features, CustomFeatures, PaperFeatures
from lopt.features.second_moments import GradientOverRoot, InverseRoot, MomentaOverRoot, SecondMoment
from lopt.features.time import FractionLeft, LossTrend, Time
from lopt.features.weights import Gradient, TensorSize, Value

__all__ = [
    "Accumulator",
    "AdafactorFeatures",
    "Celo2Features",
    "Context",
    "CustomFeatures",
    "FactoredGradient",
    "FactoredMomenta",
    "FactoredMoments",
    "Features",
    "FeaturesConfig",
    "FractionLeft",
    "Gradient",
    "GradientOverRoot",
    "InverseRoot",
    "Kind",
    "Leaf",
    "LossTrend",
    "Momenta",
    "MomentaOverRoot",
    "PaperFeatures",
    "SecondMoment",
    "TensorSize",
    "Time",
    "Value",
    "WeightFeatures",
]
