import dataclasses
import json
import math
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from lopt import config as configs
from lopt.config import ConfigError, UntrustedConfigError, operational
from lopt.networks.update import DeepSetsConfig


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """Base of the tasks."""


@dataclasses.dataclass(frozen=True)
class MLPConfig(TaskConfig):
    hidden: tuple[int, ...] = (32,)
    """Widths of the hidden layers."""
    data_dir: str | None = operational(None)
    """Where the data are; None looks in the usual places."""


@dataclasses.dataclass(frozen=True)
class MixtureConfig(TaskConfig):
    tasks: tuple[TaskConfig, ...] = ()
    weights: tuple[float, float] = (0.5, 0.5)


@dataclasses.dataclass(frozen=True)
class EstimatorConfig:
    sigma: float = 0.01
    """Standard deviation of the perturbations of theta."""
    meta_loss: Literal["mean", "final"] = "mean"
    """Which of the inner losses count."""
    loss_cap: float = math.inf
    antithetic: bool = True

    def __post_init__(self) -> None:
        if self.sigma <= 0:
            raise ValueError(f"sigma is {self.sigma}; it must be positive")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a run is made of."""

    task: TaskConfig
    """The inner problem."""
    estimator: EstimatorConfig = EstimatorConfig()
    """The meta-gradient."""
    outer_steps: int = operational(1000)
    """How many outer steps."""
    seed: int = 0
    """Everything random follows from it."""


@dataclasses.dataclass(frozen=True)
class Anything:
    value: Any = None


@dataclasses.dataclass
class Thawed:
    seed: int = 0


class Outer:
    @dataclasses.dataclass(frozen=True)
    class Inner(TaskConfig):
        size: int = 1


EXPERIMENT = Experiment(task=MLPConfig(hidden=(64, 32)), estimator=EstimatorConfig(sigma=0.1 + 0.2))


@pytest.fixture
def config_dir(tmp_path) -> Path:
    directory = tmp_path / "configs"
    directory.mkdir()
    (directory / "small.py").write_text(
        f'"""A small run.\n\nCosts nothing."""\n\nfrom {__name__} import EXPERIMENT as config  # noqa: F401\n'
    )
    (directory / "large.py").write_text('"""A large run: five minutes."""\n')
    (directory / "_shared.py").write_text('"""Not an experiment."""\n')
    return directory


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


# --- Config files


def test_load_file(config_dir):
    assert configs.load_file(config_dir / "small.py") == EXPERIMENT
    assert configs.load_file(str(config_dir / "small.py")) == EXPERIMENT


def test_files_of_the_same_name_do_not_meet(tmp_path):
    for seed in (1, 2):
        (tmp_path / str(seed)).mkdir()
        text = f"from {__name__} import MLPConfig, Experiment\nconfig = Experiment(task=MLPConfig(), seed={seed})\n"
        write(tmp_path / str(seed) / "same.py", text)
    assert [configs.load_file(tmp_path / str(seed) / "same.py").seed for seed in (1, 2)] == [1, 2]


def test_a_missing_file_lists_those_beside_it(config_dir):
    with pytest.raises(ConfigError, match=r"no config file .*smal\.py") as error:
        configs.load_file(config_dir / "smal.py")
    listing = str(error.value)
    assert re.search(r"small\.py +A small run\.\n?", listing)
    assert re.search(r"large\.py +A large run: five minutes\.", listing)
    assert "_shared" not in listing
    with pytest.raises(ConfigError, match=r"\(none in .*nowhere\)"):
        configs.load_file(config_dir / "nowhere" / "small.py")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import math\nfrom nowhere import x\n", r"bad\.py, line 2: ModuleNotFoundError: No module named 'nowhere'"),
        ("\n\nconfig = (\n", r"bad\.py, line 3: SyntaxError"),
        ("def make():\n    return 1 / 0\n\nconfig = make()\n", r"bad\.py, line 2: ZeroDivisionError"),
        ("settings = 1\n", r"bad\.py defines no `config`"),
        ("config = {'seed': 1}\n", r"bad\.py: config is .*not an instance of a frozen dataclass"),
        (f"from {__name__} import Thawed as config\n", r"bad\.py: config is .*not an instance of a frozen dataclass"),
        (f"from {__name__} import Thawed\nconfig = Thawed()\n", r"bad\.py: config is .*not an instance of a frozen dataclass"),
        (f"from {__name__} import *\nconfig = Experiment(MLPConfig(), sed=1)\n", r"bad\.py, line 2: TypeError: .*'sed'"),
        (f"from {__name__} import *\nconfig = Experiment(MLPConfig(), seed='1')\n", r"bad\.py: seed is '1', .* of type int"),
    ],
)
def test_a_bad_file_is_named(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        configs.load_file(write(tmp_path / "bad.py", text))


# --- Types


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1.0}, "seed is 1.0, which is not of type int"),
        ({"seed": True}, "seed is True, which is not of type int"),
        ({"task": EstimatorConfig()}, "task is EstimatorConfig.*, which is not of type TaskConfig"),
        ({"task": MLPConfig(hidden=(1, "2"))}, r"task\.hidden is \(1, '2'\), which is not of type tuple\[int, \.\.\.\]"),  # pyright: ignore
        ({"task": MLPConfig(hidden=[1])}, r"task\.hidden is \[1\]"),  # pyright: ignore
        ({"task": MLPConfig(data_dir=3)}, r"task\.data_dir is 3, which is not of type str \| None"),  # pyright: ignore
        ({"task": MixtureConfig(weights=(1.0,))}, r"task\.weights is \(1\.0,\)"),  # pyright: ignore
        ({"task": MixtureConfig(tasks=(MLPConfig(), MLPConfig(data_dir=0)))}, r"task\.tasks\[1\]\.data_dir is 0"),  # pyright: ignore
        ({"estimator": EstimatorConfig(meta_loss="last")}, r"estimator\.meta_loss is 'last', .*Literal\['mean', 'final'\]"),  # pyright: ignore
        ({"estimator": EstimatorConfig(antithetic=1)}, r"estimator\.antithetic is 1, which is not of type bool"),  # pyright: ignore
    ],
)
def test_a_value_of_the_wrong_type_is_named(change, message):
    with pytest.raises(ConfigError, match=message):
        configs.validate(dataclasses.replace(EXPERIMENT, **change))


@pytest.mark.parametrize(
    "config",
    [
        EXPERIMENT,
        Experiment(task=MixtureConfig(tasks=(MLPConfig(), Outer.Inner())), estimator=EstimatorConfig(sigma=1)),
        Anything(object()),
    ],
)
def test_values_of_the_right_type_pass(config):
    configs.validate(config)


# --- JSON


@pytest.mark.parametrize(
    "config",
    [
        EXPERIMENT,
        Experiment(task=MixtureConfig(tasks=(MLPConfig(data_dir="/data"), MixtureConfig(tasks=(Outer.Inner(size=3),))))),
        Experiment(task=TaskConfig(), estimator=EstimatorConfig(sigma=5e-324, loss_cap=1e308, antithetic=False), seed=-(2**70)),
        *(Anything(value) for value in (None, True, 1, 1.0, -0.0, -math.inf, "text", "inf", (), ((1, 2.5), ("a", None)), 1 / 3)),
        Anything(MLPConfig()),
    ],
    ids=str,
)
def test_json_round_trip_is_exact(tmp_path, config):
    text = json.dumps(configs.to_dict(config), allow_nan=False)
    back = configs.from_dict(json.loads(text), trust=True)
    assert repr(back) == repr(config)  # unlike ==, tells 1 from 1.0 and True, and 0.0 from -0.0
    assert back == config
    configs.save(config, tmp_path / "config.json")
    assert configs.load_run(tmp_path) == config
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_nan_survives():
    assert math.isnan(configs.from_dict(configs.to_dict(Anything(math.nan)), trust=True).value)


def test_json_is_what_a_reader_expects():
    data = configs.to_dict(EXPERIMENT)
    assert data["class"] == f"{__name__}:Experiment"
    assert data["task"] == {"class": f"{__name__}:MLPConfig", "hidden": [64, 32], "data_dir": None}
    assert data["estimator"]["loss_cap"] == {"float": "inf"}


@pytest.mark.parametrize("value", [[1], {"a": 1}, {1}, Path("/data"), 1j, int, b"bytes", (1, [2])], ids=repr)
def test_what_json_cannot_hold_is_named(value):
    with pytest.raises(ConfigError, match=r"^value(\[1\])? is .*a config holds int, float, bool"):
        configs.to_dict(Anything(value))


def test_a_class_that_no_one_can_import_is_refused(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Local(TaskConfig):
        pass

    own = (
        "@dataclasses.dataclass(frozen=True)\nclass Own(TaskConfig):\n    size: int = 1\nconfig = Experiment(task=Own(size=2))\n"
    )
    in_file = configs.load_file(write(tmp_path / "own.py", f"import dataclasses\nfrom {__name__} import *\n{own}"))
    assert in_file.task.size == 2
    for config, name in ((in_file, "Own"), (Experiment(task=Local()), "Local")):
        with pytest.raises(
            ConfigError, match=f"task is of the class .*{name}, which another process cannot import.*move the class"
        ):
            configs.save(config, tmp_path / "config.json")
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("estimator", "sgima"), 0.1, r"unknown field estimator\.sgima: EstimatorConfig has the fields sigma, meta_loss"),
        (("seed",), "0", "seed is '0', which is not of type int"),
        (("estimator", "sigma"), -1.0, r"estimator: sigma is -1\.0; it must be positive"),
        (("task", "class"), f"{__name__}:Missing", "task is of the class .*Missing', which cannot be imported"),
        (("task", "class"), "nowhere.at_all:Missing", "task is of the class .*No module named 'nowhere'"),
        (("task", "class"), "subprocess:Popen", "task is of the class 'subprocess:Popen', which is not a frozen dataclass"),
        (("task", "class"), f"{__name__}:Thawed", "task is of the class .*Thawed', which is not a frozen dataclass"),
        (("task", "class"), "no colon", "task is of the class 'no colon'"),
        (("task", "class"), 3, "task is of the class 3"),
        (("task",), {"hidden": [1]}, "task is an object without a 'class'"),
        (("task",), {"class": f"{__name__}:EstimatorConfig"}, "task is EstimatorConfig.*not of type TaskConfig"),
    ],
)
def test_bad_json_names_the_field_and_the_file(tmp_path, path, value, message):
    data = configs.to_dict(EXPERIMENT)
    inner = data
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    write(tmp_path / "config.json", json.dumps(data))
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(tmp_path))}/config\.json: {message}"):
        configs.load_run(tmp_path, trust=True)


def test_fields_that_are_absent():
    data = configs.to_dict(EXPERIMENT)
    del data["seed"]
    assert configs.from_dict(data, trust=True).seed == 0  # a field that was added since, with its default
    del data["task"]
    with pytest.raises(ConfigError, match="missing field task of Experiment"):
        configs.from_dict(data, trust=True)


def test_missing_and_corrupt_files(tmp_path):
    with pytest.raises(ConfigError, match=r"no .*/config\.json: .* is not the directory of a run"):
        configs.load_run(tmp_path)
    for text in ("", '{"class": ', "\x00\xff", "3"):
        (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(ConfigError, match=r"/config\.json(: config is 3| is not JSON: )"):
            configs.load_run(tmp_path)


def test_nothing_is_imported_because_a_file_says_so(tmp_path):
    """Neither a class nor a function that a class of lopt's would call; what would be imported is named."""
    imported = {"class": "imported_task", "function": "os:abort"}
    for task, name in (({"class": "os:abort"}, r"task is of the class 'os:abort'"), (imported, r"task\.function names 'os:abort'")):
        data = {**configs.to_dict(EXPERIMENT), "class": "meta_train", "task": task, "estimator": {"class": "antigravity:X"}}
        write(tmp_path / "config.json", json.dumps(data))
        with pytest.raises(UntrustedConfigError, match=rf"config\.json: {name}.*--trust, imports 'os:abort', 'antigravity:X'"):
            configs.load_run(tmp_path)
        with pytest.raises(UntrustedConfigError, match="antigravity"):
            configs.check_run_dir(tmp_path, EXPERIMENT)
        with pytest.raises(UntrustedConfigError, match="os:abort"):
            configs.load_part(tmp_path, "task")
    assert "antigravity" not in sys.modules


