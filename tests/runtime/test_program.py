"""How programs end: one line for what lopt refuses, file and line for mistakes in other code, all of it when asked for."""

import re

import numpy as np
import pytest

from lopt.config import ConfigError, LoptError
from lopt.config.importing import import_place
from lopt.runtime.program import on_purpose, reporting_errors, take_debug
from lopt.task.base import TaskConfig
from lopt.task.named import task_config
from lopt.task.splits import split_arrays
from lopt.training.checkpoint import CheckpointError

OWN = """
import jax.numpy as jnp

def in_jax():
    return jnp.ones((2, 3)) @ jnp.ones((2, 3))

def plain():
    raise ValueError("mine")

def missing():
    return open("nowhere/at/all").read()

def make_task():
    return {}["width"]
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own_code.py").write_text(OWN)
    return lambda name: import_place("own_code.py:" + name, tmp_path)


def ended(run, **options):
    with pytest.raises(SystemExit) as ending, reporting_errors("prog.py", **options):
        run()
    return str(ending.value.code)


@pytest.mark.parametrize(
    "refuse",
    [
        lambda: split_arrays({}, 3),  # a plain ValueError of ours
        lambda: task_config("mpl"),
        lambda: TaskConfig().make(),
        lambda: (_ for _ in ()).throw(CheckpointError("no checkpoint")),
    ],
)
def test_what_lopt_refuses_is_one_line(refuse):
    assert re.fullmatch(r"prog\.py: [^\n]+", ended(refuse))


@pytest.mark.parametrize(("name", "line"), [("in_jax", 5), ("plain", 8), ("missing", 11)])
def test_a_mistake_in_somebodys_code_has_its_file_and_line(own, name, line):
    shown = ended(own(name))
    assert re.search(rf'own_code\.py", line {line}, in {name}', shown)
    assert "site-packages" not in shown
    assert "--debug" in shown.splitlines()[-1]


def test_a_mistake_inside_a_function_that_lopt_calls(own, tmp_path):
    shown = ended(task_config("own_code.py:make_task", tmp_path).make)
    assert re.search(r'own_code\.py", line 14, in make_task', shown)
    assert "KeyError: 'width'" in shown
    assert "named.py" not in shown  # frames of lopt say nothing about it


def test_debug_shows_all(own, tmp_path):
    shown = ended(task_config("own_code.py:make_task", tmp_path).make, debug=True)
    assert "named.py" in shown
    assert "own_code.py" in shown
    shown = ended(lambda: task_config("mpl"), debug=True)
    assert "ConfigError" in shown
    assert take_debug(["--a", "--debug", "1"]) == (["--a", "1"], True)
    assert take_debug(["--a"]) == (["--a"], False)


def test_a_bug_of_ours_is_not_on_purpose():
    with pytest.raises(Exception) as caught:  # noqa: PT011
        split_arrays({"x": np.zeros(3)}, "4")  # pyright: ignore
    assert not on_purpose(caught.value)


def test_a_refusal_because_somebodys_code_failed_is_theirs(own):
    def wrapped():
        try:
            own("plain")()
        except ValueError as error:
            raise CheckpointError("because") from error

    def by_value_error():
        return split_arrays(BadMapping(own("plain")), 3)

    class BadMapping(dict):
        def __init__(self, fn):
            super().__init__()
            self.items = fn

    assert ended(wrapped) == "prog.py: because"  # an error of lopt's own stands for itself
    assert "own_code.py" in ended(by_value_error)


def test_all_errors_of_lopt_have_one_base():
    from lopt.comparison.work import InterruptedComparisonError
    from lopt.evaluation.tuning import TuningError
    from lopt.layers.kernels.build import NativeKernelError
    from lopt.pretrained.card import CardError
    from lopt.runtime.distributed import PeerError
    from lopt.symmetry import SpecError
    from lopt.training.metrics import MetricsError
    from lopt.training.trainer import DivergedError
    from lopt.weight_space.store import ZooError
    from tasks.datasets import DatasetError

    errors = (CardError, CheckpointError, ConfigError, DatasetError, DivergedError, InterruptedComparisonError, MetricsError)
    errors += (NativeKernelError, PeerError, SpecError, TuningError, ZooError)
    assert all(issubclass(error, LoptError) for error in errors)
