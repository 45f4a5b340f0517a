"""To a repository and back, through a client that keeps repositories in a folder."""

import fnmatch
import inspect
import shutil
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lopt
from lopt.pretrained import hub
from lopt.pretrained.card import CardError, read_card
from lopt.pretrained.load import SHIPPED

FOLDER = SHIPPED / "paper-deep-sets"


@pytest.fixture
def repositories(tmp_path, monkeypatch):
    """The client's four functions, on a local folder; called as the real ones can be called."""
    root = tmp_path / "hub"
    real = pytest.importorskip("huggingface_hub")

    def create_repo(**options):
        assert options["exist_ok"]
        (root / options["repo_id"]).mkdir(parents=True, exist_ok=True)

    def upload_folder(**options):
        for file in Path(options["folder_path"]).iterdir():
            if any(fnmatch.fnmatch(file.name, pattern) for pattern in options["allow_patterns"]):
                shutil.copy(file, root / options["repo_id"])

    def upload_file(**options):
        (root / options["repo_id"] / options["path_in_repo"]).write_bytes(options["path_or_fileobj"])

    def snapshot_download(**options):
        there, here = root / options["repo_id"], tmp_path / "fetched" / f"{options['repo_id']}@{options['revision']}"
        ignore = shutil.ignore_patterns(*({file.name for file in there.iterdir()} - {*options["allow_patterns"]}))
        return str(shutil.copytree(there, here, ignore=ignore, dirs_exist_ok=True))

    fake = types.ModuleType("huggingface_hub")
    for function in (create_repo, upload_folder, upload_file, snapshot_download):
        signature = inspect.signature(getattr(real, function.__name__))

        def call(*, function=function, signature=signature, **options):
            signature.bind(**options)
            return function(**options)

        setattr(fake, function.__name__, call)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    return root


def test_to_a_repository_and_back(repositories):
    assert lopt.push(FOLDER, "owner/name") == "hf://owner/name"
    assert sorted(file.name for file in (repositories / "owner" / "name").iterdir()) == [
        "README.md",
        "card.json",
        "theta.safetensors",
    ]
    (repositories / "owner" / "name" / "trap.py").write_text("raise SystemExit")
    params = {"w": jnp.ones((3, 2))}
    for address in ("hf://owner/name", "hf://owner/name@main"):
        updates = [tx.update(params, tx.init(params), params)[0] for tx in (lopt.load(address), lopt.load("paper-deep-sets"))]
        jax.tree.map(np.testing.assert_array_equal, *updates)
    fetched = repositories.parent / "fetched" / "owner" / "name@None"
    assert sorted(file.name for file in fetched.iterdir()) == ["card.json", "theta.safetensors"]


def test_the_readme_says_what_the_card_says(repositories):
    lopt.push(FOLDER, "owner/name")
    card, text = read_card(FOLDER), (repositories / "owner" / "name" / "README.md").read_text()
    assert text.startswith("---\nlicense: apache-2.0\n")
    assert all(part in text for part in (card.summary, card.good_for, card.not_for, 'lopt.load("hf://owner/name")'))


def test_what_is_damaged_is_neither_sent_nor_used(repositories, tmp_path):
    broken = shutil.copytree(FOLDER, tmp_path / "broken")
    data = bytearray((broken / "theta.safetensors").read_bytes())
    data[-1] ^= 1
    (broken / "theta.safetensors").write_bytes(data)
    with pytest.raises(CardError, match=r"is not the file that card.json was written with"):
        lopt.push(broken, "owner/name")
    assert not repositories.exists()
    lopt.push(FOLDER, "owner/name")
    (repositories / "owner" / "name" / "theta.safetensors").write_bytes(data)
    with pytest.raises(CardError, match=r"owner/name@None/theta.safetensors is not the file"):
        lopt.load("hf://owner/name")


@pytest.mark.parametrize("address", ["hf://name", "hf://a/b/c", "hf://", "hf://owner/name@", "hf://owner/na me"])
def test_an_address_that_cannot_be_read_is_shown(address):
    with pytest.raises(ValueError, match=r"does not read hf://owner/name or"):
        lopt.load(address)


def test_what_cannot_be_pushed_is_refused(repositories):
    with pytest.raises(ValueError, match="a revision cannot be pushed to"):
        lopt.push(FOLDER, "owner/name@v1")
    with pytest.raises(CardError, match="has a card already"):
        lopt.push(FOLDER, "owner/name", summary="better")


def test_without_its_client_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (lambda: lopt.load("hf://owner/name"), lambda: hub.upload(FOLDER, "owner/name", read_card(FOLDER))):
        with pytest.raises(ImportError, match="pip install huggingface-hub"):
            call()
