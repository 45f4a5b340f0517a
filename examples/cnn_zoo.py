"""A zoo of one's own: small CNNs trained by a plain loop, kept as NPZ files with a table of their accuracies, and predicted from.

python examples/cnn_zoo.py; python scripts/predict_generalization.py --zoo runs/cnn_zoo --label accuracy --method unf statnn
"""

import csv
from pathlib import Path

import jax
import numpy as np
import optax

import lopt
from examples.plain_jax import make_task
from lopt.symmetry.spec import named_leaves
from lopt.weight_space.store import write_spec


def main(folder: str = "runs/cnn_zoo", models: int = 100, steps: int = 400) -> None:
    task, zoo = make_task(), Path(folder)
    datasets = task.datasets.at(0)
    train, test = datasets.train, datasets.test.all()

    @jax.jit
    def trained(key, rate):
        tx = optax.sgd(rate, momentum=0.9)

        def step(carry, key):
            params, state = carry
            updates, state = tx.update(jax.grad(task.loss)(params, key, train.batch(key)), state)
            return (optax.apply_updates(params, updates), state), None

        params = task.init(key)
        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), jax.random.split(key, steps))
        return params, task.metrics(params, key, test)["accuracy"]

    key = jax.random.key(0)
    write_spec(zoo, lopt.infer_spec(task.loss, task.init(key), key, train.batch(key)))
    with (zoo / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "accuracy"])
        for model in range(models):
            rate = 10 ** np.random.default_rng(model).uniform(-2, 0.3)
            params, accuracy = trained(jax.random.key(model), rate)
            np.savez(zoo / f"{model:04}.npz", **dict(named_leaves(params)))
            table.writerow([f"{model:04}.npz", float(accuracy)])


if __name__ == "__main__":
    main()
