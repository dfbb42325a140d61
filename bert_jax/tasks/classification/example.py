"""Examples of classification and regression."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Example:
    """A text or a pair of texts.

    Attributes:
      text_a, text_b: `text_b` is None where the task has single texts.
      label: a class in any of its spellings, or a score; None = not known.
      index: what a file of predictions calls the example.
      place: where it comes from, for messages.
    """

    text_a: str
    text_b: str | None
    label: str | float | None
    index: str
    place: str
