"""Tables: rows with named columns, from TSV, CSV and JSONL files and TensorFlow Datasets.

Rows are streamed. Files may be local or gs://, plain or compressed (.gz, .xz, .bz2, .zst).
"""

import csv
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from bert_jax.data.documents import dataset_and_split, decoded_lines, suffixes, tfds_examples
from bert_jax.errors import UserError

Lines = Iterable[tuple[int, str]]  # number, from 1, and text


class Row(NamedTuple):
    """A row of a table.

    Attributes:
      place: file and line, or dataset and example, for messages.
      values: values by column: text from TSV, CSV and label-first files, otherwise as in the JSON
        object or the TFDS example.
    """

    place: str
    values: Mapping[str, Any]

    def has(self, *columns: str) -> bool:
        """Whether the row has any of `columns`."""
        return not self.values.keys().isdisjoint(columns)

    def get(self, *columns: str) -> Any:
        """The value of the first of `columns` that the row has.

        Raises:
          UserError: it has none of them.
        """
        for column in columns:
            if column in self.values:
                return self.values[column]
        wanted, there = " or ".join(map(repr, columns)), ", ".join(self.values)
        raise UserError(f"{self.place}: no column {wanted}; there are [{there}]")


def read_rows(
    source: str,
    columns: Collection[str],
    *,
    format: str = "",
    encoding: str = "utf-8",
    data_dir: str = "",
) -> Iterator[Row]:
    """The rows of `source`, in order.

    Formats:
      tsv: fields are separated by tabs and never quoted, as in GLUE's files.
      csv: separated by commas and quoted where needed; a quoted field may have line breaks.
      jsonl: one JSON object per line.
      label_first: one `LABEL text` per line, with columns `label`, `text` and `coarse_label`, which
        is the label up to its first colon (`NUM` of TREC's `NUM:date`).

    The first line of a TSV or CSV file is a header if it has one of `columns`. Without a header,
    columns are called "1", "2", ... Lines without any text are skipped.

    Args:
      source: a file, or `tfds:NAME[:SPLIT]`, split `train` by default. In TFDS examples, bytes
        become text and class labels their names, None for class -1 (no label).
      columns: the columns that the caller will read.
      format: one of the above; by default the file's suffix.
      encoding: Python's name of the file's encoding; lines must end in a byte 10.
      data_dir: where TFDS keeps its datasets; empty for its default.

    Raises:
      UserError: no such file or dataset, another format or encoding, a header without any of
        `columns`. The message names the line.
    """
    if found := dataset_and_split(source):
        yield from _tfds_rows(*found, data_dir)
        return
    path = epath.Path(source).expanduser()
    format = format or suffixes(path)[0].removeprefix(".")
    if format not in _FORMATS:
        raise UserError(f"{path}: format {format!r} is none of {', '.join(_FORMATS)}; set `format`")
    yield from _FORMATS[format](path, read_lines(path, encoding), columns)


def read_lines(path: epath.Path, encoding: str) -> Iterator[tuple[int, str]]:
    """Number, from 1, and text of each line of a file, plain or compressed.

    Raises:
      UserError: no such file, or not in that encoding. The message names the line.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file")
    try:
        ends_lines = b"\n".decode(encoding) == "\n"
    except (LookupError, UnicodeDecodeError):
        ends_lines = False
    if not ends_lines:
        raise UserError(f"encoding: cannot read lines of {encoding!r}; convert {path} to utf-8")
    with path.open("rb") as file:
        remedy = "set `encoding` (latin-1?) or convert the file, for example with iconv -t utf-8"
        yield from decoded_lines(path, file, encoding, remedy)


def _tsv_rows(path: epath.Path, lines: Lines, columns: Collection[str]) -> Iterator[Row]:
    records = ((number, line.rstrip("\r\n").split("\t")) for number, line in lines)
    return _named(path, records, columns)


def _csv_rows(path: epath.Path, lines: Lines, columns: Collection[str]) -> Iterator[Row]:
    return _named(path, _csv_records(path, lines), columns)


def _csv_records(path: epath.Path, lines: Lines) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader((line for _, line in lines), strict=True)
    number = 1
    try:
        for fields in reader:
            yield number, fields
            number = reader.line_num + 1  # a record may take several lines
    except csv.Error as error:
        raise UserError(
            f"{path}, line {number}: not CSV ({error}); a quote inside a quoted field is doubled"
        ) from error


def _named(
    path: epath.Path, records: Iterable[tuple[int, list[str]]], columns: Collection[str]
) -> Iterator[Row]:
    """Rows from records, which are a line number and fields."""
    wanted = {column for column in columns if not column.isdecimal()}
    header, names = None, []
    for number, fields in records:
        if not any(field.strip() for field in fields):
            continue
        place = f"{path}, line {number}"
        if header is None:
            names = [field.strip() for field in fields]
            header = not wanted.isdisjoint(names)
            if header:
                continue
            if len(wanted) == len(set(columns)):
                raise UserError(
                    f"{place}: none of the columns {', '.join(columns)} in [{', '.join(names)}]; "
                    "if the file has no header, number its columns from 1"
                )
        if not header:
            names = [str(index + 1) for index in range(len(fields))]
        elif len(fields) > len(names):
            raise UserError(
                f"{place}: {len(fields)} fields under a header of {len(names)}; "
                "is there a separator inside a text?"
            )
        yield Row(place, dict(zip(names, fields, strict=False)))  # `get` reports missing ones


def _jsonl_rows(path: epath.Path, lines: Lines, columns: Collection[str]) -> Iterator[Row]:
    for number, line in lines:
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            values = json.loads(line)
        except ValueError as error:
            raise UserError(f"{place}: not JSON ({error}); each line must be an object") from error
        if not isinstance(values, dict):
            raise UserError(f"{place}: {type(values).__name__}, not an object with named values")
        yield Row(place, values)


def _label_first_rows(path: epath.Path, lines: Lines, columns: Collection[str]) -> Iterator[Row]:
    for number, line in lines:
        if not line.strip():
            continue
        label, space, text = line.strip().partition(" ")
        if not space:
            raise UserError(f"{path}, line {number}: no space between a label and a text")
        values = {"label": label, "coarse_label": label.partition(":")[0], "text": text}
        yield Row(f"{path}, line {number}", values)


_FORMATS = {
    "tsv": _tsv_rows,
    "csv": _csv_rows,
    "jsonl": _jsonl_rows,
    "label_first": _label_first_rows,
}


def _tfds_rows(name: str, split: str, data_dir: str) -> Iterator[Row]:
    examples = tfds_examples(name, split, data_dir or None)
    features = examples.dataset_info.features
    for index, example in enumerate(examples):
        yield Row(f"tfds:{name}:{split}, example {index}", _plain(example, features))


def _plain(value: Any, feature: Any) -> Any:
    """A value of a TFDS example, with bytes as text and class labels as names."""
    feature = getattr(feature, "feature", feature)  # the feature of a sequence's elements
    if isinstance(value, Mapping):
        return {key: _plain(item, feature[key]) for key, item in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, (list, np.ndarray)):
        return [_plain(item, feature) for item in value]
    if names := getattr(feature, "names", None):
        return names[value] if value >= 0 else None
    return value
