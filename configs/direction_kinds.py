"""The UNF direction of direction_unf.py on more kinds of network: a CNN, an RNN and a Transformer beside perceptrons and an autoencoder.

Command:  python scripts/meta_train.py --config configs/direction_kinds.py --run-dir runs/direction_kinds
Cost:     4.5 million inner steps: 20 minutes on 2 older cores
Expect:   docs/research/kinds.md has what came of it

On four tiny perceptrons theta learns, from some outer step on, what these have in common and other networks do not. The held-out tasks
are other networks of the same kinds, larger ones.
"""

import dataclasses

from configs.direction import PERCEPTRONS, varied
from configs.direction_unf import config as perceptrons
from lopt.task.families import MixtureConfig
from tasks.cnn import CNNConfig
from tasks.rnn import RNNConfig
from tasks.transformer import TransformerConfig

config = dataclasses.replace(
    perceptrons,
    task=MixtureConfig(
        tasks=(
            *PERCEPTRONS,
            varied(CNNConfig(dataset="digits", channels=(6, 8), batch_size=32), 16, 32),
            varied(RNNConfig(length=8, embedding=12, hidden=(16,), activation="tanh", batch_size=16), 8, 16),
            varied(TransformerConfig(length=8, blocks=1, width=12, heads=2, head_width=6, mlp=24, batch_size=8), 4, 8),
        )
    ),
    outer=dataclasses.replace(perceptrons.outer, decay_steps=800),
    outer_steps=800,
)
