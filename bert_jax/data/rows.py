"""Rows of a store: the endless stream that batches are cut from, a shard at a time.

The stream goes round and round over the shards, in a new order each time. A visit takes as many
rows from a shard as go with its tokens, and goes on where the last visit of that shard ended: when
its plan is used up, that of its next pass begins, with its pairs and rows drawn anew. So every
document is used once a pass, and any row is found from its number alone.
"""

import contextlib
import functools
import itertools
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol

import numpy as np

from bert_jax.data.sampling import (
    Plan,
    Sampling,
    Usage,
    has_examples,
    plan_epoch,
    shard_order,
    shard_seed,
    usage,
)
from bert_jax.data.split import Shards, Split
from bert_jax.errors import UserError

PLANS = 3  # kept of a store: two that a batch may need and the next; of shards, one to count rows
SAMPLED_SHARDS = 16  # from which the rows of an evaluation come, at most, unless it takes all


class Piece(NamedTuple):
    """Rows that come from one plan.

    Attributes:
      split: the shard.
      plan: the plan.
      key: a number of shard and pass, for random masks.
      where: int64 [n], which of the rows that were asked for.
      rows: int64 [n], what rows of the plan they are.
    """

    split: Split
    plan: Plan
    key: int
    where: np.ndarray
    rows: np.ndarray


class Part(NamedTuple):
    """A source of a mixture.

    Attributes:
      name: its name.
      share: its share of the tokens.
      rows_per_epoch: rows in a pass.
      usage: what a pass uses of its documents.
      limit: passes after which the others have its share; may be infinite.
    """

    name: str
    share: float
    rows_per_epoch: int
    usage: Usage | None
    limit: float


class Rows(Protocol):
    """An endless stream of rows, or one that ends.

    Attributes:
      rows_per_epoch: rows in which every shard is visited once.
      usage: what a pass uses of the documents.
      says_words: whether the store says which tokens continue a word.
      parts: sources, if it is a mixture.
    """

    rows_per_epoch: int
    says_words: bool

    @property
    def usage(self) -> Usage | None: ...
    @property
    def parts(self) -> Sequence[Part]: ...

    def pieces(self, rows: np.ndarray) -> Iterator[Piece]:
        """Rows of the stream, int64 [n] in any order, from the plans that hold them.

        Rows beyond the end of the stream are in no piece.

        Raises:
          UserError: as `plan_epoch`, or a shard is damaged, or the sources of a mixture have been
            passed as often as is allowed.
        """

    def passes(self, row: int) -> dict[str, float]:
        """How often each source of a mixture was passed before a row, also earlier in the run."""


def planner(num_stores: int = 1) -> ThreadPoolExecutor:
    """Threads that draw plans, at most one for each store and each core."""
    threads = min(num_stores, os.cpu_count() or 1)
    return ThreadPoolExecutor(max_workers=threads, thread_name_prefix="plan_epoch")


class _Segment(NamedTuple):
    """Rows of the stream, from one row on, that come from the same plan.

    Attributes:
      shard, epoch: of the plan; the pass of the shard, from 0.
      row: row of the plan with which it begins.
      stop: row of the stream where the next segment begins.
    """

    shard: int
    epoch: int
    row: int
    stop: int


