"""The notebooks run from top to bottom."""

from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))
# Every cell runs, with less of what only costs time.
LESS = {
    "meta_train_in_two_minutes": {
        "decay_steps=200": "decay_steps=10",
        "outer_steps=200": "outer_steps=10",
        "steps=300, seeds=10": "steps=30, seeds=2",
    },
    "weight_space_networks": {
        "models=200": "models=40",
        "steps=1200": "steps=200",
        "shard=50": "shard=20",
        "epochs=20": "epochs=2",
    },
    "your_own_model": {
        "outer_steps = 100": "outer_steps = 20",
        "for rate in (0.01, 0.03, 0.1)": "for rate in (0.03,)",
        "for rate in (0.03, 0.1)": "for rate in (0.1,)",
    },
}


def read(path):
    import nbformat

    return nbformat.read(path, as_version=4)


def test_there_are_three_and_they_keep_no_output():
    """Outputs would be stale at every change, and pictures in every commit."""
    assert len(NOTEBOOKS) == 3
    for path in NOTEBOOKS:
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in read(path).cells), path.name


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.compiles
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_notebook_runs(path):
    from nbclient import NotebookClient

    notebook = read(path)
    for whole, less in LESS[path.stem].items():
        places = [cell for cell in notebook.cells if whole in cell.source]
        assert len(places) == 1, whole
        places[0].source = places[0].source.replace(whole, less)
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(path.parents[1])}}).execute()
