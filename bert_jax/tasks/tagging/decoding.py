"""Decodes the head's logits into tags of words."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bert_jax.tasks.tagging.example import Sentence
from bert_jax.tasks.tagging.features import TaggingFeatures


class Prediction(NamedTuple):
    """Tags of the words of a sentence, and the probability of each, float32 [words]."""

    tags: list[str]
    probabilities: np.ndarray


def likeliest_tags(
    logits: Sequence[np.ndarray],
    features: TaggingFeatures,
    examples: Sequence[Sentence],
    labels: Sequence[str],
) -> list[Prediction]:
    """The most likely tag of each word, which need not fit its neighbours.

    Args:
      logits: [length, num_labels] for each window.
      features: the windows.
      examples: the sentences that `features` was made from.
      labels: the tags in order of their numbers.
    """
    predictions = [
        Prediction([""] * len(e.words), np.zeros(len(e.words), np.float32)) for e in examples
    ]
    for window, index in enumerate(features.example):
        words = features.words[window]
        counted = np.flatnonzero(words >= 0)
        of_words = logits[window][counted]
        best = of_words.argmax(axis=-1)
        # The softmax of the largest logit: exp(0) / sum(exp(logits - largest)).
        odds = np.exp(of_words - of_words.max(axis=-1, keepdims=True))
        probabilities = 1 / odds.sum(axis=-1)
        for word, class_, probability in zip(words[counted], best, probabilities):
            predictions[index].tags[word] = labels[class_]
            predictions[index].probabilities[word] = probability
    return predictions