def test_a_run_that_was_begun_here_is_trusted_wherever_it_lies(tmp_path, monkeypatch):
    monkeypatch.setenv("LOPT_CACHE_DIR", str(tmp_path / "kept"))
    configs.claim_run_dir(tmp_path / "run", EXPERIMENT)
    (tmp_path / "run").rename(tmp_path / "moved")
    assert configs.load_run(tmp_path / "moved") == EXPERIMENT
    (note,) = (tmp_path / "kept" / "runs").iterdir()
    assert (note.parent.stat().st_mode & 0o777, note.stat().st_mode & 0o777) == (0o700, 0o600)
    text = (tmp_path / "moved" / "config.json").read_text()
    write(tmp_path / "moved" / "config.json", text.replace('"seed": 0', '"seed": 1'))
    with pytest.raises(UntrustedConfigError, match="Experiment"):  # somebody has changed it
        configs.load_run(tmp_path / "moved")
    write(tmp_path / "moved" / "config.json", text)
    note.parent.chmod(0o777)  # anybody may have put the note there
    with pytest.raises(UntrustedConfigError, match="Experiment"):
        configs.load_run(tmp_path / "moved")
    configs.check_run_dir(tmp_path / "moved", EXPERIMENT)  # goes on all the same: its classes are imported already
    with pytest.warns(UserWarning, match="no note can be kept of this run"):
        configs.claim_run_dir(tmp_path / "moved", EXPERIMENT)


