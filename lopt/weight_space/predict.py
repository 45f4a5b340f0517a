"""Predictors of a label in [0, 1] from the weights of a model, trained on one part of a zoo and tested on another.

"Universal Neural Functionals" (Zhou, Finn, Harrison, NeurIPS 2024), section 5.1: binary cross entropy, Adam, batches of 10, up to 10
epochs, the epoch that is best on the validation part. The test part is looked at once, by that theta.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lopt.layers.base import Layer
from lopt.layers.begin import begin_as_deep_sets
from lopt.layers.deep_sets import deep_sets_layer, pooled_deep_sets_layer
from lopt.layers.dense import perceptron
from lopt.layers.shared_unf import shared_unf_layer
from lopt.layers.unf import unf_layer
from lopt.networks.predictors import Predictor, invariant_predictor, statistics, statistics_predictor
from lopt.symmetry.spec import PyTree, WeightSpec
from lopt.weight_space.read import Zoo
from lopt.weight_space.store import ZooError

Method = Literal["unf", "statnn", "deep_sets", "pooled_deep_sets", "shared_unf"]
LAYERS: Mapping[str, Callable[[WeightSpec, int, int], Layer]] = MappingProxyType(
    {
        "unf": unf_layer,
        "shared_unf": shared_unf_layer,
        "deep_sets": deep_sets_layer,
        "pooled_deep_sets": pooled_deep_sets_layer,
    }
)


@dataclasses.dataclass(frozen=True)
class PredictionConfig:
    """A predictor and how it is trained; the defaults are the paper's."""

    method: Method = "unf"
    """Equivariant layers of one kind, or a perceptron on statistics of each tensor (`statnn`)."""
    channels: tuple[int, ...] = (16, 16, 16)
    """Of each equivariant layer (the paper: 16 16 16)."""
    terms: float | None = 0.1
    """Layers that bring weights together are a pointwise map shared by all tensors plus this fixed multiple of their own terms, as in
    update networks (`lopt.layers.begin`): small zoos do not undo features that mix all tensors of a shape. None: their own terms
    alone, the paper."""
    hidden: tuple[int, ...] = (512,)
    """Widths of the perceptron behind them (the paper: 512)."""
    statistics_hidden: tuple[int, ...] = (600, 600)
    """Widths of the perceptron of `statnn` (the paper: 600, how many layers is not said)."""
    learning_rate: float = 1e-3
    """Adam's (the paper: 1e-3)."""
    batch_size: int = 10
    """Models a batch (the paper: 10)."""
    epochs: int = 10
    """Times that the training part is seen, at most (the paper: 10)."""
    patience: int = 3
    """Epochs without a smaller validation loss after which training ends."""
    valid: float = 0.1
    """Part of the zoo for validation (the paper: 0.1)."""
    test: float = 0.1
    """Part of the zoo for testing (the paper: 0.1)."""
    split_seed: int = 0
    """Of the parts."""
    train_models: int | None = None
    """Models of the training part that are used, at most: how good a predictor gets with fewer. None: all."""
    cross_validate: bool = False
    """Each seed has a test part of its own, so that 1 / `test` seeds test every model of the zoo once: differences between predictors
    are told on all models then, not on one part of them."""

    ABSENT: ClassVar[Mapping[str, Any]] = MappingProxyType(  # in files from before there was the field
        {"terms": None, "cross_validate": False}
    )
    GONE: ClassVar[Mapping[str, Any]] = MappingProxyType({"others": None})  # in files from when there was one

    def __post_init__(self) -> None:
        """Raise `ValueError` for a field that is out of range."""
        if self.method not in get_args(Method):
            raise ValueError(f"method must be one of {', '.join(get_args(Method))}, got {self.method!r}")
        for name in ("batch_size", "epochs", "patience", "train_models"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.terms is not None and not self.terms > 0:
            raise ValueError(f"terms must be positive, or None, got {self.terms}")
        if not self.learning_rate > 0 or not 0 < self.valid < 1 or not 0 < self.test < 1 or self.valid + self.test >= 1:
            raise ValueError("learning_rate must be positive, valid and test parts in (0, 1) that leave something to train on")

    def make(self, spec: WeightSpec) -> Predictor:
        """The predictor for models of a spec, of one channel: the weights."""
        if self.method == "statnn":
            return statistics_predictor(spec, hidden=self.statistics_hidden)
        make, terms = LAYERS[self.method], self.terms

        def layer(spec: WeightSpec, c_in: int, c_out: int) -> Layer:
            own = make(spec, c_in, c_out)
            return own if terms is None or self.method == "deep_sets" else begin_as_deep_sets(own, spec, c_in, c_out, terms)

        return invariant_predictor(spec, layer, channels=(1, *self.channels), hidden=self.hidden)


class Scores(NamedTuple):
    """How good predictions are.

    Attributes:
      tau: Kendall's rank correlation (tau-b) of prediction and label.
      r2: part of the labels' variance that is explained.
      loss: mean binary cross entropy, in nats.
    """

    tau: float
    r2: float
    loss: float


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What one training came to.

    Attributes:
      seed: of initial theta and order.
      epoch: the one that was best on the validation part, from 1.
      epochs: how many there were.
      valid: scores of that epoch on the validation part.
      test: on the test part.
      predicted: of the test part, [N_test].
      labels: of the test part, [N_test].
    """

    seed: int
    epoch: int
    epochs: int
    valid: Scores
    test: Scores
    predicted: np.ndarray
    labels: np.ndarray


def split(count: int, config: PredictionConfig, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of the models for training, validation and testing: fixed by their number and `config.split_seed`.

    Args:
      count: models in the zoo.
      config: how large the parts are; with `cross_validate` test parts of different seeds have no model in common.
      seed: of the training; matters with `cross_validate` alone.

    Raises:
      ZooError: if a part would be empty, or for a seed whose test part would be that of an earlier one.
    """
    order = np.argsort(np.random.PCG64(config.split_seed).random_raw(count), kind="stable")
    valid, test = round(count * config.valid), round(count * config.test)
    if min(valid, test, count - valid - test) < 1:
        raise ZooError(
            f"{count} models are too few for parts of {config.valid} and {config.test} of them; each needs one at least"
        )
    if config.cross_validate:
        if seed >= count // test:
            raise ZooError(f"{count} models are {count // test} test parts of {test}: there is none for seed {seed}")
        order = np.roll(order, -seed * test)
    return order[valid + test :][: config.train_models], order[:valid], order[valid : valid + test]


def kendall_tau(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Kendall's rank correlation, tau-b: ties count for neither order."""
    from scipy.stats import kendalltau

    return float(np.asarray(kendalltau(predicted, labels)[0]))


def scores(predicted: np.ndarray, labels: np.ndarray) -> Scores:
    """Scores of predictions in (0, 1).

    Example:
      >>> scores(np.array([0.2, 0.4, 0.9]), np.array([0.1, 0.5, 0.8])).tau
      1.0
    """
    clipped = np.clip(predicted, 1e-7, 1 - 1e-7)
    loss = -float(np.mean(labels * np.log(clipped) + (1 - labels) * np.log1p(-clipped)))
    variation = float(np.sum((labels - labels.mean()) ** 2))
    return Scores(
        kendall_tau(predicted, labels),
        1 - float(np.sum((labels - predicted) ** 2)) / variation if variation > 0 else float("nan"),
        loss,
    )


def check_labels(zoo: Zoo) -> None:
    """Raise `ZooError`, naming the model, unless all labels lie in [0, 1]."""
    outside = np.flatnonzero((zoo.labels < 0) | (zoo.labels > 1))
    if outside.size:
        first = outside[0]
        raise ZooError(
            f"the label of {zoo.names[first]} is {zoo.labels[first]:g}; predictors need labels in [0, 1], such as a success rate"
        )


def train_predictor(
    zoo: Zoo,
    config: PredictionConfig,
    seed: int,
    progress: Callable[[int, float], None] = lambda epoch, loss: None,
) -> Prediction:
    """Train one predictor on a zoo, choose its epoch by the validation part, and test it.

    Args:
      zoo: the models.
      config: the predictor.
      seed: of its initial theta and of the order of models.
      progress: called after each epoch with its number and the validation loss.

    Raises:
      ZooError: naming the model whose label is not in [0, 1], or if there are too few.
    """
    check_labels(zoo)
    train, valid, test = split(len(zoo.labels), config, seed)
    predictor, labels = config.make(zoo.spec), jnp.asarray(zoo.labels)
    predict, inputs = _prepared(zoo, config, predictor, train)
    optimizer = optax.adam(config.learning_rate)

    def loss(theta: PyTree, model: jax.Array) -> jax.Array:
        output = predict(theta, jax.tree.map(lambda x: x[model], inputs))[0]
        return optax.sigmoid_binary_cross_entropy(output, labels[model])

    @jax.jit
    def epoch(theta: PyTree, state: Any, batches: jax.Array) -> tuple[PyTree, Any]:
        def step(carry: tuple[PyTree, Any], index: jax.Array) -> tuple[tuple[PyTree, Any], None]:
            theta, state = carry
            with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
                updates, state = optimizer.update(_mean_gradient(loss, theta, index), state, theta)
            return (optax.apply_updates(theta, updates), state), None

        return jax.lax.scan(step, (theta, state), batches)[0]

    @jax.jit
    def outputs(theta: PyTree, index: jax.Array) -> jax.Array:
        return jax.lax.map(lambda i: jax.nn.sigmoid(predict(theta, jax.tree.map(lambda x: x[i], inputs))[0]), index)

    def judge(theta: PyTree, index: np.ndarray) -> tuple[Scores, np.ndarray]:
        predicted = np.asarray(outputs(theta, jnp.asarray(index)), np.float64)
        return scores(predicted, zoo.labels[index].astype(np.float64)), predicted

    key = jax.random.key(seed)
    theta = predictor.init(jax.random.fold_in(key, 0))
    state, order = optimizer.init(theta), np.random.default_rng(seed)
    best, best_epoch, best_theta, done = Scores(np.nan, np.nan, np.inf), 0, theta, 0
    for done in range(1, config.epochs + 1):
        theta, state = epoch(theta, state, jnp.asarray(_batches(train, config.batch_size, order)))
        found, _ = judge(theta, valid)
        progress(done, found.loss)
        if found.loss < best.loss:
            best, best_epoch, best_theta = found, done, theta
        if done - best_epoch >= config.patience:
            break
    tested, predicted = judge(best_theta, test)
    return Prediction(seed, best_epoch, done, best, tested, predicted, zoo.labels[test].astype(np.float64))


def _mean_gradient(loss: Callable[[PyTree, jax.Array], jax.Array], theta: PyTree, index: jax.Array) -> PyTree:
    """The gradient of the mean of `loss(theta, model)` over the models of a batch."""
    if jax.default_backend() != "cpu":
        return jax.grad(lambda theta: jnp.mean(jax.vmap(loss, in_axes=(None, 0))(theta, index)))(theta)

    # One model after another: the features of one stay in the cache of a core, those of a batch do not.
    def add(total: PyTree, model: jax.Array) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, jax.grad(loss)(theta, model)), None

    total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, theta), index)
    return jax.tree.map(lambda x: x / len(index), total)


