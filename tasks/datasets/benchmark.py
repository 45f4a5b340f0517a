"""What data costs, measured: loading it, drawing batches inside a compiled loop, and their share of an inner step."""

import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lopt.task import Datasets, DataStream, Task, TaskConfig
from tasks.datasets.images import KNOWN_IMAGES
from tasks.datasets.tokens import TokenSplit

_RATE = 0.01  # of the descent that stands for an optimizer, the cheapest there is


def task_of(source: str) -> TaskConfig:
    """The task that a data set is measured with: the paper's MLP for images (batch 128), its RNN for text (batch 64)."""
    from tasks.mlp import MLPConfig  # a task uses this package, not the other way round; here both are needed
    from tasks.rnn import RNNConfig

    is_image = source in KNOWN_IMAGES or source.endswith(".npz") or os.path.isdir(source)
    return MLPConfig(dataset=source, batch_size=128) if is_image else RNNConfig(dataset=source, tokenizer="bytes")


def data_cost(source: str, steps: int = 2000, repeats: int = 10) -> dict[str, Any]:
    """What the data of a task costs, on this machine and with nothing in the cache.

    Args:
      source: a data set as `load_images` or `load_text` take it.
      steps: inner steps in a compiled loop.
      repeats: runs of it, of which the fastest counts.

    Returns:
      `source`, `task`, `batch_size`, `examples` of the train split (of a text: windows, by their first token), `device_mb` of all
      splits; `load_s` with an empty cache and `load_cached_s` after it, both with the making of the task; `examples_per_s` of
      batches alone in a loop; `batch_us` of one batch and `step_us` of one gradient step with its batch; `data_share`, the first
      over the second; and of a stream `part_ms`, the wait for the part of the next outer step.
    """
    config = task_of(source)
    jax.block_until_ready(jnp.zeros(1))  # the start of the backend is not part of loading
    kept = os.environ.get("LOPT_CACHE_DIR")
    with tempfile.TemporaryDirectory() as empty:
        os.environ["LOPT_CACHE_DIR"] = empty
        try:
            load_s, task = _timed(lambda: _made(config))
            load_cached_s, task = _timed(lambda: _made(config))
            datasets = task.datasets.at(0)
            part_ms = {"part_ms": round(1e3 * _wait(task.datasets), 3)} if isinstance(task.datasets, DataStream) else {}
        finally:
            del os.environ["LOPT_CACHE_DIR"]
            if kept is not None:
                os.environ["LOPT_CACHE_DIR"] = kept
    batch_s, step_s = _loop_seconds(task, datasets, steps, repeats)
    train = datasets.train
    examples = train.tokens.shape[0] - train.length if isinstance(train, TokenSplit) else len(jax.tree.leaves(train)[0])
    return {
        "source": source,
        "task": task.name,
        "batch_size": train.batch_size,
        "examples": examples,
        "device_mb": round(sum(leaf.nbytes for leaf in jax.tree.leaves(datasets)) / 1e6, 2),
        "load_s": round(load_s, 3),
        "load_cached_s": round(load_cached_s, 3),
        "examples_per_s": round(train.batch_size / batch_s),
        "batch_us": round(1e6 * batch_s, 2),
        "step_us": round(1e6 * step_s, 2),
        "data_share": round(batch_s / step_s, 4),
        **part_ms,
    }


def _made(config: TaskConfig) -> Task:
    task = config.make()
    jax.block_until_ready(task.datasets.at(0))
    assert isinstance(task, Task)  # these configs make no families
    return task


def _timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def _wait(stream: DataStream, steps: int = 20) -> float:
    """Median seconds until the part of an outer step is there, when the step before took 10 ms."""
    seconds = []
    for step in range(1, steps + 1):
        time.sleep(0.01)
        seconds.append(_timed(lambda step=step: jax.block_until_ready(stream.at(step)))[0])
    return float(np.median(seconds))


def _loop_seconds(task: Task, datasets: Datasets, steps: int, repeats: int) -> tuple[float, float]:
    """Seconds of one batch, and of one gradient step with its batch, inside compiled loops of `steps`."""

    @jax.jit
    def batches(datasets: Datasets, keys: jax.Array) -> jax.Array:
        def draw(total: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
            # The barrier has the whole batch made; of it one element is used, as a sum over all would cost as much as the batch.
            leaves = jax.lax.optimization_barrier(jax.tree.leaves(datasets.train.batch(key)))
            return total + sum(leaf.reshape(-1)[0].astype(jnp.int32) for leaf in leaves), None

        return jax.lax.scan(draw, jnp.int32(0), keys)[0]

    @jax.jit
    def training(datasets: Datasets, keys: jax.Array) -> Any:
        def step(carry: tuple[Any, Any], key: jax.Array) -> tuple[tuple[Any, Any], None]:
            params, state = carry
            gradient = jax.grad(task.loss_with_state, has_aux=True)
            slopes, state = gradient(params, state, key, datasets.train.batch(key))
            params = jax.tree.map(lambda weight, slope: weight - jnp.asarray(_RATE, weight.dtype) * slope, params, slopes)
            return (params, state), None

        return jax.lax.scan(step, task.init_with_state(keys[0]), keys)[0]

    keys = jax.random.split(jax.random.key(0), steps)
    loops = (batches, training)
    for loop in loops:
        jax.block_until_ready(loop(datasets, keys))  # compiles
    # In turns, so that a machine that is busy for a while is so for both.
    seconds = [
        [_timed(lambda loop=loop: jax.block_until_ready(loop(datasets, keys)))[0] for loop in loops] for _ in range(repeats)
    ]
    batch_s, step_s = np.min(seconds, axis=0) / steps
    return float(batch_s), float(step_s)
