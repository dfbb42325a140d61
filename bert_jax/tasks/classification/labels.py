"""Labels of examples: classes, which may have several spellings, and scores."""

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from bert_jax.errors import UserError
from bert_jax.tasks.classification.example import Example
from bert_jax.tasks.classification.names import Names, all_of

_log = logging.getLogger(__name__)


# What stands for "no label" where no class is called so: "-" in SNLI, where annotators disagree,
# and -1 in files of the library `datasets`.
NO_LABEL = ("-", "-1")


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

    def has(self, name: str) -> bool:
        """Whether a class has this name."""
        return name in self._numbers

    def number(self, name: str, place: str) -> int:
        """The number of the class with this name, -1 for one of `NO_LABEL`.

        Raises:
          UserError: no class has it; the message begins with `place`.
        """
        if name not in self._numbers:
            if name in NO_LABEL:
                return -1
            raise self.unknown(name, place)
        return self._numbers[name]

    def unknown(self, name: str, place: str) -> UserError:
        """The error for a label that is no class."""
        return UserError(
            f"{place}: label {name!r} is none of {', '.join(self.names)}, the labels "
            "given or those of the training examples"
        )


def is_blank(label: Any) -> bool:
    """Whether a label is text without a character that is seen."""
    return isinstance(label, str) and not label.strip()


def read_class(label: Any, place: str) -> str:
    """The name of a class that a label is or spells: "1" for 1, 1.0 and "1 ".

    Raises:
      UserError: it is neither text nor a number; the message begins with `place`.
    """
    if isinstance(label, float) and label.is_integer():
        label = int(label)  # as columns of numbers with gaps have it
    if not isinstance(label, str | int | float):
        kind = type(label).__name__
        raise UserError(f"{place}: label {label!r} is {kind}, neither text nor a number")
    return str(label).strip()


def found_classes(examples: Sequence[Example]) -> list[str]:
    """The classes that occur in examples, sorted.

    "-" is left out as no label if there are two others, and no "+". A warning tells what was taken
    for what.
    """
    counts = Counter(str(example.label) for example in examples if example.label is not None)
    if "-" in counts and "+" not in counts:
        _warn("-", counts["-"], is_class=len(counts) == 2)
        if len(counts) > 2:
            del counts["-"]
    if {*counts} >= {"-1", "0", "1", "2"}:
        _warn("-1", counts["-1"], is_class=True)
    return sorted(counts)


def _warn(label: str, count: int, *, is_class: bool) -> None:
    this, other = ("a class", "no label") if is_class else ("no label", "a class")
    _log.warning(
        f"label {label!r}: taken for {this} in {count} examples; if it is {other}, list the "
        "classes in `labels`"
    )


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
    """bool [n]: which labels are known, of those that `Features` may have for a sequence."""
    known = ~np.isnan(labels) if labels.dtype.kind == "f" else labels >= 0
    return np.all(known, axis=tuple(range(1, known.ndim)))
