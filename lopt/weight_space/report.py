"""What predictors came to on a zoo: kept for each method, and shown as a table beside the paper's."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from lopt.config import CONFIG_FILE, completed, load_run, parse_json, to_dict, write_atomically
from lopt.evaluation.summary import markdown
from lopt.reporting.plots import png
from lopt.runtime.environment import stamp
from lopt.runtime.text import markdown_text
from lopt.weight_space.make import ZooConfig
from lopt.weight_space.plots import scatter_figure
from lopt.weight_space.predict import Prediction, PredictionConfig, Scores, kendall_tau, split
from lopt.weight_space.store import ZooError

# Kendall's tau on the test part, "Universal Neural Functionals" (NeurIPS 2024), table 1: on a zoo that was not released.
PAPER: Mapping[str, str] = MappingProxyType({"unf": ".8968 ± .0006", "statnn": ".8839 ± .0007", "deep_sets": ".8306 ± .0006"})
_RESAMPLES = 200  # of the test part
_ORDER = ("unf", "shared_unf", "statnn", "pooled_deep_sets", "deep_sets")


def write_predictions(
    out: Path, config: PredictionConfig, predictions: Sequence[Prediction], *, label: str, models: int, zoo: str
) -> None:
    """Keep a method's predictions: `METHOD.json` with config, scores of every seed, and predictions on the test part."""
    content = {
        "config": to_dict(config),
        "zoo": {"name": zoo, "models": models, "label": label},
        "environment": stamp(),
        "seeds": [_encode(one) for one in predictions],
    }
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / f"{config.method}.json", (json.dumps(content, allow_nan=False) + "\n").encode())


def _encode(one: Prediction) -> dict[str, Any]:
    scores = {part: {k: _finite(v) for k, v in getattr(one, part)._asdict().items()} for part in ("valid", "test")}
    arrays = {name: [float(f"{x:.5g}") for x in getattr(one, name)] for name in ("predicted", "labels")}
    return {"seed": one.seed, "epoch": one.epoch, "epochs": one.epochs, **scores, **arrays}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def kept_predictions(
    out: Path, config: PredictionConfig, labels: np.ndarray, *, label: str, zoo: str, seeds: Sequence[int]
) -> list[Prediction]:
    """Those of some seeds that a directory has of a method: what was interrupted need not be done again.

    Args:
      out: the directory.
      config: of the predictor.
      labels: of all models of the zoo: one that was made again, on another processor, may have others.
      label: what is predicted.
      zoo: its name.
      seeds: those that are wanted.

    Raises:
      ZooError: if they are of another zoo or label, or were trained with other settings, or the file cannot be read.
    """
    path = out / f"{config.method}.json"
    if not path.is_file():
        return []
    seeds_there, content = _read(path)
    before, now = completed(content["config"]), to_dict(config)
    differ = [f"{name} {before.get(name)!r}, now {value!r}" for name, value in now.items() if before.get(name) != value]
    if content["zoo"] != {"name": zoo, "models": len(labels), "label": label}:
        differ.append(f"the zoo {content['zoo']}")
    if differ:
        raise ZooError(f"{path} holds predictions with {'; '.join(differ)}: give these another --out, or delete the file")
    found = [one for one in seeds_there if one.seed in seeds]
    for one in found:
        if not np.allclose(one.labels, labels[split(len(labels), config, one.seed)[2]], rtol=1e-4):
            raise ZooError(
                f"{path}, seed {one.seed}, has predictions on models with other labels than this zoo's, which has been made again or "
                "changed: give these another --out, or delete the file"
            )
    return found


