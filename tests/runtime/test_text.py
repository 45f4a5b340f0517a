"""Names from outside are shown, and nothing else is done with them."""

import io

from rich.console import Console

from lopt.evaluation.summary import Estimate, Row, bullets, markdown_table, rich_table
from lopt.reporting.tables import rich_lines
from lopt.runtime.text import markdown_text, plain

HOSTILE = "a|b\n<img src=x onerror=alert(1)> \x1b[31m\x1b]0;title\x07 [red]![x](http://x) \u202eabc"


def row(name, reference):
    one = Estimate(1.0, 0.1, 3)
    return Row(name, 3, 0, one, {"loss": one}, one, one, 0.001, reference)


def test_markdown_shows_a_name_in_its_cell():
    table = markdown_table([row("Adam", True), row(HOSTILE, False)])
    assert len(table.splitlines()) == 4
    assert len({line.replace("\\|", "").count("|") for line in table.splitlines()}) == 1
    for text in (table, bullets([HOSTILE]), markdown_text(HOSTILE)):
        assert not [sign for sign in ("<img", "\x1b", "\x07", "\u202e", "![x]") if sign in text]
    assert bullets([HOSTILE]).count("- ") == 1


def test_a_terminal_obeys_no_name():
    for view in (
        rich_table([row("Adam", True), row(HOSTILE, False)], HOSTILE, caption=HOSTILE),
        rich_lines([["optimizer", HOSTILE], [HOSTILE, HOSTILE]], HOSTILE),
    ):
        console = Console(file=io.StringIO(), width=200, color_system=None)
        console.print(view)
        text = console.file.getvalue()
        assert not [sign for sign in ("\x1b", "\x07", "\u202e") if sign in text]
        assert "[red]" in text


def test_ordinary_names_stay_as_they_are():
    for name in ("Adam, b2=0.99", "runs/digits-mlp_2", "μ-momentum", "hf://owner/name@v1", "UNF (8, 8) & more"):
        assert plain(name) == markdown_text(name) == name
