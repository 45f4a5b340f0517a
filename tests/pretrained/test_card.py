"""Folders of trained optimizers: written whole or not at all, refused by name if anything in them is not what it was."""

import dataclasses
import hashlib
import json
import re
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopt.config import to_dict
from lopt.networks.update import DeepSetsConfig
from lopt.optimizers.momentum import LearnedMomentumConfig
from lopt.pretrained import card as cards
from lopt.pretrained.card import Card, CardError, card_optimizer, card_specs, encode_spec, read_card, read_folder, write_folder
from lopt.pretrained.load import load
from lopt.symmetry import WeightSpec
from lopt.training import checkpoint
from lopt.training.checkpoint import CheckpointError

CONFIG = LearnedMomentumConfig(network=DeepSetsConfig((4,)))
SPEC = WeightSpec.parse({"a": "(heads dim@heads) out!", "b": ""}, heads=2)
CARD = Card(
    name="own",
    summary="a summary",
    good_for="this",
    not_for="that",
    tasks=["one"],
    data=["digits"],
    specs={"one": encode_spec(SPEC)},
    recipe={"optimizer": to_dict(CONFIG)},
    budget={},
    results=[],
    licence="Apache-2.0",
    versions={},
    sha256="",
    seen={"one": {"inputs": 12, "weights": 13, "losses": [2.3, None]}},
)


def make_theta():
    return jax.jit(CONFIG.make(WeightSpec(())).init)(jax.random.key(0))


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path / "own", CARD, make_theta(), 7)
    return tmp_path / "own"


def change(folder, **fields):
    path = folder / "card.json"
    card = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in card.items() if value is not None}))


def test_round_trip(folder):
    card, theta = read_folder(folder)
    assert card == dataclasses.replace(CARD, sha256=hashlib.sha256((folder / "theta.safetensors").read_bytes()).hexdigest())
    jax.tree.map(np.testing.assert_array_equal, theta, make_theta())
    assert card_optimizer(card, folder) == CONFIG
    assert card_specs(card, folder) == (SPEC,)
    assert sorted(path.name for path in folder.iterdir()) == ["card.json", "theta.safetensors"]
    assert "good for: this" in str(card)
    assert str(card).endswith("seen on:  one: 13 weights, up to 12 inputs, losses from 2.3")
    change(folder, seen=None)  # as in a card of before
    assert read_card(folder) == dataclasses.replace(card, seen={})
    assert "seen on:" not in str(read_card(folder))


def test_other_programs_read_theta(folder):
    safetensors = pytest.importorskip("safetensors.numpy")
    found = safetensors.load_file(folder / "theta.safetensors")
    np.testing.assert_array_equal(found["theta/network/last/kernel"], make_theta()["network"]["last"]["kernel"])


# --- What was changed


@pytest.mark.parametrize("damage", ["one bit", "cut short", "another theta"])
def test_a_changed_theta_is_refused_by_name(folder, damage):
    path = folder / "theta.safetensors"
    data = bytearray(path.read_bytes())
    if damage == "one bit":
        data[-3] ^= 1
    elif damage == "cut short":
        del data[-3:]
    else:
        data = checkpoint.pack_theta(jax.tree.map(lambda leaf: leaf + 1, make_theta()), 7)
    path.write_bytes(data)
    with pytest.raises(CardError, match=rf"{path} is not the file that card.json was written with: its sha256 is .*fetch"):
        load(folder)
    # Whoever changes the card as well still meets the file's own digest, unless theta is whole.
    change(folder, sha256=hashlib.sha256(data).hexdigest())
    if damage != "another theta":
        with pytest.raises(CardError, match=rf"{path} is damaged"):
            load(folder)


