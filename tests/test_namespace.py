"""What `import lopt` gives: named in one place, imported when asked for, whole in the wheel, and documented."""

import ast
import importlib
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import lopt
from lopt.config.names import NAMES

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ast.parse((ROOT / "lopt" / "__init__.py").read_bytes())
EXAMPLES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "notebooks").glob("*.ipynb"))]


def test_what_type_checkers_see_is_what_is_there():
    seen = {
        alias.name: node.module
        for node in ast.walk(SOURCE)
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    del seen["TYPE_CHECKING"], seen["Any"]
    assert len(lopt.__all__) == len(set(lopt.__all__))
    assert set(seen) == set(lopt.__all__) <= set(dir(lopt))
    for name, module in seen.items():
        try:
            expected = importlib.import_module(f"{module}.{name}")
        except ModuleNotFoundError:
            expected = getattr(importlib.import_module(module), name)
        assert getattr(lopt, name) is expected
    with pytest.raises(AttributeError, match="no attribute 'lood'"):
        lopt.lood  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_configs_of_what_is_exchanged_are_public():
    packages = ("estimators", "networks", "optimizers", "features.presets", "training", "unroll", "evaluation")
    configs = {place.split(":")[1] for place in NAMES.values() if place.removeprefix("lopt.").startswith(packages)}
    assert configs <= set(lopt.__all__)


def test_the_reference_has_every_public_name_once():
    pages = "\n".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    named = re.findall(r"(?m)^::: lopt\.(\w+)$", pages)
    assert (
        sorted(set(named) & set(lopt.__all__)) == sorted(name for name in named if name in lopt.__all__) == sorted(lopt.__all__)
    )
    assert not re.search(r"(?m)^::: \S*\._", pages)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_take_public_names_from_lopt_itself(path):
    for module, names in re.findall(r"\bfrom (lopt\.[\w.]+) import ([\w, ]+)", path.read_text()):
        assert not {name.strip() for name in names.split(",")} & set(lopt.__all__), f"from {module} import {names}"


def test_importing_lopt_alone_imports_nothing_else():
    code = "import sys, lopt; print(sorted(name for name in sys.modules if name in ('jax', 'numpy', 'optax') or name.startswith('lopt.')))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout == "[]\n"


USE = """
import sys
from pathlib import Path
import lopt
assert Path(lopt.__file__).is_relative_to(sys.prefix), lopt.__file__
for name in lopt.__all__:
    getattr(lopt, name)
import jax, jax.numpy as jnp

def loss(params, x):
    return jnp.mean((jnp.tanh(x @ params["w0"]) @ params["w1"] - 1.0) ** 2)

params, x = {"w0": jnp.ones((3, 4)) / 3, "w1": jnp.ones((4, 1))}, jnp.ones((2, 3))
spec = lopt.infer_spec(loss, params, x)
for name in lopt.available():
    try:
        tx = lopt.load(name, spec=spec, num_steps=10)
        updates, state = tx.update(jax.grad(loss)(params, x), tx.init(params), params)
        print(name, all(bool(jnp.any(update != 0)) for update in jax.tree.leaves(updates)))
    except lopt.pretrained.card.CardError as error:  # made for other networks
        print(name, "compatible only with" in str(error))
try:
    import tasks
except ImportError:
    print("no tasks")
"""


@pytest.mark.slow
def test_the_wheel_holds_lopt_alone_and_works_outside_of_the_clone(tmp_path):
    """Built, installed into an empty environment, and used there; what it depends on is that of this environment."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("lopt-*.whl")
    assert wheel.name.startswith(f"lopt-{lopt.__version__}-")
    tops = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert tops == {"lopt", f"lopt-{lopt.__version__}.dist-info"}
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)], check=True)
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    here = [path for path in sys.path if path.endswith("site-packages")]
    (site / "dependencies.pth").write_text(
        "\n".join(here) + "\n"
    )  # after lopt; what an editable install adds to them is not followed
    used = subprocess.run([str(python), "-c", USE], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert used.stdout.split("\n") == [*(f"{name} True" for name in lopt.available()), "no tasks", ""]
