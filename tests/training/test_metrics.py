import json
import math
import os
import signal
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import numpy as np
import pytest

from lopt.training import metrics
from lopt.training.metrics import MetricsError, MetricsWriter


def strict(text: str) -> dict:
    """Read JSON as the standard has it: NaN and Infinity are errors."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def write_steps(run_dir, last: int) -> str:
    with MetricsWriter(run_dir) as writer:
        for step in range(1, last + 1):
            writer.write({"outer_step": step, "meta_loss": 1.0 / step})
            writer.write({"outer_step": step, "eval/loss": -1.0 / step})
    return writer.path.read_text()


def test_values_of_any_origin_become_json(tmp_path):
    values = {
        "jax": jnp.float32(0.1),
        "bfloat16": jnp.bfloat16(0.5),
        "int": jnp.asarray(3),
        "numpy": np.float64(0.1),
        "flag": np.bool_(True),
        "text": "digits",
        "nothing": None,
        "nan": jnp.float32(jnp.nan),
        "inf": math.inf,
        "-inf": np.float32(-math.inf),
    }
    with MetricsWriter(tmp_path) as writer:
        writer.write({"outer_step": 1, **values})
    line = strict((tmp_path / "metrics.jsonl").read_text())
    assert (line["nan"], line["inf"], line["-inf"]) == ("nan", "inf", "-inf")
    (record,) = metrics.read(tmp_path)
    assert math.isnan(record.pop("nan"))
    assert record == {
        "outer_step": 1,
        "jax": float(np.float32(0.1)),
        "bfloat16": 0.5,
        "int": 3,
        "numpy": 0.1,
        "flag": True,
        "text": "digits",
        "nothing": None,
        "inf": math.inf,
        "-inf": -math.inf,
    }
    assert {name: type(record[name]) for name in ("jax", "int", "flag")} == {"jax": float, "int": int, "flag": bool}


def test_each_line_is_there_at_once(tmp_path):
    writer = MetricsWriter(tmp_path / "new" / "run")
    writer.write({"outer_step": 1, "meta_loss": 0.5})
    assert metrics.read(tmp_path / "new" / "run") == [{"outer_step": 1, "meta_loss": 0.5}]
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.write({"outer_step": 2})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"losses": jnp.zeros(3)}, r"metric 'losses' has shape \(3,\)"),
        ({"losses": [1.0]}, "metric 'losses' is of type list"),
        ({"outer_step": 1.0}, "'outer_step' is 1.0: each line needs the integer"),
        ({"outer_step": None}, "'outer_step' is None"),
    ],
)
def test_what_is_not_a_scalar_is_refused_by_name(tmp_path, values, message):
    with MetricsWriter(tmp_path) as writer, pytest.raises(MetricsError, match=message):
        writer.write({"outer_step": 1, **values})
    assert metrics.read(tmp_path) == []


@pytest.mark.parametrize("resumed_at", [0, 3, 5, 9])
def test_a_resumed_run_leaves_no_gap_and_no_duplicate(tmp_path, resumed_at):
    unbroken = write_steps(tmp_path / "unbroken", 8)
    write_steps(tmp_path / "broken", 5)
    with (tmp_path / "broken" / "metrics.jsonl").open("a") as file:
        file.write('{"outer_step": 6, "meta_lo')
    done = min(resumed_at, 5)
    with MetricsWriter(tmp_path / "broken", resume_step=done) as writer:
        assert {record["outer_step"] for record in metrics.read(tmp_path / "broken")} == set(range(1, done + 1))
        for step in range(done + 1, 9):
            writer.write({"outer_step": step, "meta_loss": 1.0 / step})
            writer.write({"outer_step": step, "eval/loss": -1.0 / step})
    assert writer.path.read_text() == unbroken
    assert [path.name for path in writer.path.parent.iterdir()] == ["metrics.jsonl"]


def test_a_whole_line_without_its_line_break_is_kept(tmp_path):
    text = write_steps(tmp_path, 2)
    path = tmp_path / "metrics.jsonl"
    path.write_text(text[:-1])
    assert len(metrics.read(path)) == 4
    with MetricsWriter(tmp_path, resume_step=2):
        pass
    assert path.read_text() == text


def test_a_file_that_needs_no_change_is_not_touched(tmp_path):
    write_steps(tmp_path, 3)
    before = (tmp_path / "metrics.jsonl").stat()
    with MetricsWriter(tmp_path, resume_step=3):
        pass
    after = (tmp_path / "metrics.jsonl").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_non_finite_values_survive_a_resume(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write({"outer_step": 1, "meta_loss": math.inf})
        writer.write({"outer_step": 2, "meta_loss": 1.0})
    with MetricsWriter(tmp_path, resume_step=1):
        pass
    assert metrics.read(tmp_path) == [{"outer_step": 1, "meta_loss": math.inf}]


@pytest.mark.parametrize("damaged", ["{", "[1]", '{"meta_loss": 1}', '{"outer_step": "3"}', ""])
def test_a_damaged_line_is_named(tmp_path, damaged):
    lines = write_steps(tmp_path, 3).splitlines(keepends=True)
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join([lines[0], damaged + "\n", *lines[1:]]))
    for use in (metrics.read, MetricsWriter):
        with pytest.raises(MetricsError, match=r"metrics\.jsonl, line 2 is damaged: .*repair it or move"):
            use(tmp_path)
    assert len(path.read_text().splitlines()) == 7


def test_unwritable_directory(tmp_path):
    (tmp_path / "run").write_text("a file is in the way")
    with pytest.raises(OSError, match="run"):
        MetricsWriter(tmp_path / "run")


def test_no_line_is_lost_by_a_sigkill(tmp_path):
    code = """
        import sys
        from lopt.training.metrics import MetricsWriter
        writer = MetricsWriter(sys.argv[1])
        for step in range(1, 10**9):
            writer.write({"outer_step": step, "meta_loss": 1.0 / step})
            if step == 100:
                print("written", flush=True)
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    with child.stdout:
        assert child.stdout.readline() == b"written\n"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    steps = [record["outer_step"] for record in metrics.read(tmp_path)]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) >= 100