@pytest.mark.parametrize("header", [b"{}", b'{"__metadata__": 3}', b"not JSON at all", b'{"x": {"dtype": "F32"}}'])
def test_a_header_that_describes_nothing_is_refused(tmp_path, header):
    text = b'{"__metadata__": {"sha256": "' + b"0" * 64 + b'", "format": "lopt-checkpoint-1"}, ' + header[1:]
    data = len(text).to_bytes(8, "little") + text
    data = data.replace(b"0" * 64, hashlib.sha256(data).hexdigest().encode(), 1)
    path = tmp_path / "theta.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=str(path)):
        checkpoint.read_theta(path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda theta: theta["network"]["last"].update(kernel=jnp.zeros((5, 1))),
            r"leaf 'network/last/kernel' .*\[5, 1\].*\[4, 1\]",
        ),
        (lambda theta: theta["network"]["last"].pop("bias"), "no leaf 'network/last/bias'"),
        (lambda theta: theta.update(extra=jnp.zeros(())), "a leaf 'extra', which its config does not know"),
        (lambda theta: theta.update(alpha=jnp.bfloat16(0.1)), r"leaf 'alpha' of theta is bfloat16\[\]"),
        (lambda theta: theta.update(alpha=jnp.float32(jnp.nan)), "leaf 'alpha' of theta holds values that are not finite"),
        (lambda theta: theta["network"]["last"].update(bias=jnp.full(1, jnp.inf)), "leaf 'network/last/bias' .* not finite"),
    ],
)
def test_a_theta_of_another_config_is_refused_by_leaf(folder, edit, message):
    theta = make_theta()
    edit(theta)
    write_folder(folder, CARD, theta, 7, overwrite=True)
    with pytest.raises(CardError, match=rf"{folder}/theta.safetensors: .*{message}"):
        load(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": "lopt-optimizer-9"}, "not the card of an optimizer in the format"),
        ({"licence": None}, "lacks the field 'licence'"),
        ({"tasks": "one"}, "tasks is 'one', not a list"),
        (
            {"seen": {"one": {"inputs": "12", "weights": 13, "losses": [2.3, 1.0]}}},
            "seen.one is .*'12'.*, not inputs, weights and two",
        ),
        ({"seen": {"one": {"inputs": 12, "weights": 13, "losses": [2.3]}}}, "seen.one is .*, not inputs, weights and two losses"),
        ({"recipe": {}}, "recipe.optimizer is not an object"),
        ({"recipe": {"optimizer": {"class": "lopt.networks.update:DeepSetsConfig"}}}, "not the config of an optimizer"),
        ({"recipe": {"optimizer": {**to_dict(CONFIG), "momentum": 1}}}, "unknown field momentum"),
        (
            {"specs": {"one": {"leaves": {"a": "(h"}, "sizes": {}}}, "recipe": {"optimizer": to_dict(CONFIG)}},
            "specs.one cannot be read",
        ),
    ],
)
def test_a_changed_card_is_refused_by_field(folder, fields, message):
    change(folder, **fields)
    with pytest.raises(CardError, match=rf"{folder}/card.json.*{message}"):
        card_specs(read_card(folder), load(folder) and folder)


@pytest.mark.parametrize(
    "name", ["trap:Config", "os:system", "tasks.mlp:MLPConfig", "lopt.optimizers.momentum:learned_optimizer", 3, ["unf"]]
)
def test_a_card_imports_nothing(folder, tmp_path, monkeypatch, name):
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for optimizer in (
        {"class": name},
        {**to_dict(CONFIG), "network": {"class": name}},
        {**to_dict(CONFIG), "alpha": [{"class": name}]},
    ):
        change(folder, recipe={"optimizer": optimizer})
        with pytest.raises(
            CardError, match=f"names the class {re.escape(repr(name))}; a card may name lopt's optimizers, features and networks"
        ):
            load(folder)
    assert "trap" not in sys.modules


def test_missing_files_are_named(folder):
    (folder / "theta.safetensors").unlink()
    with pytest.raises(CardError, match=r"theta.safetensors cannot be read: No such file"):
        load(folder)
    (folder / "card.json").write_text("{")
    with pytest.raises(CardError, match=r"card.json is not JSON"):
        load(folder)
    (folder / "card.json").write_text('{"a": ' * 100_000)
    with pytest.raises(CardError, match=r"card.json is not JSON: it is nested too deeply"):
        load(folder)
    (folder / "card.json").unlink()
    with pytest.raises(CardError, match=r"neither a run, with config.json, nor an optimizer's folder, with card.json"):
        load(folder)


# --- Writing


def test_nothing_is_overwritten_unless_asked_for(folder, tmp_path):
    before = (folder / "card.json").read_bytes()
    with pytest.raises(CardError, match="exists already"):
        write_folder(folder, CARD, make_theta(), 8)
    assert (folder / "card.json").read_bytes() == before
    write_folder(folder, dataclasses.replace(CARD, name="new"), make_theta(), 8, overwrite=True)
    assert read_card(folder).name == "new"
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    with pytest.raises(CardError, match="is not the folder of an optimizer"):
        write_folder(tmp_path / "precious", CARD, make_theta(), 8, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own", "precious"]


def test_what_fails_leaves_what_was_there(folder, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="complex128"):
        write_folder(tmp_path / "new", CARD, {"x": np.zeros(1, np.complex128)}, 7)

    def full_disk(path, data):
        raise OSError("no space left")

    monkeypatch.setattr(cards, "write_atomically", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_folder(folder, CARD, make_theta(), 9, overwrite=True)
    assert read_folder(folder)[0].name == "own"
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_a_copy_is_as_good(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert read_card(tmp_path / "elsewhere") == read_card(folder)
