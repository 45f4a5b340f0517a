"""The import rule of the packages is held by a linter: here, that the linter sees each way to break it; and what CI runs."""

import itertools
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = "A package of lopt imports only from packages below its own"
FRAMEWORK = "lopt never imports tasks, configs, scripts or tests"
TASKS = "tasks imports from lopt only lopt.symmetry and lopt.task"
LINT = "from importlinter.cli import lint_imports_command; lint_imports_command()"


@pytest.fixture
def copy(tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of what the linter reads."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for package in ("lopt", "tasks"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def lint_imports(root: pathlib.Path) -> subprocess.CompletedProcess[str]:
    """Run the linter in `root`, whose packages come before the installed ones."""
    command = [sys.executable, "-c", LINT, "--no-logo", "--no-cache"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def test_a_copy_keeps_the_rule(copy):
    result = lint_imports(copy)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("module", "statement", "broken"),
    [
        ("lopt/symmetry/spec.py", "import lopt.task.base", PACKAGES),
        ("lopt/task/base.py", "from lopt import unroll", PACKAGES),
        ("lopt/symmetry/spec.py", "from lopt.symmetry import basis", "Specs stand alone"),
        ("lopt/symmetry/basis.py", "import jax.numpy", "The basis is combinatorics"),
        ("lopt/task/base.py", "import tasks.mlp", FRAMEWORK),
        ("lopt/estimators/__init__.py", "from configs import smoke", FRAMEWORK),
        ("tasks/mlp.py", "from lopt.optimizers.momentum import LearnedOptimizer", TASKS),
        ("tasks/datasets/__init__.py", "import lopt.layers", TASKS),
    ],
)
def test_a_forbidden_import_is_caught(copy, module, statement, broken):
    with (copy / module).open("a") as file:
        file.write(f"\n{statement}\n")
    result = lint_imports(copy)
    assert result.returncode == 1, result.stdout + result.stderr
    verdict = next(line for line in result.stdout.splitlines() if line.startswith(broken))
    assert "BROKEN" in verdict


def test_a_new_package_must_be_given_its_place(copy):
    (copy / "lopt" / "attic.py").write_text('"""A module that no one has placed."""\n')
    result = lint_imports(copy)
    assert result.returncode == 1
    assert "attic" in result.stdout


def test_ci_runs_everything_whatever_has_passed():
    """Every kind of test, on whatever day: what is left out when it was slow before is what breaks unseen."""
    script = (ROOT / ".ci" / "run").read_text()
    stages = re.findall(r'(?m)^ *stage "([^"]+)" make (\S+)', script)
    assert {target for _, target in stages} >= {"install", "lint", "docs", "test", "test-slow", "test-interop"}
    unconditional = re.findall(r'(?m)^stage "[^"]+" make (\S+)', script)
    assert set(unconditional) >= {"install", "lint", "docs", "test", "test-slow", "test-interop"}
    assert "left out" not in script


def test_install_lines_need_no_registry_that_has_lopt():
    """They name packages that it asks for itself, or lopt from a clone or by an address, with extras that there are."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    required = {re.split(r"[<>=\[;]", line)[0] for line in [*project["dependencies"], *itertools.chain(*extras.values())]}
    folders = [ROOT / folder for folder in ("lopt", "tasks", "docs", "scripts", "examples", "notebooks")]
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.suffix in {".py", ".md", ".ipynb"}]
    found = 0
    for path in [ROOT / "README.md", *files]:
        text = re.sub(r'"\n\s*f?"', "", path.read_text())  # a string over two lines
        for line in re.findall(r"pip install ((?:-e |--no-deps )?(?:'[^']+'|[\w.=-]+))", text):
            found += 1
            what = line.removeprefix("-e ").removeprefix("--no-deps ").strip("'")
            own = re.fullmatch(r"(lopt|\.)(?:\[([\w,]+)\])?( @ git\+ADDRESS)?", what)
            if own is None:
                name = what.partition("==")[0].rstrip(".")
                assert name in required or name == "learned-optimization", f"{path}: {line}"
                continue
            assert (own[1] == ".") == line.startswith("-e ") != bool(own[3]), f"{path}: {line}"
            assert own[2] is None or own[2] in extras, f"{path}: {line}"
    assert found >= 8
