"""Sixteen tasks of seven kinds, up to a Transformer of three million weights: for an accelerator, or a night of many cores.

Command:  python scripts/evaluate_suite.py --scale medium
"""

import lopt
from tasks.autoencoder import AutoencoderConfig
from tasks.cnn import CNNConfig
from tasks.gru import GRUConfig
from tasks.mlp import MLPConfig
from tasks.resnet import ResNetConfig
from tasks.rnn import RNNConfig
from tasks.transformer import TransformerConfig
from tasks.vit import ViTConfig

FASHION = "fashion_mnist"

config = lopt.SuiteConfig(
    tasks=(
        lopt.SuiteTask("MLP", MLPConfig(dataset=FASHION, image_size=28, hidden=(256, 256)), steps=5000),
        lopt.SuiteTask("MLP", MLPConfig(dataset=FASHION, image_size=14, hidden=(128,) * 8, activation="gelu"), steps=2000),
        lopt.SuiteTask("MLP", MLPConfig(dataset=FASHION, image_size=28, hidden=(1024,), activation="tanh"), steps=1000),
        lopt.SuiteTask(
            "autoencoder", AutoencoderConfig(dataset=FASHION, image_size=28, hidden=(256, 128), latent=32), steps=2000
        ),
        lopt.SuiteTask(
            "autoencoder", AutoencoderConfig(dataset=FASHION, image_size=28, variational=True, hidden=(256,)), steps=5000
        ),
        lopt.SuiteTask("CNN", CNNConfig(dataset=FASHION, image_size=28, channels=(32, 64, 64), batch_size=64), steps=1000),
        lopt.SuiteTask("CNN", CNNConfig(dataset=FASHION, image_size=14, channels=(32,) * 5, stride=1, batch_size=64), steps=2000),
        lopt.SuiteTask(
            "ResNet", ResNetConfig(dataset=FASHION, image_size=14, channels=(16, 32, 64), blocks=2, batch_size=64), steps=2000
        ),
        lopt.SuiteTask(
            "ResNet",
            ResNetConfig(dataset=FASHION, image_size=14, channels=(32, 64), blocks=3, normalization="layer", batch_size=64),
            steps=1000,
        ),
        lopt.SuiteTask(
            "ViT", ViTConfig(dataset=FASHION, image_size=28, patch=4, blocks=4, width=128, head_width=32, mlp=512), steps=2000
        ),
        lopt.SuiteTask(
            "ViT", ViTConfig(dataset=FASHION, image_size=14, patch=2, blocks=8, width=64, head_width=16, mlp=256), steps=1000
        ),
        lopt.SuiteTask("RNN", RNNConfig(length=32, hidden=(256,), activation="tanh"), steps=1000),
        lopt.SuiteTask("RNN", GRUConfig(length=64, hidden=(256, 256), embedding=64), steps=2000),
        lopt.SuiteTask(
            "Transformer",
            TransformerConfig(length=64, blocks=4, width=128, heads=4, head_width=32, mlp=512, batch_size=32),
            steps=2000,
        ),
        lopt.SuiteTask(
            "Transformer",
            TransformerConfig(length=64, blocks=12, width=64, heads=4, head_width=16, mlp=256, batch_size=32),
            steps=1000,
        ),
        lopt.SuiteTask(
            "Transformer",
            TransformerConfig(length=64, blocks=4, width=256, heads=8, head_width=32, mlp=1024, batch_size=32),
            steps=2000,
        ),
    ),
)
