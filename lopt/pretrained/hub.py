"""Optimizers' folders in repositories of the Hugging Face Hub: only card.json, theta.safetensors and theta.state are ever fetched.

The client, `huggingface_hub`, comes with the extra `hub`; it knows where the Hub is and who you are.
"""

import re
from pathlib import Path
from types import ModuleType

from lopt.optimizers.published import FILE as PUBLISHED
from lopt.pretrained.card import CARD_FILE, Card
from lopt.runtime.text import plain
from lopt.training.checkpoint import THETA_FILE

SCHEME = "hf://"
_REPOSITORY = re.compile(r"(?P<repo_id>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


def _client() -> ModuleType:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError("the Hub needs its client: pip install huggingface-hub") from error
    return huggingface_hub


def split_address(address: str) -> tuple[str, str | None]:
    """Repository and revision of `hf://owner/name` or `hf://owner/name@revision`.

    Raises:
      ValueError: if it does not read so.

    Example:
      >>> split_address("hf://owner/name@v1")
      ('owner/name', 'v1')
    """
    match = _REPOSITORY.fullmatch(address.removeprefix(SCHEME))
    if match is None:
        raise ValueError(f"'{address}' does not read {SCHEME}owner/name or {SCHEME}owner/name@revision")
    return match["repo_id"], match["revision"]


def download(address: str) -> Path:
    """Fetch the files of an optimizer, or find them where the client keeps what was fetched before.

    Args:
      address: `hf://owner/name`, or `hf://owner/name@revision`.

    Returns:
      The folder that they are in; `lopt.pretrained.card.read_folder` checks them.

    Raises:
      ValueError: if the address cannot be read.
      ImportError: if the client is not installed.
    """
    repo_id, revision = split_address(address)
    found = _client().snapshot_download(repo_id=repo_id, revision=revision, allow_patterns=[CARD_FILE, THETA_FILE, PUBLISHED])
    return Path(found)


def upload(folder: str | Path, address: str, card: Card, *, private: bool = False) -> None:
    """Put an optimizer's folder into a repository, which is made if need be, with a README made from its card.

    Args:
      folder: with card.json and theta.safetensors, which have been checked.
      address: `owner/name`, or `hf://owner/name`.
      card: what the folder's card says.
      private: of a new repository.

    Raises:
      ValueError: if the address cannot be read or has a revision.
      ImportError: if the client is not installed.
    """
    repo_id, revision = split_address(address)
    if revision is not None:
        raise ValueError(f"a revision cannot be pushed to: give {repo_id} without @{revision}")
    client = _client()
    client.create_repo(repo_id=repo_id, private=private, exist_ok=True)
    readme = {"path_or_fileobj": readme_text(card, repo_id).encode(), "path_in_repo": "README.md", "repo_id": repo_id}
    message = f"{card.name}, sha256 {card.sha256[:12]}"
    client.upload_folder(repo_id=repo_id, folder_path=str(folder), allow_patterns=[CARD_FILE, THETA_FILE], commit_message=message)
    client.upload_file(**readme, commit_message=message)


def readme_text(card: Card, repo_id: str) -> str:
    """The README of a repository."""
    return f"""---
license: {plain(card.licence.lower())}
library_name: lopt
tags: [learned-optimizer, jax, optax]
---
# {card.name}

{card.summary}

```python
import lopt

tx = lopt.load("{SCHEME}{repo_id}")  # an optax transform; the error that a UNF gives says how to get its spec
```

Good for: {card.good_for}

Not for: {card.not_for}

Trained on {", ".join(card.tasks)}. `card.json` has the recipe, the budget and the results.
"""
