"""From a run to the folder of a trained optimizer, and to a repository of the Hub."""

import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from lopt.config import load_run, parse_json, to_dict
from lopt.config.serialize import HOME
from lopt.pretrained import hub
from lopt.pretrained.bind import Trained, bind, needs_spec
from lopt.pretrained.card import (
    CARD_FILE,
    Card,
    CardError,
    card_optimizer,
    card_specs,
    encode_spec,
    inputs_of,
    read_folder,
    strange_classes,
    write_folder,
)
from lopt.runtime.environment import ENVIRONMENT_FILE, read_starts
from lopt.task.base import Problem
from lopt.training import checkpoint, metrics
from lopt.training.mixture import Setup, set_up

LICENCE = "Apache-2.0"
_TRAINED = "meta-trained"  # how an evaluation of a run calls its optimizer
_FIGURES = {"final_loss": "final_training_loss", "steps": "steps_to_target", "speedup": "speed_up"}


def export_run(
    run_dir: str | Path,
    folder: str | Path,
    *,
    name: str,
    summary: str = "",
    good_for: str = "",
    not_for: str = "",
    results: Sequence[str | Path] = (),
    licence: str = LICENCE,
    best: bool = True,
    overwrite: bool = False,
    trust: bool = False,
) -> Card:
    """Write the optimizer that a run has meta-trained as a folder that `lopt.load` takes.

    The tasks of the run are made once more, for their names and specs, so their data must be at hand.

    Args:
      run_dir: of the run.
      folder: to make.
      name: of the optimizer.
      summary: in one line; what the optimizer is, if it is empty.
      good_for: what it does well, by measurement.
      not_for: what it does not.
      results: files table.json of evaluations (`scripts/evaluate.py`), in which it raced.
      licence: of theta.
      best: the theta that did best in held-out evaluations, where there were any; False: the newest.
      overwrite: replace an optimizer that is in the folder.
      trust: as for `lopt.load`.

    Returns:
      The card.

    Raises:
      CardError: if the folder is there and not to be replaced, naming the file of results that cannot be used, or what `lopt.load` would
        refuse: the class of the optimizer, or the leaf of theta. Nothing is written then.
      ConfigError, CheckpointError: if the run cannot be read.
    """
    run_dir, experiment = Path(run_dir), load_run(run_dir, trust=trust)
    if Path(folder).exists() and not overwrite:
        raise CardError(f"{folder} exists already; name another folder, or ask for it to be overwritten")
    recipe = public_recipe(to_dict(experiment))
    strangers = strange_classes(recipe["optimizer"])
    if strangers:
        raise CardError(
            f"the optimizer of {run_dir} is made of {', '.join(map(repr, strangers))}, which {'is' if len(strangers) == 1 else 'are'} none "
            "of lopt's: whoever loads a folder imports nothing that it names, so the folder would be of no use. The run itself can be "
            f"loaded by whoever has that code, lopt.load({str(run_dir)!r})"
        )
    races = [race for path in results for race in read_results(path, {name, str(run_dir), str(folder)})]
    theta, step, _ = checkpoint.chosen_theta(run_dir, best=best)
    setup = set_up(experiment.task, experiment.optimizer, experiment.estimator, experiment.unroll)
    start = read_starts(run_dir)[-1] if (run_dir / ENVIRONMENT_FILE).exists() else {}
    card = Card(
        name=name,
        summary=summary or f"{type(experiment.optimizer).__name__} trained on {', '.join(setup.problems)}",
        good_for=good_for,
        not_for=not_for,
        tasks=list(setup.problems),
        data=sorted(set(_found(recipe["task"], "dataset"))),
        specs={task: encode_spec(problem.spec) for task, problem in setup.problems.items()},
        recipe=recipe,
        budget=_budget(run_dir, step, setup, start),
        results=races,
        licence=licence,
        versions={**start.get("packages", {}), **({"python": start["python"]} if start else {})},
        sha256="",
        seen={task: _seen(problem, races) for task, problem in setup.problems.items()},
    )
    # What loading would refuse is refused here, by the same checks, before anything is written.
    trained = Trained(name, card_optimizer(card, folder), theta, lambda: card_specs(card, folder), str(run_dir))
    for problem in setup.problems.values():
        bind(trained, problem.spec if needs_spec(trained.config) else None, problem.param_shapes())
    return write_folder(folder, card, theta, step, overwrite=overwrite)


