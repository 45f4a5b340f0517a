"""Trained optimizers as optax transforms: shipped ones by name, those of run directories, folders, and repositories of the Hub.

An update network that sees a weight together with others must know which axes of which weights belong together: it takes a spec, which
`lopt.symmetry.infer_spec` reads off the loss. One that sees every weight alone needs none (`lopt.pretrained.bind`).
"""

import dataclasses
import difflib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import jax
import optax

from lopt.config import CONFIG_FILE, ConfigError, load_part
from lopt.features.base import StateDtype
from lopt.optimizers.config import LearnedOptimizerConfig
from lopt.optimizers.momentum import OptimizerConfig
from lopt.optimizers.published import FILE as PUBLISHED
from lopt.optimizers.published import is_published, read_published
from lopt.pretrained import hub
from lopt.pretrained.bind import Trained, needs_spec, rule_of, transform
from lopt.pretrained.card import CARD_FILE, Card, CardError, card_optimizer, card_specs, read_card, read_folder
from lopt.symmetry.spec import PyTree, WeightSpec
from lopt.task.families import TaskMixture
from lopt.training import checkpoint

SHIPPED = Path(__file__).with_name("weights")


class Catalogue(Mapping[str, Card]):
    """Cards by name; shown as a table of names and summaries."""

    def __init__(self, cards: Mapping[str, Card]) -> None:
        self._cards = dict(cards)

    def __getitem__(self, name: str) -> Card:
        return self._cards[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._cards)

    def __len__(self) -> int:
        return len(self._cards)

    def __repr__(self) -> str:
        width = max(map(len, self._cards), default=0)
        return "\n".join(f"{name:<{width}}  {card.summary}" for name, card in self._cards.items())


def available() -> Catalogue:
    """The trained optimizers that come with the package: name -> `Card`, what is known of each. Printed, it is a list with a line each.

    Example:
      >>> "lopt-direction-unf" in available()
      True
    """
    return Catalogue({folder.name: read_card(folder) for folder in sorted(SHIPPED.iterdir()) if folder.is_dir()})


