"""When a run learns nothing any more: outer steps in a row that leave theta as it was, or could not have said where to go."""

from collections.abc import Mapping
from typing import Any

GAVE_UP = "gave_up"  # of the last record of a run that has stopped for it: why
_REASONS = {
    "all_diverged": "every particle diverged",
    "skipped": "the meta-gradient was not finite",
    "all_capped": "every loss was above the cap, so that no theta was better than another",
    "no_gradient": "the meta-gradient was zero: the losses do not depend on theta",
}
_SMALLER = "Start a new run with a smaller optimizer.alpha, optimizer.beta or outer.learning_rate."
_ADVICE = {
    "all_capped": f"{_SMALLER} Where losses are so large from the start, the cap is too low: it is unroll.loss_cap times the task's "
    "initial_loss.",
    "no_gradient": "Look at the task's loss: it may be constant, or capped (loss_cap of the unroll). Otherwise start a new run with a "
    "smaller optimizer.alpha or optimizer.beta, or a larger estimator.sigma.",
}


class Stall:
    """Counts outer steps in a row from which nothing was learned.

    Args:
      limit: after how many the run gives up.
      windows: outer steps in which an inner training passes. A meta-loss that looks at the end of a training alone has no gradient before,
        so that a zero counts only when it has lasted for a whole training.

    Example:
      >>> stall = Stall(limit=2, windows=1)
      >>> [stall.update({"skipped": skipped}) for skipped in (1, 0, 1, 1)][-1]
      'the meta-gradient was not finite in each of the last 2 outer steps'
    """

    def __init__(self, limit: int, windows: int) -> None:
        self._limits = {name: max(limit, windows) if name == "no_gradient" else limit for name in _REASONS}
        self._counts = dict.fromkeys(_REASONS, 0)
        self.advice = _SMALLER

    @property
    def capped(self) -> str:
        """Of a run that ends before it is given up: that its losses sit at the cap, and what to change; empty where they do not."""
        count = self._counts["all_capped"]
        if not count:
            return ""
        when = f"each of the last {count} outer steps" if count > 1 else "the last outer step"
        return f"{_REASONS['all_capped']} in {when}. {_ADVICE['all_capped']}"

    def update(self, info: Mapping[str, Any]) -> str | None:
        """Take the next outer step's metrics into account; why the run is to be given up, or None."""
        self._counts = {name: count + 1 if info.get(name) else 0 for name, count in self._counts.items()}
        for name, count in self._counts.items():
            if count >= self._limits[name]:
                self.advice = _ADVICE.get(name, _SMALLER)
                return f"{_REASONS[name]} in each of the last {count} outer steps"
        return None
