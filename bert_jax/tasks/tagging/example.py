"""Examples of tagging."""

from collections.abc import Sequence
from typing import NamedTuple


class Sentence(NamedTuple):
    """Words and their tags.

    Attributes:
      words: as in the source.
      tags: one per word; None = not known.
      place: where it comes from, for messages.
      predicate: indices of the words of the predicate, if the tags are its roles.
      num_repaired: number of tags that broke the scheme.
    """

    words: Sequence[str]
    tags: Sequence[str] | None
    place: str
    predicate: Sequence[int] = ()
    num_repaired: int = 0
