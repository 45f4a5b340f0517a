"""A fair race: frozen optimizers and tuned baselines on unseen initialisations, with the same batches for all.

For each seed every competitor starts from the same params and sees the same minibatches, so that differences are those of the
optimizers. Learning rates of the baselines are tuned on seeds of their own; neither these nor the racing seeds are among those of
the meta-training. Figures are defined in `lopt.summary`.
"""

import dataclasses
import time
import zlib
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lopt.baselines import Tuning, TuningError, find_baseline, tune
from lopt.summary import Curve, Row, final_losses, summarize, target_loss
from lopt.symmetry.spec import PyTree
from lopt.task import Datasets, Problem, as_family
from lopt.unroll import InnerState, make_inner_step

# Folded into the root key, far beyond any outer step, so that no key of a race is one of the meta-training's.
RACE, TUNE = (zlib.crc32(name) for name in (b"lopt.evaluate.race", b"lopt.evaluate.tune"))


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """How a meta-trained optimizer is judged."""

    steps: int = 2000
    """Inner steps T of each training, of the tuning too."""
    seeds: int = 10
    """Initialisations K that every competitor is raced from."""
    tuning_seeds: int = 4
    """Initialisations that each learning rate of a baseline is tried on; disjoint from those of the race."""
    points_per_decade: int = 2
    """Density of the learning-rate grids: 2 tries 0.01, 0.032, 0.1, ..."""
    max_extensions: int = 4
    """Learning rates tried beyond the edge of a grid whose best lies there."""
    window: int = 100
    """Steps over which final losses are averaged; T / 10 where that is shorter."""
    baselines: tuple[str, ...] = ("adam", "sgdm")
    """Rivals by name (adam, sgdm, any optimizer of optax) with tuned learning rates, or as `adamw:1e-3` with a given one; the first
    one's final loss is the target that the others are timed to."""

    def __post_init__(self) -> None:
        for name in ("steps", "seeds", "tuning_seeds", "points_per_decade", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"evaluation.{name} must be at least 1, got {getattr(self, name)}")
        if self.max_extensions < 0:
            raise ValueError(f"evaluation.max_extensions must not be negative, got {self.max_extensions}")
        if not self.baselines:
            raise ValueError("evaluation.baselines is empty; the first of them sets the loss to reach, such as ('adam', 'sgdm')")
        labels = [find_baseline(name).label for name in self.baselines]
        repeated = sorted({label for label in labels if labels.count(label) > 1})
        if repeated:
            raise ValueError(f"evaluation.baselines names these twice: {', '.join(repeated)}")

    @property
    def smoothing(self) -> int:
        """The window in force: `window`, or T / 10 if that is shorter."""
        return min(self.window, max(1, self.steps // 10))


@dataclasses.dataclass(frozen=True)
class Competitor:
    """An optimizer in a race: a function to an optax transform, and what it is a function of.

    Attributes:
      name: how tables and figures call it.
      opt_fn: `opt_fn(theta) -> optax transform`; competitors that share it share one compilation.
      theta: pytree of arrays: the meta-parameters, or a learning rate.
      reference: its mean final loss is the target.
    """

    name: str
    opt_fn: Callable[[PyTree], optax.GradientTransformation]
    theta: PyTree
    reference: bool = False


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """All that a race found.

    Attributes:
      task: name of the task.
      config: how it was run.
      curves: one a competitor, in the table's order.
      tunings: title of a baseline -> the search for its learning rate, where that was not given.
    """

    task: str
    config: EvaluationConfig
    curves: tuple[Curve, ...]
    tunings: Mapping[str, Tuning]

    @property
    def rows(self) -> list[Row]:
        """The rows of the summary table."""
        return summarize(self.curves, self.config.smoothing)

    @property
    def target(self) -> float:
        """The loss to reach: the reference's mean final training loss."""
        return target_loss(next(curve for curve in self.curves if curve.reference), self.config.smoothing)


def seed_keys(key: jax.Array, seeds: int) -> jax.Array:
    """One key a seed, [K]: seed k has the same key however many seeds there are."""
    return jax.vmap(lambda k: jax.random.fold_in(key, k))(jnp.arange(seeds))


def train_fn(problem: Problem, opt_fn: Callable[[PyTree], optax.GradientTransformation], steps: int) -> jax.stages.Wrapped:
    """Inner training of frozen optimizers as one program: a scan over steps, mapped over seeds, sharded over devices.

    theta (or a learning rate) is an argument, so that one compilation serves all of its values. The data are an argument as well;
    closed over, they would become constants of the program.

    Args:
      problem: what is trained: a task, or a family of which each seed draws one. Its datasets are given to the result.
      opt_fn: `opt_fn(theta) -> optax transform`; its `update` is given `value=loss`.
      steps: T.

    Returns:
      Jitted `train(theta, keys, datasets) -> (trained, losses)`: keys [K], an `InnerState` with leaves [K, ...] after T steps (the
      optimizer's state left out), losses [K, T] float32, where losses[k, t] is that of the minibatch whose gradient step t takes.
    """
    family = as_family(problem)

    def train_one(theta: PyTree, key: jax.Array, datasets: Datasets) -> tuple[InnerState, jax.Array]:
        transform = optax.with_extra_args_support(opt_fn(theta))
        init_key, run_key, _ = jax.random.split(key, 3)
        variant, params, model = family.start(init_key)
        split, inner_step = family.view(variant, datasets).train, make_inner_step(family.task_fn(variant), transform)

        def step(state: InnerState, t: jax.Array) -> tuple[InnerState, jax.Array]:
            batch_key, loss_key = jax.random.split(jax.random.fold_in(run_key, t))
            state, loss = inner_step(state, loss_key, split.batch(batch_key))
            return state, loss.astype(jnp.float32)

        state, losses = jax.lax.scan(step, InnerState(params, transform.init(params), model, variant), jnp.arange(steps))
        return state._replace(optimizer=()), losses

    return jax.jit(_over_seeds(train_one, batched=jax.default_backend() != "cpu"))


def metrics_fn(problem: Problem) -> jax.stages.Wrapped:
    """Jitted `metrics(None, (trained, keys), datasets) -> {metric: [K]}`: the task's, and "loss", on the whole test split."""
    family = as_family(problem)

    def metrics_one(_: None, seed: tuple[InnerState, jax.Array], datasets: Datasets) -> dict[str, jax.Array]:
        state, key = seed
        _, _, test_key = jax.random.split(key, 3)
        task, batch = family.task_fn(state.variant), family.view(state.variant, datasets).test.all()
        loss, _ = task.loss_with_state(state.params, state.model, test_key, batch)
        return {"loss": loss, **task.metrics_with_state(state.params, state.model, test_key, batch)}

    return jax.jit(_over_seeds(metrics_one, batched=False))


def _over_seeds(one: Callable[..., PyTree], batched: bool) -> Callable[..., PyTree]:
    """Map the second of three arguments over its leading axis K, sharded over the local devices.

    On CPU seeds run one after another on each device: with a learned optimizer, whose features then stay in the core's cache, one
    device a core and a loop over seeds was the fastest of the four ways measured (one device or one a core, loop or batch).
    Accelerators want the batch.
    """
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()), ("seeds",))
    split, everywhere = jax.sharding.PartitionSpec("seeds"), jax.sharding.PartitionSpec()

    def shard(theta: PyTree, seeds: PyTree, datasets: Datasets) -> PyTree:
        def single(seed: PyTree) -> PyTree:
            return one(theta, seed, datasets)

        return jax.vmap(single)(seeds) if batched else jax.lax.map(single, seeds)

    def all_seeds(theta: PyTree, seeds: PyTree, datasets: Datasets) -> PyTree:
        K = jax.tree.leaves(seeds)[0].shape[0]
        used = jnp.arange(-(-K // mesh.size) * mesh.size) % K  # fills the last round of devices; what it adds is cut off
        mapped = jax.shard_map(shard, mesh=mesh, in_specs=(everywhere, split, everywhere), out_specs=split, check_vma=False)
        results = mapped(theta, jax.tree.map(lambda leaf: leaf[used], seeds), datasets)
        return jax.tree.map(lambda leaf: leaf[:K], results)

    return all_seeds


def tune_baseline(problem: Problem, name: str, config: EvaluationConfig, key: jax.Array) -> Tuning:
    """Search a baseline's learning rate by its mean final training loss over the tuning seeds.

    Args:
      problem: what is trained: a task, or a family of which each seed draws a task.
      name: of a baseline, as `lopt.baselines.find_baseline` takes it.
      config: steps, tuning seeds, density of the grid.
      key: of the tuning seeds.

    Raises:
      ValueError: if there is no such baseline.
      TuningError: if it diverged at every learning rate.
    """
    baseline = find_baseline(name)
    train = train_fn(problem, baseline.opt_fn, config.steps)
    keys, datasets = seed_keys(key, config.tuning_seeds), problem.datasets.at(0)

    def score(rate: float) -> float:
        _, losses = train(jnp.float32(rate), keys, datasets)
        losses = np.asarray(losses)
        return float(final_losses(losses, config.smoothing).mean()) if np.isfinite(losses).all() else np.inf

    try:
        return tune(
            score,
            baseline.low,
            baseline.high,
            points_per_decade=config.points_per_decade,
            max_extensions=config.max_extensions,
        )
    except TuningError as error:
        raise TuningError(f"tuning {baseline.title} on {problem.name}: {error}") from error


def race(
    problem: Problem,
    competitors: Sequence[Competitor],
    key: jax.Array,
    *,
    steps: int,
    seeds: int,
    progress: Callable[[str], None] = lambda message: None,
) -> tuple[Curve, ...]:
    """Train every competitor from the same initialisations on the same minibatches.

    Args:
      problem: what is trained: a task, or a family of which each seed draws a task.
      competitors: of different names.
      key: of the seeds.
      steps: T.
      seeds: K.
      progress: called with a line of text before each competitor starts.

    Returns:
      A curve for each competitor, in their order.

    Raises:
      ValueError: if two competitors have one name.
    """
    names = [competitor.name for competitor in competitors]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"competitors need different names; these are given twice: {repeated}")
    keys, datasets, metrics = seed_keys(key, seeds), problem.datasets.at(0), metrics_fn(problem)
    compiled: dict[Callable, jax.stages.Compiled] = {}
    curves = []
    for competitor in competitors:
        progress(f"racing {competitor.name}: {seeds} seeds x {steps} steps")
        theta = jax.tree.map(jnp.asarray, competitor.theta)
        if competitor.opt_fn not in compiled:
            train = train_fn(problem, competitor.opt_fn, steps)
            compiled[competitor.opt_fn] = train.lower(theta, keys, datasets).compile()
        start = time.perf_counter()
        trained, losses = jax.block_until_ready(compiled[competitor.opt_fn](theta, keys, datasets))
        seconds = time.perf_counter() - start
        test = {name: np.asarray(values) for name, values in metrics(None, (trained, keys), datasets).items()}
        curves.append(Curve(competitor.name, np.asarray(losses), test, seconds / (seeds * steps), competitor.reference))
    return tuple(curves)


def evaluate(
    problem: Problem,
    competitors: Sequence[Competitor],
    config: EvaluationConfig,
    seed: int,
    progress: Callable[[str], None] = lambda message: None,
) -> Evaluation:
    """Tune the baselines and race the competitors against them.

    Args:
      problem: what is trained: a task, or a family of which each seed draws a task.
      competitors: the frozen learned optimizers.
      config: steps, seeds, baselines.
      seed: root of all keys; that of the meta-training will do, the keys differ.
      progress: called with a line of text before each stage.
    """
    root = jax.random.key(seed)
    tunings: dict[str, Tuning] = {}
    rivals = []
    for position, name in enumerate(config.baselines):
        baseline = find_baseline(name)
        rate = baseline.learning_rate
        if rate is None:
            progress(f"tuning the learning rate of {baseline.title}: {config.tuning_seeds} seeds x {config.steps} steps each")
            tunings[baseline.title] = tune_baseline(problem, name, config, jax.random.fold_in(root, TUNE))
            rate = tunings[baseline.title].learning_rate
        rivals.append(Competitor(baseline.label, baseline.opt_fn, jnp.float32(rate), reference=position == 0))
    key = jax.random.fold_in(root, RACE)
    curves = race(problem, [*competitors, *rivals], key, steps=config.steps, seeds=config.seeds, progress=progress)
    return Evaluation(problem.name, config, curves, tunings)
