"""Files of msgpack that others publish: read as what they are, refused by name otherwise, and nothing in them is run."""

import pickle

import flax.serialization
import jax
import numpy as np
import pytest

import lopt
from lopt.optimizers.published import PublishedError, read_published
from lopt.training.trainer import MetaTrainConfig, starting_theta
from tasks.mlp import MLPConfig
from tests.optimizers.test_published import SHAPES, TIMES, Published, assert_close, celo2_step, inner_training, mlp, normalised


def tree_of(inputs, widths, outputs, seed=0):
    """A theta as learned_optimization's AdafacMLPLOpt has it, with haiku's module name."""
    rng, layers = np.random.default_rng(seed), {}
    for i, width in enumerate((*widths, outputs)):
        layers[f"w{i}"] = (rng.standard_normal((inputs, width)) / inputs**0.5).astype(np.float32)
        layers[f"b{i}"] = (0.1 * rng.standard_normal(width)).astype(np.float32)
        inputs = width
    zeros = {"momentum_decays": np.zeros(3, np.float32), "rms_decays": np.zeros(1, np.float32)}
    return {**zeros, "adafactor_decays": np.zeros(3, np.float32), "nn": {"~": layers}}


def write(path, tree):
    path.write_bytes(flax.serialization.msgpack_serialize(tree))
    return path


def layers_of(tree):
    layers = tree["nn"]["~"]
    count = len(layers) // 2 - 1
    return {
        "pointwise": {f"dense{i}": {"kernel": layers[f"w{i}"], "bias": layers[f"b{i}"]} for i in range(count)},
        "last": {"kernel": layers[f"w{count}"], "bias": layers[f"b{count}"]},
    }


def test_a_small_fc_moves_weights_as_its_authors_say(tmp_path):
    tree = tree_of(39, (4, 4), 2)
    config, theta = read_published(write(tmp_path / "theta.state", tree))
    assert sum(x.size for x in jax.tree.leaves(theta)) == 190
    optimizer = config.make(lopt.WeightSpec(()))
    kept = {path: Published(shape, 0.999) for path, shape in SHAPES.items()}
    for step, (params, grads, updates) in enumerate(inner_training(optimizer.opt_fn(theta))):
        times = np.tanh(step / np.array(TIMES) - 1)
        for path, shape in SHAPES.items():
            x = normalised(kept[path].features(params[path], grads[path], celo=False), tuple(range(len(shape))), 1e-5)
            out = mlp(layers_of(tree), np.concatenate([x, np.broadcast_to(times, (*shape, 11))], axis=-1), 2)
            expected = -1e-3 * out[..., 0] * np.exp(1e-3 * out[..., 1])
            assert_close(updates[path], expected, path)


def test_a_celo2_is_loaded_in_one_line(tmp_path):
    tree = tree_of(30, (8, 8), 3)
    write(tmp_path / "theta.state", tree)
    kept = {path: Published(shape, 0.95) for path, shape in SHAPES.items()}
    for params, grads, updates in inner_training(lopt.load(tmp_path, learning_rate=0.1)):
        for path in SHAPES:
            expected = celo2_step(layers_of(tree), kept[path].features(params[path], grads[path], celo=True))
            assert_close(updates[path], -0.1 * expected, path, 1e-5)


def test_decays_that_were_learned_are_those_of_the_features(tmp_path):
    tree = tree_of(30, (8, 8), 3)
    tree["momentum_decays"][1], tree["rms_decays"][0] = 0.1, -0.05
    features = read_published(write(tmp_path / "a.msgpack", tree))[0].features
    assert features.momenta == pytest.approx((0.9, 1 - 0.01 * np.e, 0.999))
    assert features.factored == (0.9, 0.99, 0.999)
    assert features.second_moment == pytest.approx(1 - 0.05 * np.exp(-0.5))
    names = [channel.name for channel in features.make().channels]
    assert "momentum 0.972817 / root of factored 0.99" in names


def test_a_meta_training_starts_from_one(tmp_path):
    path = write(tmp_path / "theta.state", tree_of(30, (8, 8), 3))
    optimizer, theta = read_published(path)
    run = MetaTrainConfig(task=MLPConfig(hidden=(3,)), optimizer=optimizer, estimator=lopt.NRESConfig(), init_from=str(tmp_path))
    jax.tree.map(np.testing.assert_array_equal, starting_theta(run, optimizer.make(lopt.WeightSpec(()))), theta)


class Run:
    """Pickled, it would make a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def damaged():
    good = flax.serialization.msgpack_serialize(tree_of(30, (8, 8), 3))
    of = flax.serialization.msgpack_serialize
    nan, wide, missing = (tree_of(30, (8, 8), 3) for _ in range(3))
    nan["nn"]["~"]["w1"][0, 0] = np.nan
    wide["nn"]["~"]["w1"] = np.zeros((7, 8), np.float32)
    del missing["nn"]["~"]["b2"]
    late = tree_of(30, (8, 8), 3) | {"momentum_decays": np.full(3, 9.0, np.float32)}
    return {
        "cut short": (good[:-9], "is not a file of flax's msgpack"),
        "pickled": (pickle.dumps(Run("was run")), "is not a file of flax's msgpack|has no 'nn'"),
        "no layers": (of({"theta": np.zeros(3)}), "has no 'nn'"),
        "veLO": (of({"lstm_init_state": np.zeros(3), "rnn_params": {}}), "of VeLO's kind"),
        "another network": (of(tree_of(31, (8, 8), 3)), "maps 31 numbers to 3"),
        "not finite": (of(nan), "nn/~/w1 is not an array of finite numbers"),
        "other shapes": (of(wide), r"nn/w1 and nn/b1 have shapes \(7, 8\)"),
        "a bias is missing": (of(missing), "not the layers w0, b0, w1, b1"),
        "decays": (of(late), "momentum_decays gives decays"),
        "decays of another number": (of(tree_of(30, (8, 8), 3) | {"rms_decays": np.zeros(2)}), "rms_decays is .*not 1 finite"),
    }


@pytest.mark.parametrize(("data", "message"), [pytest.param(*case, id=name) for name, case in damaged().items()])
def test_other_files_are_refused_by_name(tmp_path, monkeypatch, data, message):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "theta.state"
    path.write_bytes(data)
    with pytest.raises(PublishedError, match=message) as found:
        lopt.load(tmp_path, learning_rate=0.1)
    assert str(path) in str(found.value)
    assert not (tmp_path / "was run").exists()


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(PublishedError, match=r"nothing\.state cannot be read"):
        lopt.load(tmp_path / "nothing.state", learning_rate=0.1)