def _seen(problem: Problem, races: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a card says of a task that theta was trained on."""
    shapes = [leaf.shape for leaf in jax.tree.leaves(problem.param_shapes())]
    finals = [race["optimizers"]["this"]["final_training_loss"]["mean"] for race in races if race["task"] == problem.name]
    return {
        "inputs": max(map(inputs_of, shapes)),
        "weights": sum(map(math.prod, shapes)),
        "losses": [float(problem.example.initial_loss), finals[0] if finals else None],
    }


def public_recipe(value: Any) -> Any:
    """An encoded config without the directories of the machine that it is from: where the code of one's own tasks and classes lies."""
    if isinstance(value, list):
        return [public_recipe(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    private = {HOME} | ({"directory"} if value.get("class") == "imported_task" else set())
    return {name: public_recipe(item) for name, item in value.items() if name not in private}


def push(source: str | os.PathLike[str], repo_id: str, *, name: str | None = None, private: bool = False, **about: Any) -> str:
    """Put a trained optimizer into a repository of the Hugging Face Hub, from where `lopt.load("hf://owner/name")` takes it.

    Args:
      source: a folder with theta.safetensors and card.json, or a run directory, which is exported first.
      repo_id: `owner/name`; made if need be.
      name: of the optimizer, for a run; the repository's by default.
      private: of a new repository.
      **about: for a run, what its card says, as `export_run` takes it (summary, good_for, not_for, results, licence, best).

    Returns:
      What to give to `lopt.load`.

    Raises:
      CardError: naming what is wrong with the folder; nothing is sent then.
      ImportError: if the Hub's client is not installed.
      ValueError: if the repository's name cannot be read.
    """
    source, (repository, _) = Path(source), hub.split_address(repo_id)
    with tempfile.TemporaryDirectory() as scratch:
        folder = source
        if not (source / CARD_FILE).is_file():
            folder = Path(scratch) / "optimizer"
            export_run(source, folder, name=name or repository.partition("/")[2], **about)
        elif name is not None or about:
            raise CardError(
                f"{source} has a card already; change it by exporting its run again, not by {sorted(about) or ['name']}"
            )
        card, _ = read_folder(folder)
        hub.upload(folder, repo_id, card, private=private)
    return f"{hub.SCHEME}{repository}"


def _found(value: Any, key: str) -> list[str]:
    """All strings under a key, at any depth of an encoded config."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    found = []
    for name, item in items:
        found += [item] if name == key and isinstance(item, str) else _found(item, key)
    return found


def _budget(run_dir: Path, step: int, setup: Setup, start: Mapping[str, Any]) -> dict[str, Any]:
    """What the meta-training cost, to its end."""
    done, inner = (checkpoint.steps(run_dir) or [step])[-1], setup.estimator.inner_steps
    records = [record for record in metrics.read(run_dir) if record["outer_step"] <= done]
    speeds = [record["inner_steps_per_s"] for record in records if record.get("inner_steps_per_s")]
    return {
        "outer_steps": done,
        "theta_of_outer_step": step,
        "inner_steps": done * inner,
        "hours": round(sum(inner / speed for speed in speeds) / 3600, 3) if len(speeds) == done else None,
        "device": start.get("device"),
        "devices": start.get("devices"),
    }


def read_results(path: str | Path, names: set[str]) -> list[dict[str, Any]]:
    """What an evaluation's table.json says of an optimizer and of its rivals.

    Args:
      path: of the file.
      names: under which it may have raced, besides "meta-trained".

    Returns:
      One entry: task, steps, seeds, target, date and device, and of everyone the figures with their standard errors; [] never.

    Raises:
      CardError: naming the file, if it is no such table or the optimizer is not in it.
    """
    try:
        found = parse_json(Path(path).read_bytes())
        rows = found["rows"]
        own = [row["name"] for row in rows if row["name"] in names or row["name"].startswith(_TRAINED)]
        race = {
            "task": found["task"],
            "steps": found["config"]["steps"],
            "seeds": found["config"]["seeds"],
            "target": found["target"],
            "optimizers": {("this" if row["name"] in own else row["name"]): _figures(row) for row in rows},
            "device": found["environment"]["device"],
            "versions": found["environment"]["packages"],
        }
    except OSError as error:
        raise CardError(f"{path} cannot be read: {error.strerror or error}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CardError(f"{path} is not the table.json of an evaluation: {error!r}") from error
    if len(own) != 1:
        raise CardError(
            f"{path}: {own or 'none'} of its optimizers {[row['name'] for row in rows]} should be one, of {sorted(names)}"
        )
    return [race]


def _figures(row: Mapping[str, Any]) -> dict[str, Any]:
    """Means with standard errors; of the steps and the speed-up also over how many seeds."""
    figures = {new: row[old] for old, new in _FIGURES.items()}
    return {
        "diverged": row["diverged"],
        "reference": row["reference"],
        **figures,
        **{f"test_{k}": v for k, v in row["test"].items()},
    }
