"""Tasks by name: `NAME` is the module `tasks/NAME.py`, and its task the config that it defines, with its default fields."""

import importlib
import inspect
import pkgutil
from types import ModuleType

import tasks
from lopt.task import TaskConfig


def _configs(module: ModuleType) -> list[type[TaskConfig]]:
    """The concrete task configs that a module itself defines: imported ones belong to the module they come from."""
    return [
        cls
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if issubclass(cls, TaskConfig) and cls.__module__ == module.__name__ and cls.make is not TaskConfig.make
    ]


def task_configs() -> dict[str, type[TaskConfig]]:
    """Every task's config by the name of its module; `module:Class` where a module defines several.

    Example:
      >>> task_configs()["mlp"]().batch_size
      128
    """
    found: dict[str, type[TaskConfig]] = {}
    for info in pkgutil.iter_modules(tasks.__path__):
        if info.ispkg or f"{tasks.__name__}.{info.name}" == __name__:
            continue
        configs = _configs(importlib.import_module(f"{tasks.__name__}.{info.name}"))
        if len(configs) == 1:
            found[info.name] = configs[0]
        else:
            found |= {f"{info.name}:{cls.__name__}": cls for cls in configs}
    return found
