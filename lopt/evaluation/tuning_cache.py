"""Searches that have been made, kept on disk, so that a race against the same rivals on the same problem need not tune them again.

An entry's name is a digest of all that the scores depend on: the program that was run, as text, which holds the task, the optimizer,
the steps and the seeds' number; the data; the keys; the search; and the versions and the kind of device that ran it. Any change of code
or settings that changes a score is another entry. An entry has a checksum; one that is damaged is searched for again, never used.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lopt.config import write_atomically
from lopt.config.caches import UntrustedCacheError, private_directory
from lopt.evaluation.tuning import Search, Setting, Tuning
from lopt.symmetry.spec import PyTree

_FORMAT = 2


def digest(tree: PyTree) -> str:
    """A digest of the values, dtypes and shapes of all arrays of a pytree; typed keys count as their data."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        array = np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)
        found.update(f"{array.dtype} {array.shape} ".encode())
        found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def identity(
    title: str, problem: str, search: Search, program: str, inputs: PyTree, *, steps: int, seeds: int, window: int
) -> dict[str, Any]:
    """All that a search's outcome depends on, as JSON values.

    Args:
      title: of the baseline.
      problem: its name.
      search: where it looks.
      program: the text of the lowered training.
      inputs: arrays that it is given beside the setting: keys and data.
      steps: T.
      seeds: K.
      window: steps that scores are averaged over.
    """
    return {
        "format": _FORMAT,
        "baseline": title,
        "problem": problem,
        "search": json.loads(json.dumps(dataclasses.asdict(search))),
        "program": hashlib.sha256(program.encode()).hexdigest(),
        "inputs": digest(inputs),
        "steps": steps,
        "seeds": seeds,
        "window": window,
        "versions": {"jax": jax.__version__, "jaxlib": importlib.metadata.version("jaxlib"), "optax": optax.__version__},
        "device": [jax.default_backend(), jax.devices()[0].device_kind],
    }


def cached(directory: Path | None, identity: Mapping[str, Any], search: Callable[[], Tuning]) -> Tuning:
    """The outcome of a search: what is kept of an earlier one, or that of a new one, which is then kept.

    A directory that cannot be written, or that others can write to, is warned of, and so is a damaged entry, which is replaced.

    Args:
      directory: of the entries; made if need be; None: nothing is kept.
      identity: all that the outcome depends on.
      search: makes it.
    """
    if directory is None:
        return search()
    try:
        private_directory(directory)
    except UntrustedCacheError as error:
        warnings.warn(f"searches are neither read nor kept: {error}", stacklevel=2)
        return search()
    except OSError as error:
        warnings.warn(
            f"what was found is not kept, as {directory} cannot be written ({error.strerror}); set LOPT_CACHE_DIR to another place",
            stacklevel=2,
        )
        return search()
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]
    path = directory / f"{name}.json"
    try:
        return _decode(path.read_bytes(), identity)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError, KeyError, TypeError) as error:
        warnings.warn(f"the kept search {path} is damaged and made again: {error}", stacklevel=2)
    found = search()
    try:
        write_atomically(path, _encode(found, identity))
    except OSError as error:
        warnings.warn(
            f"what was found is not kept, as {directory} cannot be written ({error.strerror}); set LOPT_CACHE_DIR to another place",
            stacklevel=2,
        )
    return found


def _encode(tuning: Tuning, identity: Mapping[str, Any]) -> bytes:
    tried = [[*dataclasses.astuple(setting), score if math.isfinite(score) else None] for setting, score in tuning.tried]
    outcome = {
        "best": dataclasses.astuple(tuning.best),
        "tried": tried,
        "at_edge": tuning.at_edge,
        "extensions": tuning.extensions,
        "order": [dataclasses.astuple(setting) for setting in tuning.order],
    }
    body = json.dumps({"identity": identity, "outcome": outcome}).encode()
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def _decode(content: bytes, identity: Mapping[str, Any]) -> Tuning:
    checksum, _, body = content.partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != checksum:
        raise ValueError("its content is not what was written")
    entry = json.loads(body)
    if entry["identity"] != identity:
        raise ValueError("it belongs to another search")
    outcome = entry["outcome"]
    tried = tuple((Setting(*values), math.inf if score is None else score) for *values, score in outcome["tried"])
    order = tuple(Setting(*values) for values in outcome["order"])
    return Tuning(Setting(*outcome["best"]), tried, outcome["at_edge"], outcome["extensions"], cached=True, order=order)