def load(
    source: str | os.PathLike[str],
    *,
    learning_rate: optax.ScalarOrSchedule | None = None,
    weight_decay: float = 0.0,
    num_steps: int | None = None,
    spec: WeightSpec | None = None,
    state_dtype: StateDtype | None = None,
    best: bool = True,
    trust: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """A trained optimizer as an optax transform: `update(grads, state, params)` in any loop, chain or wrapper.

    Args:
      source: the name of a shipped optimizer (`available()` lists them); a run directory; a folder with theta.safetensors and
        card.json; or `hf://owner/name`, with `@revision` if need be, for such a folder in a repository of the Hub. A name wins over a
        directory that is called so; `./name` is the directory. Also a theta of small_fc or of Celo2 as these were published: a file of
        flax's msgpack, theta.state, or a folder or repository with it.
      learning_rate: a number or a schedule of optax, for optimizers that give a direction; the others set their own step size. Without
        one, a direction that is told num_steps has the rate and the schedule that it was meta-trained with.
      weight_decay: decoupled, as of `optax.adamw`: times the learning rate, or the optimizer's own step size. Where theta has a decay of
        its own, any other than 0 takes its place.
      num_steps: steps of the whole training, for optimizers that anneal by what is left of it, and for a direction without a
        learning rate.
      spec: which axes of the weights may be permuted together, `infer_spec(loss, params, batch)`. Needed by networks that see weights
        together (UNF, NFN). Without one, rules on matrices (steps of Muon and Shampoo, directions) take the last two axes of a weight,
        and all of a convolution's; with one the inputs and outputs of its layer, as of a kernel [embed, heads, width].
      state_dtype: how what the network sees is kept between steps, "bfloat16" for half of its memory; None: as meta-trained. The momenta
        and covariances of a nominal step stay float32.
      best: of a run, the theta that did best in its held-out evaluations, where there were any; False: the newest.
      trust: of a run, import the classes and functions that its config names, although they are not lopt's and the run was not made by
        this user on this machine.

    Returns:
      The transform. It needs `params`, keeps their dtypes and computes in float32.

    Raises:
      ValueError: if there is no such optimizer, or it needs a spec or a learning rate and none is given, or sets its own step size and
        one is given, or state_dtype is none of the two or there is nothing that is kept in it; says what to pass.
      CardError: naming the file that is missing, damaged or exchanged, or the leaf of theta that does not fit its config or the spec.
      CheckpointError: naming the run without a checkpoint that is whole.
      PublishedError: naming the file of msgpack that is no theta of small_fc or Celo2, and why.
      UntrustedConfigError: naming what a run's config would have imported.
      ImportError: if the Hub's client is not installed.

    Warns:
      UserWarning: by `init`, once, if a weight has far more inputs than any that the optimizer's card says it was seen to work on, and the
        optimizer sets its own step size.

    Example:
      >>> tx = load("lopt-direction", num_steps=1000)
      >>> params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> updates["w"].shape
      (3, 2)
    """
    trained = _decayed(_open(source, spec, state_dtype, best, trust), weight_decay)
    rule = rule_of(trained.config)
    if rule is not None and rule.needs_rate:
        if learning_rate is None and num_steps is None:
            usual = getattr(rule, "learning_rate", 0.01)
            raise ValueError(
                f"'{trained.name}' gives a direction, the learning rate is yours: learning_rate={usual:g} is a start, or a schedule of "
                "optax; or num_steps=N, the steps of the whole training, and it has the rate and the schedule that it was meta-trained with"
            )
        if learning_rate is None:
            return _told(transform(trained, spec), num_steps)
        tx = transform(trained, spec, direction=True)
        return _told(optax.chain(tx, optax.scale_by_learning_rate(learning_rate)), num_steps)
    if learning_rate is not None:
        raise ValueError(
            f"'{trained.name}' sets its own step size and takes no learning_rate; to make its steps smaller, "
            "optax.chain(lopt.load(...), optax.scale(0.5)), or optax.scale_by_schedule"
        )
    return _told(transform(trained, spec), num_steps)


def scale_by(
    source: str | os.PathLike[str],
    *,
    num_steps: int | None = None,
    spec: WeightSpec | None = None,
    state_dtype: StateDtype | None = None,
    best: bool = True,
    trust: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """The direction of a trained optimizer alone, positive like that of `optax.scale_by_adam`, to be chained in the same way.

        optax.chain(lopt.scale_by(name), optax.add_decayed_weights(1e-2), optax.scale_by_learning_rate(schedule))

    Of an optimizer that sets its own step size, the direction has that size: the learning rate is then a multiple, 1 as trained.

    Args:
      source: as for `load`.
      num_steps: as for `load`.
      spec: as for `load`.
      state_dtype: as for `load`.
      best: as for `load`.
      trust: as for `load`.

    Raises:
      As `load`.

    Example:
      >>> import optax
      >>> tx = optax.chain(scale_by("lopt-direction"), optax.scale_by_learning_rate(0.03))
      >>> params = {"w": jnp.ones((3, 2))}
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> whole = load("lopt-direction", learning_rate=0.03)
      >>> bool(jnp.allclose(updates["w"], whole.update(params, whole.init(params), params)[0]["w"]))
      True
    """
    return _told(transform(_open(source, spec, state_dtype, best, trust), spec, direction=True), num_steps)


def _open(
    source: str | os.PathLike[str], spec: WeightSpec | None, state_dtype: StateDtype | None, best: bool, trust: bool
) -> Trained:
    with jax.ensure_compile_time_eval():  # under jit too, as by `optax.inject_hyperparams`, theta is numbers that can be checked
        trained = open_trained(source, best=best, trust=trust)
    if spec is None and needs_spec(trained.config):
        raise ValueError(_no_spec(trained))
    return trained if state_dtype is None else _kept_in(trained, state_dtype)


def _kept_in(trained: Trained, state_dtype: StateDtype) -> Trained:
    """The same with what its network sees kept in another precision."""
    if state_dtype not in get_args(StateDtype):
        raise ValueError(f"state_dtype must be one of {', '.join(map(repr, get_args(StateDtype)))}, got {state_dtype!r}")
    parts = trained.config.parts
    if not isinstance(parts, LearnedOptimizerConfig) or parts.features is None:
        raise ValueError(f"'{trained.name}' has no features, so it takes no state_dtype")
    features = dataclasses.replace(parts.features, state_dtype=state_dtype)
    return trained._replace(config=dataclasses.replace(parts, features=features))


def _decayed(trained: Trained, weight_decay: float) -> Trained:
    """The same with another weight decay, unless it is 0: in the place of one that was learned."""
    if isinstance(weight_decay, float | int) and weight_decay == 0:
        return trained
    rule, parts = rule_of(trained.config), trained.config.parts
    if rule is None or not isinstance(parts, LearnedOptimizerConfig):
        raise ValueError(f"'{trained.name}' is of a kind that takes no weight_decay")
    rule = dataclasses.replace(rule, weight_decay=weight_decay, learn_weight_decay=False)
    theta = {name: leaf for name, leaf in trained.theta.items() if name != "weight_decay"}
    return trained._replace(config=dataclasses.replace(parts, rule=rule), theta=theta)


def _told(tx: optax.GradientTransformationExtraArgs, num_steps: int | None) -> optax.GradientTransformationExtraArgs:
    """The transform, told how many steps the training has, unless the loop says so itself."""
    if num_steps is None:
        return tx
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")

    def update(updates: PyTree, state: Any, params: PyTree | None = None, **extra_args: Any) -> tuple[PyTree, Any]:
        return tx.update(updates, state, params, **{"num_steps": num_steps, **extra_args})

    return optax.GradientTransformationExtraArgs(tx.init, update)


def open_trained(source: str | os.PathLike[str], *, best: bool = True, trust: bool = False) -> Trained:
    """Read a trained optimizer; arguments and errors as of `load`."""
    name = os.fspath(source)
    if name.startswith(hub.SCHEME):
        return _from_folder(hub.download(name), name)
    shipped = SHIPPED / name
    if os.path.basename(name) == name and (shipped / CARD_FILE).is_file():
        return _from_folder(shipped, name)
    path = Path(name)
    if (path / CARD_FILE).is_file() or is_published(path):
        return _from_folder(path, name)
    if (path / CONFIG_FILE).is_file():
        return _from_run(path, best, trust)
    if path.is_dir():
        raise CardError(
            f"{path} is neither a run, with {CONFIG_FILE}, nor an optimizer's folder, with {CARD_FILE} and "
            f"{checkpoint.THETA_FILE}, nor one with a published {PUBLISHED}"
        )
    names = sorted(available())
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise ValueError(f"there is no optimizer and no directory '{name}'; {hint}The shipped optimizers are: {', '.join(names)}")


def is_trained(name: str) -> bool:
    """Whether a name is meant as that of a trained optimizer, rather than of one by hand: shipped, a path, an address, or a directory."""
    shipped = os.path.basename(name) == name and (SHIPPED / name / CARD_FILE).is_file()
    folder = any((Path(name) / file).is_file() for file in (CONFIG_FILE, CARD_FILE))
    return shipped or os.sep in name or folder or is_published(name)


def _from_folder(folder: Path, name: str) -> Trained:
    """With a card, or else a published theta; also the file of one."""
    if is_published(folder) and not (folder / CARD_FILE).is_file():
        config, theta = read_published(folder)
        return Trained(name, config, theta, lambda: (), str(folder))
    card, theta = read_folder(folder)
    inputs = max((found["inputs"] for found in card.seen.values()), default=None)
    return Trained(
        name, card_optimizer(card, folder), theta, lambda: card_specs(card, folder), str(folder / checkpoint.THETA_FILE), inputs
    )


def _from_run(run_dir: Path, best: bool, trust: bool) -> Trained:
    config = load_part(run_dir, "optimizer", trust=trust)  # its tasks need not be importable here
    if not isinstance(config, OptimizerConfig):
        raise ConfigError(
            f"{run_dir / CONFIG_FILE}: optimizer is {type(config).__name__}, which is not the config of an optimizer"
        )
    theta, *_ = checkpoint.chosen_theta(run_dir, best=best)

    def specs() -> tuple[WeightSpec, ...]:
        made = load_part(run_dir, "task", trust=trust).make()
        return tuple(problem.spec for problem in (made.problems if isinstance(made, TaskMixture) else (made,)))

    return Trained(str(run_dir), config, theta, specs, str(run_dir))


def call_of(trained: Trained) -> str:
    """How a program loads it, with what it needs."""
    rule = rule_of(trained.config)
    steps = ", num_steps=N" if rule is not None and rule.needs_rate else ""  # or a learning_rate
    spec = ", spec=lopt.infer_spec(loss, params, batch)" if needs_spec(trained.config) else ""
    return f"lopt.load({trained.name!r}{steps}{spec})"


def _no_spec(trained: Trained) -> str:
    alone = [other for other, card in available().items() if not needs_spec(card_optimizer(card, SHIPPED / other))]
    return (
        f"'{trained.name}' updates a weight by what it sees of others, so it must know which axes of the weights belong together. Write\n"
        f"    tx = {call_of(trained)}\n"
        f"with what your loss takes after params, or load one that needs no spec: {', '.join(alone)}"
    )
