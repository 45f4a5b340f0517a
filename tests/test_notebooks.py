"""The notebooks run from top to bottom."""

from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))


def read(path):
    import nbformat

    return nbformat.read(path, as_version=4)


def test_there_are_three_and_they_keep_no_output():
    """Outputs would be stale at every change, and pictures in every commit."""
    assert len(NOTEBOOKS) == 3
    for path in NOTEBOOKS:
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in read(path).cells), path.name


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_notebook_runs(path):
    from nbclient import NotebookClient

    NotebookClient(
        read(path), timeout=600, kernel_name="python3", resources={"metadata": {"path": str(path.parents[1])}}
    ).execute()
