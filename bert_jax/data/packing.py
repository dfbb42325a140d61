"""Packs tokenised texts into rows, several short ones per row.

Attention stays within a segment id and positions restart, so a text in a shared row is computed as
if it were alone, and little is computed on padding.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

TOKENS_PER_SLOT = 8  # a row has one slot for a text per this many tokens


class Example(NamedTuple):
    """Token ids of a text or a pair of texts.

    Attributes:
      ids: int32 [length], `[CLS] A [SEP]` or `[CLS] A [SEP] B [SEP]`.
      b_start: where token type 1 begins; `length` for a single text.
    """

    ids: np.ndarray
    b_start: int


class Batch(NamedTuple):
    """Rows of one length, and where each text is in them.

    Attributes:
      rows: int32 [rows, length] `input_ids`, `token_type_ids`, `position_ids` and `segment_ids`
        (slot + 1, 0 on padding), int32 [rows, slots] `cls_positions`.
      examples: int64 [n], index of each text.
      row, slot, start, stop: int64 [n], place of each text: its row, slot and span of tokens.
    """

    rows: dict[str, np.ndarray]
    examples: np.ndarray
    row: np.ndarray
    slot: np.ndarray
    start: np.ndarray
    stop: np.ndarray


def pack(lengths: Sequence[int], row_lengths: Sequence[int]) -> dict[int, list[list[int]]]:
    """Best fit, longest first; a text that fits no open row begins the shortest that holds it.

    Args:
      lengths: tokens of each text, at most those of the longest row.
      row_lengths: the available lengths, ascending.

    Returns:
      Row length -> rows, each a list of indices of its texts.
    """
    rows: dict[int, list[list[int]]] = {length: [] for length in row_lengths}
    # Free tokens -> rows, each with its number of free slots.
    open_rows: defaultdict[int, list[tuple[list[int], int]]] = defaultdict(list)
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


def fill_rows(
    examples: Sequence[Example],
    rows: Sequence[Sequence[int]],
    *,
    num_rows: int,
    row_length: int,
    pad_id: int,
) -> Batch:
    """Writes texts into rows.

    Args:
      examples: the texts.
      rows: indices of the texts of each row, as from `pack`.
      num_rows: rows of the batch; the last ones stay empty.
      row_length: tokens of a row.
      pad_id: id of [PAD].
    """
    tokens, slots = (num_rows, row_length), (num_rows, max(1, row_length // TOKENS_PER_SLOT))
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
    return Batch(arrays, *np.array(places, np.int64).reshape(-1, 5).T)
