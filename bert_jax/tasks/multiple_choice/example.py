"""Examples of multiple choice."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Question:
    """A question and its choices.

    Attributes:
      context: a text before the question; None if there is none.
      question: text of the question, or the beginning of a sentence that each choice ends.
      choices: texts of the choices, at least two.
      answer: number of the right choice, from 0; None = not known.
      index: name of the question in prediction files.
      place: where it comes from, for messages.
    """

    context: str | None
    question: str
    choices: tuple[str, ...]
    answer: int | None
    index: str
    place: str
