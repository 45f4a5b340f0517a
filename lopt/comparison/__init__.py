"""Comparisons of learned optimizers: every rival meta-trained from several seeds, raced against tuned optimizers, drawn in one picture.

"Universal Neural Functionals" (NeurIPS 2024), figure 2, is such a comparison. A config names the rivals and the budgets; the agenda is one
meta-training for each seed and rival; each run is a directory that `lopt.training.trainer.meta_train` wrote or would write.
"""

from lopt.comparison.config import Budget, ComparisonConfig, Published, Rival

__all__ = ["Budget", "ComparisonConfig", "Published", "Rival"]
