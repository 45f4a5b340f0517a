"""Stable names of the classes that stand in files: what config.json and card.json say, wherever the code has moved since.

A file names a class of lopt, or of the tasks beside it, by a registered name such as `"unf"`; a class of somebody else by its path,
`"module:Class"`, which is imported only where the reader trusts the file. Paths that files had before there were names are read
through one table of aliases.
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

NAMES: Mapping[str, str] = MappingProxyType(
    {
        "adafactor": "lopt.features.presets:AdafactorFeatures",
        "adam": "lopt.optimizers.nominals:AdamNominal",
        "celo2": "lopt.features.presets:Celo2Features",
        "custom": "lopt.features.presets:CustomFeatures",
        "deep_sets": "lopt.networks.update:DeepSetsConfig",
        "direction": "lopt.optimizers.direction:DirectionRule",
        "evaluation": "lopt.evaluation.evaluate:EvaluationConfig",
        "factored_gradient": "lopt.features.factored:FactoredGradient",
        "factored_momenta": "lopt.features.factored:FactoredMomenta",
        "factored_moments": "lopt.features.factored:FactoredMoments",
        "family": "lopt.task.families:FamilyConfig",
        "fraction_left": "lopt.features.time:FractionLeft",
        "full_backprop": "lopt.estimators.full_backprop:FullBackpropConfig",
        "full_es": "lopt.estimators.full_es:FullESConfig",
        "gated": "lopt.optimizers.gated:GatedRule",
        "given_task": "lopt.task.named:GivenTaskConfig",
        "gpes": "lopt.estimators.gpes:GPESConfig",
        "gradient": "lopt.features.weights:Gradient",
        "gradient_descent": "lopt.benchmarks.quadratic:GradientDescentConfig",
        "gradient_over_root": "lopt.features.second_moments:GradientOverRoot",
        "held_out": "lopt.training.held_out:HeldOutConfig",
        "imported_task": "lopt.task.named:ImportedTaskConfig",
        "inverse_root": "lopt.features.second_moments:InverseRoot",
        "learned_momentum": "lopt.optimizers.momentum:LearnedMomentumConfig",
        "learned_sgdm": "lopt.optimizers.momentum:LearnedSGDMConfig",
        "learned_optimizer": "lopt.optimizers.config:LearnedOptimizerConfig",
        "logging": "lopt.training.loggers.base:LoggerConfig",
        "loss_trend": "lopt.features.time:LossTrend",
        "magnitude": "lopt.optimizers.magnitude:MagnitudeRule",
        "meta_train": "lopt.training.trainer:MetaTrainConfig",
        "mixture": "lopt.task.families:MixtureConfig",
        "momenta": "lopt.features.momenta:Momenta",
        "momenta_over_root": "lopt.features.second_moments:MomentaOverRoot",
        "momentum": "lopt.optimizers.momentum:MomentumRule",
        "momentum_average": "lopt.optimizers.nominals:MomentumNominal",
        "muon": "lopt.optimizers.nominals:MuonNominal",
        "nadam": "lopt.optimizers.nominals:NAdamNominal",
        "nfn": "lopt.networks.update:NFNConfig",
        "nominal": "lopt.optimizers.gated:NominalRule",
        "none": "lopt.optimizers.nominals:NoNominal",
        "nres": "lopt.estimators.nres:NRESConfig",
        "outer": "lopt.training.outer:OuterConfig",
        "paper": "lopt.features.presets:PaperFeatures",
        "pes": "lopt.estimators.pes:PESConfig",
        "pooled_deep_sets": "lopt.networks.update:PooledDeepSetsConfig",
        "prediction": "lopt.weight_space.predict:PredictionConfig",
        "schedule": "lopt.optimizers.schedules:ScheduleConfig",
        "second_moment": "lopt.features.second_moments:SecondMoment",
        "sgdm": "lopt.optimizers.momentum:SGDMRule",
        "shampoo": "lopt.optimizers.nominals:ShampooNominal",
        "suite": "lopt.evaluation.suite:SuiteConfig",
        "suite_task": "lopt.evaluation.suite:SuiteTask",
        "synthetic_mlp": "lopt.benchmarks.synthetic:SyntheticMLPConfig",
        "tensor_size": "lopt.features.weights:TensorSize",
        "time": "lopt.features.time:Time",
        "truncated_backprop": "lopt.estimators.truncated_backprop:TruncatedBackpropConfig",
        "truncated_es": "lopt.estimators.truncated_es:TruncatedESConfig",
        "unf": "lopt.networks.update:UNFConfig",
        "unroll": "lopt.unroll.config:UnrollConfig",
        "value": "lopt.features.weights:Value",
        "zoo": "lopt.weight_space.make:ZooConfig",
    }
)
"""Of lopt's own classes: name -> where the class is now. A name is for ever; where it leads may change."""

ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "lopt.benchmarks.quadratic:GradientDescentConfig": "gradient_descent",
        "lopt.benchmarks.synthetic:SyntheticMLPConfig": "synthetic_mlp",
        "lopt.estimators.full_backprop:FullBackpropConfig": "full_backprop",
        "lopt.estimators.full_es:FullESConfig": "full_es",
        "lopt.estimators.gpes:GPESConfig": "gpes",
        "lopt.estimators.nres:NRESConfig": "nres",
        "lopt.estimators.pes:PESConfig": "pes",
        "lopt.estimators.truncated_backprop:TruncatedBackpropConfig": "truncated_backprop",
        "lopt.estimators.truncated_es:TruncatedESConfig": "truncated_es",
        "lopt.evaluate:EvaluationConfig": "evaluation",
        "lopt.families:FamilyConfig": "family",
        "lopt.families:MixtureConfig": "mixture",
        "lopt.from_loss:ImportedTaskConfig": "imported_task",
        "lopt.held_out:HeldOutConfig": "held_out",
        "lopt.loggers.base:LoggerConfig": "logging",
        "lopt.model_zoo.make:ZooConfig": "zoo",
        "lopt.model_zoo.predict:PredictionConfig": "prediction",
        "lopt.networks:DeepSetsConfig": "deep_sets",
        "lopt.networks:NFNConfig": "nfn",
        "lopt.networks:PooledDeepSetsConfig": "pooled_deep_sets",
        "lopt.networks:UNFConfig": "unf",
        "lopt.optimizer:LearnedMomentumConfig": "learned_momentum",
        "lopt.optimizer:LearnedSGDMConfig": "learned_sgdm",
        "lopt.outer:OuterConfig": "outer",
        "lopt.trainer:MetaTrainConfig": "meta_train",
        "lopt.unroll.config:UnrollConfig": "unroll",
        "tasks.addition:AdditionConfig": "addition",
        "tasks.cnn:CNNConfig": "cnn",
        "tasks.mlp:MLPConfig": "mlp",
        "tasks.rnn:RNNConfig": "rnn",
        "tasks.transformer:TransformerConfig": "transformer",
    }
)
"""Paths by which files named classes before there were names -> name."""