class StoreRows:
    """The rows of a split of a store, a `Rows`. Thread-safe.

    How many rows a shard has is known once its first pass is planned; how many a visit takes must
    be known before. It is a share of the tokens: as many a token as in the first pass of the
    largest shard. If a shard's rows hold more or fewer tokens than that, its passes end within a
    visit and not at its end; none of its rows is left out. With one shard a visit is a pass. Later
    passes differ by a few rows: a longer one drops its surplus, a shorter one repeats its first
    rows.

    A background thread draws the next plan as soon as one is in use, so training does not wait. At
    most `PLANS` plans are kept: threads that read ahead over more of them draw some twice.

    Attributes:
      rows_per_epoch: rows of a round, in which every shard is visited once.
      usage: what the first pass of the largest shard uses of it.
      tokens_per_row: mean tokens of documents in a row of it, special tokens not counted.
      says_words: whether the store says which tokens continue a word.
    """

    parts = ()

    def __init__(
        self,
        shards: Shards,
        sampling: Sampling,
        *,
        seed: int,
        threads: ThreadPoolExecutor | None = None,
    ):
        """Draws a plan of the largest shard.

        Args:
          shards: the split.
          sampling: what a row holds.
          seed: random seed of the plans.
          threads: see `planner`; None: one of its own.

        Raises:
          UserError: as `plan_epoch`, or a shard is damaged.
        """
        self._shards, self._sampling, self._seed = shards, sampling, seed
        self._planner = threads or planner()
        self._plans: OrderedDict[tuple[int, int], Future[Plan]] = OrderedDict()
        self._num_rows: dict[int, int] = {}  # of the first pass of a shard
        self._awaited: set[int] = set()  # shards whose first plan is looked ahead to
        self._lock = threading.RLock()

        sizes = shards.sizes
        used = [i for i, size in enumerate(sizes) if has_examples(size, sampling.pairs)]
        if len(shards) == 1 or not used:
            used = [0]
        self._used = used
        largest = max(used, key=lambda shard: sizes[shard].tokens)
        first = self._planned(largest, 0).result()
        self._num_rows[largest] = first.num_rows
        split = shards[largest]
        self.says_words = split.continues is not None
        self.usage: Usage | None = usage(first, sampling, len(split.tokens))
        spans = int(first.a_length.sum(dtype=np.int64) + first.b_length.sum(dtype=np.int64))
        self.tokens_per_row = spans / first.num_rows
        of_largest = max(1, sizes[largest].tokens)
        # Rounded to the nearest; of the largest shard, exactly the rows of its plan.
        self._take(
            [
                max(1, (2 * sizes[shard].tokens * first.num_rows + of_largest) // (2 * of_largest))
                if shard != largest
                else first.num_rows
                for shard in used
            ]
        )
        self._num_stream_rows: float = math.inf

    def _take(self, quotas: Sequence[int]) -> None:
        """Sets how many rows a visit of each used shard takes."""
        self._quotas = quotas
        self.rows_per_epoch = sum(quotas)
        self._round = functools.lru_cache(maxsize=4)(self._drawn_round)

    def end_after_one_round(self, num_rows: int = 0) -> None:
        """Makes it the stream of an evaluation: every row of a first pass once, then none.

        Args:
          num_rows: of several shards take only about so many rows, from `SAMPLED_SHARDS` of them
            in proportion to their rows; 0 = all.

        Raises:
          UserError: as `plan_epoch`, or a shard is damaged.
        """
        if len(self._shards) > 1:
            every = max(1, len(self._used) // SAMPLED_SHARDS) if num_rows else 1
            sample = self._used[::every][:SAMPLED_SHARDS] if num_rows else self._used
            counts = [self._count(shard) for shard in sample]
            if sum(counts) < num_rows and len(sample) < len(self._used):
                sample = self._used
                counts = [self._count(shard) for shard in sample]
            total = sum(counts)
            wanted = min(num_rows or total, total)
            ends = [end * wanted // total for end in itertools.accumulate(counts, initial=0)]
            self._used = sample
            self._take([stop - start for start, stop in itertools.pairwise(ends)])
        self._num_stream_rows = self.rows_per_epoch

    def pieces(self, rows: np.ndarray) -> Iterator[Piece]:
        """See `Rows`."""
        order = np.argsort(rows, kind="stable")
        ascending = rows[order]
        first, stop = 0, int(np.searchsorted(ascending, self._num_stream_rows))
        while first < stop:
            row = int(ascending[first])
            segment = self._segment(row)
            end = min(stop, int(np.searchsorted(ascending, segment.stop)))
            future = self._planned(segment.shard, segment.epoch)
            self.look_ahead(segment.stop)
            plan = future.result()
            yield Piece(
                self._shards[segment.shard],
                plan,
                segment.epoch * len(self._shards) + segment.shard,
                order[first:end],
                (ascending[first:end] - row + segment.row) % plan.num_rows,
            )
            first = end

    def passes(self, row: int) -> dict[str, float]:
        """Of no source: it is no mixture."""
        return {}

    def _drawn_round(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The order in which shards are visited, and the rows of the round before each visit."""
        order = shard_order(len(self._used), seed=self._seed, round=number)
        return order, np.append(0, np.cumsum(np.asarray(self._quotas)[order]))

    def _visit(self, row: int) -> tuple[int, int, int]:
        """The visit that a row of the stream belongs to.

        Returns:
          The shard; how many rows of it are before this one, from its first pass on; the row of the
          stream with which the next visit begins.
        """
        number, within = divmod(row, self.rows_per_epoch)
        order, starts = self._round(number)
        visit = int(np.searchsorted(starts, within, side="right")) - 1
        index, start = int(order[visit]), int(starts[visit])
        quota = self._quotas[index]
        return self._used[index], number * quota + within - start, row - within + start + quota

    def _segment(self, row: int) -> _Segment:
        shard, before, stop = self._visit(row)
        num_rows = self._count(shard)
        epoch, first = divmod(before, num_rows)
        return _Segment(shard, epoch, first, min(stop, row + num_rows - first))

    def _count(self, shard: int) -> int:
        """Rows of the first pass of a shard."""
        if shard not in self._num_rows:
            self._num_rows[shard] = self._planned(shard, 0).result().num_rows
        return self._num_rows[shard]

    def look_ahead(self, row: int) -> None:
        """Lets the plan of a row of the stream be drawn in the background."""
        if row >= self._num_stream_rows:
            return
        shard, _, _ = self._visit(row)
        if shard in self._num_rows:
            segment = self._segment(row)
            self._planned(segment.shard, segment.epoch)
            return

        def go_on(first: Future[Plan]) -> None:
            if not first.exception():  # or else it is raised when the plan is used
                self._num_rows[shard] = first.result().num_rows
                with contextlib.suppress(RuntimeError):  # the program ends
                    self.look_ahead(row)

        if shard not in self._awaited:
            self._awaited.add(shard)
            self._planned(shard, 0).add_done_callback(go_on)

    def _planned(self, shard: int, epoch: int) -> Future[Plan]:
        with self._lock:
            key = shard, epoch
            if key not in self._plans:
                self._plans[key] = self._planner.submit(self._plan, shard, epoch)
            self._plans.move_to_end(key)
            while len(self._plans) > PLANS + (len(self._shards) > 1):
                self._plans.popitem(last=False)
            return self._plans[key]

    def _plan(self, shard: int, epoch: int) -> Plan:
        split = self._shards[shard]
        seed = shard_seed(self._seed, shard)
        try:
            return plan_epoch(
                split.sentences, split.documents, self._sampling, seed=seed, epoch=epoch
            )
        except UserError as error:
            raise UserError(f"{split.name} split: {error}") from None