def test_deeply_nested_json_is_named(tmp_path):
    for text in ("[" * 100_000, '{"class": ' * 5000 + "1" + "}" * 5000):
        write(tmp_path / "config.json", text)
        with pytest.raises(ConfigError, match=r"config\.json"):
            configs.load_run(tmp_path)


def test_unwritable_directory(tmp_path):
    write(tmp_path / "run", "a file is in the way")
    with pytest.raises(OSError, match="run"):
        configs.save(EXPERIMENT, tmp_path / "run" / "config.json")


def test_a_run_directory_belongs_to_one_config(tmp_path):
    run_dir = tmp_path / "new" / "run"
    configs.claim_run_dir(run_dir, EXPERIMENT)
    configs.claim_run_dir(run_dir, EXPERIMENT)
    other = dataclasses.replace(EXPERIMENT, task=MLPConfig(hidden=(8,)), outer_steps=2000, seed=1)
    message = (
        r"run holds a run of another config: task\.hidden is \(64, 32\) there, not \(8,\); seed is 0 there, not 1; use another"
    )
    with pytest.raises(ConfigError, match=message):
        configs.claim_run_dir(run_dir, other)
    for elsewhere in (TaskConfig(), MixtureConfig((EXPERIMENT.task,))):
        with pytest.raises(ConfigError, match=r"config: task is .*; use another run directory"):
            configs.claim_run_dir(run_dir, dataclasses.replace(EXPERIMENT, task=elsewhere))
    assert configs.load_run(run_dir) == EXPERIMENT


