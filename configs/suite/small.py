"""Fourteen tasks of seven kinds, of sizes that two cores have time for; nothing to download but FashionMNIST's Debian package.

Command:  python scripts/evaluate_suite.py --scale small
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
        lopt.SuiteTask("MLP", MLPConfig(dataset=FASHION, hidden=(32,)), steps=5000),
        lopt.SuiteTask("MLP", MLPConfig(dataset=FASHION, image_size=14, hidden=(128, 128)), steps=1000),
        lopt.SuiteTask("MLP", MLPConfig(dataset=FASHION, hidden=(64,) * 6, activation="gelu"), steps=1000),
        lopt.SuiteTask("autoencoder", AutoencoderConfig(dataset=FASHION, image_size=14, hidden=(128, 64), latent=16), steps=1000),
        lopt.SuiteTask("autoencoder", AutoencoderConfig(variational=True, hidden=(64,), latent=8), steps=2000),
        lopt.SuiteTask("CNN", CNNConfig(dataset=FASHION, channels=(8, 16, 16), batch_size=64), steps=500),
        lopt.SuiteTask("CNN", CNNConfig(dataset=FASHION, image_size=14, channels=(16, 32), batch_size=32), steps=500),
        lopt.SuiteTask("ResNet", ResNetConfig(dataset=FASHION, channels=(8, 16), batch_size=64), steps=300),
        lopt.SuiteTask(
            "ResNet", ResNetConfig(dataset=FASHION, channels=(8, 8, 8), normalization="layer", batch_size=32), steps=500
        ),
        lopt.SuiteTask("ViT", ViTConfig(dataset=FASHION, image_size=14, patch=7, blocks=3, batch_size=64), steps=500),
        lopt.SuiteTask("RNN", RNNConfig(length=16, hidden=(96,), activation="tanh", batch_size=16), steps=500),
        lopt.SuiteTask("RNN", GRUConfig(hidden=(48, 48), batch_size=16), steps=400),
        lopt.SuiteTask("Transformer", TransformerConfig(length=16, width=64, head_width=16, mlp=256, batch_size=8), steps=500),
        lopt.SuiteTask("Transformer", TransformerConfig(length=32, blocks=4, head_width=8, mlp=128, batch_size=8), steps=300),
    ),
)
