"""The command inspect, which scripts/inspect_spec.py is too, as a person runs it."""

import io
import re
import sys
import textwrap

import numpy as np
import pytest
from rich.console import Console

from lopt.commands import inspect as inspect_spec
from lopt.symmetry import WeightSpec
from tasks.datasets import DatasetError
from tasks.mlp import MLPConfig

EXAMPLE = """
    import jax, jax.numpy as jnp

    def network():
        params = {"hidden": jnp.zeros((4, 3)), "head": jnp.zeros((3, 2))}
        fn = lambda params, x: jnp.tanh(x @ params["hidden"]) @ params["head"]
        return fn, params, jnp.ones((5, 4))
"""


def run(*argv):
    console = Console(width=120, file=io.StringIO())
    status = 0
    try:
        inspect_spec.main(argv, console, prog="inspect_spec.py")
    except SystemExit as error:
        status = 1
        print(error.code, file=sys.stderr)  # as Python does where nobody catches it
    return status, console.file.getvalue()


def rows(text):
    return [line.split() for line in text.splitlines()]


@pytest.fixture
def module(tmp_path):
    """Writes net.py and returns the argument that names a function in it."""

    def write(source, function="network"):
        (tmp_path / "net.py").write_text(textwrap.dedent(source))
        return f"{tmp_path / 'net.py'}:{function}"

    yield write
    sys.modules.pop("inspected_net", None)


def test_the_mlp_task():
    status, text = run("--task", "mlp")
    assert status == 0
    found = rows(text)
    assert ["dense0/kernel", "(64,", "32)", "pixels!", "hidden0", "9"] in found
    assert ["hidden0", "32", "dense0/bias,", "dense0/kernel,", "dense1/kernel"] in found
    assert ["32", "12", "1,028"] in found
    assert "OTHER" not in text
    assert "the same" in text


def test_a_function_in_a_file(module):
    status, text = run("--module", module(EXAMPLE))
    assert status == 0
    found = rows(text)
    assert ["hidden", "(4,", "3)", "hidden.in!", "hidden", "6"] in found
    assert ["hidden", "3", "head,", "hidden"] in found
    assert ["12", "8", "386"] in found  # 4 terms of each kernel into itself, 2 into the other; 4 pooled arrays of each


def test_the_example_in_the_help_is_the_one_that_runs():
    code = textwrap.dedent(EXAMPLE).strip().splitlines()
    assert all(line.strip() in inspect_spec.EPILOG for line in code)


def test_the_file_may_import_its_neighbours(module, tmp_path):
    (tmp_path / "neighbour_of_net.py").write_text("import jax.numpy as jnp\nWIDTH = 3\n")
    source = EXAMPLE.replace("import jax,", "from neighbour_of_net import WIDTH\n    import jax,")
    assert run("--module", module(source))[0] == 0
    assert str(tmp_path) not in sys.path


def test_warnings_are_shown(module):
    source = """
        import jax, jax.numpy as jnp

        def network():
            same = jax.ShapeDtypeStruct((3, 3), jnp.float32)
            return lambda w: jax.pure_callback(lambda x: x, same, w), jnp.eye(3)
    """
    status, text = run("--module", module(source))
    assert status == 0
    assert "warning: " in text
    assert "pure_callback" in text


def test_a_spec_that_differs_is_shown():
    own, params = WeightSpec.parse({"w": "a b"}), {"w": np.zeros((2, 2))}
    same = "The inferred spec is the same, but for names."
    assert inspect_spec.comparison(own, WeightSpec.parse({"w": "x y"}), params) == same
    assert "OTHER" in inspect_spec.comparison(own, WeightSpec.parse({"w": "a a"}), params)
    assert inspect_spec.comparison(own, WeightSpec.parse({"w": "1 y"}), {"w": np.zeros((1, 2))}) == same
    image = WeightSpec.parse({"w": "(x! y!) a"}, x=2)
    divided = inspect_spec.comparison(WeightSpec.parse({"w": "p! a"}), image, {"w": np.zeros((4, 2))})
    assert "the same permutations" in divided
    assert divided.endswith("w  (x! y!) a")


@pytest.mark.parametrize("task", ["cnn", "rnn", "transformer"])
def test_the_specs_of_the_other_tasks_are_the_inferred_ones(task):
    status, text = run("--task", task)
    assert status == 0
    assert "The inferred spec is the same, but for names." in text or "describes the same permutations" in text
    assert "warning" not in text


@pytest.mark.parametrize(
    ("source", "function", "message"),
    [
        (EXAMPLE, "nothing", r"net.py defines no function 'nothing'; it defines: network"),
        ("x = 1", "network", r"net.py defines no function 'network'; it defines: none"),
        ("x = 1\nx.y", "network", r"net.py, line 2: AttributeError: 'int' object has no attribute 'y'"),
        ("def f(:", "network", r"net.py, line 1: SyntaxError: "),
        ("def network():\n    raise ValueError('no\\nweights')", "network", r"net.py, line 2: ValueError: no"),
        ("def network():\n    return 1", "network", r"network\(\) must return \(fn, params, \*inputs\)"),
        ("def network():\n    return lambda p: 1 / 0, {'w': 1.0}", "network", "the params have no|ZeroDivisionError"),
        ("def network():\n    return lambda p: p, {}", "network", "the params have no leaves"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(module, capsys, source, function, message):
    status, _ = run("--module", module(source, function))
    error = capsys.readouterr().err
    assert status == 1
    assert error.startswith("inspect_spec.py: ")
    assert "Traceback" not in error
    assert len(error.splitlines()) == 1
    assert re.search(message, error), error


def test_missing_and_misnamed_files(tmp_path, capsys):
    (tmp_path / "net.txt").write_text("")
    for argument, message in [
        (f"{tmp_path}/none.py:f", "no file"),
        ("net.py", "--module takes FILE.py:FUNCTION, not 'net.py'"),
        (f"{tmp_path}/net.txt:f", "its name must end in .py"),
    ]:
        assert run("--module", argument)[0] == 1
        assert message in capsys.readouterr().err


def test_an_unknown_task_lists_the_known(capsys):
    assert run("--task", "mpl")[0] == 1
    assert "no task 'mpl', did you mean mlp? The tasks are: " in (error := capsys.readouterr().err)
    assert "transformer" in error


def test_fields_of_the_task_are_options(tmp_path):
    assert next(row[:3] for row in rows(run("--task", "mlp", "--task.hidden", "5")[1]) if row[:1] == ["dense0/kernel"]) == [
        "dense0/kernel",
        "(64,",
        "5)",
    ]
    (tmp_path / "own.py").write_text(
        "from tasks.mlp import MLPConfig\ndef make_task(width: int = 3):\n    return MLPConfig(hidden=(width,))\n"
    )
    status, text = run("--task", f"{tmp_path / 'own.py'}:make_task", "--task.width", "7")
    assert status == 0
    assert ["dense0/kernel", "(64,", "7)"] in [row[:3] for row in rows(text)]


def test_missing_data_is_one_line(monkeypatch, capsys):
    def fail(self):
        raise DatasetError("no such images")

    monkeypatch.setattr(MLPConfig, "make", fail)
    assert run("--task", "mlp")[0] == 1
    assert "task 'mlp' cannot be made: no such images" in capsys.readouterr().err


def test_one_source_is_needed(capsys):
    with pytest.raises(SystemExit) as error:
        inspect_spec.main([])
    assert error.value.code == 2
    assert "--task --module" in capsys.readouterr().err
