"""lopt: the framework in which learned optimizers are meta-trained."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lopt.exporting import push
    from lopt.from_loss import task_from_loss
    from lopt.native_kernels import use_native_kernels
    from lopt.symmetry import infer_spec
    from lopt.trained import available, load

__all__ = ["available", "infer_spec", "load", "push", "task_from_loss", "use_native_kernels"]

_WHERE = {
    "available": "lopt.trained",
    "infer_spec": "lopt.symmetry",
    "load": "lopt.trained",
    "push": "lopt.exporting",
    "task_from_loss": "lopt.from_loss",
    "use_native_kernels": "lopt.native_kernels",
}


def __getattr__(name: str) -> Any:
    """What `__all__` names, imported when it is asked for: to import lopt alone does not import JAX."""
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'lopt' has no attribute '{name}'")
