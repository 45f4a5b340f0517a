"""The pages of the documentation: their examples run, and the site's list of pages is whole."""

import doctest
import importlib.util
import json
import pkgutil
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md") if ">>> " in path.read_text())
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT / "docs")))
def test_the_examples_of_a_page(page):
    names = {"jax": jax, "jnp": jnp, "np": np}
    found = doctest.testfile(str(page), module_relative=False, globs=names, optionflags=FLAGS)
    assert found.attempted > 0
    assert found.failed == 0


def test_every_page_is_in_the_list_and_every_module_of_the_reference_exists():
    listed = set(re.findall(r"\S+\.md", (ROOT / "mkdocs.yml").read_text()))
    there = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md") if path.name != "table.md"}
    assert there <= listed
    for page in (ROOT / "docs" / "reference").glob("*.md"):
        for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE):
            assert pkgutil.resolve_name(name), name


def test_what_the_pages_and_the_notebooks_import_is_in_the_reference():
    named = re.findall(r"(?m)^::: (\S+)$", "\n".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md")))
    imported = {name for path in [*PAGES, *NOTEBOOKS] for name in re.findall(r"\bfrom (lopt\S*) import", path.read_text())}
    assert not {name for name in imported if not any(module == name or module.startswith(f"{name}.") for module in named)}


def test_every_notebook_is_a_page():
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    for path in NOTEBOOKS:
        page = hooks.notebook_page(path)
        assert page.startswith("# ")
        assert page.count("```python\n") == sum(cell["cell_type"] == "code" for cell in json.loads(path.read_text())["cells"])
        for text in (ROOT / "mkdocs.yml", ROOT / "docs" / "index.md"):
            assert f"notebooks/{path.stem}.md" in text.read_text()
        assert f"(notebooks/{path.name})" in (ROOT / "README.md").read_text()
