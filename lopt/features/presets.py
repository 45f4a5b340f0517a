"""Sets of features that are known by a name: those of the paper, of Metz et al., of Celo2, and any of one's own."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from lopt.features.base import FeaturesConfig, Kind
from lopt.features.factored import FactoredGradient, FactoredMomenta, FactoredMoments
from lopt.features.momenta import Momenta
from lopt.features.second_moments import GradientOverRoot, InverseRoot, MomentaOverRoot, SecondMoment
from lopt.features.time import TIME_SCALES, Time
from lopt.features.weights import Gradient, Value
from lopt.layers.digest import Channel

MOMENTUM_DECAYS = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)

NUM_WEIGHT_CHANNELS = 2 + len(MOMENTUM_DECAYS)
NUM_TIME_CHANNELS = len(TIME_SCALES)
NUM_CHANNELS = NUM_WEIGHT_CHANNELS + NUM_TIME_CHANNELS


@dataclasses.dataclass(frozen=True)
class PaperFeatures(FeaturesConfig):
    """What the paper's network sees of a weight: its value, its gradient, six momenta, and 11 functions of the time.

    "Universal Neural Functionals" (NeurIPS 2024), section 5.3.
    Channels are clipped to [-1, 1] and divided by their root mean square over the tensor plus 1e-5. 24 bytes of state per weight.
    """

    averages: bool = False
    """Momenta as averages, as the paper's released code has them, rather than sums, as its text."""

    def kinds(self) -> tuple[Kind, ...]:
        return Value(), Gradient(), Momenta(MOMENTUM_DECAYS, sums=not self.averages), Time()

    def normal(self) -> Channel:
        return Channel(clip=1.0, outside=1e-5)


@dataclasses.dataclass(frozen=True)
class AdafactorFeatures(FeaturesConfig):
    """The features of small_fc, Metz et al. (CoLLAs 2022), table 1: 28 for each weight, in the order of their code, and 11 of the time.

    Of a weight w, its gradient g and the average v of g^2: g, w, momenta, v, momenta / root v, 1 / root v, g / root of factored, rows,
    columns, 1 / root of both, momenta / root of factored; "factored" is v put together from averages over rows and over columns. Each is
    divided by the root of its mean square over the tensor plus 1e-5. 16 bytes of state per weight, and rows and columns.
    """

    momenta: tuple[float, ...] = (0.9, 0.99, 0.999)
    """Decays of the momenta."""
    factored: tuple[float, ...] | None = None
    """Decays of the factored second moments, as many; None: those of the momenta."""
    second_moment: float = 0.999
    """Decay of v."""
    bias_correction: bool = False
    """Divide averages by 1 - d^t."""
    time: bool = True
    """With the 11 time features."""

    def kinds(self) -> tuple[Kind, ...]:
        return Gradient(), Value(), *_of_moments(self), *([Time()] if self.time else [])

    def normal(self) -> Channel:
        return Channel(inside=1e-5)


@dataclasses.dataclass(frozen=True)
class Celo2Features(FeaturesConfig):
    """The features of Celo2 (arXiv 2602.19142): 30 for each weight, none of the time.

    They are those of small_fc (`AdafactorFeatures`), a clipped gradient and g / root v; v forgets sooner.
    Each is divided by the root of its mean square over the last two axes plus 1e-9. 16 bytes of state per weight, and rows and columns.
    """

    momenta: tuple[float, ...] = (0.9, 0.99, 0.999)
    """Decays of the momenta."""
    factored: tuple[float, ...] | None = None
    """Decays of the factored second moments, as many; None: those of the momenta."""
    second_moment: float = 0.95
    """Decay of v."""
    gradient_clip: float = 0.1
    """Clip of the second channel, the clipped gradient. It is not invariant to the scale of the loss."""
    bias_correction: bool = False
    """Divide averages by 1 - d^t."""

    def kinds(self) -> tuple[Kind, ...]:
        return Gradient(), Gradient(self.gradient_clip), Value(), *_of_moments(self)

    def normal(self) -> Channel:
        return Channel(inside=1e-9, over="matrix")


def _of_moments(config: AdafactorFeatures | Celo2Features) -> Iterator[Kind]:
    """What small_fc and Celo2 have of moments; Celo2 also has g / root v, and another number under the root."""
    of_v: dict[str, Any] = {"decay": config.second_moment, "bias_correction": config.bias_correction}
    of_v |= {"eps": 1e-8} if isinstance(config, Celo2Features) else {}
    decays = config.momenta if config.factored is None else config.factored
    factored: dict[str, Any] = {"decays": decays, "bias_correction": config.bias_correction}
    yield Momenta(config.momenta, bias_correction=config.bias_correction)
    yield SecondMoment(**of_v)
    yield MomentaOverRoot(**of_v, momenta=config.momenta)
    yield InverseRoot(**of_v)
    yield FactoredGradient(**factored)
    if isinstance(config, Celo2Features):
        yield GradientOverRoot(**of_v)
    yield FactoredMoments(**factored)
    yield FactoredMomenta(**factored, momenta=config.momenta)


@dataclasses.dataclass(frozen=True)
class CustomFeatures(FeaturesConfig):
    """Features of your own choice: kinds of `lopt.features`, side by side."""

    parts: tuple[Kind, ...] = (Value(), Gradient(), Momenta(bias_correction=True))
    """The kinds, in the order of the network's inputs."""
    clip: float = math.inf
    """Channels are clipped to [-clip, clip] (`inf`: not clipped)."""
    eps: float = 1e-12
    """Added to the mean square by whose root a channel is divided; small, so that the scale of a loss does not matter."""

    def kinds(self) -> tuple[Kind, ...]:
        if not self.parts:
            raise ValueError("features need at least one kind")
        return self.parts

    def normal(self) -> Channel:
        return Channel(clip=self.clip, inside=self.eps)