def test_what_says_how_a_run_is_carried_out_may_change(tmp_path):
    mixture = dataclasses.replace(EXPERIMENT, task=MixtureConfig((MLPConfig(), MLPConfig(data_dir="/there"))))
    configs.claim_run_dir(tmp_path, mixture)
    moved = dataclasses.replace(mixture, task=MixtureConfig((MLPConfig(data_dir="/here"), MLPConfig())), outer_steps=2000)
    assert configs.check_run_dir(tmp_path, moved)
    assert configs.load_run(tmp_path) == mixture
    configs.claim_run_dir(tmp_path, moved)
    assert configs.load_run(tmp_path) == moved
    with pytest.raises(ConfigError, match=r"config: task\.tasks\[1\]\.hidden is \(32,\) there, not \(1,\); use"):
        configs.claim_run_dir(tmp_path, dataclasses.replace(moved, task=MixtureConfig((MLPConfig(), MLPConfig((1,))))))


def test_a_run_directory_that_cannot_be_made(tmp_path):
    write(tmp_path / "run", "a file is in the way")
    with pytest.raises(ConfigError, match=r"cannot write the run directory .*run: "):
        configs.claim_run_dir(tmp_path / "run", EXPERIMENT)
    (tmp_path / "broken").mkdir()
    write(tmp_path / "broken" / "config.json", "{")
    with pytest.raises(ConfigError, match=r"broken/config\.json is not JSON"):
        configs.claim_run_dir(tmp_path / "broken", EXPERIMENT)
    assert (tmp_path / "broken" / "config.json").read_text() == "{"


