"""What a step keeps of past gradients, and how channels are made of it, in the words of the kernel (`program.h`)."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

_RULES = ("average", "sum", "average of squares", "factored")
_SOURCES = ("value", "gradient", "one", "kept", "rows", "columns", "root of rows", "root of columns")


class Kept(NamedTuple):
    """An accumulator that the kernel can move on by a step.

    Attributes:
      rule: `average`: x <- decay x + (1 - decay) g; `sum`: x <- decay x + g; `average of squares`: of g^2; `factored`: of the means of g^2
        over rows and over columns, of vectors of g^2 itself.
      decay: in [0, 1).
    """

    rule: Literal["average", "sum", "average of squares", "factored"]
    decay: float


class Form(NamedTuple):
    """How a channel is computed: source / sqrt(root + eps).

    Attributes:
      source: the weight, its gradient, 1, an accumulator's value, or a factored one's value for its row or column; the last two: 1 over
        the root of these plus `eps`.
      kept: the name of the source's accumulator.
      root: the name of the accumulator by whose root the source is divided; "": it is not divided.
      eps: added under the root; of a factored one only for vectors.
      corrected: averages are divided by 1 - decay^t.
    """

    source: Literal["value", "gradient", "one", "kept", "rows", "columns", "root of rows", "root of columns"]
    kept: str = ""
    root: str = ""
    eps: float = 0.0
    corrected: bool = False


class Program(NamedTuple):
    """All of a step.

    Attributes:
      kept: accumulators by name.
      forms: of the channels, in their order.
    """

    kept: tuple[tuple[str, Kept], ...]
    forms: tuple[Form, ...]

    def numbers_of_kept(self) -> list[float]:
        """Two numbers an accumulator."""
        return [x for _, (rule, decay) in self.kept for x in (float(_RULES.index(rule)), decay)]

    def numbers_of_forms(self) -> list[int]:
        """Four numbers a channel."""
        places = {name: i for i, (name, _) in enumerate(self.kept)} | {"": -1}
        return [
            x
            for form in self.forms
            for x in (_SOURCES.index(form.source), places[form.kept], places[form.root], int(form.corrected))
        ]


def factored_axes(shape: Sequence[int]) -> tuple[int, int] | None:
    """The second largest and the largest axis, the later of equals being the larger; None below rank 2.

    Example:
      >>> factored_axes((3, 3, 16, 32)), factored_axes((8, 8)), factored_axes((5,))
      ((2, 3), (0, 1), None)
    """
    if len(shape) < 2:
        return None
    order = np.argsort(shape, kind="stable")
    return int(order[-2]), int(order[-1])
