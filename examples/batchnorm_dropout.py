"""A task whose model has a state and noise: batch normalisation, whose running statistics are not trained, and dropout.

In training the statistics are those of the batch and units are dropped by the loss's key; the metrics are those of the model at rest,
and the one named "loss" takes the place of the training loss in an evaluation.

python scripts/meta_train.py --config examples/config.py --task.function examples.batchnorm_dropout:make_task --run-dir runs/batchnorm
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import lopt
from lopt import Task, infer_spec


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(64, 16, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(16, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.2)
        self.head = nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, images, *, train: bool, key=None):
        hidden = nnx.relu(self.norm(self.hidden(images), use_running_average=not train))
        if key is not None:
            hidden = self.dropout(hidden, deterministic=False, rngs=nnx.Rngs(dropout=key))
        return self.head(hidden)


def make_task() -> Task:
    graph, *_ = nnx.split(nnx.eval_shape(lambda: Net(nnx.Rngs(0))), nnx.Param, nnx.BatchStat)

    def init(key):
        net = Net(nnx.Rngs(key))
        return nnx.to_pure_dict(nnx.state(net, nnx.Param)), nnx.to_pure_dict(nnx.state(net, nnx.BatchStat))

    def apply(params, state, batch, **options):
        net = nnx.merge(graph, nnx.State(params), nnx.State(state))
        logits = net(batch["image"].astype(jnp.float32) / 16, **options)
        loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]))
        return loss, logits, nnx.to_pure_dict(nnx.state(net, nnx.BatchStat))

    def loss(params, state, key, batch):
        value, _, state = apply(params, state, batch, train=True, key=key)
        return value, state

    def metrics(params, state, key, batch):
        value, logits, _ = apply(params, state, batch, train=False)
        correct = jnp.argmax(logits, axis=-1) == batch["label"]
        return {"loss": value, "accuracy": jnp.mean(correct.astype(jnp.float32))}

    images, labels = load_digits(return_X_y=True)
    data = {"image": images.astype(np.uint8), "label": labels.astype(np.int32)}
    # A mask of dropped units moves the loss of one key, though not its distribution: the symmetry is that of the loss without it.
    params, state = init(jax.random.key(0))
    example = {name: jnp.asarray(array[:32]) for name, array in data.items()}
    spec = infer_spec(lambda params, state, batch: apply(params, state, batch, train=True)[0], params, state, example)
    return lopt.task_from_loss(
        init, loss, data, name="batchnorm_dropout", metrics=metrics, has_state=True, spec=spec, batch_size=32
    )
