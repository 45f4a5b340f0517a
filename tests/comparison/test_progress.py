"""The bar over an agenda: parts by what jobs cost, the time left by what was measured."""

import io

import pytest
from rich.console import Console

from lopt.comparison.progress import AgendaProgress, Job


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def plain() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=20)


def lines(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


JOBS = [Job("UNF, seed 0", "UNF", 1000), Job("UNF, race", "UNF race", 100, like="UNF"), Job("SGDM, seed 0", "SGDM", 1000)]


def test_nothing_is_known_at_first_and_parts_count_inner_steps():
    console = plain()
    with AgendaProgress(JOBS, console=console, clock=Clock()) as bar:
        bar.begin(0)
        bar.update(210, "outer step 1/5")
    assert lines(console) == ["  0% | 1 of 3: UNF, seed 0 | starting", " 10% | 1 of 3: UNF, seed 0 | outer step 1/5"]


def test_the_time_left_is_that_of_every_kind():
    """UNF: 0.1 s an inner step measured after compilation; its race as UNF; SGDM known from before: 0.01 s."""
    console, clock = plain(), Clock()
    with AgendaProgress(JOBS, {"SGDM": 0.01}, console=console, clock=clock) as bar:
        bar.begin(0)
        clock.now = 500.0  # compilation
        bar.update(0, "")
        clock.now = 550.0
        bar.update(500, "outer step 5/10")
        assert bar.text() == " 42% | 1 of 3: UNF, seed 0 | outer step 5/10 | about 1:10 left"  # 50 of 50 + 50 + 10 + 10
        clock.now = 600.0
        bar.update(1000, "outer step 10/10")
        bar.end("meta-trained")
        bar.begin(1)
        clock.now = 640.0
        bar.end("raced")  # 0.4 s an inner step, and nothing of it is in UNF's cost
    assert lines(console)[-1] == " 93% | 2 of 3: UNF, race | raced | about 0:10 left"


def test_what_was_done_before_counts_as_done_and_is_not_measured():
    clock = Clock()
    bar = AgendaProgress([Job("UNF, seed 0", "UNF", 1000, done=800), *JOBS[1:]], {"SGDM": 0.1}, console=plain(), clock=clock)
    bar.begin(0)
    bar.update(810, "")
    clock.now = 1.0
    bar.update(820, "")
    assert bar.text().endswith("about 2:08 left")  # 180 * 0.1 + 100 * 0.1 + 1000 * 0.1
    assert bar.text().startswith(" 39%")


def test_a_job_that_ends_early_is_done():
    bar = AgendaProgress(JOBS, console=plain(), clock=Clock())
    bar.begin(0)
    bar.update(10, "")
    bar.end("diverged")
    assert bar.text().startswith(" 48% | 1 of 3: UNF, seed 0 | diverged")


def test_a_job_that_was_left_to_another_process_says_nothing_about_its_cost():
    clock = Clock()
    bar = AgendaProgress(JOBS, {"SGDM": 0.1}, console=plain(), clock=clock)
    bar.begin(0)
    clock.now = 1.0
    bar.end("left", measure=False)
    assert bar.text() == " 48% | 1 of 3: UNF, seed 0 | left | about 1:50 left"


@pytest.mark.parametrize(("seconds", "expected"), [(1e-3, 10), (5.0, 16)])
def test_plain_lines_come_every_tenth_and_every_minute(seconds, expected):
    console, clock = plain(), Clock()
    with AgendaProgress(JOBS[:1], console=console, clock=clock) as bar:
        bar.begin(0)
        for step in range(1, 201):
            clock.now += seconds
            bar.update(5 * step, f"outer step {step}/200")
        bar.end()
    middle = lines(console)[1:-1]
    assert len(middle) == expected
    assert all("outer step" in line for line in middle)
    assert lines(console)[-1] == "100% | 1 of 1: UNF, seed 0 | done"


def test_a_terminal_shows_one_bar_in_place():
    console = Console(file=io.StringIO(), force_terminal=True, width=100, no_color=True, _environ={"TERM": "xterm"})
    clock = Clock()
    with AgendaProgress(JOBS, {"SGDM": 0.1, "UNF": 0.1}, console=console, clock=clock) as bar:
        bar.begin(0)
        bar.update(525, "outer step 5/10 | meta-loss 0.5")
    assert isinstance(console.file, io.StringIO)
    last = " ".join(console.file.getvalue().rpartition("\x1b[2K")[2].split())
    for part in ("25% | 1 of 3: UNF, seed 0", "meta-loss 0.5", "about 2:38 left", "━" * 25):
        assert part in last
