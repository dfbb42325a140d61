"""Decodes the scores of choices."""

from collections.abc import Sequence

import numpy as np


def probabilities(logits: Sequence[np.ndarray], group: np.ndarray) -> list[np.ndarray]:
    """The probability of each choice of each question, float64 [choices]: a softmax over them.

    Args:
      logits: [1] for each choice, the questions one after the other.
      group: int32 [n], the question of each choice.
    """
    starts = np.flatnonzero(np.diff(group)) + 1
    found = []
    for scores in np.split(np.concatenate(list(logits)).astype(np.float64), starts):
        odds = np.exp(scores - scores.max())
        found.append(odds / odds.sum())
    return found
