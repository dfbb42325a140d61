"""Which row of a mixture comes from which source: exact shares, found from the row's number alone.

Rows are cut into blocks of `BLOCK`, and each block has the same number of rows of each source. In a
block, row i comes from the source in whose interval of [0, BLOCK) the number `_STEP` * i + c falls,
modulo `BLOCK`. `_STEP` is odd, so each number occurs once; it is about `BLOCK` divided by the
golden ratio, so any stretch of rows has the share of a source to within about two rows. c is random
for each block.
"""

import functools
from collections.abc import Sequence

import numpy as np
from numba import njit

from bert_jax.data.sampling import mixing_offset

BLOCK = 2**20
_STEP = 648_055


class Mixing:
    """The sources of the rows of an endless stream."""

    def __init__(self, shares: Sequence[float], *, seed: int):
        """Args:
        shares: of each source, positive numbers that add up to 1; each gets at least a row in
          `BLOCK`.
        seed: random seed of their order.
        """
        self._sizes = _apportioned(shares)
        of_numbers = np.repeat(np.arange(len(shares), dtype=np.int32), self._sizes)

        def block(number: int) -> tuple[np.ndarray, np.ndarray]:
            return _block(of_numbers, len(shares), mixing_offset(BLOCK, seed=seed, block=number))

        self._block = functools.lru_cache(maxsize=3)(block)

    def of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The source of each row, int32 [n], and how many rows before it have it, int64 [n]."""
        source, before = np.empty(len(rows), np.int32), np.empty(len(rows), np.int64)
        blocks, places = np.divmod(rows, BLOCK)
        for number in np.unique(blocks).tolist():
            where = blocks == number
            sources, ranks = self._block(number)
            source[where] = sources[places[where]]
            before[where] = number * self._sizes[source[where]] + ranks[places[where]]
        return source, before

    def rows_before(self, row: int) -> np.ndarray:
        """How many rows before a row have each source: int64 [num_sources]."""
        number, place = divmod(row, BLOCK)
        sources, _ = self._block(number)
        return number * self._sizes + np.bincount(sources[:place], minlength=len(self._sizes))


def _apportioned(shares: Sequence[float]) -> np.ndarray:
    """Numbers that add up to `BLOCK`, nearly in proportion to the shares; none is 0."""
    exact = np.asarray(shares) * BLOCK
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
