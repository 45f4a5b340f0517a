"""The README's example runs, as it stands."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_python_example_runs():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 1
    names: dict = {}
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):  # as in anybody's script
        exec(blocks[0], names)
    assert str(names["spec"]).splitlines()[0].split() == ["b0", "w0"]
    moved = jax.tree.map(lambda u: bool(jnp.any(u != 0)), names["updates"])
    assert all(jax.tree.leaves(moved))