@cache
def registered() -> Mapping[str, str]:
    """Every registered name -> `module:Class`: lopt's, and those of the package `tasks` where it lies beside lopt, as in a clone.

    Example:
      >>> registered()["unf"]
      'lopt.networks.update:UNFConfig'
    """
    return MappingProxyType({**NAMES, **_names_beside()})


def _names_beside() -> Mapping[str, str]:
    """Those of `tasks/names.py` beside this package; a package of that name elsewhere is somebody else's, and is not imported."""
    package = Path(__file__).resolve().parents[1]
    found = importlib.util.find_spec("tasks")
    places = [] if found is None or found.submodule_search_locations is None else [*found.submodule_search_locations]
    if [Path(place).resolve() for place in places] != [package.with_name("tasks")]:
        return {}
    return importlib.import_module("tasks.names").NAMES


def name_of(path: str) -> str | None:
    """The registered name of the class at `module:Class`; None for somebody else's."""
    return next((name for name, place in registered().items() if place == path), None)


def path_of(name: str) -> str | None:
    """Where the class is that a file names: by its name, by a path that files once had, or by today's; None for somebody else's."""
    places = registered()
    if name in places.values():
        return name
    return places.get(ALIASES.get(name, name))


def renew(data: Any) -> Any:
    """What JSON of an earlier lopt would say today: registered names for the paths that classes had then, and fields as they are now.

    Args:
      data: what JSON held: a config, or something with configs in it.

    Example:
      >>> renew({"class": "lopt.networks:UNFConfig", "hidden": [32]})
      {'class': 'unf', 'hidden': [32]}
    """
    if isinstance(data, list):
        return [renew(item) for item in data]
    if not isinstance(data, dict):
        return data
    fields = {field: renew(value) for field, value in data.items()}
    place = path_of(fields["class"]) if isinstance(fields.get("class"), str) else None
    name = None if place is None else name_of(place)
    return fields if name is None else _UPGRADES.get(name, lambda fields: fields)({**fields, "class": name})


def _unroll_of_the_estimator(run: dict[str, Any]) -> dict[str, Any]:
    """A run's unroll was a field of its estimator."""
    estimator = run.get("estimator")
    if "unroll" in run or not isinstance(estimator, dict) or "unroll" not in estimator or estimator.get("class") not in NAMES:
        return run
    unroll = dict(estimator["unroll"])
    if estimator["class"] in ("full_backprop", "full_es") and unroll.get("stagger"):  # which did not read it
        unroll["stagger"] = None
    return {**run, "estimator": {k: v for k, v in estimator.items() if k != "unroll"}, "unroll": unroll}


def _unset(field: str, unused: Callable[[dict[str, Any]], bool]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A field that every file had, also where it did nothing: it is None there."""
    return lambda fields: {**fields, field: None} if field in fields and unused(fields) else fields


def _in_turn(*upgrades: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda fields: functools.reduce(lambda found, upgrade: upgrade(found), upgrades, fields)


def _without_what_did_nothing(optimizer: dict[str, Any]) -> dict[str, Any]:
    """The gradient descent of benchmarks had two fields of its base, which it did not read."""
    return {field: value for field, value in optimizer.items() if field not in ("alpha", "g0")}


_UPGRADES: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]] = MappingProxyType(
    {
        "evaluation": _unset("momenta", lambda fields: fields["momenta"] == [0.9]),
        "family": _unset("input_field", lambda fields: fields.get("input_scale") is None),
        "gradient_descent": _without_what_did_nothing,
        "meta_train": _unroll_of_the_estimator,
        "outer": _unset("final_fraction", lambda fields: fields.get("decay_steps") is None),
        "unroll": _in_turn(
            _unset("last", lambda fields: fields.get("meta_loss") != "last"),
            _unset("min_horizon", lambda fields: fields.get("horizons", "constant") == "constant"),
            _unset("curriculum_steps", lambda fields: fields.get("horizons") != "curriculum"),
        ),
    }
)
"""Name of a class whose fields have changed -> its fields in a file, all of today's lopt within them, as today's class has them."""
