"""A trained optimizer as a folder of two files: theta.safetensors, and card.json, which says what it is and how it was made.

Whoever reads such a folder runs none of it: the arrays are bytes, the card is JSON, and the classes that its recipe names for the
optimizer are looked up among lopt's optimizers, features and networks. The card holds the sha256 of the other file; one that was
changed, cut short or exchanged is refused by name.
"""

import dataclasses
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lopt.config import ConfigError, from_dict, parse_json, path_of, write_atomically
from lopt.config.errors import LoptError
from lopt.config.files import sync
from lopt.optimizers.momentum import LearnedOptimizer, OptimizerConfig
from lopt.runtime.text import plain
from lopt.symmetry.notation import parse_leaf
from lopt.symmetry.spec import PyTree, SpecError, WeightSpec, is_under, named_leaves
from lopt.training.checkpoint import THETA_FILE, CheckpointError, pack_theta, read_theta

CARD_FILE = "card.json"
_FORMAT = "lopt-optimizer-1"
SHARED = "network/last/shared"  # but for the pointwise map that all tensors share
BY_ROLE = "network/last"  # the part of theta that grows with what it has seen, where coefficients are shared by role


class CardError(LoptError, ValueError):
    """A trained optimizer that cannot be read, written or used; the message names the file, and the field or the leaf."""


@dataclasses.dataclass(frozen=True)
class Card:
    """What is known of a trained optimizer.

    Attributes:
      name: by which it is loaded.
      summary: in one line.
      good_for: what it does well, by measurement.
      not_for: what it does not.
      tasks: that it was trained on, by name.
      data: that these draw on.
      specs: task -> {"leaves": {leaf path: notation}, "sizes": {name: size}}, the symmetry of its weights.
      recipe: the whole config of its meta-training, as `lopt.config.to_dict` gives it.
      budget: outer steps, inner steps, hours, device.
      results: races, each with its task, steps, seeds, and figures with standard errors.
      licence: of theta.
      versions: package -> version that it was trained with.
      sha256: of theta.safetensors.
      seen: what it was seen to work on: task -> {"inputs": the most inputs of one of its weights (`inputs_of`), "weights": their number,
        "losses": [that of a constant prediction, the final one of a race or None]}; {} in cards that were written before there was this.
    """

    name: str
    summary: str
    good_for: str
    not_for: str
    tasks: list[str]
    data: list[str]
    specs: dict[str, Any]
    recipe: dict[str, Any]
    budget: dict[str, Any]
    results: list[Any]
    licence: str
    versions: dict[str, Any]
    sha256: str
    seen: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        name, summary, good_for, not_for = map(plain, (self.name, self.summary, self.good_for, self.not_for))
        return "\n  ".join([f"{name}: {summary}", f"good for: {good_for}", f"not for:  {not_for}", *self._seen_lines()])

    def _seen_lines(self) -> list[str]:
        lines = []
        for task, found in self.seen.items():
            first, last = found["losses"]
            fell = f"from {first:.3g} to {last:.3g}" if last is not None else f"from {first:.3g}"
            inputs, weights = found["inputs"], found["weights"]
            lines.append(
                f"{'' if lines else 'seen on:':<9} {plain(task)}: {weights:,} weights, up to {inputs:,} inputs, losses {fell}"
            )
        return lines


def sha256(data: bytes) -> str:
    """The digest of a file's content, as cards have it."""
    return hashlib.sha256(data).hexdigest()


def read_card(folder: str | Path) -> Card:
    """The card of a folder.

    Raises:
      CardError: naming the file that cannot be read, or the field that is missing or not of its type.
    """
    path = Path(folder) / CARD_FILE
    try:
        found = parse_json(path.read_bytes())
    except OSError as error:
        raise CardError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise CardError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict) or found.get("format") != _FORMAT:
        raise CardError(f"{path} is not the card of an optimizer in the format '{_FORMAT}', which this version of lopt reads")
    for field in dataclasses.fields(Card):
        wanted = getattr(field.type, "__origin__", field.type)
        if field.name not in found and field.name == "seen":
            found["seen"] = {}
        if field.name not in found:
            raise CardError(f"{path} lacks the field '{field.name}'")
        if not isinstance(found[field.name], wanted):  # pyright: ignore[reportArgumentType]
            raise CardError(f"{path}: {field.name} is {found[field.name]!r}, not a {wanted.__name__}")  # pyright: ignore[reportAttributeAccessIssue]
    for task, entry in found["seen"].items():
        if not _is_seen(entry):
            raise CardError(f"{path}: seen.{task} is {entry!r}, not inputs, weights and two losses")
    return Card(**{field.name: found[field.name] for field in dataclasses.fields(Card)})


