"""lopt: the framework in which learned optimizers are meta-trained.

What a user needs is here, under `lopt` itself; the packages below hold it and the rest. Nothing of it is imported before it is asked
for, so that `import lopt` takes no time.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lopt.config.errors import LoptError
    from lopt.estimators.full_backprop import FullBackpropConfig
    from lopt.estimators.full_es import FullESConfig
    from lopt.estimators.gpes import GPESConfig
    from lopt.estimators.nres import NRESConfig
    from lopt.estimators.pes import PESConfig
    from lopt.estimators.truncated_backprop import TruncatedBackpropConfig
    from lopt.estimators.truncated_es import TruncatedESConfig
    from lopt.evaluation.evaluate import EvaluationConfig, evaluate
    from lopt.evaluation.race import Competitor
    from lopt.evaluation.suite import SuiteConfig, SuiteTask
    from lopt.evaluation.summary import markdown_table
    from lopt.features.presets import AdafactorFeatures, Celo2Features, CustomFeatures, PaperFeatures
    from lopt.layers.kernels.build import use_native_kernels
    from lopt.layers.unf import unf_layer
    from lopt.networks.predictors import invariant_predictor
    from lopt.networks.update import DeepSetsConfig, NFNConfig, PooledDeepSetsConfig, UNFConfig
    from lopt.optimizers.config import LearnedOptimizerConfig
    from lopt.optimizers.direction import DirectionRule
    from lopt.optimizers.gated import GatedRule, NominalRule
    from lopt.optimizers.magnitude import MagnitudeRule
    from lopt.optimizers.momentum import LearnedMomentumConfig, LearnedSGDMConfig, MomentumRule, SGDMRule
    from lopt.optimizers.nominals import AdamNominal, MomentumNominal, MuonNominal, NAdamNominal, NoNominal, ShampooNominal
    from lopt.optimizers.schedules import ScheduleConfig
    from lopt.pretrained.diagnose import diagnose
    from lopt.pretrained.export import push
    from lopt.pretrained.load import available, load, scale_by
    from lopt.reporting.report import write_report
    from lopt.runtime.distributed import use_all_cores
    from lopt.symmetry.infer import infer_spec
    from lopt.symmetry.spec import WeightSpec
    from lopt.task.base import Task, TaskConfig, TaskFamily
    from lopt.task.data import ArraySplit, Datasets
    from lopt.task.families import FamilyConfig, MixtureConfig
    from lopt.task.from_loss import task_from_loss
    from lopt.task.named import ImportedTaskConfig, task_config
    from lopt.training import checkpoint, metrics
    from lopt.training.held_out import HeldOutConfig
    from lopt.training.loggers.base import LoggerConfig
    from lopt.training.outer import OuterConfig
    from lopt.training.trainer import MetaTrainConfig, initial_theta, meta_train
    from lopt.unroll.config import UnrollConfig
    from lopt.unroll.window import make_unroll

__version__ = "0.1.0"

_NAMES = {
    "config.errors": ("LoptError",),
    "estimators.full_backprop": ("FullBackpropConfig",),
    "estimators.full_es": ("FullESConfig",),
    "estimators.gpes": ("GPESConfig",),
    "estimators.nres": ("NRESConfig",),
    "estimators.pes": ("PESConfig",),
    "estimators.truncated_backprop": ("TruncatedBackpropConfig",),
    "estimators.truncated_es": ("TruncatedESConfig",),
    "evaluation.evaluate": ("EvaluationConfig", "evaluate"),
    "evaluation.race": ("Competitor",),
    "evaluation.suite": ("SuiteConfig", "SuiteTask"),
    "evaluation.summary": ("markdown_table",),
    "features.presets": ("AdafactorFeatures", "Celo2Features", "CustomFeatures", "PaperFeatures"),
    "layers.kernels.build": ("use_native_kernels",),
    "layers.unf": ("unf_layer",),
    "networks.predictors": ("invariant_predictor",),
    "networks.update": ("DeepSetsConfig", "NFNConfig", "PooledDeepSetsConfig", "UNFConfig"),
    "optimizers.config": ("LearnedOptimizerConfig",),
    "optimizers.direction": ("DirectionRule",),
    "optimizers.gated": ("GatedRule", "NominalRule"),
    "optimizers.magnitude": ("MagnitudeRule",),
    "optimizers.momentum": ("LearnedMomentumConfig", "LearnedSGDMConfig", "MomentumRule", "SGDMRule"),
    "optimizers.nominals": ("AdamNominal", "MomentumNominal", "MuonNominal", "NAdamNominal", "NoNominal", "ShampooNominal"),
    "optimizers.schedules": ("ScheduleConfig",),
    "pretrained.diagnose": ("diagnose",),
    "pretrained.export": ("push",),
    "pretrained.load": ("available", "load", "scale_by"),
    "reporting.report": ("write_report",),
    "runtime.distributed": ("use_all_cores",),
    "symmetry.infer": ("infer_spec",),
    "symmetry.spec": ("WeightSpec",),
    "task.base": ("Task", "TaskConfig", "TaskFamily"),
    "task.data": ("ArraySplit", "Datasets"),
    "task.families": ("FamilyConfig", "MixtureConfig"),
    "task.from_loss": ("task_from_loss",),
    "task.named": ("ImportedTaskConfig", "task_config"),
    "training": ("checkpoint", "metrics"),  # modules
    "training.held_out": ("HeldOutConfig",),
    "training.loggers.base": ("LoggerConfig",),
    "training.outer": ("OuterConfig",),
    "training.trainer": ("MetaTrainConfig", "initial_theta", "meta_train"),
    "unroll.config": ("UnrollConfig",),
    "unroll.window": ("make_unroll",),
}
_WHERE = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [  # noqa: RUF022  by what they are for
    # a trained optimizer in a loop
    "available",
    "diagnose",
    "infer_spec",
    "load",
    "push",
    "scale_by",
    "use_native_kernels",
    "WeightSpec",
    # tasks
    "ArraySplit",
    "Datasets",
    "FamilyConfig",
    "ImportedTaskConfig",
    "MixtureConfig",
    "Task",
    "TaskConfig",
    "TaskFamily",
    "task_config",
    "task_from_loss",
    # learned optimizers: rule x features x network
    "LearnedMomentumConfig",
    "LearnedOptimizerConfig",
    "LearnedSGDMConfig",
    "DirectionRule",
    "GatedRule",
    "MagnitudeRule",
    "MomentumRule",
    "NominalRule",
    "SGDMRule",
    "AdamNominal",
    "MomentumNominal",
    "MuonNominal",
    "NAdamNominal",
    "NoNominal",
    "ShampooNominal",
    "ScheduleConfig",
    "AdafactorFeatures",
    "Celo2Features",
    "CustomFeatures",
    "PaperFeatures",
    "DeepSetsConfig",
    "NFNConfig",
    "PooledDeepSetsConfig",
    "UNFConfig",
    "invariant_predictor",
    "unf_layer",
    # meta-training
    "FullBackpropConfig",
    "FullESConfig",
    "GPESConfig",
    "HeldOutConfig",
    "LoggerConfig",
    "MetaTrainConfig",
    "NRESConfig",
    "OuterConfig",
    "PESConfig",
    "TruncatedBackpropConfig",
    "TruncatedESConfig",
    "UnrollConfig",
    "checkpoint",
    "initial_theta",
    "make_unroll",
    "meta_train",
    "metrics",
    "use_all_cores",
    # evaluation
    "Competitor",
    "EvaluationConfig",
    "SuiteConfig",
    "SuiteTask",
    "evaluate",
    "markdown_table",
    "write_report",
    # errors
    "LoptError",
]


def __getattr__(name: str) -> Any:
    """What `__all__` names, imported when it is asked for: to import lopt alone does not import JAX."""
    if name not in _WHERE:
        raise AttributeError(f"module 'lopt' has no attribute '{name}'")
    if _WHERE[name] == "training":
        value = importlib.import_module(f"lopt.training.{name}")
    else:
        value = getattr(importlib.import_module(f"lopt.{_WHERE[name]}"), name)
    globals()[name] = value  # asked for once
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
