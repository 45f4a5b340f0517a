"""lopt: the framework in which learned optimizers are meta-trained."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lopt.layers.kernels.build import use_native_kernels
    from lopt.pretrained.export import push
    from lopt.pretrained.load import available, load, scale_by
    from lopt.symmetry import infer_spec
    from lopt.task.from_loss import task_from_loss

__all__ = ["available", "infer_spec", "load", "push", "scale_by", "task_from_loss", "use_native_kernels"]

_WHERE = {
    "available": "lopt.pretrained.load",
    "infer_spec": "lopt.symmetry",
    "load": "lopt.pretrained.load",
    "scale_by": "lopt.pretrained.load",
    "push": "lopt.pretrained.export",
    "task_from_loss": "lopt.task.from_loss",
    "use_native_kernels": "lopt.layers.kernels.build",
}


def __getattr__(name: str) -> Any:
    """What `__all__` names, imported when it is asked for: to import lopt alone does not import JAX."""
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'lopt' has no attribute '{name}'")
