"""Inner trainings of frozen optimizers, as one compiled program for all seeds: theta, keys and data are its arguments."""

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lopt.symmetry.spec import PyTree
from lopt.task.base import Batch, Datasets, Problem, Task
from lopt.unroll import InnerState, make_inner_step

OptFn = Callable[[PyTree], optax.GradientTransformation]


def seed_keys(key: jax.Array, seeds: int) -> jax.Array:
    """One key a seed, [K]: seed k has the same key however many seeds there are."""
    return jax.vmap(lambda k: jax.random.fold_in(key, k))(jnp.arange(seeds))


def train_fn(problem: Problem, opt_fn: OptFn, steps: int) -> jax.stages.Wrapped:
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
    train_one = _one_training(problem, opt_fn, steps)
    return jax.jit(_over_seeds(train_one, batched=not on_cpu()))


def grid_fn(problem: Problem, opt_fn: OptFn, steps: int) -> jax.stages.Wrapped:
    """As `train_fn`, for several thetas at once: jitted `train(thetas, keys, datasets) -> losses [n, K, T]`, thetas with leaves [n, ...].

    The thetas are a batch on accelerators, which a single small training leaves idle; on CPU they come one after another.
    """
    train_one = _one_training(problem, opt_fn, steps)

    def train_all(thetas: PyTree, keys: jax.Array, datasets: Datasets) -> jax.Array:
        run = _over_seeds(train_one, batched=not on_cpu())

        def losses(theta: PyTree) -> jax.Array:
            return run(theta, keys, datasets)[1]

        return jax.lax.map(losses, thetas) if on_cpu() else jax.vmap(losses)(thetas)

    return jax.jit(train_all)


def race_fn(problem: Problem, opt_fn: OptFn, steps: int, at: Sequence[int], batches: int) -> jax.stages.Wrapped:
    """As `train_fn`, with the loss and metrics on held-out data on the way.

    Args:
      problem: as there.
      opt_fn: as there.
      steps: T.
      at: rising numbers of steps after which to measure, the last of them T; 0 is before the first.
      batches: V, of the `outer_valid` split, that a seed is measured on: the same at all steps and for all optimizers.

    Returns:
      Jitted `race(theta, keys, datasets) -> (trained, losses, measured)`: the first two as of `train_fn`; measured is
      {name: [K, M]} float32, means over the V batches, with "loss" and the metrics of the task.
    """
    if not at or at[-1] != steps or any(a >= b for a, b in itertools.pairwise(at)) or at[0] < 0:
        raise ValueError(f"measurements are made at rising numbers of steps, from 0 or later to {steps}; got {list(at)}")
    bounds = jnp.asarray([(0, at[0]), *itertools.pairwise(at)], jnp.int32)

    def race_one(theta: PyTree, key: jax.Array, datasets: Datasets) -> tuple[InnerState, jax.Array, dict[str, jax.Array]]:
        state, step = _start(problem, opt_fn, steps, theta, key, datasets)
        keys = jax.random.split(jax.random.fold_in(jax.random.split(key, 3)[2], 1), batches)
        task, split = problem.task_fn(state.variant), problem.view(state.variant, datasets).outer_valid

        def measure(state: InnerState) -> dict[str, jax.Array]:
            def on_batch(key: jax.Array) -> dict[str, jax.Array]:
                return _metrics(task, state, key, split.batch(key))

            return jax.tree.map(lambda values: jnp.mean(values.astype(jnp.float32), axis=0), jax.lax.map(on_batch, keys))

        def advance(t: jax.Array, carry: tuple[InnerState, jax.Array]) -> tuple[InnerState, jax.Array]:
            state, loss = step(carry[0], t)
            return state, carry[1].at[t].set(loss)

        def segment(carry: tuple[InnerState, jax.Array], ends: jax.Array) -> tuple[PyTree, dict[str, jax.Array]]:
            carry = jax.lax.fori_loop(ends[0], ends[1], advance, carry)
            return carry, measure(carry[0])

        (state, losses), measured = jax.lax.scan(segment, (state, jnp.zeros(steps, jnp.float32)), bounds)
        return state._replace(optimizer=()), losses, measured

    return jax.jit(_over_seeds(race_one, batched=not on_cpu()))


def metrics_fn(problem: Problem) -> jax.stages.Wrapped:
    """Jitted `metrics(None, (trained, keys), datasets) -> {metric: [K]}`: the task's, and "loss", on the whole test split."""

    def metrics_one(_: None, seed: tuple[InnerState, jax.Array], datasets: Datasets) -> dict[str, jax.Array]:
        state, key = seed
        _, _, test_key = jax.random.split(key, 3)
        batch = problem.view(state.variant, datasets).test.all()
        return _metrics(problem.task_fn(state.variant), state, test_key, batch)

    return jax.jit(_over_seeds(metrics_one, batched=False))


def on_cpu() -> bool:
    """Whether programs run on CPU, where trainings are mapped one after another, rather than as a batch."""
    return jax.default_backend() == "cpu"


def _metrics(task: Task, state: InnerState, key: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    loss, _ = task.loss_with_state(state.params, state.model, key, batch)
    return {"loss": loss, **task.metrics_with_state(state.params, state.model, key, batch)}


def _start(
    problem: Problem, opt_fn: OptFn, steps: int, theta: PyTree, key: jax.Array, datasets: Datasets
) -> tuple[InnerState, Callable[[InnerState, jax.Array], tuple[InnerState, jax.Array]]]:
    """The start of a seed's training, and its `step(state, t) -> (state, loss)`."""
    transform = optax.with_extra_args_support(opt_fn(theta))
    init_key, run_key, _ = jax.random.split(key, 3)
    variant, params, model = problem.start(init_key)
    split, inner_step = problem.view(variant, datasets).train, make_inner_step(problem.task_fn(variant), transform, steps)

    def step(state: InnerState, t: jax.Array) -> tuple[InnerState, jax.Array]:
        batch_key, loss_key = jax.random.split(jax.random.fold_in(run_key, t))
        state, loss = inner_step(state, loss_key, split.batch(batch_key))
        return state, loss.astype(jnp.float32)

    return InnerState(params, transform.init(params), model, variant), step


def _one_training(
    problem: Problem, opt_fn: OptFn, steps: int
) -> Callable[[PyTree, jax.Array, Datasets], tuple[InnerState, jax.Array]]:
    def train_one(theta: PyTree, key: jax.Array, datasets: Datasets) -> tuple[InnerState, jax.Array]:
        state, step = _start(problem, opt_fn, steps, theta, key, datasets)
        state, losses = jax.lax.scan(step, state, jnp.arange(steps))
        return state._replace(optimizer=()), losses

    return train_one


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
