"""The examples of a trained optimizer in anybody's loop run, and learn."""

import ast
import functools
import importlib
import pathlib
import re

import jax
import numpy as np
import optax
import pytest

import lopt

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def as_in_anybodys_script():
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def example(name):
    return importlib.import_module(f"examples.use_{name}")


def test_every_example_is_short_and_in_the_documentation():
    text = (ROOT / "docs" / "use.md").read_text()
    files = sorted((ROOT / "examples").glob("use_*.py"))
    assert len(files) == 7
    for file in files:
        assert len(file.read_text().splitlines()) < 40, file.name
        assert f"../examples/{file.name}" in text


def test_the_page_runs_as_it_stands():
    block, *_ = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "use.md").read_text(), re.DOTALL)
    names: dict = {}
    exec(block, names)
    assert all(bool(np.any(leaf != 0)) for leaf in jax.tree.leaves(names["updates"]))


def test_the_page_has_the_figures_of_the_cards():
    """Final losses and steps to tuned Adam's, of everyone in the races that the cards keep."""
    text = (ROOT / "docs" / "use.md").read_text()
    for name, card in lopt.available().items():
        line = next(line for line in text.splitlines() if line.startswith(f"| {name} |") and "±" in line)
        cells = [cell.strip() for cell in line.split("|")[2:-1] if cell.strip() != "-"]
        for cell, race in zip(cells, card.results, strict=True):
            loss, steps = (race["optimizers"]["this"][figure] for figure in ("final_training_loss", "steps_to_target"))
            shown, _, reached = cell.partition(", ")
            mean, error = map(float, shown.split(" ± "))
            assert (mean, error) == pytest.approx((loss["mean"], loss["error"]), rel=0.05)
            missed = f"{steps['mean']:.0f} ({steps['count']} of {race['seeds']})" if steps["count"] else "never"
            assert reached == missed


def test_the_page_has_the_bytes_of_a_weight():
    """Of a network as large as the paper's rule takes without a warning."""
    text = (ROOT / "docs" / "use.md").read_text()
    optimizers = (
        optax.adam(1e-3),
        lopt.load("lopt-direction", num_steps=10),
        lopt.load("lopt-direction", num_steps=10, state_dtype="bfloat16"),
        lopt.load("paper-deep-sets"),
        lopt.load("paper-deep-sets", state_dtype="bfloat16"),
    )
    for dtype in ("float32", "bfloat16"):
        (line,) = (line for line in text.splitlines() if line.startswith(f"| {dtype} |"))
        params = {"w": jax.ShapeDtypeStruct((256, 256), dtype), "b": jax.ShapeDtypeStruct((256,), dtype)}
        count = sum(leaf.size for leaf in params.values())
        states = [jax.eval_shape(tx.init, params) for tx in optimizers]
        found = [sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)) / count for state in states]
        assert [float(cell) for cell in line.split("|")[2:-1]] == pytest.approx(found, abs=0.01)


slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize("name", ["flax_nnx", slow("plain_optax"), slow("equinox"), slow("two_lines")])
def test_a_loop_learns(name):
    losses = example(name).train(60)
    assert np.isfinite(losses).all()
    assert np.mean(losses[-10:]) < 0.5 * losses[0]


def test_a_script_is_changed_in_two_lines():
    """Each changed line says what it was: put back, they are a script that runs without lopt."""
    changed = (ROOT / "examples" / "use_two_lines.py").read_text().splitlines()
    before = [
        line[: len(line) - len(line.lstrip())] + line.partition("# was:")[2].strip() if "# was:" in line else line
        for line in changed
    ]
    assert sum(a != b for a, b in zip(changed, before, strict=True)) == 2
    source = "\n".join(before)
    assert "lopt" not in ast.unparse(ast.parse(source).body[1:])
    names: dict = {"__name__": "before"}
    exec(source, names)
    losses = names["train"](20)
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_a_schedule_and_decay_scale_the_steps():
    use = example("schedule_weight_decay")
    losses, params = use.train(100)
    assert np.mean(losses[-10:]) < 0.5 * losses[0]
    _, decayed = use.train(100, decay=1.0)
    assert optax.tree.norm(decayed) < 0.9 * optax.tree.norm(params)


def test_gradients_are_gathered():
    """Four quarters of a batch and the batch take the same step."""
    use = example("multi_steps")
    losses, params = use.train(10, gathered=4)
    _, whole = use.train(10, gathered=1)
    assert len(losses) == 40
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), params, whole)


def test_a_training_that_orbax_kept_goes_on_bit_for_bit(tmp_path):
    use = example("orbax")
    unbroken = use.train(tmp_path / "unbroken", 6)
    use.train(tmp_path / "broken", 3)
    resumed = use.train(tmp_path / "broken", 6)
    assert int(resumed[-1]) == 6
    assert jax.tree.structure(resumed) == jax.tree.structure(unbroken)
    jax.tree.map(np.testing.assert_array_equal, resumed, unbroken)
