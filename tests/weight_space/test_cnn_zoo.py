"""The example of a zoo of one's own, from its plain loop to a prediction."""

import numpy as np
import pytest

from examples import cnn_zoo
from lopt.weight_space.predict import PredictionConfig, train_predictor
from lopt.weight_space.read import read_zoo
from scripts import predict_generalization


@pytest.mark.slow
def test_from_a_plain_loop_to_a_prediction(tmp_path, capsys):
    cnn_zoo.main(str(tmp_path), models=60, steps=400)
    zoo = read_zoo(tmp_path, "accuracy")
    assert zoo.weights["conv/kernel"].shape == (60, 3, 3, 1, 8)
    assert np.ptp(zoo.labels) > 0.3, "learning rates decide"
    found = train_predictor(
        zoo, PredictionConfig(method="unf", epochs=12, patience=12, channels=(8, 8), learning_rate=3e-3, test=0.3), seed=0
    )
    assert found.test.tau > 0.2
    predict_generalization.main(["--zoo", str(tmp_path), "--label", "accuracy", "--method", "statnn", "--seeds", "1"])
    assert "accuracy of 60 models" in capsys.readouterr().out