def test_differences():
    def replaced(**changes):
        return dataclasses.replace(EXPERIMENT, **changes)

    assert configs.differences(EXPERIMENT, replaced()) == []
    other = replaced(estimator=EstimatorConfig(sigma=0.5, antithetic=False), seed=3)
    assert configs.differences(EXPERIMENT, other) == [
        ("estimator.sigma", 0.1 + 0.2, 0.5),
        ("estimator.antithetic", True, False),
        ("seed", 0, 3),
    ]
    assert configs.differences(EXPERIMENT, replaced(task=MLPConfig())) == [("task.hidden", (64, 32), (32,))]
    assert configs.differences(EXPERIMENT, replaced(task=TaskConfig())) == [("task", EXPERIMENT.task, TaskConfig())]
    assert configs.differences(EXPERIMENT, TaskConfig()) == [("config", EXPERIMENT, TaskConfig())]
    mixtures = (MixtureConfig(tasks=(MLPConfig(), MLPConfig(data_dir=d))) for d in ("a", "b"))
    assert configs.differences(*mixtures) == [("tasks[1].data_dir", "a", "b")]
    assert configs.differences(Anything(math.nan), Anything(math.nan)) == []


# --- Command line


def parse(config_dir: Path, *argv: str, **options: Any) -> tuple[Any, Path]:
    return configs.parse_experiment(argv, prog="train.py", description="Trains it.", config_dir=config_dir, **options)[:2]


def test_overrides(config_dir):
    small = ["--config", str(config_dir / "small.py"), "--run-dir", "runs/1"]
    assert parse(config_dir, *small) == (EXPERIMENT, Path("runs/1"))
    config, _ = parse(
        config_dir,
        *("--outer-steps", "5", "--seed=7", "--task.hidden", "8", "9", "--task.data-dir", "/data", *small),
        *("--estimator.sigma", "1e-3", "--estimator.meta-loss", "final", "--estimator.no-antithetic"),
    )
    assert config == Experiment(
        task=MLPConfig(hidden=(8, 9), data_dir="/data"),
        estimator=EstimatorConfig(sigma=1e-3, meta_loss="final", antithetic=False),
        outer_steps=5,
        seed=7,
    )
    assert parse(config_dir, *small, "--task.data-dir", "None", "--estimator.loss-cap", "inf")[0] == EXPERIMENT


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--sed", "1"], "--sed"),
        (["--estimator.sgima", "1"], "--estimator.sgima"),
        (["--task.size", "1"], "--task.size"),
        (["--seed", "one"], "--seed"),
        (["--seed", "1.5"], "--seed"),
        (["--estimator.meta-loss", "last"], "--estimator.meta-loss"),
        (["--estimator.antithetic", "1"], "1"),
        (["--task.hidden", "8", "nine"], "--task.hidden"),
        (["--estimator.sigma", "-1"], "sigma is -1.0; it must be positive"),
    ],
)
def test_a_bad_override_is_named(config_dir, capfd, argv, message):
    with pytest.raises(SystemExit) as error:
        parse(config_dir, "--config", str(config_dir / "small.py"), "--run-dir", "run", *argv)
    assert error.value.code == 2
    output = capfd.readouterr()
    assert message in output.err
    assert output.out == ""


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--config FILE is required"),
        (["--run-dir", "run"], "A small run."),
        (["--config"], "--config"),
        (["--conf", "small.py"], "--config FILE is required"),
        (["--config", "nowhere/none.py", "--run-dir", "run"], "no config file nowhere/none.py"),
        (["--config", "{dir}/large.py", "--run-dir", "run"], "large.py defines no `config`"),
        (["--config", "{dir}/small.py"], "--run-dir"),
        (["--config", "{dir}/taken.py", "--run-dir", "run"], "Taken has a field 'run_dir', which is the name of an argument"),
    ],
)
def test_bad_arguments_of_the_program(config_dir, capfd, argv, message):
    text = "import dataclasses\n@dataclasses.dataclass(frozen=True)\nclass Taken:\n    run_dir: str = ''\nconfig = Taken()\n"
    write(config_dir / "taken.py", text)
    with pytest.raises(SystemExit) as error:
        parse(config_dir, *(arg.format(dir=config_dir) for arg in argv))
    assert error.value.code == 2
    assert message in capfd.readouterr().err


