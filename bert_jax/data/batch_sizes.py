"""How many rows each batch has, and where they begin in the stream of rows."""

import bisect
import itertools

from bert_jax.data.sampling import Sampling


class BatchSizes:
    """The batches of a run or phase, which may grow: in a line over the steps, some rows at a time.

    Each batch has the size that is nearest to the line, so together they have its rows. Every
    answer takes the same time at any step.

    Attributes:
      sizes: the different numbers of rows, ascending.
    """

    def __init__(self, sampling: Sampling, first_row: int = 0):
        """Args:
        sampling: what a batch holds.
        first_row: row of the stream with which the first batch begins.
        """
        start, full = sampling.start_batch_size or sampling.batch_size, sampling.batch_size
        start = min(start, full)
        sizes = [*range(start, full, sampling.rows_of_growth), full]
        # The line reaches the middle between two sizes where the larger begins. Of two sizes that
        # begin at the same step it is the larger one.
        doubled = (before + size - 2 * start for before, size in itertools.pairwise(sizes))
        steps = [-(-x * sampling.growth_steps // (2 * (full - start))) for x in doubled]
        begins = dict(zip([0, *steps], sizes))
        self._steps, self.sizes = [*begins], [*begins.values()]
        spans = zip(self.sizes, itertools.pairwise(self._steps))
        rows = (size * (stop - begin) for size, (begin, stop) in spans)
        self._rows = [*itertools.accumulate(rows, initial=first_row)]

    def rows(self, step: int) -> int:
        """Rows of the batch of a step, from 0."""
        return self.sizes[self._index(step)]

    def first_row(self, step: int) -> int:
        """The row of the stream with which the batch of a step begins."""
        index = self._index(step)
        return self._rows[index] + (step - self._steps[index]) * self.sizes[index]

    def _index(self, step: int) -> int:
        return max(bisect.bisect_right(self._steps, step) - 1, 0)
