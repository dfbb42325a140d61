"""The metric of multiple choice, and a baseline guess."""

from collections.abc import Sequence

import numpy as np

from bert_jax.tasks.multiple_choice.example import Question


def accuracy(predictions: np.ndarray, examples: Sequence[Question]) -> float:
    """Share of right choices among the questions whose answer is known."""
    right = [p == e.answer for p, e in zip(predictions.tolist(), examples) if e.answer is not None]
    return sum(right) / len(right)


def guess(train_examples: Sequence[Question], examples: Sequence[Question]) -> np.ndarray:
    """int32 [n]: the place where most answers of training stand, or 0 where there is none."""
    answers = [example.answer for example in train_examples if example.answer is not None]
    place = int(np.bincount(answers).argmax())
    return np.array([place if place < len(e.choices) else 0 for e in examples], np.int32)
