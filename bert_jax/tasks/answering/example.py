"""Examples of question answering."""

from typing import NamedTuple


class Question(NamedTuple):
    """A question about a text.

    Attributes:
      id: its key in prediction files.
      question: text of the question.
      context: the text that contains the answer.
      answers: text of each gold answer, and the character of the context where it begins; empty
        if the context has no answer (SQuAD 2.0) or it is not known.
      num_repaired: number of answers that were not at their stated position.
    """

    id: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...] = ()
    num_repaired: int = 0
