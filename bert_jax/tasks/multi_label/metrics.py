"""Metrics of classification with several labels, and a baseline guess.

Labels and predictions are int32 [n, classes], 1 for the classes of an example and else 0.
"""

from collections.abc import Mapping

import numpy as np

from bert_jax.tasks.classification.metrics import (
    Metric,
    accuracy,
    macro_f1,
    micro_f1,
    samples_f1,
)

METRICS: Mapping[str, Metric] = {
    "micro_f1": micro_f1,
    "macro_f1": macro_f1,
    "samples_f1": samples_f1,
    "accuracy": accuracy,  # of all classes of an example together
}


def best_constant(labels: np.ndarray) -> np.ndarray:
    """int32 [classes]: those of more than half of the examples, or else the most frequent one."""
    shares = labels.mean(axis=0)
    if not (shares > 0.5).any():
        return (np.arange(len(shares)) == shares.argmax()).astype(np.int32)
    return (shares > 0.5).astype(np.int32)
