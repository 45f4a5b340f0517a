"""An evaluation as one HTML page that needs nothing else: pictures inside, for phones and desktops, light and dark.

Every picture comes in four, of which the browser shows the one for its width and colour scheme. Tables become lists of labelled figures
where the page is narrow, so that it never scrolls sideways.
"""

import base64
import dataclasses
import html
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

_CODE = re.compile("`([^`]*)`")
_NARROW = 640  # CSS pixels: below, a page is a phone's

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --line: #d6dbe0; --paper: #ffffff; --band: #f3f5f7; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --soft: #a9aeb4; --line: #383e45; --paper: #16191d; --band: #1f2429; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem 1rem 3rem; max-width: 68rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 1rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .4rem .6rem; text-align: right; vertical-align: bottom; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; }
td { vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1rem 0; }
figure img { display: block; width: 100%; height: auto; max-width: 56rem; }
figcaption { color: var(--soft); font-size: .9rem; }
ul { padding-left: 1.2rem; }
li { margin: .25rem 0; }
details { border-top: 1px solid var(--line); padding: .6rem 0; }
summary { cursor: pointer; font-weight: 600; }
code { font-size: .9em; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--band); padding: .8rem; border-radius: .4rem;
  font-size: .85rem; }
@media (max-width: NARROWpx) {
  thead { display: none; }
  table, tbody, tr, td { display: block; }
  tr { border: 1px solid var(--line); border-radius: .4rem; padding: .4rem .7rem; margin: .6rem 0; }
  td { display: flex; justify-content: space-between; gap: 1rem; padding: .15rem 0; border: 0; }
  td::before { content: attr(data-label); color: var(--soft); text-align: left; flex: 0 1 55%; }
  td:first-child { font-weight: 600; padding-bottom: .3rem; }
  td:first-child::before { content: none; }
}
""".replace("NARROW", str(_NARROW))


@dataclasses.dataclass(frozen=True)
class Picture:
    """One picture.

    Attributes:
      caption: what it shows, for those too who cannot see it.
      files: (for a dark page, for a narrow one) -> PNG file; light and wide is needed, others take its place where they are missing.
    """

    caption: str
    files: Mapping[tuple[bool, bool], bytes]


@dataclasses.dataclass(frozen=True)
class Page:
    """What a page shows, from top to bottom.

    Attributes:
      title: of the page.
      results: the lines of the table, its header first.
      pictures: below it.
      tables: title -> lines; tables without lines are left out.
      lists: title -> sentences.
      details: title -> what JSON can hold; folded away until they are asked for.
      results_last: the pictures stand above the table.
    """

    title: str
    results: Sequence[Sequence[str]]
    pictures: Sequence[Picture] = ()
    tables: Mapping[str, Sequence[Sequence[str]]] = dataclasses.field(default_factory=dict)
    lists: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    results_last: bool = False


def html_page(page: Page) -> str:
    """The page as text.

    Example:
      >>> html_page(Page("A race", [["optimizer", "loss"], ["Adam", "<1"]])).count("&lt;1")
      1
    """
    first = [_table(page.results), *map(_figure, page.pictures)]
    parts = [f"<h1>{html.escape(page.title)}</h1>", *(first[1:] + first[:1] if page.results_last else first)]
    parts += [f"<h2>{html.escape(title)}</h2>\n{_table(lines)}" for title, lines in page.tables.items() if lines]
    parts += [f"<h2>{html.escape(title)}</h2>\n{_list(lines)}" for title, lines in page.lists.items() if lines]
    parts += [_details(title, value) for title, value in page.details.items()]
    body = "\n".join(parts)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(page.title)}</title>
<style>{_STYLE}</style>
</head>
<body>
{body}
</body>
</html>
"""


def _table(lines: Sequence[Sequence[str]]) -> str:
    header, *rest = lines
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in header)
    body = "\n".join(f"<tr>{''.join(map(_cell, header, line))}</tr>" for line in rest)
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _cell(name: str, text: str) -> str:
    kept = html.escape(text).replace(" ± ", "&nbsp;±&nbsp;")  # on one line
    return f'<td data-label="{html.escape(name)}"><span>{kept}</span></td>'


def _figure(picture: Picture) -> str:
    def source(dark: bool, narrow: bool) -> str:
        media = [f"(max-width: {_NARROW}px)"] * narrow + ["(prefers-color-scheme: dark)"] * dark
        return f'<source media="{" and ".join(media)}" srcset="{_uri(picture.files[dark, narrow])}">'

    # The browser takes the first that fits, so the most particular come first.
    order = [(True, True), (False, True), (True, False)]
    sources = "\n".join(source(*which) for which in order if which in picture.files)
    caption = html.escape(picture.caption)
    image = f'<img src="{_uri(picture.files[False, False])}" alt="{caption}">'
    return f"<figure>\n<picture>\n{sources}\n{image}\n</picture>\n<figcaption>{caption}</figcaption>\n</figure>"


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _list(lines: Sequence[str]) -> str:
    items = (_CODE.sub(r"<code>\1</code>", html.escape(line)) for line in lines)
    return "<ul>\n" + "\n".join(f"<li>{item}</li>" for item in items) + "\n</ul>"


def _details(title: str, value: Any) -> str:
    text = html.escape(json.dumps(value, indent=2))
    return f"<details>\n<summary>{html.escape(title)}</summary>\n<pre>{text}</pre>\n</details>"
