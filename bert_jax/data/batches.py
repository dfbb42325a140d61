"""Batches: step -> arrays, a pure function of the data, the options, the seed and the step.

Batch t does not depend on the batches before it, so resuming costs nothing and needs no iterator
state, and every host gathers its own rows of the same global batch.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import grain
import numpy as np
from numba import njit

from bert_jax.data.batch_sizes import BatchSizes
from bert_jax.data.rows import Part, Rows
from bert_jax.data.sampling import Sampling, Usage

HELDOUT_SEED = 0
READ_AHEAD = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)

Batch = dict[str, np.ndarray]
HostRows = Callable[[int], np.ndarray]  # rows of a global batch -> which of them a host gathers


class Steps(Protocol):
    """Batches by step."""

    def batch(self, step: int) -> Batch:
        """This host's rows of batch `step`, from 0."""


class BatchStream(Steps, Protocol):
    """An endless stream of rows, cut into batches.

    Attributes:
      rows_per_epoch: rows of the first epoch; other epochs have about as many.
      usage: what the first epoch uses of the documents; None if it uses all of its data.
      parts: sources, if it is a mixture.
    """

    rows_per_epoch: int
    usage: Usage | None
    parts: Sequence[Part]

    def passes(self, step: int) -> dict[str, float]:
        """How often each source of a mixture was passed before `step`, also earlier in the run."""


class SpecialIds(Protocol):
    """The special token ids that batches need."""

    @property
    def cls_id(self) -> int: ...
    @property
    def sep_id(self) -> int: ...
    @property
    def pad_id(self) -> int: ...


