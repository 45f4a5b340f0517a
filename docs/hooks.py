"""What mkdocs does to pages besides.

Links to files of the repository, which are no pages, become their names. A picture that is not there fails
the build: mkdocs itself says nothing of one that `exclude_docs` leaves out.
"""

import re
from pathlib import Path
from typing import Any

_PICTURE = re.compile(r'<img[^>]*? src="(?!data:|https?:)([^"?#]+)')
_OUTSIDE = re.compile(r"\[([^\]]*)\]\((?:\.\./)+((?!reference/|concepts/|images/)[^)#]+\.(?:py|ipynb|md|toml|jsonl|csv))\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """`[use_orbax.py](../examples/use_orbax.py)` becomes `examples/use_orbax.py`, unless it is a page that stands a folder higher."""
    depth = page.file.src_uri.count("/")

    def replace(found: re.Match[str]) -> str:
        ups = found[0].count("../")
        return f"`{found[2]}`" if ups > depth else found[0]

    return _OUTSIDE.sub(replace, markdown)


def on_post_build(config: Any, **_: Any) -> None:
    """Look for the pictures of every page."""
    from mkdocs.exceptions import PluginError

    site = Path(config["site_dir"])
    for page in sorted(site.rglob("*.html")):
        for source in _PICTURE.findall(page.read_text()):
            if page.name != "404.html" and not (page.parent / source).is_file():
                raise PluginError(f"{page.relative_to(site)} shows {source}, which is not in the site")
