"""A zoo of models of one task: many trained in one program, with hyperparameters drawn for each.

As the paper's Tiny RNN Zoo (Zhou, Finn, Harrison, "Universal Neural Functionals", NeurIPS 2024, section 5.1): Adam, the learning
rate log-uniform, the batch size one of three. Everything random derives from the seed and a model's number, so that a zoo that was
cut off goes on to the same models.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, PartitionSpec

from lopt.config import claim_run_dir
from lopt.config.files import remove_leftovers
from lopt.runtime.distributed import even_devices
from lopt.runtime.locks import LOCK_FILE, only_process
from lopt.symmetry.infer import infer_spec
from lopt.symmetry.spec import PyTree, WeightSpec, named_leaves
from lopt.task.base import ArraySplit, Datasets, Task, TaskConfig
from lopt.weight_space.store import ZooError, read_manifest, shard_file, write_shard, write_spec

Progress = Callable[[str, float], None]  # what is being done, its weight


@dataclasses.dataclass(frozen=True)
class ZooConfig:
    """Which models, how many, and how they are trained."""

    task: TaskConfig
    """What all models are trained on; its batch size is not used."""
    models: int = 2000
    """How many (the paper: 10,000)."""
    steps: int = 4000
    """Training steps of each model."""
    learning_rates: tuple[float, float] = (1e-4, 1e-2)
    """Adam's, drawn log-uniformly between these (the paper: 1e-4 to 1e-2)."""
    batch_sizes: tuple[int, ...] = (64, 128, 256)
    """One of these, drawn uniformly (the paper's)."""
    shard: int = 20
    """Models trained together and kept in one file; what a kill loses at most."""
    seed: int = 0
    """Of initial weights, batches, learning rates and batch sizes."""

    def __post_init__(self) -> None:
        """Raise `ValueError` for a field that is out of range."""
        for name in ("models", "steps", "shard"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        low, high = self.learning_rates
        if not 0 < low <= high:
            raise ValueError(f"learning_rates must be two positive numbers, the smaller one first, got {self.learning_rates}")
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise ValueError(f"batch_sizes must name at least one positive number, got {self.batch_sizes}")


class ShardJob(NamedTuple):
    """A shard to be made: models of one batch size, as they run in one program.

    Attributes:
      number: of the shard.
      models: their numbers.
      batch_size: of all.
      learning_rates: of each.
    """

    number: int
    models: tuple[int, ...]
    batch_size: int
    learning_rates: tuple[float, ...]


def plan_shards(config: ZooConfig) -> list[ShardJob]:
    """Draw the models' hyperparameters, and gather those of one batch size into shards."""
    words = np.random.PCG64(config.seed).random_raw((config.models, 2)).astype(np.float64) / 2.0**64
    low, high = map(math.log, config.learning_rates)
    rates = np.exp(low + (high - low) * words[:, 0])
    sizes = np.asarray(config.batch_sizes)[(words[:, 1] * len(config.batch_sizes)).astype(int)]
    jobs: list[ShardJob] = []
    for size in sorted(set(config.batch_sizes)):
        models = np.flatnonzero(sizes == size)
        for start in range(0, len(models), config.shard):
            chosen = models[start : start + config.shard]
            jobs.append(ShardJob(len(jobs), tuple(chosen.tolist()), size, tuple(rates[chosen].tolist())))
    return jobs


def train_models(task: Task, steps: int, keys: jax.Array, learning_rates: jax.Array, datasets: Datasets) -> tuple[PyTree, Any]:
    """Train models one after another, each from its own key.

    Args:
      task: the task; its train split is trained on.
      steps: of Adam.
      keys: typed keys [M].
      learning_rates: [M].
      datasets: of the task.

    Returns:
      params, leaves [M, *shape], and {"loss": mean of the last tenth of the training losses, [M], "NAME": the task's metrics on
      the test split, [M]}.
    """
    adam = optax.scale_by_adam()

    def train(args: tuple[jax.Array, jax.Array]) -> tuple[PyTree, dict[str, jax.Array]]:
        key, rate = args
        init_key, steps_key, test_key = jax.random.split(key, 3)

        def step(carry: tuple[PyTree, Any], index: jax.Array) -> tuple[tuple[PyTree, Any], jax.Array]:
            params, state = carry
            batch_key, loss_key = jax.random.split(jax.random.fold_in(steps_key, index))
            loss, grads = jax.value_and_grad(task.loss)(params, loss_key, datasets.train.batch(batch_key))
            with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
                updates, state = adam.update(grads, state, params)
            return (jax.tree.map(lambda w, u: w - rate * u, params, updates), state), loss

        params = task.init(init_key)
        (params, _), losses = jax.lax.scan(step, (params, adam.init(params)), jnp.arange(steps))
        found = {"loss": jnp.mean(losses[-max(1, steps // 10) :])}
        return params, found | task.metrics(params, test_key, datasets.test.all())

    return jax.lax.map(train, (keys, learning_rates))


def proven_spec(task: Task) -> WeightSpec:
    """The symmetry of the models, read off the task's loss and checked with random group elements; names are the task's.

    Raises:
      ZooError: if it is not the spec that the task states.
    """
    from lopt.symmetry.compare import same_group

    key = jax.random.key(0)
    inferred = infer_spec(task.loss, task.init(key), key, task.datasets.at(0).train.batch(key))
    if not same_group(inferred, task.spec):
        raise ZooError(f"task '{task.name}' states another symmetry than its loss has, which is\n{inferred}")
    return task.spec


def make_zoo(config: ZooConfig, zoo: str | Path, progress: Progress = lambda message, weight: None) -> int:
    """Train the models that are missing in a zoo, and return how many there are; what diverges is left out.

    Raises:
      ConfigError: if the directory holds a zoo of another config; names the fields that differ.
      BusyError: if another process makes this zoo.
      ZooError: if what is there is damaged, or nothing can be written.
      ValueError: if the task is a family of tasks, or its data stream.
    """
    task = config.task.make()
    if not isinstance(task, Task) or not isinstance(task.datasets, Datasets) or not isinstance(task.datasets.train, ArraySplit):
        raise ValueError(f"a zoo needs one task with data in memory; {type(config.task).__name__} is a family, or streams")
    zoo = Path(zoo)
    claim_run_dir(zoo, config)
    with only_process(zoo / LOCK_FILE, str(zoo)):
        remove_leftovers(zoo)
        return _make_missing(config, task, zoo, progress)


def _make_missing(config: ZooConfig, task: Task, zoo: Path, progress: Progress) -> int:
    shards = read_manifest(zoo)
    write_spec(zoo, proven_spec(task))
    missing = [job for job in plan_shards(config) if shard_file(job.number) not in shards]
    train: dict[int, Callable[..., Any]] = {}  # by batch size
    for job in missing:
        progress(f"shard {job.number}: {len(job.models)} models, batches of {job.batch_size}", weight_of(job))
        if job.batch_size not in train:
            train[job.batch_size] = _compiled(task, config.steps, config.shard)
        weights, rows = _trained(train[job.batch_size], task, config, job)
        shards = write_shard(zoo, shards, job.number, weights, rows)
    return sum(len(shard.rows) for shard in shards.values())


def weight_of(job: ShardJob) -> float:
    """Examples that a shard sees in a step: what its time is in proportion to."""
    return float(len(job.models) * job.batch_size)


def total_weight(config: ZooConfig, zoo: Path) -> float:
    """Of the shards that are still to be made."""
    done = read_manifest(zoo)
    return sum(weight_of(job) for job in plan_shards(config) if shard_file(job.number) not in done)


def _compiled(task: Task, steps: int, models: int) -> Callable[..., Any]:
    """`train_models` of so many models, spread over the devices."""
    devices = even_devices(models)
    mesh = jax.make_mesh((len(devices),), ("models",), devices=devices, axis_types=(AxisType.Auto,))
    spread, whole = PartitionSpec("models"), PartitionSpec()
    fn = functools.partial(train_models, task, steps)
    return jax.jit(jax.shard_map(fn, mesh=mesh, in_specs=(spread, spread, whole), out_specs=spread, check_vma=False))


def _trained(
    train: Callable[..., Any], task: Task, config: ZooConfig, job: ShardJob
) -> tuple[dict[str, np.ndarray], list[dict[str, float]]]:
    assert isinstance(task.datasets, Datasets)
    assert isinstance(task.datasets.train, ArraySplit)
    split = dataclasses.replace(task.datasets.train, batch_size=job.batch_size)
    datasets = dataclasses.replace(task.datasets, train=split)
    root = jax.random.key(config.seed)
    # A shard that is not full has its last model several times, so that one program serves all.
    which = np.minimum(np.arange(config.shard), len(job.models) - 1)
    keys = jax.vmap(lambda model: jax.random.fold_in(root, model))(jnp.asarray(job.models)[which])
    params, found = jax.device_get(train(keys, jnp.asarray(job.learning_rates, jnp.float32)[which], datasets))
    arrays = {path: array[: len(job.models)] for path, array in named_leaves(params)}
    found = {name: np.asarray(values)[: len(job.models)] for name, values in found.items()}
    finite = np.all([np.isfinite(a.reshape(len(job.models), -1)).all(axis=1) for a in arrays.values()], axis=0)
    finite &= np.isfinite(found["loss"])
    rows = list(_rows(job, found, finite))
    return {path: array[finite] for path, array in arrays.items()}, rows


def _rows(job: ShardJob, found: dict[str, np.ndarray], kept: Sequence[bool]) -> Iterator[dict[str, float]]:
    for i, model in enumerate(job.models):
        if kept[i]:
            drawn = {"model": model, "learning_rate": job.learning_rates[i], "batch_size": job.batch_size}
            yield drawn | {name: float(values[i]) for name, values in found.items()}
