"""Meta-training, held-out evaluations, races and whole comparisons on any number of devices, more than cores included."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import json, sys
import jax

jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))  # more than there are cores, too
import dataclasses
from pathlib import Path
from lopt.comparison.races import Bench
from lopt.comparison.config import make_agenda
from lopt.comparison.work import carry_out, collect
from lopt.evaluation.race import Competitor, race
from lopt.training import metrics
from lopt.training.trainer import meta_train
from tests.comparison.toy import COMPARISON, EXPERIMENT, ToyConfig

root, found = Path(sys.argv[2]), {}
for particles in (4, 5):
    estimator = dataclasses.replace(EXPERIMENT.estimator, particles=particles)
    experiment = dataclasses.replace(EXPERIMENT, task=ToyConfig(empty=True), estimator=estimator)
    meta_train(dataclasses.replace(experiment, outer_steps=4), root / str(particles), progress=False)
    result = meta_train(experiment, root / str(particles), progress=False)  # from a checkpoint, with its empty leaf
    found[f"alpha of {particles}"] = float(result.theta["alpha"])
    found[f"score of {particles}"] = [r["held_out/score"] for r in metrics.read(root / str(particles)) if "held_out/score" in r]
    task = experiment.task.make()
    learned = experiment.optimizer.make(task.spec)
    (curve,) = race(task, [Competitor("learned", learned.opt_fn, result.theta)], jax.random.key(0), steps=20, seeds=3)
    found[f"raced {particles}"] = curve.losses.mean(axis=1).tolist()
if len(sys.argv) > 3:
    bench = Bench(make_agenda("toy", COMPARISON, "tiny", root / "plan"))
    carry_out(bench, ("SGDM", "DeepSets"))
    found["compared"] = {label: len(entries) for label, entries in collect(bench).entries.items()}
(root / "found.json").write_text(json.dumps(found))
"""


def run(root: Path, devices: int, *extra: str) -> dict:
    root.mkdir()
    settings = {
        "PYTHONPATH": str(ROOT),
        "JAX_NUMPY_RANK_PROMOTION": "raise",
        "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    }
    command = [sys.executable, "-c", SCRIPT, str(devices), str(root), *extra]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **settings}, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return json.loads((root / "found.json").read_text())


@pytest.mark.slow
@pytest.mark.compiles
@pytest.mark.long
def test_any_number_of_devices_gives_the_same(tmp_path):
    """Particles divide over as many devices as their number allows, seeds over all: the two need not be the same."""
    whole = run(tmp_path / "1", 1)
    assert len(whole["score of 4"]) == 2
    for devices in (2, 3, 5, 8):
        found = run(tmp_path / str(devices), devices, *(("plan",) if devices in (3, 8) else ()))
        if devices in (3, 8):
            assert found.pop("compared") == {"SGDM": 2, "DeepSets": 2}
        assert found.keys() == whole.keys()
        for name, value in whole.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-4, err_msg=f"{name} on {devices} devices")
