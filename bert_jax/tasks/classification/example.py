"""Examples of classification and regression."""

from dataclasses import dataclass
from typing import TypeAlias

# A class in any of its spellings, a score, or all classes of an example.
Label: TypeAlias = str | float | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Example:
    """A text or a pair of texts.

    Attributes:
      text_a, text_b: the texts; `text_b` is None for single texts.
      label: the class, score or classes; None = not known.
      index: the example's name in prediction files.
      place: where it comes from, for messages.
    """

    text_a: str
    text_b: str | None
    label: Label | None
    index: str
    place: str
