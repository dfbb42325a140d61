"""Numbers of classes by name: thresholds, which may be fitted to examples, and weights."""

from collections.abc import Mapping, Sequence

import numpy as np

from bert_jax.errors import UserError
from bert_jax.fields import Bounds

THRESHOLD, WEIGHT = Bounds("(0, 1)"), Bounds("(0, inf)")


def parse_numbers(given: Sequence[str], field: str, bounds: Bounds) -> dict[str, float]:
    """{"spam": 0.3} for "spam=0.3".

    Raises:
      UserError: a text is not NAME=NUMBER, its number is out of bounds, or a name stands twice; the
        message begins with `field`.
    """
    found: dict[str, float] = {}
    for text in given:
        name, _, number = text.rpartition("=")
        name = name.strip()
        try:
            value = float(number)
        except ValueError:
            value = float("nan")
        if not name or not bounds.hold(value):
            raise UserError(
                f"{field}: {text!r} must be NAME=NUMBER, a class and a number in {bounds.text}"
            )
        if name in found:
            raise UserError(f"{field}: {name!r} stands there twice")
        found[name] = value
    return found


def written(numbers: Mapping[str, float]) -> tuple[str, ...]:
    """The inverse of `parse_numbers`."""
    return tuple(f"{name}={value!r}" for name, value in numbers.items())


def best_threshold(is_class: np.ndarray, probabilities: np.ndarray) -> float:
    """The probability from which a class has to be predicted for the best F1 on examples.

    It is half-way between the last example that is predicted and the first that is not. Of equally
    good thresholds it is the highest. It is 0.5 if no example of the class has a probability.

    Args:
      is_class: bool [n], whether an example is of the class.
      probabilities: [n], those of the class.
    """
    if not probabilities[is_class].any():
        return 0.5
    order = np.argsort(-probabilities, kind="stable")
    ranked = probabilities[order].astype(np.float64)
    right = np.cumsum(is_class[order])
    f1 = 2 * right / (np.arange(1, len(ranked) + 1) + is_class.sum())
    after = np.append(ranked[1:], 0.0)
    f1[ranked == after] = -1  # no threshold is between equal probabilities
    best = int(f1.argmax())
    return float((ranked[best] + after[best]) / 2)
