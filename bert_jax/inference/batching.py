"""Tokenised texts as rows, many short ones in a row and all rows of few shapes.

Attention stays within a segment id and positions restart, so a text in a shared row is computed as
if it were alone, next to no padding is computed, and whatever lengths come, the functions that take
the rows are compiled for a handful of shapes.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SHORTEST_ROW = 64
TOKENS_PER_SLOT = 8  # a row has room for one text in so many tokens


class Example(NamedTuple):
    """A text or a pair of texts as the model takes it.

    Attributes:
      ids: int32 [length], `[CLS] A [SEP]` or `[CLS] A [SEP] B [SEP]`.
      b_start: where token type 1 begins; `length` for a single text.
    """

    ids: np.ndarray
    b_start: int


class Batch(NamedTuple):
    """Rows of one length, and what is where in them.

    Attributes:
      rows: int32 [rows, length] `input_ids`, `token_type_ids`, `position_ids` and `segment_ids`
        (slot + 1, 0 on padding), int32 [rows, slots] `cls_positions`.
      examples: int64 [n], index of each text.
      row, slot, start, stop: int64 [n], its place.
    """

    rows: dict[str, np.ndarray]
    examples: np.ndarray
    row: np.ndarray
    slot: np.ndarray
    start: np.ndarray
    stop: np.ndarray


def row_lengths(limit: int) -> list[int]:
    """Lengths that rows can have: powers of two from `SHORTEST_ROW`, and `limit`."""
    lengths, length = [], SHORTEST_ROW
    while length < limit:
        lengths.append(length)
        length *= 2
    return [*lengths, limit]


def pack(lengths: Sequence[int], row_lengths: Sequence[int]) -> dict[int, list[list[int]]]:
    """Best fit, long texts first; what fits nowhere begins the shortest row that holds it.

    Args:
      lengths: of the texts, each at most the longest row.
      row_lengths: ascending.

    Returns:
      Of each row length the rows, each the indices of its texts.
    """
    rows = {length: [] for length in row_lengths}
    open_rows = defaultdict(list)  # by free tokens: rows, each with its number of free slots
    free_sizes = 0  # bit n is set where a row with n free tokens is open
    for example in sorted(range(len(lengths)), key=lambda example: -lengths[example]):
        length = lengths[example]
        if fitting := free_sizes >> length:
            free = (fitting & -fitting).bit_length() - 1 + length
            row, slots = open_rows[free].pop()
            if not open_rows[free]:
                free_sizes ^= 1 << free
        else:
            free = next(row_length for row_length in row_lengths if row_length >= length)
            row, slots = [], max(1, free // TOKENS_PER_SLOT)
            rows[free].append(row)
        row.append(example)
        free -= length
        if slots > 1:
            open_rows[free].append((row, slots - 1))
            free_sizes |= 1 << free
    return rows


def make_batches(
    examples: Sequence[Example],
    *,
    pad_id: int,
    longest_row: int,
    tokens_per_device: int,
    num_devices: int = 1,
) -> list[Batch]:
    """Packs texts into rows and rows into batches.

    A batch has `tokens_per_device` on each device, or a quarter of the rows, or a sixteenth, and so
    on: the least that is enough.

    Args:
      examples: none longer than `longest_row`.
      pad_id: id of [PAD].
      longest_row: positions of the model.
      tokens_per_device: of a full batch.
      num_devices: between which rows are split.
    """
    batches = []
    packed = pack([len(example.ids) for example in examples], row_lengths(longest_row))
    for length, rows in packed.items():
        full = max(1, tokens_per_device // length)
        for first in range(0, len(rows), full * num_devices):
            chosen = rows[first : first + full * num_devices]
            count = full
            while count // 4 * num_devices >= len(chosen):
                count //= 4
            batches.append(_gather(examples, chosen, count * num_devices, length, pad_id))
    return batches


def _gather(examples, rows, num_rows, length, pad_id) -> Batch:
    tokens, slots = (num_rows, length), (num_rows, max(1, length // TOKENS_PER_SLOT))
    arrays = {
        "input_ids": np.full(tokens, pad_id, np.int32),
        "token_type_ids": np.zeros(tokens, np.int32),
        "position_ids": np.zeros(tokens, np.int32),
        "segment_ids": np.zeros(tokens, np.int32),
        "cls_positions": np.zeros(slots, np.int32),
    }
    places = []
    for row, chosen in enumerate(rows):
        start = 0
        for slot, index in enumerate(chosen):
            ids, b_start = examples[index]
            stop = start + len(ids)
            arrays["input_ids"][row, start:stop] = ids
            arrays["token_type_ids"][row, start + b_start : stop] = 1
            arrays["position_ids"][row, start:stop] = np.arange(len(ids))
            arrays["segment_ids"][row, start:stop] = slot + 1
            arrays["cls_positions"][row, slot] = start
            places.append((index, row, slot, start, stop))
            start = stop
    return Batch(arrays, *np.array(places).T)
