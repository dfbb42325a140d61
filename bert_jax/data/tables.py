"""Tables: rows with named columns, from TSV, CSV, JSON, Parquet, Arrow and TensorFlow Datasets.

Rows are streamed. Files may be local or gs://; text is plain or compressed (.gz, .xz, .bz2, .zst).
"""

import csv
import glob
import io
import itertools
import logging
import re
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from bert_jax.data.columnar import SUFFIXES, columnar_rows
from bert_jax.data.hub import dataset_files
from bert_jax.data.lines import advancing, decoded_lines, suffixes
from bert_jax.data.tfds import dataset_and_split, tfds_examples
from bert_jax.errors import UserError, throw
from bert_jax.json_values import parse_json
from bert_jax.storage import glob_files

Lines = Iterable[tuple[int, str]]  # number, from 1, and text
Refuse = Callable[[UserError], object]  # takes the error of a row: raises it, or skips the row

_log = logging.getLogger(__name__)

_QUOTED = r'"(?:[^"]|"")*+"'
_QUOTED_RECORD = re.compile(rf'(?:(?:{_QUOTED}|[^"\t\r]*+)(?:\t|\Z))*+')
_OTHER_SEPARATORS = (",", ";", "\t", "|")
_LONGEST_FIELD = 2**31 - 1  # characters; the csv module's own limit is 131,072


