"""Labels of examples: classes, which may have several spellings, and scores."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from bert_jax.errors import UserError
from bert_jax.tasks.classification.example import Example
from bert_jax.tasks.classification.names import Names, all_of


@dataclass(frozen=True)
class Classes:
    """Classes, numbered in order.

    Attributes:
      spellings: names of each class: the first is shown, the last is written to prediction files.

    Raises:
      UserError: two classes have the same name.
    """

    spellings: tuple[Names, ...]

    def __post_init__(self) -> None:
        if len(self._numbers) < sum(len(all_of(names)) for names in self.spellings):
            raise UserError(f"labels: two are spelled alike in {', '.join(self.names)}")

    @property
    def names(self) -> tuple[str, ...]:
        """The first name of each class."""
        return tuple(all_of(names)[0] for names in self.spellings)

    @property
    def written(self) -> tuple[str, ...]:
        """The name of each class in prediction files."""
        return tuple(all_of(names)[-1] for names in self.spellings)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {
            name: number for number, names in enumerate(self.spellings) for name in all_of(names)
        }

    def number(self, name: str, place: str) -> int:
        """The number of the class with this name.

        Raises:
          UserError: no class has it; the message begins with `place`.
        """
        if name not in self._numbers:
            raise UserError(
                f"{place}: label {name!r} is none of {', '.join(self.names)}, the labels "
                "given or those of the training examples"
            )
        return self._numbers[name]


def read_score(label: Any, place: str) -> float:
    """The score that a label is or spells.

    Raises:
      UserError: it is not a finite number; the message begins with `place`.
    """
    try:
        score = float(label)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise UserError(f"{place}: label {label!r} is not a finite number, as a regression needs")
    return score


def class_labels(examples: Sequence[Example], classes: Classes) -> np.ndarray:
    """int32 [n]: the class of each example, -1 = not known.

    Raises:
      UserError: a label is not a class; the message has its place.
    """
    known = [-1 if e.label is None else classes.number(str(e.label), e.place) for e in examples]
    return np.array(known, np.int32)


def score_labels(examples: Sequence[Example]) -> np.ndarray:
    """float32 [n]: the score of each example, NaN = not known."""
    return np.array([math.nan if e.label is None else e.label for e in examples], np.float32)


def is_known(labels: np.ndarray) -> np.ndarray:
    """bool [n]: which of the labels of `class_labels` or `score_labels` are known."""
    return ~np.isnan(labels) if labels.dtype.kind == "f" else labels >= 0
