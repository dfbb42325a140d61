"""Examples of tagging."""

from collections.abc import Sequence
from typing import NamedTuple


class Sentence(NamedTuple):
    """Words and their tags.

    Attributes:
      words: as in the source.
      tags: one a word; None = not known.
      place: where it comes from, for messages.
      predicate: indices of the words whose roles the tags are.
      num_repaired: how many tags were not what they should be.
    """

    words: Sequence[str]
    tags: Sequence[str] | None
    place: str
    predicate: Sequence[int] = ()
    num_repaired: int = 0
