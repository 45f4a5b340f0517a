"""How long inner trainings run, and what of them is the meta-loss."""

import dataclasses
from typing import Any, Literal, get_args

MetaLoss = Literal["final", "mean", "last", "min"]
MetaData = Literal["train", "inner_valid", "outer_valid"]
Horizons = Literal["constant", "log_uniform", "curriculum"]


@dataclasses.dataclass(frozen=True)
class UnrollConfig:
    """How long inner trainings run and what of them is the meta-loss."""

    horizon: int = 2000
    """T, inner steps from initialisation to reset (the paper: 2000, Transformer 5000); a multiple of truncation."""
    truncation: int = 50
    """K, inner steps of every particle in one outer step (the paper: 50)."""
    meta_loss: MetaLoss = "final"
    """What is minimised: the loss of the last step (`final`, the paper), the mean over all steps (`mean`) or over the last ones
    (`last`), or the smallest loss (`min`)."""
    loss_cap: float = 1.5
    """Losses above this many times the loss of a constant prediction count as that much (`inf`: no cap); capped steps are counted."""
    stagger: bool | None = None
    """Give the particles' first inner trainings different lengths, so that at every outer step they stand at different points. None: yes,
    but where an outer step sees whole inner trainings."""
    last: int | None = None
    """Steps at the end of an inner training that meta_loss `last` averages; None: 100, or `last_part`."""
    last_part: float | None = None
    """The part of an inner training, from its end, that meta_loss `last` averages, for lengths that vary: in (0, 1]."""
    meta_data: MetaData = "train"
    """The split that the meta-loss is measured on: the very batches that are trained on (`train`, the paper; it costs nothing), or
    others, which takes one forward pass more in each inner step."""
    horizons: Horizons = "constant"
    """Length of an inner training: always T (`constant`); from min_horizon to T, log-uniform (`log_uniform`); or growing from
    min_horizon to T over curriculum_steps (`curriculum`). Whole windows."""
    min_horizon: int | None = None
    """The shortest inner training of `log_uniform` and `curriculum`; None: one window."""
    curriculum_steps: int | None = None
    """Outer steps after which a curriculum has reached T; None: 1000."""

    def __post_init__(self) -> None:
        if self.truncation < 1:
            raise ValueError(f"truncation must be at least 1 inner step, got {self.truncation}")
        for name, steps in (("horizon", self.horizon), ("min_horizon", self.shortest)):
            if steps < 1 or steps % self.truncation:
                raise ValueError(f"{name} must be a positive multiple of truncation={self.truncation}, got {steps}")
        if self.shortest > self.horizon:
            raise ValueError(f"min_horizon={self.min_horizon} is longer than horizon={self.horizon}")
        if not self.loss_cap > 0:
            raise ValueError(f"loss_cap must be positive, got {self.loss_cap}")
        for name, value in (("last", self.last), ("curriculum_steps", self.curriculum_steps)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.last_part is not None and not 0 < self.last_part <= 1:
            raise ValueError(f"last_part must lie in (0, 1], got {self.last_part}")
        if self.last is not None and self.last_part is not None:
            raise ValueError(f"last={self.last} and last_part={self.last_part} say two things: leave one out")
        _check_choice("meta_loss", self.meta_loss, MetaLoss)
        _check_choice("meta_data", self.meta_data, MetaData)
        _check_choice("horizons", self.horizons, Horizons)
        for name, used, where in (
            ("last", self.meta_loss == "last", f"meta_loss={self.meta_loss!r}"),
            ("last_part", self.meta_loss == "last", f"meta_loss={self.meta_loss!r}"),
            ("min_horizon", self.horizons != "constant", f"horizons={self.horizons!r}"),
            ("curriculum_steps", self.horizons == "curriculum", f"horizons={self.horizons!r}"),
        ):
            if getattr(self, name) is not None and not used:
                raise ValueError(f"{name}={getattr(self, name)} does nothing with {where}: leave it out")

    @property
    def windows(self) -> int:
        """Windows in a full inner training, T / K."""
        return self.horizon // self.truncation

    @property
    def shortest(self) -> int:
        """Steps of the shortest inner training that is drawn."""
        if self.horizons == "constant":
            return self.horizon
        return self.truncation if self.min_horizon is None else self.min_horizon


def _check_choice(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, get_args(choices)))}, got {value!r}")
