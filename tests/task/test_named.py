"""A task by whatever it is named, and a Task object in the place of a config."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lopt
from lopt.config import ConfigError, from_dict, load_run, to_dict
from lopt.config.tree import shown
from lopt.estimators.pes import PESConfig
from lopt.optimizers.momentum import LearnedSGDMConfig
from lopt.task.named import GivenTaskConfig, ImportedTaskConfig, task_config, task_names
from lopt.training.trainer import MetaTrainConfig, meta_train
from lopt.unroll import UnrollConfig
from tasks.mlp import MLPConfig
from tasks.registry import task_configs

X = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)


def make_task(width=4, name="own"):
    def init(key):
        return {"w0": jax.random.normal(key, (3, width)), "w1": jnp.ones(width)}

    def loss(params, key, batch):
        return jnp.mean(jnp.square(jnp.tanh(batch["x"] @ params["w0"]) @ params["w1"] - batch["y"]))

    return lopt.task_from_loss(init, loss, {"x": X, "y": X.sum(axis=1)}, name=name, batch_size=8)


OWN = '''
import dataclasses
from lopt.task.base import TaskConfig
from tasks.mlp import MLPConfig

def make_task(width: int = 3, data=object()):
    """Of one hidden layer."""
    import neighbour_of_own
    return MLPConfig(hidden=(width,) * neighbour_of_own.DEPTH).make()

def needs(width: int):
    return MLPConfig(hidden=(width,))

def untold(width):
    return MLPConfig(hidden=(width,))

@dataclasses.dataclass(frozen=True)
class OwnConfig(TaskConfig):
    """A config of a task."""

    width: int = 3
    """Units."""

    def __post_init__(self):
        if self.width < 1:
            raise ValueError(f"width must be positive, got {self.width}")

    def make(self):
        return MLPConfig(hidden=(self.width,)).make()

NUMBER = 3
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    for module in ("own_task", "neighbour_of_own"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    (tmp_path / "own_task.py").write_text(OWN)
    (tmp_path / "neighbour_of_own.py").write_text("DEPTH = 2\n")
    return tmp_path


def test_every_task_has_a_name():
    assert set(task_configs()) <= set(task_names())
    assert task_config("mlp") == MLPConfig()
    assert task_config(MLPConfig(hidden=(3,))) == MLPConfig(hidden=(3,))


def test_a_file_and_a_module_make_the_same_task(own, monkeypatch):
    file = task_config(f"{own / 'own_task.py'}:make_task")
    assert file == ImportedTaskConfig("own_task.py:make_task", str(own))
    module = task_config("own_task:make_task", own)
    monkeypatch.chdir(own)
    assert module == task_config("own_task:make_task")
    for config in (file, module):
        assert from_dict(to_dict(config), trust=True) == config
        assert config.make().param_shapes()["dense0"]["kernel"].shape == (64, 3)
    assert dataclasses.replace(file, arguments=(("width", 5),)).make().param_shapes()["dense1"]["kernel"].shape == (5, 5)


def test_the_config_of_ones_own_may_be_named_too(own):
    config = task_config("own_task:OwnConfig", own)
    opened = config.opened()
    assert (opened.width, [field.name for field in dataclasses.fields(opened)]) == (3, ["width"])
    assert opened.closed() == config
    assert dataclasses.replace(opened, width=5).closed().arguments == (("width", 5),)
    with pytest.raises(ValueError, match="width must be positive, got 0"):
        dataclasses.replace(opened, width=0)
    assert dataclasses.replace(config, arguments=(("width", 7),)).make().param_shapes()["dense0"]["kernel"].shape == (64, 7)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_task:NUMBER", "int is not a function that makes one"),
        ("own_task:missing", "own_task.py.* has no 'missing'; it defines: OwnConfig, make_task, needs, untold"),
        ("other:make_task", "No module named 'other', neither installed nor in"),
        ("other.py:make_task", "no file .*other.py"),
        ("own_task", "no task 'own_task'; the tasks are: .*mlp.*module:function or path/to/file.py:function"),
        ("own_task.py", "no task 'own_task.py'"),
    ],
)
def test_a_wrong_name_says_what_there_is(own, name, message):
    with pytest.raises(ConfigError, match=message):
        task_config(name, own)


def test_wrong_arguments_are_named(own):
    config = task_config("own_task:needs", own)
    with pytest.raises(ConfigError, match="missing a required argument: 'width'"):
        config.make()
    with pytest.raises(ConfigError, match="unexpected keyword argument 'depth'"):
        dataclasses.replace(config, arguments=(("width", 1), ("depth", 1))).make()
    with pytest.raises(ConfigError, match="parameter 'width' needs a default or an annotation"):
        task_config("own_task:untold", own).opened()


def test_messages_hold_no_arrays():
    task = make_task()
    assert repr(task) == "Task('own', 2 leaves)"
    assert "0.1" not in repr(task.datasets)
    assert "x: float32[42, 3]" in repr(task.datasets)
    assert shown((np.zeros((2, 3)), {"a": jnp.ones(4)}, 1)) == "(an array float64[2, 3], {'a': an array float32[4]}, 1)"
    with pytest.raises(ConfigError, match=r"task is an array float32\[60, 3\], which is not of type"):
        lopt.config.validate(MetaTrainConfig(task=X, optimizer=LearnedSGDMConfig(), estimator=PESConfig()))  # pyright: ignore


EXPERIMENT = MetaTrainConfig(
    task=make_task(),  # pyright: ignore[reportArgumentType]
    optimizer=LearnedSGDMConfig(),
    estimator=PESConfig(particles=2),
    unroll=UnrollConfig(horizon=4, truncation=2, meta_loss="mean"),
    outer_steps=1,
)


def test_a_task_object_is_meta_trained_on_and_the_run_says_so(tmp_path):
    assert EXPERIMENT.task == GivenTaskConfig("own", ("w0 [3, 4] w0.in! w0", "w1 [4] w0"))
    assert meta_train(EXPERIMENT, tmp_path, progress=False).step == 1
    recorded = json.loads((tmp_path / "config.json").read_text())["task"]
    assert recorded == {"class": "given_task", "name": "own", "weights": ["w0 [3, 4] w0.in! w0", "w1 [4] w0"]}

    longer = dataclasses.replace(EXPERIMENT, outer_steps=2)
    assert meta_train(longer, tmp_path, progress=False).step == 2
    with pytest.raises(ConfigError, match=r"cannot be reopened without the object.*lopt.load\(run_dir, spec=task.spec\)"):
        load_run(tmp_path).task.make()
    with pytest.raises(ConfigError, match=r"task.name is 'own' there, not 'other'"):
        meta_train(dataclasses.replace(EXPERIMENT, task=make_task(name="other")), tmp_path, progress=False)  # pyright: ignore
    with pytest.raises(ConfigError, match=r"task.weights is .*w0 \[3, 4\].* there, not .*w0 \[3, 5\]"):
        meta_train(dataclasses.replace(EXPERIMENT, task=make_task(5)), tmp_path, progress=False)  # pyright: ignore
    params = make_task().init(jax.random.key(0))
    updates, _ = (tx := lopt.load(tmp_path, spec=make_task().spec)).update(params, tx.init(params), params)
    assert jax.tree.map(jnp.shape, updates) == {"w0": (3, 4), "w1": (4,)}


def test_a_task_may_be_given_by_its_name():
    experiment = MetaTrainConfig(task="mlp", optimizer=LearnedSGDMConfig(), estimator=PESConfig())  # pyright: ignore
    assert experiment.task == MLPConfig()
