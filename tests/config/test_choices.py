"""Parts of an experiment exchanged by name: which class comes, what of the old part stays, what a wrong name says."""

import re
from pathlib import Path

import pytest

from lopt.config import ConfigError, load_file, parse_experiment, to_dict
from lopt.config.choices import choices, describe_choices, exchange
from lopt.estimators.base import EstimatorConfig
from lopt.estimators.nres import NRESConfig
from lopt.estimators.pes import PESConfig
from lopt.features.presets import AdafactorFeatures
from lopt.networks.update import DeepSetsConfig, NetworkConfig
from lopt.optimizers.config import LearnedOptimizerConfig
from lopt.optimizers.gated import GatedRule
from lopt.optimizers.momentum import LearnedMomentumConfig, LearnedSGDMConfig
from lopt.optimizers.nominals import MuonNominal
from lopt.task.base import TaskConfig
from lopt.task.named import ImportedTaskConfig, task_config
from tasks.mlp import MLPConfig
from tasks.rnn import RNNConfig

ROOT = Path(__file__).resolve().parents[2]
SMOKE = load_file(ROOT / "configs" / "smoke.py")


def test_the_names_that_fit_are_those_of_the_classes_that_derive_from_the_annotated_one():
    assert {"pes", "nres", "gpes", "full_es"} <= choices(EstimatorConfig).keys()
    assert "unf" not in choices(EstimatorConfig)
    assert choices(NetworkConfig | None)["deep_sets"] is DeepSetsConfig
    assert choices(int) == choices(str | None) == {}


def test_a_part_is_exchanged_and_keeps_what_the_file_says_and_both_have():
    config, rest = exchange(
        SMOKE, ["--estimator", "nres", "--seed", "3", "--optimizer.network=deep_sets", "--estimator.sigma", "1"]
    )
    assert rest == ["--seed", "3", "--estimator.sigma", "1"]
    assert isinstance(config.estimator, NRESConfig)
    assert (config.estimator.particles, config.unroll) == (SMOKE.estimator.particles, SMOKE.unroll)
    assert config.optimizer == LearnedMomentumConfig(beta=0.01, network=DeepSetsConfig((4,)))
    assert SMOKE.estimator == PESConfig(particles=4)


def test_the_outer_part_comes_first_whatever_the_order():
    config, rest = exchange(SMOKE, ["--optimizer.network", "pooled_deep_sets", "--optimizer", "learned_momentum"])
    assert (type(config.optimizer.network).__name__, rest) == ("PooledDeepSetsConfig", [])
    config, _ = exchange(SMOKE, ["--optimizer", "learned_sgdm"])
    assert config.optimizer == LearnedSGDMConfig()
    config, rest = exchange(SMOKE, ["--optimizer.rule.alpha", "3"])
    assert (config.optimizer, rest) == (SMOKE.optimizer.parts, ["--optimizer.rule.alpha", "3"])  # for the field's own option


def test_rule_and_features_of_an_optimizer_in_one_word():
    config, rest = exchange(
        SMOKE, ["--optimizer.rule.nominal", "muon", "--optimizer.rule", "gated", "--optimizer.features", "adafactor"]
    )
    assert rest == []
    assert isinstance(config.optimizer, LearnedOptimizerConfig)
    assert config.optimizer.rule == GatedRule(beta=0.01, nominal=MuonNominal())  # beta as in the file
    assert config.optimizer.features == AdafactorFeatures()
    assert config.optimizer.network == SMOKE.optimizer.network
    written_out, _ = exchange(SMOKE, ["--optimizer", "learned_optimizer"])
    assert written_out.optimizer == SMOKE.optimizer.parts
    unchanged, rest = exchange(SMOKE, ["--optimizer.rul", "gated"])
    assert (unchanged, rest) == (SMOKE, ["--optimizer.rul", "gated"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--estimator", "nre"], r"--estimator: there is no 'nre', did you mean nres\?; one of .*pes.*, or module:Class"),
        (["--estimator", "unf"], r"--estimator: there is no 'unf'; one of"),
        (["--optimizer.network"], r"--optimizer.network needs a name, one of .*deep_sets"),
        (
            ["--optimizer.network", "os:PathLike"],
            r"--optimizer.network os:PathLike: it must be a frozen dataclass .* NetworkConfig",
        ),
        (["--optimizer.network", "os:missing"], r"has no 'missing'"),
        (["--task", "mpl"], r"--task: no task 'mpl', did you mean mlp\? The tasks are"),
        (["--task", "nowhere.py:make"], r"--task: the task 'nowhere.py:make': no file .*nowhere.py"),
    ],
)
def test_a_wrong_name_says_what_there_is(argv, message):
    with pytest.raises(ConfigError, match=message):
        exchange(SMOKE, argv, readers={TaskConfig: task_config})