class Row(NamedTuple):
    """A row of a table.

    Attributes:
      place: file and line, or dataset and example, for messages.
      values: values by column: text from TSV, CSV and label-first files, otherwise as in the JSON
        object, the Parquet file or the TFDS example.
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
    refuse: Refuse = throw,
    advance: Callable[[int], object] = lambda size: None,
) -> Iterator[Row]:
    """The rows of `source`, in order.

    Formats:
      tsv: fields are separated by tabs and never quoted, as in GLUE's files.
      quoted_tsv: separated by tabs and quoted as in CSV, as pandas and spreadsheets write it.
      csv: separated by commas and quoted where needed; a quoted field may have line breaks.
      jsonl: one JSON object per line.
      json: a list of JSON objects, or one object per line.
      parquet, arrow, feather: see `bert_jax.data.columnar.columnar_rows`.
      label_first: one `LABEL text` per line, with columns `label`, `text` and `coarse_label`, which
        is the label up to its first colon (`NUM` of TREC's `NUM:date`).

    The first line of a TSV or CSV file is a header if it has one of `columns`. Without a header,
    columns are called "1", "2", ... Lines without any text are skipped.

    Args:
      source: a file, a glob of several, `tfds:NAME[:SPLIT]` or `hf:OWNER/NAME[/FOLDER][:SPLIT]`,
        split `train` by default. In TFDS examples, bytes become text and class labels their names,
        None for class -1 (no label).
      columns: the columns that the caller will read.
      format: one of the above; by default the file's suffix. A file that ends in .tsv is quoted if
        all of it follows the rules of quoting and some field needs its quotes.
      encoding: Python's name of the encoding of text; lines must end in a byte 10.
      data_dir: where TFDS keeps its datasets; empty for its default.
      refuse: called with the error of a row that cannot be read, by default to raise it; if it
        returns, the row is left out.
      advance: called with about the bytes of a file read since the last call.

    Raises:
      UserError: no such file or dataset, another format or encoding, a header without any of
        `columns`. The message names the line.
    """
    if found := dataset_and_split(source):
        yield from _tfds_rows(*found, data_dir)
        return
    for path in find_files(source):
        yield from _without_errors(
            _rows_of(path, columns, format, encoding, refuse, advance), refuse
        )


def parse_rows(
    name: str, lines: Lines, columns: Collection[str], format: str, refuse: Refuse = throw
) -> Iterator[Row]:
    """The rows in lines of text, such as those of standard input.

    Args:
      name: where the lines come from, for messages.
      lines: the lines, with their ends.
      columns, refuse: as in `read_rows`.
      format: a format of `read_rows` for text.

    Raises:
      UserError: as `read_rows`.
    """
    return _without_errors(_TEXT_FORMATS[format](epath.Path(name), lines, columns), refuse)


def _without_errors(rows: Iterable[Row | UserError], refuse: Refuse) -> Iterator[Row]:
    for row in rows:
        if isinstance(row, UserError):
            refuse(row)
        else:
            yield row


def find_files(source: str) -> list[epath.Path]:
    """The file, the files that a glob matches, sorted, or those of an `hf:` dataset.

    Raises:
      UserError: there is none.
    """
    if source.startswith("hf:"):
        return [path for path, _ in dataset_files(source)]
    path = epath.Path(source).expanduser()
    found = [path]
    if glob.has_magic(source) and not path.exists():
        found = sorted(glob_files(path))
    if not found or not found[0].exists():
        raise UserError(f"{source}: no such file")
    if found[0].is_dir():
        raise UserError(f"{source}: a folder; name a file, or several by a glob, {source}/*")
    return found


def read_lines(
    path: epath.Path,
    encoding: str,
    refuse: Refuse = throw,
    advance: Callable[[int], object] = lambda size: None,
) -> Iterator[tuple[int, str]]:
    """Number, from 1, and text of each line of a file, plain or compressed.

    A line in another encoding goes to `refuse`; `advance` gets the bytes read; see `read_rows`.

    Raises:
      UserError: an unknown encoding, or the file is damaged.
    """
    try:
        ends_lines = b"\n".decode(encoding) == "\n"
    except (LookupError, UnicodeDecodeError):
        ends_lines = False
    if not ends_lines:
        raise UserError(f"encoding: cannot read lines of {encoding!r}; convert {path} to utf-8")
    with path.open("rb") as file:
        remedy = "set `encoding` (latin-1?) or convert the file, for example with iconv -t utf-8"
        yield from advancing(decoded_lines(path, file, encoding, remedy, refuse), file, advance)


def _rows_of(
    path: epath.Path,
    columns: Collection[str],
    format: str,
    encoding: str,
    refuse: Refuse,
    advance: Callable[[int], object],
) -> Iterator[Row | UserError]:
    """The rows of a file, and the errors of those that cannot be read."""
    kind = format or suffixes(path)[0].removeprefix(".").lower()
    if f".{kind}" in SUFFIXES:
        for number, values in enumerate(columnar_rows(path, advance=advance), 1):
            yield Row(f"{path}, row {number}", values)
        return
    if kind not in _TEXT_FORMATS:
        known = ", ".join((*_TEXT_FORMATS, *(each.removeprefix(".") for each in SUFFIXES)))
        raise UserError(f"{path}: format {kind!r} is none of {known}; set `format`")
    if not format and kind == "tsv":
        lines = read_lines(path, encoding, refuse=lambda error: None)  # is reported when read
        kind = "quoted_tsv" if _is_quoted(path, lines, columns) else "tsv"
    yield from _TEXT_FORMATS[kind](path, read_lines(path, encoding, refuse, advance), columns)


def _tsv_rows(
    path: epath.Path, lines: Lines, columns: Collection[str]
) -> Iterator[Row | UserError]:
    records = ((number, line.rstrip("\r\n").split("\t")) for number, line in lines)
    return _named(path, records, columns)


def _quoted_tsv_rows(
    path: epath.Path, lines: Lines, columns: Collection[str]
) -> Iterator[Row | UserError]:
    return _named(path, _csv_records(path, lines, "\t"), columns)


def _csv_rows(
    path: epath.Path, lines: Lines, columns: Collection[str]
) -> Iterator[Row | UserError]:
    return _named(path, _csv_records(path, lines, ","), columns)


def _csv_records(
    path: epath.Path, lines: Lines, separator: str
) -> Iterator[tuple[int, list[str]] | UserError]:
    """The number of the first line, and the fields, of each record.

    A record that is not CSV loses its first line; what follows is read anew, since a quote that is
    never closed would take in all lines to the next one.
    """
    csv.field_size_limit(_LONGEST_FIELD)  # of the process: the module has no other way
    unread, record = iter(lines), deque[tuple[int, str]]()
    again = deque[tuple[int, str]]()

    def texts() -> Iterator[str]:
        while line := again.popleft() if again else next(unread, None):
            record.append(line)
            yield line[1]

    while True:
        try:
            for fields in csv.reader(texts(), delimiter=separator, strict=True):
                yield record[0][0], fields
                record.clear()
            return
        except csv.Error as error:
            number, _ = record.popleft()
            reason = f"not CSV ({error}); a quote inside a quoted field is doubled"
            yield UserError(f"{path}, line {number}: {reason}")
            again.extendleft(reversed(record))
            record.clear()


def _is_quoted(path: epath.Path, lines: Lines, columns: Collection[str]) -> bool:
    """Whether all of a TSV file follows the rules of quoting, and some field needs its quotes.

    By these rules a field has quotes around it or none in it. A file that quotes every name of its
    header needs them too. Lines that are complete records by themselves need none.
    """
    width, needed = 0, False
    for number, record in _lines_of_records(lines):
        text = "".join(record).rstrip("\r\n")
        if not text.strip():
            continue
        follows = _QUOTED_RECORD.fullmatch(text) is not None
        fields = _unquoted(text) if follows else []
        if not width:
            width = len(fields)
            plain = any(field in columns for field in text.split("\t"))
            needed = not plain and any(field in columns for field in fields)
        if not follows or len(fields) != width:
            if needed:
                _log.warning(
                    f"{path}, line {number}: quotes around some fields, but not by the rules here, "
                    "so all quotes are read as text; set `format` to tsv or quoted_tsv"
                )
            return False
        by_tabs = {line.count("\t") + 1 for line in record}
        if len(record) == 1 or by_tabs != {width} or width == 1:
            needed = needed or any(mark in field for field in fields for mark in '"\t\n')
    return needed


def _lines_of_records(lines: Lines) -> Iterator[tuple[int, list[str]]]:
    """Number of the first line, and the lines, of each record with an even number of quotes.

    The last one may have an odd number.
    """
    record: list[str] = []
    is_open, first = False, 1
    for number, line in lines:
        first = first if record else number
        record.append(line)
        is_open ^= line.count('"') % 2 == 1
        if not is_open:
            yield first, record
            record = []
    if record:
        yield first, record


def _unquoted(text: str) -> list[str]:
    """The fields of a record that follows the rules of quoting."""
    csv.field_size_limit(_LONGEST_FIELD)
    return next(csv.reader(io.StringIO(text), delimiter="\t"))


def _named(
    path: epath.Path,
    records: Iterable[tuple[int, list[str]] | UserError],
    columns: Collection[str],
) -> Iterator[Row | UserError]:
    """Rows from records, which are a line number and fields."""
    wanted = {column for column in columns if not column.isdecimal()}
    header, names = None, []
    for record in records:
        if isinstance(record, UserError):
            yield record
            continue
        number, fields = record
        if not any(field.strip() for field in fields):
            continue
        place = f"{path}, line {number}"
        if header is None:
            names = [field.strip() for field in fields]
            header = not wanted.isdisjoint(names)
            if twice := [name for name in wanted if names.count(name) > 1]:
                raise UserError(f"{place}: two columns are called {twice[0]!r}")
            if header:
                continue
            if len(wanted) == len(set(columns)):
                advice = "if the file has no header, number its columns from 1"
                for separator in _OTHER_SEPARATORS:
                    if not wanted.isdisjoint(_parts(fields, separator)):
                        advice = f"its columns are separated by {separator!r}: convert the file"
                raise UserError(
                    f"{place}: none of the columns {', '.join(columns)} in [{', '.join(names)}]; "
                    + advice
                )
        if not header:
            names = [str(index + 1) for index in range(len(fields))]
        elif len(fields) > len(names):
            yield UserError(
                f"{place}: {len(fields)} fields under a header of {len(names)}; "
                "is there a separator inside a text?"
            )
            continue
        yield Row(place, dict(zip(names, fields, strict=False)))  # `get` reports missing ones


def _parts(fields: Sequence[str], separator: str) -> list[str]:
    """The names in a header that was read with another separator."""
    return [part.strip(' "') for field in fields for part in field.split(separator)]


def _filled(path: epath.Path, lines: Lines) -> Iterator[tuple[str, str]]:
    """Place and text of each line that is not blank."""
    return ((f"{path}, line {number}", line) for number, line in lines if line.strip())


def _jsonl_rows(
    path: epath.Path, lines: Lines, columns: Collection[str]
) -> Iterator[Row | UserError]:
    del columns
    for place, line in _filled(path, lines):
        try:
            values = parse_json(line, place)
        except UserError as error:
            yield error
        else:
            yield _object(values, place)


def _json_rows(
    path: epath.Path, lines: Lines, columns: Collection[str]
) -> Iterator[Row | UserError]:
    filled = itertools.dropwhile(lambda line: not line[1].strip(), lines)
    first = next(filled, None)
    if first is None or not first[1].lstrip().startswith("["):
        yield from _jsonl_rows(path, itertools.chain([first] if first else [], filled), columns)
        return
    text = "".join([first[1], *(line for _, line in filled)])
    for number, value in enumerate(parse_json(text, str(path)), 1):
        yield _object(value, f"{path}, item {number}")


def _object(value: Any, place: str) -> Row | UserError:
    if not isinstance(value, dict):
        return UserError(f"{place}: {type(value).__name__}, not an object with named values")
    return Row(place, value)


def _label_first_rows(
    path: epath.Path, lines: Lines, columns: Collection[str]
) -> Iterator[Row | UserError]:
    del columns
    for place, line in _filled(path, lines):
        label, space, text = line.strip().partition(" ")
        if space:
            coarse = label.partition(":")[0]
            yield Row(place, {"label": label, "coarse_label": coarse, "text": text})
        else:
            yield UserError(f"{place}: no space between a label and a text")


_TEXT_FORMATS = {
    "tsv": _tsv_rows,
    "csv": _csv_rows,
    "jsonl": _jsonl_rows,
    "json": _json_rows,
    "quoted_tsv": _quoted_tsv_rows,
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