def batch_shapes(sampling: Sampling, *, continues: bool = False) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays of a global batch, all int32; see `Batches.batch`.

    Args:
      sampling: what a batch holds.
      continues: whether the store says which tokens continue a word.
    """
    rows, length = sampling.batch_size, sampling.max_seq_length
    examples = sampling.examples_per_row
    return {
        "input_ids": (rows, length),
        "token_type_ids": (rows, length),
        "position_ids": (rows, length),
        "segment_ids": (rows, length),
        "cls_positions": (rows, examples),
        "next_sentence_label": (rows, examples),
        "example_ids": (rows, examples, 2),
        **({"continues": (rows, length)} if continues else {}),
    }


class Batches:
    """The batches of one host.

    Row i of a batch is row `BatchSizes.first_row` + i of an endless stream of rows. A host gathers
    only the rows that its devices hold; the global batch is the same for any number of hosts.
    Thread-safe.

    Attributes:
      rows: the stream.
      rows_per_epoch, usage, parts: of the stream.
    """

    def __init__(
        self,
        rows: Rows,
        sampling: Sampling,
        special: SpecialIds,
        *,
        first_row: int = 0,
        host_rows: HostRows = np.arange,
    ):
        """Args:
        rows: the stream.
        sampling: what a batch holds.
        special: ids of [CLS], [SEP] and [PAD].
        first_row: row of the stream with which the batch of step 0 begins.
        host_rows: which rows of the global batch this host gathers.
        """
        self.rows = rows
        self.rows_per_epoch, self.usage = rows.rows_per_epoch, rows.usage
        self.parts = rows.parts
        self._sampling = sampling
        self._special = special
        self._sizes = BatchSizes(sampling, first_row)
        self._host_rows = functools.lru_cache(maxsize=2)(host_rows)

    def batch(self, step: int) -> Batch:
        """This host's rows of batch `step`.

        With B rows on this host, S = max_seq_length and E = max_examples_per_row (1 without
        packing), all int32:

        - input_ids [B, S]: `[CLS] A [SEP] B [SEP]` or `[CLS] A [SEP]` for each example, examples
          one after another, then [PAD].
        - token_type_ids [B, S]: 1 on B and the [SEP] after it, else 0.
        - position_ids [B, S]: from 0 for each example; 0 on padding.
        - segment_ids [B, S]: which example of the row, from 1; 0 on padding.
        - cls_positions [B, E]: position of the example's [CLS]; 0 where there is no example.
        - next_sentence_label [B, E]: see `Plan`; -1 where there is no example or no label.
        - example_ids [B, E, 2]: a number of the plan, of one shard the epoch, and the example's
          index in it, a key for random masks; 0, 0 where there is no example.
        - continues [B, S]: 1 where a token continues a word; only if the split says it.

        Raises:
          UserError: the tokens of a row are damaged; see `TokenBlocks`.
        """
        stream = self._sizes.first_row(step) + self._host_rows(self._sizes.rows(step))
        batch = {
            name: np.zeros((len(stream), *shape[1:]), np.int32)
            for name, shape in batch_shapes(self._sampling, continues=self.rows.says_words).items()
        }
        batch["input_ids"].fill(self._special.pad_id)
        batch["next_sentence_label"].fill(-1)
        arrays = tuple(batch[name] for name in batch_shapes(self._sampling))
        continues = batch.get("continues", np.zeros((len(stream), 0), np.int32))
        for split, plan, key, where, rows in self.rows.pieces(stream):
            if split.blocks is not None:
                examples = plan.examples(rows)
                split.blocks.check(plan.a_start[examples], plan.a_length[examples])
                split.blocks.check(plan.b_start[examples], plan.b_length[examples])
            bits = split.continues if split.continues is not None else ()
            _gather(
                where,
                rows,
                key,
                (self._special.cls_id, self._special.sep_id),
                np.asarray(split.tokens),
                (plan.a_start, plan.a_length, plan.b_start, plan.b_length),
                plan.next_sentence_label,
                plan.row_offsets,
                plan.row_examples,
                arrays,
                np.asarray(bits, np.uint8),
                continues,
            )
        return batch

    def passes(self, step: int) -> dict[str, float]:
        """See `BatchStream`."""
        return self.rows.passes(self._sizes.first_row(step))


class Records(Protocol):
    """Pre-masked examples; see `bert_jax.data.tfrecords`."""

    @property
    def max_seq_length(self) -> int: ...
    def __len__(self) -> int: ...
    def read(self, examples: Sequence[int]) -> Batch: ...


class PremaskedBatches:
    """The batches of one host, each row a pre-masked record.

    Like `Batches`, but an epoch is a permutation of all examples. Thread-safe.

    Attributes:
      rows_per_epoch: number of examples in the split.
    """

    def __init__(
        self,
        split: Records,
        sampling: Sampling,
        *,
        seed: int,
        num_epochs: int | None = None,
        first_row: int = 0,
        host_rows: HostRows = np.arange,
    ):
        """Args:
        split: the records.
        sampling: what a batch holds.
        seed: random seed of their order.
        num_epochs: rows after this many epochs are empty; None = an endless stream.
        first_row, host_rows: as for `Batches`.
        """
        self._split = split
        self._sizes = BatchSizes(sampling, first_row)
        self._host_rows = functools.lru_cache(maxsize=2)(host_rows)
        self.rows_per_epoch = len(split)
        self.usage: Usage | None = None
        self.parts: Sequence[Part] = ()
        self._num_rows = math.inf if num_epochs is None else num_epochs * len(split)
        # Row of the stream -> example, in a new order every epoch, without holding it in memory.
        self._order = grain.MapDataset.range(len(split)).shuffle(seed=seed)

    def batch(self, step: int) -> Batch:
        """This host's rows of batch `step`: the arrays of `Records.read` and, int32:

        - position_ids [B, S]: from 0; 0 on padding.
        - cls_positions [B, 1]: 0.
        """
        stream = self._sizes.first_row(step) + self._host_rows(self._sizes.rows(step))
        exists = stream < self._num_rows
        examples = self._split.read([self._order[row] for row in stream[exists].tolist()])
        batch = {}
        for name, values in examples.items():
            batch[name] = np.zeros((len(stream), *values.shape[1:]), values.dtype)
            batch[name][exists] = values
        batch["next_sentence_label"][~exists] = -1
        positions = np.arange(self._split.max_seq_length, dtype=np.int32)
        return batch | {
            "position_ids": positions * batch["segment_ids"],
            "cls_positions": np.zeros((len(stream), 1), np.int32),
        }

    def passes(self, step: int) -> dict[str, float]:
        """Of no source: it is no mixture."""
        return {}


def prefetch(batches: Steps, start_step: int, stop_step: int) -> Iterator[Batch]:
    """`batches.batch(step)` for step in [start_step, stop_step), in order, prefetched."""
    return iter(_dataset(batches, start_step, stop_step))


def one_epoch(stream: BatchStream, batch_size: int, num_batches: int = 0) -> Iterable[Batch]:
    """The fixed batches of an evaluation; may be iterated again.

    Every row of the epoch occurs once. The last batch is padded with empty rows (segment_ids 0,
    next_sentence_label -1), so that all batches have the same shape.

    Args:
      stream: one epoch of a held-out split, with the seed `HELDOUT_SEED`, in batches of one size.
      batch_size: rows of the global batch.
      num_batches: stop after this many batches (a random sample of the rows); 0 = all.
    """
    available = -(-stream.rows_per_epoch // batch_size)
    return _dataset(stream, 0, min(num_batches or available, available))


def _dataset(batches: Steps, start_step: int, stop_step: int) -> Iterable[Batch]:
    steps = grain.MapDataset.range(start_step, stop_step)
    return steps.map(batches.batch).to_iter_dataset(READ_AHEAD)


@njit(nogil=True, cache=True)
def _unpack(bits: np.ndarray, start: int, length: int, out: np.ndarray) -> None:
    """Writes bits [start, start + length) into the first `length` elements of `out`."""
    for t in range(length):
        position = start + t
        out[t] = (bits[position >> 3] >> (position & 7)) & 1


@njit(nogil=True, cache=True)
def _gather(
    where: np.ndarray,
    rows: np.ndarray,
    key: int,
    special_ids: tuple[int, int],
    tokens: np.ndarray,
    spans: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    label: np.ndarray,
    row_offsets: np.ndarray,
    row_examples: np.ndarray,
    batch: tuple[np.ndarray, ...],
    bits: np.ndarray,
    continues: np.ndarray,
) -> None:
    """Writes row rows[n] of the plan into row where[n] of the batch.

    `continues` gets the `bits` of the tokens, if there are any.
    """
    cls_id, sep_id = special_ids
    a_start, a_length, b_start, b_length = spans
    (
        input_ids,
        token_type_ids,
        position_ids,
        segment_ids,
        cls_positions,
        next_sentence_label,
        example_ids,
    ) = batch
    for n in range(len(rows)):
        i = where[n]
        first = row_offsets[rows[n]]
        stop = 0
        for e in range(row_offsets[rows[n] + 1] - first):
            x = row_examples[first + e]
            start = stop
            input_ids[i, start] = cls_id
            stop = start + 1
            for t in range(a_length[x]):
                input_ids[i, stop + t] = tokens[a_start[x] + t]
            if len(bits):
                _unpack(bits, a_start[x], a_length[x], continues[i, stop:])
            stop += a_length[x]
            input_ids[i, stop] = sep_id
            stop += 1
            if b_length[x] > 0:
                b_stop = stop + b_length[x]
                for t in range(b_length[x]):
                    input_ids[i, stop + t] = tokens[b_start[x] + t]
                if len(bits):
                    _unpack(bits, b_start[x], b_length[x], continues[i, stop:])
                input_ids[i, b_stop] = sep_id
                token_type_ids[i, stop : b_stop + 1] = 1
                stop = b_stop + 1
            for t in range(start, stop):
                position_ids[i, t] = t - start
            segment_ids[i, start:stop] = e + 1
            cls_positions[i, e] = start
            next_sentence_label[i, e] = label[x]
            example_ids[i, e, 0] = key
            example_ids[i, e, 1] = x
