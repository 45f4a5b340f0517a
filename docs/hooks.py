"""What mkdocs does to pages besides: links to files of the repository, which are no pages, become their names."""

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]*)\]\((?:\.\./)+((?!reference/|concepts/|images/)[^)#]+\.(?:py|ipynb|md|toml|jsonl|csv))\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """`[use_orbax.py](../examples/use_orbax.py)` becomes `examples/use_orbax.py`, unless it is a page that stands a folder higher."""
    depth = page.file.src_uri.count("/")

    def replace(found: re.Match[str]) -> str:
        ups = found[0].count("../")
        return f"`{found[2]}`" if ups > depth else found[0]

    return _OUTSIDE.sub(replace, markdown)
