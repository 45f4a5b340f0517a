import base64
import html.parser
import re
import shutil
import subprocess

import numpy as np
import pytest
from matplotlib.figure import Figure

from lopt.reporting import plots
from lopt.reporting.html_report import Page, Picture, html_page


def picture(look: plots.Look) -> bytes:
    with plots.style(look):
        figure = Figure(figsize=(3.9, 2.0) if look.narrow else (6.4, 3.0))
        figure.add_subplot().plot(np.arange(5))
    return plots.png(figure, dpi=50)


LOOKS = {(dark, narrow): plots.Look(dark, narrow) for dark in (False, True) for narrow in (False, True)}


@pytest.fixture(scope="module")
def page() -> str:
    names = ["optimizer", "final training loss", "steps to tuned Adam's final loss", "speed-up", "diverged", "ms / step"]
    lines = [
        ["a/long/path/to/a/run-directory_of_somebody", "0.0088 ± 0.0033", "144.7 ± 5.9, never (5 of 10)", "<b>", "0", "1"]
    ] * 2
    return html_page(
        Page(
            title="a task: 300 inner steps",
            results=[names, *lines],
            pictures=[Picture('loss & "more"', {which: picture(look) for which, look in LOOKS.items()})],
            tables={"Costs": [["optimizer", "us"], ["Adam", "3"]], "Nothing": []},
            lists={"Definitions": ["of `update`, with <b>", "another " * 40]},
            details={"Config": {"steps": 300, "name": "x" * 300}},
        )
    )


class Reader(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "source", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_else(page):
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    for tag, attributes in reader.tags:
        assert tag not in ("script", "link", "iframe")
        for name in ("src", "srcset", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert "http" not in page
    assert "<title>a task: 300 inner steps</title>" in page


def test_what_is_shown_is_text_and_not_markup(page):
    assert page.count("&lt;b&gt;") == 3  # a cell in two lines, a sentence
    assert "<b>" not in page
    assert "<code>update</code>" in page
    assert 'alt="loss &amp; &quot;more&quot;"' in page
    assert "<h2>Nothing</h2>" not in page
    assert '<td data-label="steps to tuned Adam&#x27;s final loss">' in page


def test_each_page_has_its_picture(page):
    uris = re.findall(r"data:image/png;base64,([^\"]+)", page)
    found = [base64.b64decode(uri) for uri in uris]
    # The most particular first, as a browser takes the first that fits; the last is for all that are left.
    assert found == [picture(LOOKS[which]) for which in ((True, True), (False, True), (True, False), (False, False))]
    assert len(set(found)) == 4
    one = html_page(Page("t", [["a"], ["b"]], [Picture("p", {(False, False): b"x"})]))
    assert "<source" not in one


def test_pictures_may_stand_first():
    shown = Page("t", [["a"], ["b"]], [Picture("p", {(False, False): b"x"})], results_last=True)
    assert html_page(shown).index("<figure>") < html_page(shown).index("<table>")


BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on the path")
@pytest.mark.parametrize(("width", "narrow"), [(390, True), (1280, False)])
def test_a_browser_shows_it_without_scrolling_sideways(page, tmp_path, width, narrow):
    """Measured by a script that this test adds, in a frame of that width: a browser's window has a least width of its own."""
    script = """<script>
    const cells = [...document.querySelectorAll("td, th, img, pre")].filter(e => e.getClientRects().length);
    const over = cells.filter(e => e.getBoundingClientRect().right > innerWidth + 1).length;
    const image = document.querySelector("img");
    document.body.innerHTML = ["found", innerWidth, document.documentElement.scrollWidth, over, image.naturalWidth].join(" ");
    parent.postMessage(document.body.innerHTML, "*");
    </script>"""
    framed = page.replace("<details>", "<details open>").replace(
        "</body>", "<script>onload = () => {" + script[9:-9] + "}</script></body>"
    )
    (tmp_path / "page.html").write_text(framed)
    (tmp_path / "frame.html").write_text(
        f"""<body><iframe src="page.html" style="border: 0; width: {width}px; height: 900px"></iframe>
        <script>onmessage = event => document.body.innerHTML = event.data</script></body>"""
    )
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--window-size=1400,1000"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", (tmp_path / "frame.html").as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    match = re.search(r"found (\d+) (\d+) (\d+) (\d+)", shown)
    assert match, shown[-500:]
    inner, scroll, over, image = map(int, match.groups())
    assert inner == width
    assert scroll <= width
    assert over == 0
    assert image == (195 if narrow else 320)  # 50 dots an inch
