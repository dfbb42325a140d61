"""Notices text whose lines were broken at a fixed width, which cuts its sentences."""

import itertools
from collections import Counter

_MARKS = frozenset(".!?…:;。！？\"'”’»)")
_FEWEST = 20  # line breaks to judge by
_WIDTHS = range(40, 121)


class LineBreaks:
    """Counts the line breaks of documents that are not after a mark.

    In hard-wrapped text most are not, and the first word of the next line would have made the line
    too long. In verse or a transcript it would have fitted.
    """

    def __init__(self) -> None:
        self._total = 0
        self._lengths: Counter[int] = Counter()  # of the lines before such breaks
        self._wanted: Counter[int] = Counter()  # the same with the first word of the next line

    def add(self, text: str) -> None:
        lines = [line.rstrip() for line in text.splitlines()]
        for line, following in itertools.pairwise(lines):
            if line and following:
                self._total += 1
                if line[-1] not in _MARKS:
                    self._lengths[len(line)] += 1
                    self._wanted[len(line) + 1 + len(following.split(maxsplit=1)[0])] += 1

    def merge(self, other: "LineBreaks") -> None:
        self._total += other._total
        self._lengths += other._lengths
        self._wanted += other._wanted

    def width(self) -> int:
        """The width at which lines are broken, in characters; 0 if they are not hard-wrapped."""
        inside = self._lengths.total()
        if inside < _FEWEST or 2 * inside < self._total:
            return 0
        up_to = itertools.accumulate(n for _, n in sorted(self._lengths.items()))
        width = next(
            length for length, n in zip(sorted(self._lengths), up_to) if n >= 0.98 * inside
        )  # a few lines may be longer
        too_long = sum(n for wanted, n in self._wanted.items() if wanted > width)
        return width if 2 * too_long > inside and width in _WIDTHS else 0
