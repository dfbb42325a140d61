"""Packs texts into batches of a few shapes, so that few programs are compiled for any lengths."""

from collections.abc import Sequence

from bert_jax.data.packing import Batch, Example, fill_rows, pack

SHORTEST_ROW = 64


def row_lengths(limit: int, shortest: int = SHORTEST_ROW) -> list[int]:
    """Possible row lengths: powers of two from `shortest`, and `limit`."""
    lengths, length = [], shortest
    while length < limit:
        lengths.append(length)
        length *= 2
    return [*lengths, limit]


def make_batches(
    examples: Sequence[Example],
    *,
    pad_id: int,
    longest_row: int,
    tokens_per_device: int,
    num_devices: int = 1,
    packing: bool = True,
) -> list[Batch]:
    """Packs texts into rows and rows into batches.

    A batch has `tokens_per_device` on each device, or a quarter of those rows, or a sixteenth, and
    so on: the fewest that suffice.

    Args:
      examples: texts, none longer than `longest_row`.
      pad_id: id of [PAD].
      longest_row: number of positions of the model.
      tokens_per_device: tokens of a full batch on each device.
      num_devices: number of devices that share the rows.
      packing: False gives each text its own row.
    """
    batches = []
    lengths, possible = [len(example.ids) for example in examples], row_lengths(longest_row)
    packed: dict[int, list[list[int]]] = {length: [] for length in possible}
    if packing:
        packed = pack(lengths, possible)
    else:
        for index, length in enumerate(lengths):
            packed[next(each for each in possible if each >= length)].append([index])
    for length, rows in packed.items():
        full = max(1, tokens_per_device // length)
        for first in range(0, len(rows), full * num_devices):
            chosen = rows[first : first + full * num_devices]
            count = full
            while count // 4 * num_devices >= len(chosen):
                count //= 4
            num_rows = count * num_devices
            batches.append(
                fill_rows(examples, chosen, num_rows=num_rows, row_length=length, pad_id=pad_id)
            )
    return batches