def _is_seen(entry: Any) -> bool:
    def is_number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    if not isinstance(entry, dict) or entry.keys() != {"inputs", "weights", "losses"}:
        return False
    losses = entry["losses"]
    return (
        all(isinstance(entry[name], int) and is_number(entry[name]) for name in ("inputs", "weights"))
        and isinstance(losses, list)
        and len(losses) == 2
        and is_number(losses[0])
        and (losses[1] is None or is_number(losses[1]))
    )


def inputs_of(shape: Sequence[int]) -> int:
    """How many inputs a unit has that such a weight makes, at most: which axes are those of the inputs, a shape does not say.

    Of a matrix it is the longer side; of a kernel of a convolution or of attention all but the longer of the first and the last axis; of a
    vector 1.

    Example:
      >>> inputs_of((784, 128)), inputs_of((128, 784)), inputs_of((3, 3, 8, 16)), inputs_of((16, 8, 3, 3)), inputs_of((16,))
      (784, 784, 72, 72, 1)
    """
    if len(shape) < 2:
        return 1
    return max(shape) if len(shape) == 2 else math.prod(shape) // max(shape[0], shape[-1], 1)


def read_folder(folder: str | Path) -> tuple[Card, PyTree]:
    """Card and theta of a folder, theta in plain containers of arrays on the default device.

    Raises:
      CardError: naming the file that is missing, damaged, or not the one that the card was written with.
    """
    card, path = read_card(folder), Path(folder) / THETA_FILE
    try:
        digest = sha256(path.read_bytes())
        if digest != card.sha256:
            raise CardError(
                f"{path} is not the file that {CARD_FILE} was written with: its sha256 is {digest}, not {card.sha256}; it was changed, "
                "cut short or exchanged, so fetch the folder again"
            )
        return card, read_theta(path)
    except OSError as error:
        raise CardError(f"{path} cannot be read: {error.strerror or error}") from error
    except CheckpointError as error:
        raise CardError(str(error)) from error


