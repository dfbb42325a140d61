"""Decodes the head's logits into classes or scores."""

from collections.abc import Sequence

import numpy as np


def likeliest_classes(logits: Sequence[np.ndarray]) -> np.ndarray:
    """int32 [n], from n logits [num_labels]."""
    best: np.ndarray = np.stack(logits).argmax(axis=-1).astype(np.int32)
    return best


def scores(logits: Sequence[np.ndarray]) -> np.ndarray:
    """float32 [n], from n logits [1]."""
    return np.stack(logits)[:, 0].astype(np.float32)
