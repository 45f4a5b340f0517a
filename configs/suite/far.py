"""What the shipped directions were never near in meta-training: 25 times their longest training, 8 times their widest, a million weights.

Command:  python scripts/evaluate_suite.py --scale far
Cost:     5 minutes an optimizer on 2 older cores, 4 trials, and 6 to 14 minutes of one core for the last task
"""

import lopt
from tasks.mlp import MLPConfig
from tasks.rnn import RNNConfig
from tasks.transformer import TransformerConfig

FASHION = "fashion_mnist"

config = lopt.SuiteConfig(
    tasks=(
        lopt.SuiteTask("length", MLPConfig(dataset=FASHION, hidden=(32,)), steps=50_000),
        lopt.SuiteTask("width", MLPConfig(dataset=FASHION, hidden=(256, 256)), steps=1000),
        lopt.SuiteTask("width", RNNConfig(length=16, hidden=(128,), activation="tanh", batch_size=16), steps=500),
        lopt.SuiteTask("width", TransformerConfig(length=16, width=96, head_width=24, mlp=192, batch_size=8), steps=500),
        lopt.SuiteTask(
            "weights",
            TransformerConfig(length=64, blocks=8, width=128, heads=4, head_width=32, mlp=256, batch_size=8),
            steps=300,
        ),
    ),
)
