"""What mkdocs does to pages besides.

Links to files of the repository, which are no pages, become their names. The notebooks become pages. A picture that is not there fails
the build: mkdocs itself says nothing of one that `exclude_docs` leaves out.
"""

import json
import re
from pathlib import Path
from typing import Any

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
_PICTURE = re.compile(r'<img[^>]*? src="(?!data:|https?:)([^"?#]+)')
_OUTSIDE = re.compile(r"\[([^\]]*)\]\((?:\.\./)+((?!reference/|concepts/|images/)[^)#]+\.(?:py|ipynb|md|toml|jsonl|csv))\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """`[use_orbax.py](../examples/use_orbax.py)` becomes `examples/use_orbax.py`, unless it is a page that stands a folder higher."""
    depth = page.file.src_uri.count("/")

    def replace(found: re.Match[str]) -> str:
        ups = found[0].count("../")
        return f"`{found[2]}`" if ups > depth else found[0]

    return _OUTSIDE.sub(replace, markdown)


def on_files(files: Any, config: Any, **_: Any) -> Any:
    """`notebooks/NAME.ipynb` becomes the page `notebooks/NAME.md`."""
    from mkdocs.structure.files import File

    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=notebook_page(path)))
    return files


def notebook_page(path: Path) -> str:
    """The text of a notebook, its code in fences; what it prints is not in it."""
    cells = json.loads(path.read_text())["cells"]
    parts = ["".join(cell["source"]).replace("](../docs/", "](../") for cell in cells]
    parts = [
        part if cell["cell_type"] == "markdown" else f"```python\n{part}\n```" for cell, part in zip(cells, parts, strict=True)
    ]
    parts.append(f"*This page is the notebook `notebooks/{path.name}`, without what its cells print and draw.*")
    return "\n\n".join(parts) + "\n"


def on_post_build(config: Any, **_: Any) -> None:
    """Look for the pictures of every page."""
    from mkdocs.exceptions import PluginError

    site = Path(config["site_dir"])
    for page in sorted(site.rglob("*.html")):
        for source in _PICTURE.findall(page.read_text()):
            if page.name != "404.html" and not (page.parent / source).is_file():
                raise PluginError(f"{page.relative_to(site)} shows {source}, which is not in the site")