def write_folder(folder: str | Path, card: Card, theta: PyTree, step: int, *, overwrite: bool = False) -> Card:
    """Write a folder; it appears under its name with both files in it, or not at all.

    Args:
      folder: to make.
      card: its sha256 is filled in.
      theta: made of plain dicts, lists and tuples.
      step: the outer step it is of.
      overwrite: replace an optimizer that is there.

    Raises:
      CardError: if there is something already, and it is not to be replaced or is no optimizer.
      ValueError: naming the leaf of theta that cannot be stored.
    """
    folder = Path(folder)
    if folder.exists() and not overwrite:
        raise CardError(f"{folder} exists already; name another folder, or ask for it to be overwritten")
    if folder.exists() and not (folder / CARD_FILE).is_file():
        raise CardError(f"{folder} is not the folder of an optimizer, so it is not overwritten")
    data = pack_theta(theta, step)
    card = dataclasses.replace(card, sha256=sha256(data))
    text = json.dumps({"format": _FORMAT, **dataclasses.asdict(card)}, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    new, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{which}") for which in ("new", "old"))
    new.mkdir(parents=True)
    try:
        write_atomically(new / THETA_FILE, data)
        write_atomically(new / CARD_FILE, text.encode())
        if folder.exists():
            os.replace(folder, old)
        try:
            sync(new)  # the names in it; what they name is on the disk already
            os.replace(new, folder)
        except OSError:
            if old.exists():
                os.replace(old, folder)
            raise
        sync(folder.absolute().parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return card


def encode_spec(spec: WeightSpec) -> dict[str, Any]:
    """A spec as cards have it."""
    return {"leaves": {path: spec.notation(path) for path in spec.paths}, "sizes": dict(spec.known_sizes)}


def card_specs(card: Card, folder: str | Path) -> tuple[WeightSpec, ...]:
    """The specs of the tasks that it was trained on.

    Raises:
      CardError: naming the task whose spec cannot be read.
    """
    found = []
    for task, entry in card.specs.items():
        try:
            leaves = tuple((path, parse_leaf(path, text)) for path, text in entry["leaves"].items())
            found.append(WeightSpec(leaves, tuple(sorted(entry["sizes"].items()))))
        except (SpecError, AttributeError, KeyError, TypeError) as error:
            raise CardError(f"{Path(folder) / CARD_FILE}: specs.{task} cannot be read: {error}") from error
    return tuple(found)


def _classes(value: Any) -> Iterator[Any]:
    """What an encoded config names as classes."""
    if isinstance(value, Mapping):
        yield from [value["class"]] if "class" in value else []
    for item in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _classes(item)


def _is_part(name: Any) -> bool:
    """Whether a class that a card names is one of those that a learned optimizer is made of."""
    place = path_of(name) if isinstance(name, str) else None
    return place is not None and place.startswith(("lopt.optimizers.", "lopt.features.", "lopt.networks."))


def strange_classes(encoded: Any) -> list[Any]:
    """What an encoded optimizer names that is none of lopt's optimizers, features and networks."""
    found = []
    for name in _classes(encoded):  # anything at all may stand there, a list too
        if not _is_part(name) and name not in found:
            found.append(name)
    return found


def card_optimizer(card: Card, folder: str | Path) -> OptimizerConfig:
    """The config of the learned optimizer, made of lopt's optimizers, features and networks alone.

    Raises:
      CardError: naming the class that is not one of these, or the field at fault.
    """
    path, encoded = Path(folder) / CARD_FILE, card.recipe.get("optimizer")
    strangers = strange_classes(encoded)
    if strangers or not isinstance(encoded, dict):
        named = f"names the class {strangers[0]!r}" if strangers else "is not an object"
        raise CardError(
            f"{path}: recipe.optimizer {named}; a card may name lopt's optimizers, features and networks, and nothing else is imported"
        )
    try:
        config = from_dict(encoded)
    except ConfigError as error:
        raise CardError(f"{path}: recipe.optimizer: {error}") from error
    if not isinstance(config, OptimizerConfig):
        raise CardError(f"{path}: recipe.optimizer is {type(config).__name__}, which is not the config of an optimizer")
    return config


def check_theta(theta: PyTree, learned: LearnedOptimizer, where: str, *, by_role: bool) -> None:
    """Raise `CardError`, naming the leaf, unless theta is one of this optimizer.

    Args:
      theta: to check.
      learned: whose `init` says which leaves of which shapes there must be.
      where: the file or run that theta is from, for the message.
      by_role: coefficients are shared by role: theta may then know other roles than this optimizer asks for.
    """
    given = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in named_leaves(theta)}
    wanted = dict(named_leaves(jax.eval_shape(learned.init, jax.random.key(0))))

    def optional(path: str) -> bool:
        return by_role and is_under(path, BY_ROLE) and not is_under(path, SHARED)

    for path, leaf in wanted.items():
        if path not in given and not optional(path):
            raise CardError(f"{where}: theta has no leaf '{path}', which its config asks for")
        if path in given and (given[path].shape, given[path].dtype) != (leaf.shape, leaf.dtype):
            raise CardError(
                f"{where}: leaf '{path}' of theta is {given[path].dtype}{list(given[path].shape)}, but its config asks for "
                f"{leaf.dtype}{list(leaf.shape)}"
            )
    for path, leaf in named_leaves(theta):
        if not np.isfinite(np.asarray(leaf)).all():
            raise CardError(
                f"{where}: leaf '{path}' of theta holds values that are not finite: it is damaged, or its training diverged"
            )
    surplus = [path for path in given if path not in wanted and not optional(path)]
    if surplus:
        raise CardError(f"{where}: theta has a leaf '{surplus[0]}', which its config does not know")