def _batches(train: np.ndarray, size: int, order: np.random.Generator) -> np.ndarray:
    """Models in a new order, [batches, size]; those that fill no batch are left out this time."""
    size = min(size, len(train))
    shuffled = order.permutation(train)
    return shuffled[: len(train) // size * size].reshape(-1, size)


def _prepared(
    zoo: Zoo, config: PredictionConfig, predictor: Predictor, train: np.ndarray
) -> tuple[Callable[[PyTree, PyTree], jax.Array], PyTree]:
    """`predict(theta, input) -> [1]` and the inputs of all models, standardised by what the training part has.

    Of each tensor the mean and the deviation are two numbers, so that no symmetry is lost. Statistics do not change while their
    perceptron is trained: they are computed once.
    """
    if config.method != "statnn":
        weights = {path: _standardized(array, train, axis=None) for path, array in zoo.weights.items()}
        return predictor.apply, {path: jnp.asarray(array)[..., None] for path, array in weights.items()}
    raw = {path: jnp.asarray(array)[..., None] for path, array in zoo.weights.items()}
    found = jax.jit(functools.partial(jax.lax.map, functools.partial(statistics, zoo.spec)))(raw)
    return perceptron, jnp.asarray(_standardized(np.asarray(found), train, axis=0))


def _standardized(array: np.ndarray, train: np.ndarray, axis: int | None) -> np.ndarray:
    mean, deviation = array[train].mean(axis=axis, keepdims=True), array[train].std(axis=axis, keepdims=True)
    return (array - mean) / (deviation + np.float32(1e-8))
