"""The path of a newcomer: what the pages say, done in an empty directory, with less of everything where it only costs time."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SMALL = {
    "meta_train.py": "--outer-steps 2 --save-every 1 --estimator.particles 2 --unroll.horizon 4 --unroll.truncation 2 --held-out.every 2 "
    "--held-out.steps 4 --held-out.seeds 2 --evaluation.cost-turns 0 --evaluation.baselines adam "
    "--evaluation.schedules constant",
    "evaluate.py": "--steps 4 --seeds 2 --tuning-seeds 1 --refinements 0",
    "compare.py": "--budget smoke --rivals SGDM",
    "benchmark.py": "--quick",
    "digits_mlp.py": "--optimizer.network.hidden 4",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("newcomer")


def run(place, command, *, check=True, cwd="."):
    """A command of a page, from an empty directory or one below it: what lies in the clone is named by its whole path."""
    words = shlex.split(re.sub(r"(?<![\w/])(scripts|configs|examples)/", rf"{ROOT}/\1/", command))
    less = [SMALL.get(Path(word).name, "") for word in words[1:]]
    words = [sys.executable, *words[1:], *shlex.split(" ".join(less))]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "LOPT_CACHE_DIR": str(place / "cache"),
        "COLUMNS": "140",
    }
    done = subprocess.run(words, cwd=place / cwd, env=environment, capture_output=True, text=True, timeout=900)
    assert not check or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "concepts").glob("*.md"))]
# What is not done here, as it costs too much or needs more than a page, and the test that does it.
LEFT_OUT = {
    r"benchmark\.py": "tests/benchmarks/test_benchmarks.py",
    r"evaluate_suite\.py": "tests/evaluation/test_evaluate_suite.py",
    r"paper_tables\.py figure2": "tests/test_paper_figure2.py",
    r"--generalize": "tests/evaluation/test_generalization.py",
    r"--coordinator": "tests/runtime/test_distributed.py",
    r"--run-dir runs/unf-0 ": "tests/test_newcomer.py",  # two seeds are pooled below
    r"--schedules|nadamw lion muon|--task transformer --optimizer": "tests/evaluation/test_evaluate.py",
    r"rnn_zoo|--zoo ": "tests/weight_space/test_make.py",
    r"compare\.py": "tests/test_newcomer.py",  # below, on a task of one's own
    r"runs/mine|my_task\.py": "tests/test_newcomer.py",  # below, but for the README's
}


def page_commands(page):
    """The commands of a page, of its blocks and of its sentences; those with placeholders are none."""
    text = re.sub(r"\\\n *", "", page.read_text())
    found = re.findall(r"(?m)^ {4}(?:srun )?(python .*)$", text) + re.findall(r"`(python scripts/[^`]+)`", text)
    return [line.partition("  #")[0].strip() for line in found if not re.search(r"\b(RUN|FILE|DIR)\b|\[", line)]


def is_left_out(command):
    return any(re.search(pattern, command) for pattern in LEFT_OUT)


def section(page, title):
    text = (ROOT / "docs" / page).read_text()
    return text.partition(f"# {title}\n")[2]


def commands(text):
    """The commands of the first block that has some."""
    block = re.search(r"(?m)(?:^    python .*\n)+", text)
    assert block
    return [line.partition("  #")[0].strip() for line in block.group().splitlines()]


@pytest.mark.slow
@pytest.mark.compiles
@pytest.mark.long
def test_a_task_of_ones_own_goes_wherever_the_name_of_a_task_goes(place):
    text = section("interop.md", "Its name on the command line")
    (place / "my_task.py").write_text(re.search(r"```python no-run\n(.*?)```", text, re.DOTALL).group(1))
    found = commands(text)
    assert [Path(shlex.split(command)[1]).name for command in found] == [
        *("inspect_spec.py", "meta_train.py", "evaluate.py", "evaluate.py", "compare.py", "benchmark.py")
    ]
    said = {command: run(place, command).stdout for command in found}
    assert "The inferred spec is the same" in said[found[0]]
    assert "2 outer steps done" in said[found[1]]
    assert "held-out" in said[found[1]]
    assert "runs/mine" in said[found[3]]
    assert "SGDM" in said[found[4]]
    assert '"task": "sines"' in said[found[5]]

    # The run knows where its task is, wherever one stands.
    (place / "elsewhere").mkdir()
    assert run(place, "python scripts/evaluate.py --run-dir ../runs/mine --optimizer adam:0.1", cwd="elsewhere").returncode == 0
    loaded = (
        "import lopt; tx = lopt.load('runs/mine', spec=lopt.task_config('my_task.py:make_task').make().spec); print(tx.update)"
    )
    assert "function" in run(place, f'python -c "{loaded}"').stdout

    # Two seeds of it are pooled.
    run(place, f"{found[1].replace('runs/mine', 'runs/mine-1')} --seed 1")
    assert "2 of 2" in run(place, "python scripts/evaluate.py --run-dir runs/mine runs/mine-1 --optimizer adam:0.1").stdout


@pytest.mark.slow
@pytest.mark.compiles
def test_parts_of_an_experiment_are_exchanged_as_the_page_says(place):
    text = section("interop.md", "Other parts of an experiment")
    options = [option for option in re.findall(r"`(--[^`]+)`", text) if option != "--help"]
    assert len(options) == 3
    shown = run(place, "python scripts/meta_train.py --config configs/smoke.py --help " + " ".join(options)).stdout
    assert "(now nres)" in shown
    assert "(now gated)" in shown
    assert "(now adafactor)" in shown


@pytest.mark.slow
@pytest.mark.compiles
def test_a_mistake_in_the_file_is_shown_with_its_line(place):
    (place / "broken.py").write_text("def make_task():\n    return undefined\n")
    (place / "wrong.py").write_text("def make_task():\n    return 3\n")
    broken = run(place, "python scripts/evaluate.py --task broken.py:make_task --optimizer adam:0.1", check=False)
    assert broken.returncode == 1
    assert re.search(r'broken\.py", line 2, in make_task', broken.stderr)
    assert "lopt/task" not in broken.stderr
    wrong = run(place, "python scripts/evaluate.py --task wrong.py:make_task --optimizer adam:0.1", check=False)
    assert len(wrong.stderr.strip().splitlines()) == 1
    assert "must return a lopt.Task or lopt.TaskFamily, but returned 3" in wrong.stderr


FOLLOWED = {page: [command for command in page_commands(page) if not is_left_out(command)] for page in PAGES}


def test_what_is_not_followed_is_tested_elsewhere():
    every = [command for page in PAGES for command in page_commands(page)]
    assert len(every) > 30
    for pattern, file in LEFT_OUT.items():
        assert any(re.search(pattern, command) for command in every), pattern
        assert (ROOT / file).is_file(), file
    scripts = {command.split()[1] for commands in FOLLOWED.values() for command in commands}
    assert {f"scripts/{name}.py" for name in ("meta_train", "evaluate", "inspect_spec", "paper_tables")} <= scripts


@pytest.fixture(scope="module")
def done():
    """What has been done already, but for how much of it: pages begin alike."""
    return set()


@pytest.mark.slow
@pytest.mark.compiles
@pytest.mark.parametrize("page", [page for page in PAGES if FOLLOWED[page]], ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_a_page(page, place, done):
    for command in FOLLOWED[page]:
        kind = re.sub(r" --(seed|seeds|steps|outer-steps|budget) \w+", "", command)
        if kind not in done:
            run(place, command)
            done.add(kind)


@pytest.mark.slow
@pytest.mark.compiles
def test_the_task_of_ones_own_of_the_readme(place):
    text = section("interop.md", "Its name on the command line")
    (place / "my_task.py").write_text(re.search(r"```python no-run\n(.*?)```", text, re.DOTALL).group(1))
    (command,) = (command for command in page_commands(ROOT / "README.md") if "my_task.py" in command)
    assert "lopt-direction" in run(place, command).stdout
