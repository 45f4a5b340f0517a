"""Thetas that others have published, as learned optimizers of this package: small_fc and Celo2.

Both are files of flax's msgpack: `momentum_decays`, `rms_decays` and `adafactor_decays`, differences of log(1 - decay) / 10 to those they
began with, and `nn`, the layers `w0`, `b0`, `w1`, ... of a pointwise network. Which of the two it is, the inputs of the first layer tell.
Reading such a file runs none of it.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np

from lopt.config.errors import LoptError
from lopt.features.presets import AdafactorFeatures, Celo2Features
from lopt.networks.update import DeepSetsConfig
from lopt.optimizers.base import RuleConfig
from lopt.optimizers.config import LearnedOptimizerConfig
from lopt.optimizers.direction import DirectionRule
from lopt.optimizers.magnitude import MagnitudeRule
from lopt.optimizers.nominals import NoNominal
from lopt.symmetry.spec import PyTree, WeightSpec, named_leaves

FILE = "theta.state"  # by which Celo2's repositories call it
_MOST_BYTES = 2**24  # a hundred times the largest of them
_DECAYS = {"momentum_decays": "momenta", "rms_decays": "second_moment", "adafactor_decays": "factored"}


class PublishedError(LoptError, ValueError):
    """A file that is not such a theta, or one of a kind that no rule expresses; the message names the file and what is amiss."""


@dataclasses.dataclass(frozen=True)
class _Kind:
    """What is known of a kind of theta: its rule and features, but for decays, and what its layers take and give."""

    name: str
    rule: RuleConfig
    features: AdafactorFeatures | Celo2Features
    inputs: int
    outputs: int
    used: int


_KINDS = (
    _Kind("small_fc", MagnitudeRule(), AdafactorFeatures(), inputs=39, outputs=2, used=2),
    # Of Celo2's outputs the first is the direction; its magnitude is not used.
    _Kind(
        "Celo2",
        DirectionRule(nominal=NoNominal(), orthogonalize=True, over="matrix"),
        Celo2Features(),
        inputs=30,
        outputs=3,
        used=1,
    ),
)


def is_published(path: str | Path) -> bool:
    """Whether a path is meant as that of a published theta: a file whose name ends in .state or .msgpack, or a folder with theta.state."""
    path = Path(path)
    return path.suffix in (".state", ".msgpack") or (path / FILE).is_file()


def read_published(path: str | Path) -> tuple[LearnedOptimizerConfig, PyTree]:
    """A published theta.

    Args:
      path: of the file, or of a folder with theta.state.

    Returns:
      The optimizer, with the file's decays and widths, and its theta. Of Celo2's three outputs the first is used. Vectors are moved by
      the network too, where Celo2's own code leaves them and embeddings to AdamW. Momenta of vectors are divided by the root of
      v + 1e-6, as in learned_optimization's repository; its release 0.0.1 has no 1e-6 there, which shows where gradients are below .01.

    Raises:
      PublishedError: naming the file and what is amiss.
    """
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    tree = _restored(path)
    layers = _layers(path, tree)
    inputs, outputs = layers[0][0].shape[0], layers[-1][0].shape[1]
    kind = next((kind for kind in _KINDS if (kind.inputs, kind.outputs) == (inputs, outputs)), None)
    if kind is None:
        known = " and ".join(f"{kind.name} ({kind.inputs} to {kind.outputs})" for kind in _KINDS)
        raise PublishedError(f"{path}: its network maps {inputs} numbers to {outputs}; thetas of {known} can be read")
    features = dataclasses.replace(kind.features, **_decays(path, tree, kind.features))
    optimizer = LearnedOptimizerConfig(kind.rule, features, DeepSetsConfig(tuple(kernel.shape[1] for kernel, _ in layers[:-1])))
    theta = optimizer.make(WeightSpec(())).init(jax.random.key(0))
    last_kernel, last_bias = layers[-1]
    theta["network"] = {
        "pointwise": {f"dense{i}": {"kernel": kernel, "bias": bias} for i, (kernel, bias) in enumerate(layers[:-1])},
        "last": {"kernel": last_kernel[:, : kind.used], "bias": last_bias[: kind.used]},
    }
    return optimizer, jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), theta)


def _restored(path: Path) -> Mapping[str, Any]:
    try:
        data = path.read_bytes() if path.stat().st_size <= _MOST_BYTES else None
    except OSError as error:
        raise PublishedError(f"{path} cannot be read: {error.strerror or error}") from error
    if data is None:
        raise PublishedError(f"{path} has more than {_MOST_BYTES:,} bytes: it is not a theta of small_fc or Celo2")
    try:
        tree = flax.serialization.msgpack_restore(data)
    except Exception as error:  # msgpack's and NumPy's own, of many classes
        raise PublishedError(f"{path} is not a file of flax's msgpack: {error}") from error
    if isinstance(tree, Mapping) and "lstm_init_state" in tree:
        raise PublishedError(
            f"{path} is a theta of VeLO's kind: a recurrent network for each tensor mixes its layers; no rule of lopt does"
        )
    if not isinstance(tree, Mapping) or "nn" not in tree:
        raise PublishedError(f"{path} has no 'nn', the layers of small_fc or Celo2")
    return tree


def _layers(path: Path, tree: Mapping[str, Any]) -> list[tuple[np.ndarray, np.ndarray]]:
    found: dict[str, np.ndarray] = {}
    for name, value in named_leaves(dict(tree["nn"])):
        leaf = name.rsplit("/", 1)[-1]
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or not np.isfinite(value).all():
            raise PublishedError(f"{path}: nn/{name} is not an array of finite numbers")
        found[leaf] = value
    count = len(found) // 2
    wanted = [f"{letter}{i}" for i in range(count) for letter in "wb"]
    if count < 2 or sorted(found) != sorted(wanted):
        raise PublishedError(f"{path}: nn has {sorted(found)}, not the layers w0, b0, w1, b1, ...")
    layers = [(found[f"w{i}"], found[f"b{i}"]) for i in range(count)]
    width = None
    for i, (kernel, bias) in enumerate(layers):
        if kernel.ndim != 2 or bias.shape != kernel.shape[1:] or (width is not None and kernel.shape[0] != width):
            raise PublishedError(
                f"{path}: nn/w{i} and nn/b{i} have shapes {kernel.shape} and {bias.shape}, after {width} features"
            )
        width = kernel.shape[1]
    return layers


def _decays(path: Path, tree: Mapping[str, Any], begun: AdafactorFeatures | Celo2Features) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, field in _DECAYS.items():
        start = begun.momenta if field == "factored" else getattr(begun, field)
        start = start if isinstance(start, tuple) else (start,)
        shift = np.asarray(tree.get(name, np.zeros(len(start))), np.float64)
        if shift.shape != (len(start),) or not np.isfinite(shift).all():
            raise PublishedError(f"{path}: {name} is {shift.tolist()}, not {len(start)} finite numbers")
        decays = tuple(-math.expm1(math.log1p(-d) + 10 * x) if x else d for d, x in zip(start, shift.tolist(), strict=True))
        if not all(0 <= d < 1 for d in decays):
            raise PublishedError(f"{path}: {name} gives decays {decays}, which are not all in [0, 1)")
        found[field] = decays if field != "second_moment" else decays[0]
    return found if found["factored"] != found["momenta"] else found | {"factored": None}
