"""Tasks by the names of their modules."""

import dataclasses
import sys
import types

from lopt.task.base import TaskConfig
from tasks import registry
from tasks.mlp import MLPConfig


def test_several_configs_in_one_module(monkeypatch):
    """Each is named; one that another module defines, or that makes nothing, is no task of this module."""
    module = types.ModuleType("tasks.double")
    for name in ("First", "Second"):
        cls = dataclasses.dataclass(frozen=True)(
            type(name, (TaskConfig,), {"make": lambda self: None, "__module__": "tasks.double"})
        )
        setattr(module, name, cls)
    module.Abstract = type("Abstract", (TaskConfig,), {"__module__": "tasks.double"})
    module.MLPConfig = MLPConfig
    monkeypatch.setitem(sys.modules, "tasks.double", module)
    modules = [types.SimpleNamespace(name=name, ispkg=name == "datasets") for name in ("double", "mlp", "datasets", "registry")]
    monkeypatch.setattr(registry.pkgutil, "iter_modules", lambda path: modules)
    assert sorted(registry.task_configs()) == ["double:First", "double:Second", "mlp"]
