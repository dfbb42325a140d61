"""Which row of a mixture comes from which source: exact shares, found from the row's number alone.

Rows are cut into blocks of `BLOCK`, and each block has the same number of rows of each source. In a
block, row i comes from the source in whose interval of [0, BLOCK) the number `_STEP` * i + c falls,
modulo `BLOCK`. `_STEP` is odd, so each number occurs once; it is about `BLOCK` divided by the
golden ratio, so any stretch of rows has the share of a source to within about two rows. c is random
for each block.

Where the rows of a source are limited, the others share its part once it is used up: the stream is
a few stretches, each with its own blocks, at most one for each source.
"""

import bisect
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numba import njit

from bert_jax.data.sampling import mixing_offset

BLOCK = 2**20
_STEP = 648_055


class _Stretch(NamedTuple):
    """Rows in which the same sources have a share.

    Attributes:
      start: row of the stream with which it begins.
      before: int64 [num_sources], rows of each source before it.
      sources: int64 [n], those that are not used up.
      sizes: int64 [n], rows of each in a block.
    """

    start: int
    before: np.ndarray
    sources: np.ndarray
    sizes: np.ndarray


class Mixing:
    """The sources of the rows of a stream.

    Attributes:
      num_rows: rows of the stream; infinite unless all sources are limited.
    """

    def __init__(self, shares: Sequence[float], *, seed: int, limits: Sequence[float] = ()):
        """Args:
        shares: of each source, positive numbers, relative to each other; each gets at least a row
          in `BLOCK`.
        seed: random seed of their order.
        limits: most rows of each source, may be infinite; empty: none is limited.
        """
        self._stretches: list[_Stretch] = []

        def block(stretch: int, number: int) -> tuple[np.ndarray, np.ndarray]:
            sizes = self._stretches[stretch].sizes
            of_numbers = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
            return _block(of_numbers, len(sizes), mixing_offset(BLOCK, seed=seed, block=number))

        self._block = functools.lru_cache(maxsize=3)(block)
        of_all, most = np.asarray(shares), np.asarray(limits or [math.inf] * len(shares))
        start: float = 0
        before = np.zeros(len(of_all), np.int64)
        while start < math.inf and len(left := np.flatnonzero(before < most)):
            sizes = _apportioned(of_all[left] / of_all[left].sum())
            self._stretches.append(_Stretch(int(start), before, left, sizes))
            start = self._first_used_up((most - before)[left])
            if start < math.inf:
                before = self.rows_before(int(start))
        self.num_rows = start

    def of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The source of each row, int32 [n], and how many rows before it have it, int64 [n]."""
        source, before = np.empty(len(rows), np.int32), np.empty(len(rows), np.int64)
        starts = [stretch.start for stretch in self._stretches]
        for index in np.unique(of_stretch := np.searchsorted(starts, rows, side="right") - 1):
            stretch = self._stretches[index]
            blocks, places = np.divmod(rows - stretch.start, BLOCK)
            for number in np.unique(blocks[of_stretch == index]).tolist():
                where = (of_stretch == index) & (blocks == number)
                sources, ranks = self._block(index, number)
                found = sources[places[where]]
                source[where] = stretch.sources[found]
                before[where] = number * stretch.sizes[found] + ranks[places[where]]
                before[where] += stretch.before[source[where]]
        return source, before

    def rows_before(self, row: int) -> np.ndarray:
        """How many rows before a row have each source: int64 [num_sources]."""
        index = bisect.bisect_right(self._stretches, row, key=lambda stretch: stretch.start) - 1
        stretch = self._stretches[index]
        number, place = divmod(row - stretch.start, BLOCK)
        sources, _ = self._block(index, number)
        found = stretch.before.copy()
        found[stretch.sources] += number * stretch.sizes
        found[stretch.sources] += np.bincount(sources[:place], minlength=len(stretch.sizes))
        return found

    def _first_used_up(self, left: np.ndarray) -> float:
        """The row of the stream that finds its source used up.

        Args:
          left: of each source of the last stretch, how many rows it has left.
        """
        index, stretch = len(self._stretches) - 1, self._stretches[-1]
        blocks = np.floor(left / stretch.sizes)
        if (number := blocks.min()) == math.inf:
            return math.inf
        sources, ranks = self._block(index, int(number))
        rest = (left - number * stretch.sizes)[sources]
        return stretch.start + int(number) * BLOCK + int(np.argmax(ranks >= rest))


def _apportioned(shares: np.ndarray) -> np.ndarray:
    """Numbers that add up to `BLOCK`, nearly in proportion to the shares; none is 0."""
    exact = shares * BLOCK
    sizes = np.maximum(np.floor(exact), 1).astype(np.int64)
    # What is missing goes to the largest remainders, what is too much comes from the largest.
    missing = BLOCK - int(sizes.sum())
    if missing > 0:
        sizes[np.argsort(sizes - exact, kind="stable")[:missing]] += 1
    sizes[np.argmax(sizes)] += BLOCK - int(sizes.sum())
    return sizes


@njit(nogil=True, cache=True)
def _block(of_numbers, num_sources, offset):
    """The sources of a block's rows and, of each row, how many before it have its source."""
    sources = np.empty(BLOCK, np.int32)
    ranks = np.empty(BLOCK, np.int32)
    counts = np.zeros(num_sources, np.int32)
    for i in range(BLOCK):
        source = of_numbers[(_STEP * i + offset) % BLOCK]
        sources[i] = source
        ranks[i] = counts[source]
        counts[source] += 1
    return sources, ranks