def help_text(capfd, config_dir: Path, *argv: str, **options: Any) -> str:
    with pytest.raises(SystemExit) as error:
        parse(config_dir, *argv, "--help", **options)
    assert error.value.code == 0
    return " ".join(capfd.readouterr().out.replace("│", " ").split())


def test_help_teaches(config_dir, capfd):
    text = help_text(capfd, config_dir, "--config", str(config_dir / "small.py"))
    for part in (
        "Trains it.",
        "small.py A small run.",
        "large.py A large run: five minutes.",
        "--run-dir RUN",
        "--outer-steps INT How many outer steps. (default: 1000)",
        "--estimator.sigma FLOAT Standard deviation of the perturbations of theta. (default: 0.30000000000000004)",
        "--estimator.meta-loss {mean,final} Which of the inner losses count. (default: mean)",
        "--task.hidden [INT [INT ...]] Widths of the hidden layers. (default: 64 32)",
        "The inner problem.",
    ):
        assert part in text
    assert help_text(capfd, config_dir, help_config=config_dir / "small.py") == text


def test_help_without_a_config(config_dir, capfd):
    text = help_text(capfd, config_dir)
    for part in (
        "Trains it.",
        "small.py A small run.",
        "--config FILE The experiment",
        "See the fields of one: --config FILE --help",
    ):
        assert part in text
    assert "--seed" not in text


def test_reading_arguments_imports_nothing_heavy(config_dir):
    code = f"""
import sys
from lopt.config import parse_experiment
assert "tyro" not in sys.modules
try:
    parse_experiment(["--help"], prog="p", description="d", config_dir={str(config_dir)!r})
finally:
    heavy = [name for name in ("jax", "numpy", "flax", "rich", "lopt.training.trainer") if name in sys.modules]
    print("heavy:", heavy)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "heavy: []" in result.stdout


@dataclasses.dataclass(frozen=True)
class Extra:
    verbose: int = 1
    """How much is said."""


def test_arguments_that_are_no_part_of_the_experiment(config_dir):
    argv = ["--config", str(config_dir / "small.py"), "--run-dir", "r"]
    parsed = configs.parse_experiment([*argv, "--verbose", "3"], prog="p", description="d", config_dir=config_dir, extra=Extra())
    assert parsed[2] == Extra(3)
    assert configs.parse_experiment(argv, prog="p", description="d", config_dir=config_dir, extra=Extra())[2] == Extra()


@dataclasses.dataclass(frozen=True)
class Shrunk:
    """A class that once had another field."""

    width: int = 1
    GONE: ClassVar[Mapping[str, Any]] = {"engine": "one"}


def test_a_field_that_is_gone_may_say_what_is_left():
    name = configs.to_dict(Shrunk())["class"]
    assert configs.from_dict({"class": name, "width": 2, "engine": "one"}, trust=True) == Shrunk(2)
    with pytest.raises(ConfigError, match="engine is 'two': Shrunk no longer has this field, only 'one' is left"):
        configs.from_dict({"class": name, "width": 2, "engine": "two"}, trust=True)


def test_networks_from_when_there_was_another_kernel():
    old = {**configs.to_dict(DeepSetsConfig((4,))), "kernel": "xla"}
    assert configs.from_dict(old) == DeepSetsConfig((4,))
    with pytest.raises(ConfigError, match="kernel is 'pallas': DeepSetsConfig no longer has this field"):
        configs.from_dict({**old, "kernel": "pallas"})
