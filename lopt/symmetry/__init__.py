"""Weight specs and what is derived from them."""

from lopt.symmetry.infer import infer_spec
from lopt.symmetry.spec import SpecError, WeightSpec

__all__ = ["SpecError", "WeightSpec", "infer_spec"]
