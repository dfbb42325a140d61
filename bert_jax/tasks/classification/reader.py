"""Reads texts and pairs of texts with their labels from tables."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bert_jax.data.tables import Row, read_rows
from bert_jax.errors import UserError
from bert_jax.tasks.classification.example import Example, Label
from bert_jax.tasks.classification.names import Names, all_of, either

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Columns:
    """Names of the columns; the first name that a row has is used.

    Attributes:
      text_a, text_b: columns of the texts; "" for `text_b` if the task has single texts.
      label: column of the label; an empty label or None is not known.
      index: column of the example's name in prediction files.
    """

    text_a: Names
    text_b: Names
    label: Names
    index: Names


def read_examples(
    source: str,
    columns: Columns,
    read_label: Callable[[Any, str], Label | None],
    *,
    labelled: bool,
    skip_incomplete: bool,
    format: str,
    encoding: str,
    data_dir: str,
) -> list[Example]:
    """The examples of a source, in order.

    Args:
      source: as in `read_rows`.
      columns: columns of the source; an example without an index gets its number, from 0.
      read_label: makes a label from a value and its place, for messages; None if it stands for no
        label.
      labelled: whether labels are read; False ignores any.
      skip_incomplete: leave out rows that lack a column, and log how many.
      format, encoding, data_dir: as in `read_rows`.

    Raises:
      UserError: as `read_rows` and `read_label`; no rows; a column is missing or holds no text; if
        `labelled`, none has a label. The message names the line.
    """
    needed = [columns.text_a, columns.text_b, *([columns.label] if labelled else [])]
    needed = [names for names in needed if names]
    rows = read_rows(
        source,
        [name for names in (*needed, columns.index) for name in all_of(names)],
        format=format,
        encoding=encoding,
        data_dir=data_dir,
    )
    examples, skipped = [], []
    for number, row in enumerate(rows):
        if skip_incomplete and not all(row.has(*all_of(names)) for names in needed):
            skipped.append(row.place)
        else:
            label = read_label if labelled else None
            examples.append(_example(row, columns, label, default_index=str(number)))
    if skipped:
        _log.warning("%s: row skipped for lack of a column, 1 of %d", skipped[0], len(skipped))
    if not examples:
        raise UserError(f"{source}: no rows")
    if labelled and all(example.label is None for example in examples):
        raise UserError(f"{source}: no row has a label in {either(columns.label)}")
    return examples


def _example(
    row: Row,
    columns: Columns,
    read_label: Callable[[Any, str], Label | None] | None,
    default_index: str,
) -> Example:
    label = row.get(*all_of(columns.label)) if read_label else None
    index = all_of(columns.index)
    return Example(
        text_of(row, columns.text_a),
        text_of(row, columns.text_b) if columns.text_b else None,
        read_label(label, row.place) if read_label and not _is_missing(label) else None,
        str(row.get(*index)) if row.has(*index) else default_index,
        row.place,
    )


def text_label(name: str) -> Callable[[Any, str], str]:
    """The `read_label` of labels that are texts, which messages call `name`."""

    def read(label: Any, place: str) -> str:
        if not isinstance(label, str):
            raise UserError(f"{place}: the {name} is {type(label).__name__}, not text")
        return label

    return read


def _is_missing(label: Any) -> bool:
    """Whether a value of a table is none: null, or NaN."""
    return label is None or (isinstance(label, float) and math.isnan(label))


def text_of(row: Row, names: Names) -> str:
    """The text in a column.

    Raises:
      UserError: there is no such column, or it holds something else.
    """
    text = row.get(*all_of(names))
    if not isinstance(text, str):
        raise UserError(f"{row.place}: {either(names)} is {type(text).__name__}, not text")
    return text
