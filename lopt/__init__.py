"""lopt: the framework in which learned optimizers are meta-trained."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lopt.from_loss import task_from_loss

__all__ = ["task_from_loss"]


def __getattr__(name: str) -> Any:
    """What `__all__` names, imported when it is asked for: to import lopt alone does not import JAX."""
    if name == "task_from_loss":
        from lopt.from_loss import task_from_loss

        return task_from_loss
    raise AttributeError(f"module 'lopt' has no attribute '{name}'")