def test_a_class_of_ones_own_is_named_by_its_place(tmp_path, monkeypatch):
    (tmp_path / "own_networks.py").write_text(
        "import dataclasses\nfrom lopt.networks.update import DeepSetsConfig\n"
        "@dataclasses.dataclass(frozen=True)\nclass Own(DeepSetsConfig):\n    depth: int = 2\n"
    )
    monkeypatch.chdir(tmp_path)
    config, _ = exchange(SMOKE, ["--optimizer.network", "own_networks:Own"])
    assert (config.optimizer.network.depth, config.optimizer.network.hidden) == (2, (4,))
    encoded = to_dict(config)["optimizer"]["network"]
    assert (encoded["class"], encoded["class_directory"]) == ("own_networks:Own", str(tmp_path))


def test_the_choices_are_described():
    lines = "\n".join(describe_choices(SMOKE))
    assert re.search(r"--estimator  .*gpes \| nres \| pes.*\(now pes\)", lines)
    assert re.search(r"--optimizer.network  deep_sets \| nfn.*\(now unf\)", lines)
    assert "--evaluation " not in lines  # no choice
    assert re.search(r"--optimizer.rule  direction \| gated.*\(now momentum\)", lines), (
        "of one written in one word, its parts too"
    )
    assert re.search(r"--optimizer.features  adafactor \| celo2.*\(now paper\)", lines)
    assert lines.count("--optimizer.network ") == 1


OWN_TASK = '''
import lopt

def make_task(width: int = 3, rates: tuple[float, ...] = (0.1,), *, name: str | None = None):
    """A task of two sizes."""
    from tasks.mlp import MLPConfig
    return MLPConfig(hidden=(width,))
'''


def parsed(*argv):
    path = str(ROOT / "configs" / "smoke.py")
    argv = ["--config", path, "--run-dir", "run", *argv]
    return parse_experiment(
        argv, prog="train.py", description="", config_dir=ROOT / "configs", readers={TaskConfig: task_config}
    )[0]


def test_the_parameters_of_a_function_are_options_of_the_task(tmp_path, monkeypatch, capsys):
    (tmp_path / "own.py").write_text(OWN_TASK)
    monkeypatch.chdir(tmp_path)
    assert parsed("--task", "own.py:make_task").task == ImportedTaskConfig("own.py:make_task", str(tmp_path))
    given = parsed("--task", "own.py:make_task", "--task.width", "5", "--task.rates", "1", "2", "--task.name", "it").task
    assert given.arguments == (("width", 5), ("rates", (1.0, 2.0)), ("name", "it"))
    with pytest.raises(SystemExit):
        parsed("--task", "own.py:make_task", "--task.depth", "5")
    assert "--task.depth" in capsys.readouterr().err


def test_a_registered_task_takes_the_place_of_the_files():
    assert parsed("--task", "rnn", "--task.hidden", "8").task == RNNConfig(hidden=(8,))
    assert parsed("--task", "mlp").task == MLPConfig()  # with nothing of the file's: a task is a whole


def test_help_lists_the_choices(capsys):
    with pytest.raises(SystemExit):
        parsed("--help")
    shown = capsys.readouterr().out
    assert "exchanged by name" in shown
    assert "--optimizer.network" in shown
