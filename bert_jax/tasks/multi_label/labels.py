"""Labels of examples that may have any of the classes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bert_jax.errors import UserError
from bert_jax.tasks.classification.example import Example
from bert_jax.tasks.classification.labels import Classes, read_class


def read_classes(label: Any, place: str, separator: str) -> tuple[str, ...]:
    """The names of the classes in a list, or in text with a separator between them.

    An empty list or text has none. Names that stand twice count once.

    Raises:
      UserError: a name is empty, or neither text nor a number; the message begins with `place`.
    """
    if isinstance(label, str):
        items: Sequence[Any] = label.split(separator) if label.strip() else ()
    else:
        items = label if isinstance(label, list | tuple) else (label,)
    names = tuple(dict.fromkeys(read_class(item, place) for item in items))
    if "" in names:
        raise UserError(f"{place}: label {label!r} has an empty name between two {separator!r}")
    return names


def found_classes(examples: Sequence[Example]) -> list[str]:
    """The classes that occur in examples, sorted."""
    return sorted({name for example in examples for name in _names(example) or ()})


def multi_hot(examples: Sequence[Example], classes: Classes) -> np.ndarray:
    """int32 [n, classes]: 1 for the classes of each example, else 0; -1 where not known.

    Raises:
      UserError: a label is not a class; the message has its place.
    """
    found = np.zeros((len(examples), len(classes.names)), np.int32)
    for row, example in zip(found, examples):
        names = _names(example)
        if names is None:
            row[:] = -1
        else:
            check_known(names, classes, example.place)
            row[[classes.number(name, example.place) for name in names]] = 1
    return found


def check_known(names: Sequence[str], classes: Classes, place: str) -> None:
    """Raises UserError, whose message begins with `place`, if a name is no class."""
    if strange := [name for name in names if not classes.has(name)]:
        raise classes.unknown(strange[0], place)


def _names(example: Example) -> tuple[str, ...] | None:
    assert example.label is None or isinstance(example.label, tuple)
    return example.label
