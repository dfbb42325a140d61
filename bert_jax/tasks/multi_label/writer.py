"""Writes the classes of texts and their probabilities."""

from collections.abc import Mapping

from bert_jax.fields import Plain


def verdict_fields(found: Mapping[str, float], thresholds: Mapping[str, float]) -> Plain:
    """What a classifier says of a text, as values of a JSON object.

    `labels`, the predicted classes, and the `probabilities` of all by name, best first, with 6
    decimals.

    Args:
      found: probability of each class by name, best first.
      thresholds: for each class the probability from which it is predicted.
    """
    labels = [name for name, value in found.items() if value >= thresholds[name]]
    return {"labels": labels, "probabilities": {n: round(x, 6) for n, x in found.items()}}
