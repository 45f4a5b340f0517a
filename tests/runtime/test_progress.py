import io

import pytest
from rich.console import Console

from lopt.runtime.progress import Progress


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def plain() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=20)  # lines must not wrap, whatever the width


def lines(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_plain_lines_say_everything():
    console, clock = plain(), Clock()
    with Progress(200, console=console, clock=clock) as bar:
        clock.now = 30.0  # compilation, which must not count for the time left
        bar.update(1, meta_loss=0.123456, inner_steps_per_s=4321.4)
        clock.now = 40.0
        bar.update(6, meta_loss=float("nan"), inner_steps_per_s=1e6, diverged=2)
    assert lines(console) == [
        "outer step 1/200 | meta-loss 0.1235 | 4,321 inner steps/s",
        "outer step 6/200 | meta-loss nan | 1,000,000 inner steps/s | 2 diverged | 6:28 left",
    ]


def test_the_last_held_out_score_stays_until_the_next():
    console, clock = plain(), Clock()
    with Progress(3, console=console, clock=clock) as bar:
        bar.update(1, meta_loss=0.5, held_out=(0.75, 0.75))
        clock.now = 11.0
        bar.update(2, meta_loss=0.25)
        clock.now = 22.0
        bar.update(3, meta_loss=0.25, held_out=(0.8, 0.75), inner_steps_per_s=10.0)
    assert [line.partition(" | meta-loss ")[2].partition(" | 0:")[0] for line in lines(console)] == [
        "0.5 | held-out 0.75, best 0.75",
        "0.25 | held-out 0.75, best 0.75",
        "0.25 | held-out 0.8, best 0.75 | 10 inner steps/s",
    ]


def test_plain_lines_come_every_tenth_of_the_way():
    console, clock = plain(), Clock()
    with Progress(1000, console=console, clock=clock) as bar:
        for step in range(1, 1001):
            clock.now += 1e-3
            bar.update(step)
    steps = [int(line.split("/")[0].removeprefix("outer step ")) for line in lines(console)]
    assert steps == [1, 101, 201, 301, 401, 501, 601, 701, 801, 901, 1000]


def test_plain_lines_come_every_ten_seconds():
    console, clock = plain(), Clock()
    with Progress(50_000, start=40_000, console=console, clock=clock) as bar:
        for step in range(40_001, 40_101):
            clock.now += 0.5
            bar.update(step)
    steps = [int(line.split("/")[0].removeprefix("outer step ")) for line in lines(console)]
    assert steps == [40_001, 40_021, 40_041, 40_061, 40_081, 40_100]  # the last one when the run ends, or is interrupted


def test_the_last_state_is_printed_once_and_after_an_error_too():
    console, clock = plain(), Clock()
    with pytest.raises(KeyboardInterrupt), Progress(100, console=console, clock=clock) as bar:  # noqa: PT012
        bar.update(1)
        clock.now = 1.0
        bar.update(2)
        raise KeyboardInterrupt
    assert lines(console) == ["outer step 1/100", "outer step 2/100 | 1:38 left"]


def test_nothing_is_printed_without_an_update():
    console = plain()
    with Progress(100, console=console):
        pass
    assert lines(console) == []


@pytest.mark.parametrize("terminal", [False, True])
def test_nothing_is_printed_when_disabled(terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, _environ={"TERM": "xterm"})
    with Progress(100, enabled=False, console=console) as bar:
        bar.update(1, meta_loss=0.5)
        bar.update(100, meta_loss=0.5)
    assert lines(console) == []


@pytest.mark.parametrize("width", [40, 120])
def test_a_terminal_shows_text_and_bar_in_place(width):
    console = Console(file=io.StringIO(), force_terminal=True, width=width, no_color=True, _environ={"TERM": "xterm"})
    clock = Clock()
    with Progress(200, start=100, console=console, clock=clock) as bar:
        bar.update(101, meta_loss=0.5, inner_steps_per_s=5000.0)
        clock.now = 10.0
        bar.update(150, meta_loss=0.25, inner_steps_per_s=5000.0, diverged=1)
    assert isinstance(console.file, io.StringIO)
    written = console.file.getvalue()
    assert "outer step 100/200 | compiling" in written
    last = written.rpartition("\x1b[2K")[2]  # what follows the last time that a line was cleared
    text = " ".join(last.split())
    for part in (
        "outer step 150/200",
        "meta-loss 0.25",
        "5,000 inner steps/s",
        "1 diverged",
        "0:10 left",
        "━" * (width * 3 // 4),
    ):
        assert part in text


def test_a_terminal_that_cannot_move_its_cursor_gets_lines():
    console = Console(file=io.StringIO(), force_terminal=True, width=80, no_color=True, _environ={"TERM": "dumb"})
    with Progress(10, console=console, clock=Clock()) as bar:
        bar.update(1, meta_loss=1.0)
    assert lines(console) == ["outer step 1/10 | meta-loss 1"]
