"""Calibration: the error in bins beside a loop, the temperature, and the picture."""

import numpy as np
import pytest

from bert_jax.report.reliability import draw_reliability
from bert_jax.tasks.classification.calibration import BINS, calibration, fitted_temperature

pytestmark = pytest.mark.core


def drawn(count, scale, seed=0):
    """Logits that are `scale` times those that the classes are drawn from."""
    random = np.random.default_rng(seed)
    logits = 1.5 * random.normal(size=(count, 4))
    odds = np.exp(logits)
    chances = odds / odds.sum(axis=1, keepdims=True)
    classes = (random.random((count, 1)) > np.cumsum(chances, axis=1)).sum(axis=1)
    return (scale * logits).astype(np.float32), classes


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_error_is_that_of_a_loop(temperature):
    logits, classes = drawn(300, 2.0)
    found = calibration(logits, classes, temperature)
    members = [[] for _ in range(BINS)]
    nll = 0.0
    for row, true in zip(logits.astype(np.float64) / temperature, classes):
        chances = np.exp(row) / np.exp(row).sum()
        nll -= np.log(chances[true]) / 300
        place = next(b for b in range(BINS) if chances.max() <= (b + 1) / BINS)
        members[place].append((chances.max(), chances.argmax() == true))
    error = 0.0
    for place, some in enumerate(members):
        assert found.sizes[place] == len(some)
        if some:
            confidence, accuracy = np.mean(some, axis=0)
            assert found.confidence[place] == pytest.approx(confidence)
            assert found.accuracy[place] == pytest.approx(accuracy)
            error += len(some) / 300 * abs(confidence - accuracy)
    assert found.ece == pytest.approx(error)
    assert found.nll == pytest.approx(nll)


def test_certain_predictions():
    logits, classes = np.array([[1e3, 0.0], [0.0, 1e3]]), np.array([0, 0])
    found = calibration(logits, classes)
    assert found.ece == 0.5
    assert found.nll == 500
    assert found.sizes.tolist() == [0] * (BINS - 1) + [2]
    assert np.isnan(found.accuracy[0])


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_a_scale(scale):
    logits, classes = drawn(20_000, scale)
    temperature = fitted_temperature(logits, classes)
    assert temperature == pytest.approx(scale, rel=0.05)
    assert calibration(logits, classes, temperature).ece < 0.02
    if scale == 3.0:
        assert calibration(logits, classes).ece > 0.1


def test_the_picture(tmp_path):
    logits, classes = drawn(500, 3.0)
    found = {"as they are": calibration(logits, classes)}
    found["logits / 3"] = calibration(logits, classes, 3.0)
    draw_reliability(found, tmp_path / "calibration.png")
    assert (tmp_path / "calibration.png").read_bytes().startswith(b"\x89PNG")
