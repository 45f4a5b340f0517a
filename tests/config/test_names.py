"""Names are the file format: every config class that may stand in a file has one, and files from before there were names load."""

import ast
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from lopt import config as configs
from lopt.comparison.kept import keep_race, kept_race
from lopt.config import ConfigError
from lopt.config.names import ALIASES, NAMES, name_of, path_of, registered
from lopt.config.tree import is_frozen
from lopt.evaluation.summary import Curve
from lopt.pretrained.card import read_card
from lopt.pretrained.load import SHIPPED, open_trained
from lopt.weight_space.predict import split
from lopt.weight_space.report import kept_predictions
from tests.pretrained.older import FILES as OLDER

ROOT = Path(__file__).parents[2]
FILES = sorted((Path(__file__).parent / "files").glob("*.json"))  # written by lopt as it was before there were names
RUNS = sorted((ROOT / "docs/reproduction").glob("**/config.json"))
ZOO = ROOT / "docs/reproduction/rnn-zoo"
GONE = {
    "antithetic",
    "centered_ranks",
    "kernel",
    "normalize",
    "others",
    "recurrent_scale",
    "share_data",
}  # of which one value is left
DID_NOTHING = {"curriculum_steps", "final_fraction", "input_field", "last", "min_horizon", "momenta", "stagger"}  # in most files
NEVER_WRITTEN = {"lopt.runtime.distributed:ProcessConfig", "lopt.comparison.config:ComparisonConfig"}


def find(place: str) -> type:
    module, name = place.split(":")
    return getattr(importlib.import_module(module), name)


def config_classes() -> list[str]:
    """`module:Class` of every public class of lopt and tasks whose name ends in Config."""
    found = []
    for path in sorted((*(ROOT / "lopt").rglob("*.py"), *(ROOT / "tasks").rglob("*.py"))):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        classes = [node.name for node in ast.parse(path.read_bytes()).body if isinstance(node, ast.ClassDef)]
        found += [f"{module}:{name}" for name in classes if name.endswith("Config") and not name.startswith("_")]
    return found


def classes_in(value: object) -> set[str]:
    if isinstance(value, list):
        return set().union(*map(classes_in, value))
    if not isinstance(value, dict):
        return set()
    own = {value["class"]} if "class" in value else set()
    return own.union(*map(classes_in, value.values()))


def test_every_config_class_has_a_name_unless_it_is_a_base():
    named = [find(place) for place in registered().values()]
    for place in set(config_classes()) - set(registered().values()) - NEVER_WRITTEN:
        derived = [cls for cls in named if issubclass(cls, find(place)) and cls is not find(place)]
        assert derived, f"{place} has no registered name, and none that has one derives from it"


def test_every_name_leads_to_a_config_and_back():
    assert len(set(registered().values())) == len(registered())
    for name, place in registered().items():
        assert is_frozen(find(place))
        assert name_of(place) == name
        assert path_of(name) == path_of(place) == place
    assert all(place.startswith("lopt.") for place in NAMES.values())
    assert set(ALIASES.values()) <= set(registered())


def test_the_copies_hold_every_class_that_had_a_path():
    assert set().union(*(classes_in(json.loads(path.read_bytes())) for path in FILES)) == set(ALIASES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_with_paths_load_and_are_written_with_names(path):
    old = json.loads(path.read_bytes())
    trust = "imported" in path.stem  # names a function, which lopt does not import because a file says so
    config = configs.from_dict(old, trust=trust)
    if "estimator" in old:  # its unroll has become the run's
        old["unroll"] = old["estimator"].pop("unroll")
        for unused in ("alpha", "g0") if "GradientDescent" in old["optimizer"]["class"] else ():
            old["optimizer"].pop(unused)
    written = configs.to_dict(config)
    assert classes_in(written) == {ALIASES[name] for name in classes_in(old)}
    assert configs.from_dict(written, trust=trust) == config

    def is_kept(before: object, after: object) -> None:
        """Every value of the old file is there; fields may have been added since."""
        if isinstance(before, dict) and "class" in before:
            assert isinstance(after, dict)
            assert after["class"] == ALIASES[before["class"]]
            for field in before.keys() - {"class"} - GONE:
                if not (field in DID_NOTHING and after[field] is None):
                    is_kept(before[field], after[field])
        elif isinstance(before, list):
            assert isinstance(after, list)
            assert len(before) == len(after)
            list(map(is_kept, before, after))
        else:
            assert before == after

    is_kept(old, written)


@pytest.mark.parametrize("path", [*RUNS, ROOT / "examples/small_rnn_zoo/config.json"], ids=lambda path: path.parent.name)
def test_the_configs_of_the_repository_load(path):
    config = configs.from_dict(json.loads(path.read_bytes()))
    assert classes_in(configs.to_dict(config)) <= set(registered())


def test_there_are_configs_of_the_reproduction():
    assert len(RUNS) >= 16


CARDS = sorted(path.parent for files in (SHIPPED, OLDER) for path in files.glob("*/card.json"))


@pytest.mark.parametrize("folder", CARDS, ids=lambda folder: folder.name)
def test_cards_that_are_or_were_shipped_load(folder):
    card = read_card(folder)
    recipe = configs.from_dict(card.recipe)
    assert recipe.optimizer == open_trained(folder).config
    assert classes_in(configs.to_dict(recipe)) <= set(registered())


def test_names_lead_to_nothing_but_what_is_registered(tmp_path, monkeypatch):
    """A file that is not one's own imports nothing."""
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    run = json.loads(FILES[0].read_bytes())
    for stranger in ("trap:Config", "lopt.comparison.config:ComparisonConfig", "os:system", "no_such_name"):
        with pytest.raises(ConfigError, match=f"task is of the class '{stranger}', which is none of lopt's: nothing is imported"):
            configs.from_dict(run | {"task": {"class": stranger}})
    assert "trap" not in sys.modules


def test_kept_predictions_go_on_under_names():
    kept = json.loads((ZOO / "statnn.json").read_bytes())
    config, zoo = configs.from_dict(kept["config"]), kept["zoo"]
    labels = np.zeros(zoo["models"])
    labels[split(len(labels), config)[2]] = kept["seeds"][0]["labels"]
    found = kept_predictions(ZOO, config, labels, label=zoo["label"], zoo=zoo["name"], seeds=[0])
    assert [one.seed for one in found] == [0]


def test_kept_races_are_found_under_names(tmp_path):
    task = {"class": "tasks.mlp:MLPConfig", "hidden": [32]}  # from before there were the other fields
    curve = Curve("one", np.ones((2, 3), np.float32), {}, 0.1, True, np.arange(1), {})
    keep_race(tmp_path / "race.npz", curve, {"task": task}, {})
    today = configs.to_dict(configs.from_dict(task))
    assert today["class"] == "mlp"
    assert kept_race(tmp_path / "race.npz", {"task": today}) is not None
    assert kept_race(tmp_path / "race.npz", {"task": today | {"hidden": [64]}}) is None
