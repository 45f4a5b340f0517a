"""The CNN task: what it computes, and what its settings do; test_all_tasks.py has what every task promises."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopt.symmetry.spec import WeightSpec
from tasks.cnn import CNNConfig, cnn, cnn_spec, convolve
from tests.tasks.common import general, make, shapes


def test_the_model_of_the_paper():
    init, _ = cnn((3, *CNNConfig().channels), classes=10)
    found = shapes(jax.eval_shape(init, jax.random.key(0)))
    assert found == {
        "conv0": {"kernel": (3, 3, 3, 16), "bias": (16,)},
        "conv1": {"kernel": (3, 3, 16, 32), "bias": (32,)},
        "head": {"kernel": (32, 10), "bias": (10,)},
    }
    assert make("cnn").name == "digits8_cnn_16_32"


def test_fresh_params():
    task = make("cnn", init_scale=0.5)
    params = jax.jit(task.init)(jax.random.key(1))
    for layer, fan_in in (("conv0", 9), ("conv1", 9 * 16), ("head", 32)):
        assert not np.any(params[layer]["bias"])
        assert float(np.std(params[layer]["kernel"])) == pytest.approx(0.5 * fan_in**-0.5, rel=0.2)


def convolution(images, kernel, stride):
    """With zeros around the images, as few as give ceil(size / stride) places and the odd one at the end; written out."""
    window, places = kernel.shape[0], -(-images.shape[1] // stride)
    padding = max((places - 1) * stride + window - images.shape[1], 0)
    padded = np.pad(images, ((0, 0), *[(padding // 2, padding - padding // 2)] * 2, (0, 0)))
    found = np.zeros((len(images), places, places, kernel.shape[-1]))
    for row in range(places):
        for column in range(places):
            patch = padded[:, row * stride : row * stride + window, column * stride : column * stride + window]
            found[:, row, column] = np.einsum("bhwi,hwio->bo", patch, kernel)
    return found


@pytest.mark.parametrize(
    ("settings", "activation"),
    [
        ({}, lambda x: np.maximum(x, 0)),
        ({"channels": (4, 3, 5), "stride": 1, "window": 2, "activation": "tanh", "image_size": 5}, np.tanh),
    ],
    ids=["default", "others"],
)
def test_loss_and_accuracy_equal_the_formula(settings, activation):
    task = make("cnn", **settings)
    params, batch, key = general(task), task.datasets.test.all(), jax.random.key(0)
    computed, metrics = jax.jit(lambda *inputs: (task.loss(*inputs), task.metrics(*inputs)))(params, key, batch)

    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x = np.asarray(batch["image"], np.float64)[..., None] / 16
    for index in range(len(params) - 1):
        layer = exact[f"conv{index}"]
        stride = settings.get("stride", 2) if index == 0 else 1
        x = activation(convolution(x, layer["kernel"], stride) + layer["bias"])
    logits = x.mean(axis=(1, 2)) @ exact["head"]["kernel"] + exact["head"]["bias"]
    labels = np.asarray(batch["label"])
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]
    assert computed.dtype == jnp.float32
    assert float(computed) == pytest.approx(losses.mean(), rel=1e-5)
    assert float(metrics["accuracy"]) == pytest.approx((logits.argmax(1) == labels).mean(), abs=1e-6)


@pytest.mark.parametrize(
    ("size", "window", "stride"), [((6, 7), 3, 1), ((7, 8), 3, 2), ((5, 5), 2, 2), ((8, 7), 2, 3), ((3, 2), 4, 1)]
)
def test_convolutions_and_their_gradients_are_those_of_xla(size, window, stride):
    generator = np.random.default_rng(0)
    images, kernel = (
        jnp.asarray(generator.standard_normal(shape, np.float32)) for shape in ((3, *size, 2), (window, window, 3, 4))
    )

    def of_xla(images, kernel, stride):
        numbers = ("CHWN", "HWIO", "CHWN")
        return jax.lax.conv_general_dilated(images, kernel, (stride, stride), "SAME", dimension_numbers=numbers)

    def value_and_gradients(convolution):
        def loss(images, kernel):
            result = convolution(images, kernel, stride)
            return jnp.sum(jnp.sin(result)), result

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(images, kernel)

    found, expected = value_and_gradients(convolve), value_and_gradients(of_xla)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4), found, expected)


def test_the_spec_in_full():
    assert cnn_spec(2) == WeightSpec.parse(
        {
            "conv0": {"kernel": "height0! width0! colors! channels0", "bias": "channels0"},
            "conv1": {"kernel": "height1! width1! channels0 channels1", "bias": "channels1"},
            "head": {"kernel": "channels1 classes!", "bias": "classes!"},
        }
    )


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"dataset": "no_such_set"}, "no_such_set"),
        ({"image_size": 28}, "image_size"),
        ({"channels": ()}, "CNNConfig.channels must have at least 1 entry, not ()"),
        ({"channels": [16]}, "CNNConfig.channels must be a tuple of integers such as (32,), not [16]"),
        ({"channels": (16, 0)}, "CNNConfig.channels[1] must be an integer of at least 1, not 0"),
        ({"window": 0}, "CNNConfig.window must be an integer of at least 1, not 0"),
        ({"stride": 1.5}, "CNNConfig.stride must be an integer of at least 1, not 1.5"),
        ({"activation": "step"}, "CNNConfig.activation must be one of relu, "),
        ({"init_scale": -1.0}, "CNNConfig.init_scale must be a positive number, not -1.0"),
        ({"init_scale": math.nan}, "CNNConfig.init_scale must be a positive number, not nan"),
        ({"batch_size": 0}, "CNNConfig.batch_size must be an integer of at least 1, not 0"),
        ({"split_seed": -1}, "CNNConfig.split_seed must be an integer of at least 0, not -1"),
    ],
)
def test_bad_settings_are_named(settings, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        CNNConfig(**settings)
