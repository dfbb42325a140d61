"""Decodes the head's logits into classes or scores."""

from collections.abc import Sequence

import numpy as np

Verdict = dict[str, float] | float  # probability of each class by name, best first; or a score


def likeliest_classes(logits: Sequence[np.ndarray]) -> np.ndarray:
    """int32 [n], from n logits [num_labels]."""
    best: np.ndarray = np.stack(logits).argmax(axis=-1).astype(np.int32)
    return best


def verdict(logits: np.ndarray, labels: Sequence[str], problem_type: str | None = None) -> Verdict:
    """What logits [num_labels] say, or [1] of a regression, which has no labels.

    Args:
      logits: outputs for a text.
      labels: names of the classes.
      problem_type: "multi_label_classification" if each class is independent of the others,
        "regression" if each output is a score; otherwise a text has one class.
    """
    if not labels:
        return float(logits.item())
    if problem_type == "regression":
        values = logits
    elif problem_type == "multi_label_classification":
        values = 1 / (1 + np.exp(-logits))
    else:
        odds = np.exp(logits - logits.max())
        values = odds / odds.sum()
    named = zip(labels, values.tolist(), strict=True)
    return dict(sorted(named, key=lambda item: -item[1]))


def scores(logits: Sequence[np.ndarray]) -> np.ndarray:
    """float32 [n], from n logits [1]."""
    return np.stack(logits)[:, 0].astype(np.float32)
