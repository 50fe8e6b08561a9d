"""Weights of the KL terms and learning rates over training."""

import numpy as np
import pytest

from topicell.config import AnnealingConfig, AnnealingShape, Schedule, TrainConfig
from topicell.model.schedules import annealing_weight, learning_rate


def test_annealing_weights():
    def weight(epoch, **settings):
        return annealing_weight(epoch, 100, AnnealingConfig(min_weight=0.1, **settings))

    linear = {"shape": AnnealingShape.linear}
    assert weight(0, **linear) == pytest.approx(0.1)
    assert weight(12.5, **linear) == pytest.approx(0.55)
    assert weight(25, **linear) == weight(99, **linear) == 1
    assert weight(20, warmup_epochs=40, **linear) == pytest.approx(0.55)
    assert weight(0, warmup_epochs=0, **linear) == 1
    sigmoid = {"shape": AnnealingShape.sigmoid, "warmup_epochs": 50}
    assert weight(0, **sigmoid) == pytest.approx(0.1)
    assert weight(25, **sigmoid) == pytest.approx(0.55)
    assert weight(5, **sigmoid) < weight(5, warmup_epochs=50, **linear)
    assert weight(50, **sigmoid) == 1
    cyclical = {"shape": AnnealingShape.cyclical, "n_cycles": 4, "warmup_share": 0.5}
    for start in (0, 25, 50, 75):
        assert weight(start, **cyclical) == pytest.approx(0.1)
        assert weight(start + 6.25, **cyclical) == pytest.approx(0.55)
        assert weight(start + 20, **cyclical) == 1
    assert weight(0, shape=AnnealingShape.constant, max_weight=0.7) == 0.7


def test_learning_rates():
    config = TrainConfig(learning_rate=0.1)
    rates = [learning_rate(share, config) for share in np.linspace(0, 1, 101)]
    assert rates[0] == pytest.approx(0.004)
    assert rates[25] == max(rates) == pytest.approx(0.1)
    assert rates[-1] == pytest.approx(0.0001)
    assert learning_rate(0.9, TrainConfig(learning_rate=0.1, schedule=Schedule.constant)) == 0.1
