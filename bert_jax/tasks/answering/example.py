"""Examples of question answering."""

from typing import NamedTuple


class Question(NamedTuple):
    """A question on a text.

    Attributes:
      id: its key in files of predictions.
      question: a text.
      context: the text that holds the answer.
      answers: text of every gold answer, and the character of the context where it begins.
        None at all: the context holds no answer (SQuAD 2.0), or it is not known.
      num_repaired: how many answers were not at their stated place.
    """

    id: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...] = ()
    num_repaired: int = 0