def _read(path: Path) -> tuple[list[Prediction], dict[str, Any]]:
    try:
        content = parse_json(path.read_bytes())
        seeds = [_decode(one) for one in content["seeds"]]
        _ = content["zoo"], content["config"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ZooError(f"{path} does not hold predictions: {error}") from error
    return seeds, content


def read_predictions(out: Path) -> tuple[dict[str, list[Prediction]], dict[str, Any]]:
    """Method -> its seeds, of all that is kept in a directory, and the zoo that they are of.

    Raises:
      ZooError: if a file cannot be read, or two are of different zoos.
    """
    found: dict[str, list[Prediction]] = {}
    zoo: dict[str, Any] = {}
    for method in _ORDER:
        path = out / f"{method}.json"
        if not path.is_file():
            continue
        found[method], content = _read(path)
        of = content["zoo"]
        if zoo and of != zoo:
            raise ZooError(f"{path} is of another zoo ({of}) than the others in {out} ({zoo}): give each zoo its own --out")
        zoo = of
    return found, zoo


def _decode(one: dict[str, Any]) -> Prediction:
    valid, test = (Scores(**{k: math.nan if v is None else v for k, v in one[part].items()}) for part in ("valid", "test"))
    predicted, labels = np.array(one["predicted"]), np.array(one["labels"])
    return Prediction(one["seed"], one["epoch"], one["epochs"], valid, test, predicted, labels)


def is_papers_zoo(zoo: Path, label: str) -> bool:
    """Whether a zoo is of the paper's kind: recurrent networks that add numbers, and how often they do."""
    path = zoo / CONFIG_FILE
    return label == "success" and path.is_file() and isinstance(load_run(zoo), ZooConfig)


def prediction_table(predictions: Mapping[str, Sequence[Prediction]], *, paper: bool = False) -> list[list[str]]:
    """The lines of the table, its header first: means over seeds and their standard errors.

    Args:
      predictions: method -> its seeds.
      paper: the zoo is of the paper's kind, so that the paper's figures stand beside these.
    """
    lines = [["method", "Kendall tau", "R^2", "cross entropy", "epoch", "seeds", *(["tau in the paper"] if paper else [])]]
    for method, seeds in predictions.items():
        test = [one.test for one in seeds]
        cells = [_estimate([getattr(scores, name) for scores in test]) for name in ("tau", "r2", "loss")]
        epoch = f"{np.mean([one.epoch for one in seeds]):.1f}"
        lines.append([method, *cells, epoch, str(len(seeds)), *([PAPER.get(method, "-")] if paper else [])])
    return lines


def differences(predictions: Mapping[str, Sequence[Prediction]]) -> list[list[str]]:
    """How far each method's tau is above StatNN's and above DeepSets', the header first; none where there is neither, or nothing else.

    The standard error is that over the models that are tested, which a mean over seeds does not show. Where all seeds are tested on
    the same models, these are drawn with replacement, the same for both methods; with `cross_validate` it is that of the mean over
    the test parts.
    """
    bases = {
        label: predictions[base] for base, label in (("statnn", "StatNN's"), ("deep_sets", "DeepSets'")) if base in predictions
    }
    if not bases or len(predictions) == 1:
        return []
    lines = [
        [method, *("-" if seeds is base else _difference(seeds, base) for base in bases.values())]
        for method, seeds in predictions.items()
    ]
    return [["method", *(f"tau above {label}" for label in bases)], *lines]


def are_cross_validated(seeds: Sequence[Prediction]) -> bool:
    """Whether each seed was tested on models of its own."""
    return any(not np.array_equal(one.labels, seeds[0].labels) for one in seeds)


def _difference(seeds: Sequence[Prediction], base: Sequence[Prediction]) -> str:
    if are_cross_validated([*seeds, *base]):
        other = {one.seed: one.test.tau for one in base}
        gaps = [one.test.tau - other[one.seed] for one in seeds if one.seed in other]
        return _estimate(gaps, "+") if len(gaps) > 1 else "-"
    count = len(seeds[0].labels)
    draws = np.random.default_rng(0).integers(count, size=(_RESAMPLES, count))

    def gap(index: np.ndarray) -> float:
        one, other = (np.mean([kendall_tau(p.predicted[index], p.labels[index]) for p in found]) for found in (seeds, base))
        return float(one - other)

    return f"{gap(np.arange(count)):+.4f} ± {np.std([gap(index) for index in draws], ddof=1):.4f}"


def _estimate(values: Sequence[float], sign: str = "") -> str:
    array = np.asarray(values, np.float64)
    if len(array) == 1:
        return f"{array[0]:{sign}.4f}"
    return f"{array.mean():{sign}.4f} ± {array.std(ddof=1) / math.sqrt(len(array)):.4f}"


def write_report(out: Path, *, paper: bool = False) -> list[Path]:
    """The table and the picture of all methods that are kept in a directory: `table.md`, `scatter.png`; `paper`: see `prediction_table`."""
    predictions, zoo = read_predictions(out)
    cross_validated = any(map(are_cross_validated, predictions.values()))
    tested = "a test part of its own for each seed" if cross_validated else "the test part of the zoo"
    of = f"the weights of {zoo['models']:,} models ({markdown_text(zoo['name'])})"
    text = [f"Predicting {markdown_text(zoo['label'])} from {of}; {tested}.\n"]
    over = "test parts, each with a training of its own" if cross_validated else "seeds of theta and order"
    text += [markdown(prediction_table(predictions, paper=paper)), "", f"Means over {over}, and their standard errors.\n"]
    if further := differences(predictions):
        over = "over test parts" if cross_validated else "over the models of the test part, by resampling"
        text += [markdown(further), "", f"Standard errors {over}.\n"]
    paths = [out / "table.md", out / "scatter.png"]
    write_atomically(paths[0], "\n".join(text).encode())
    write_atomically(paths[1], png(scatter_figure(predictions, label=zoo["label"])))
    return paths
