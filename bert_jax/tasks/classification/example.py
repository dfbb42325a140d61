"""Examples of classification and regression."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Example:
    """A text or a pair of texts.

    Attributes:
      text_a, text_b: the texts; `text_b` is None for single texts.
      label: a class in any of its spellings, or a score; None = not known.
      index: the example's name in prediction files.
      place: where it comes from, for messages.
    """

    text_a: str
    text_b: str | None
    label: str | float | None
    index: str
    place: str
