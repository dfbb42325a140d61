"""How well the probabilities of a classifier agree with how often it is right.

Reference: Guo et al. 2017, https://arxiv.org/abs/1706.04599: the expected calibration error in 15
bins of equal width, and one temperature that divides all logits.
"""

from typing import NamedTuple

import numpy as np

BINS = 15
LOWEST, HIGHEST = 0.05, 20.0  # temperatures that are tried


class Calibration(NamedTuple):
    """Calibration of predictions.

    Attributes:
      ece: expected calibration error, in [0, 1]: the mean over examples of the difference between
        accuracy and mean confidence of their bin.
      nll: mean negative log likelihood of the true classes, in nats.
      sizes: int64 [BINS], examples in each bin of confidence.
      confidence, accuracy: float64 [BINS], their mean confidence and their accuracy; NaN where
        there are none.
    """

    ece: float
    nll: float
    sizes: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def calibration(logits: np.ndarray, classes: np.ndarray, temperature: float = 1.0) -> Calibration:
    """The calibration of the likeliest classes.

    Args:
      logits: float [n, num_classes].
      classes: int [n], the true ones.
      temperature: what logits are divided by.
    """
    log_probs = _log_probs(logits, temperature)
    found = np.exp(log_probs.max(axis=1))
    is_right = log_probs.argmax(axis=1) == classes
    # Bins are open below: a confidence of 1 is in the last one.
    bins = np.clip(np.ceil(found * BINS).astype(int) - 1, 0, BINS - 1)
    sizes = np.bincount(bins, minlength=BINS)
    some = np.where(sizes > 0, sizes, np.nan)
    confidence = np.bincount(bins, found, minlength=BINS) / some
    accuracy = np.bincount(bins, is_right, minlength=BINS) / some
    gaps = np.nan_to_num(np.abs(confidence - accuracy))
    nll = -log_probs[np.arange(len(classes)), classes].mean()
    return Calibration(
        float(np.sum(gaps * sizes) / len(classes)), float(nll), sizes, confidence, accuracy
    )


def fitted_temperature(logits: np.ndarray, classes: np.ndarray) -> float:
    """The temperature with the lowest negative log likelihood, from `LOWEST` to `HIGHEST`.

    Args:
      logits: float [n, num_classes].
      classes: int [n], the true ones.
    """
    from scipy.optimize import minimize_scalar  # it takes a second to import

    def nll(log_temperature: float) -> float:
        return calibration(logits, classes, float(np.exp(log_temperature))).nll

    bounds = np.log(LOWEST), np.log(HIGHEST)
    return float(np.exp(minimize_scalar(nll, bounds=bounds, method="bounded").x))


def _log_probs(logits: np.ndarray, temperature: float) -> np.ndarray:
    scaled = np.asarray(logits, np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    log_probs: np.ndarray = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
    return log_probs
