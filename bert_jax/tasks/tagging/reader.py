"""Reads words and tags from CoNLL files and TFDS."""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from etils import epath

from bert_jax.data.tables import find_files, read_lines, read_rows
from bert_jax.errors import UserError
from bert_jax.tasks.tagging.schemes import is_tag

_NO_PREDICATE = ("-", "_", "O", "0", "")


class Tagged(NamedTuple):
    """A sentence of a source.

    Attributes:
      words: as in the source.
      tags: one per word, unchecked; None = not known.
      places: where each word comes from, for messages.
      predicate: indices of the words that are marked as a predicate.
    """

    words: Sequence[str]
    tags: Sequence[str] | None
    places: Sequence[str]
    predicate: Sequence[int] = ()


class Columns(NamedTuple):
    """Columns of a file, counted from 1, or from the end: -1 is the last.

    Attributes:
      word: column of the words.
      tag: column of the tags; 0 = not read.
      predicate: column that marks the predicate; 0 = none.
    """

    word: int
    tag: int
    predicate: int


def read_tfds(source: str, *, labelled: bool, data_dir: str) -> Iterator[Tagged]:
    """The sentences of a dataset with the features `tokens` and `ner`.

    Args:
      source: `tfds:NAME[:SPLIT]`.
      labelled: whether tags are read.
      data_dir: where TFDS keeps its datasets; empty for its default.

    Raises:
      UserError: as `read_rows`.
    """
    for row in read_rows(source, (), data_dir=data_dir):
        words, tags = row.get("tokens"), row.get("ner") if labelled else None
        if words:
            yield Tagged(words, tags, [f"{row.place}, word {i}" for i in range(len(words))])


def read_conll(source: str, columns: Columns, encoding: str) -> Iterator[Tagged]:
    """The sentences of a file with one word per line and blank lines between sentences.

    Columns are separated by tabs or else by spaces. Lines that begin with -DOCSTART- are skipped,
    and so are comments: lines that begin with # and do not end in a tag.

    Raises:
      UserError: no such file, another encoding or number of columns. The message names the line.
    """
    for path in find_files(source):
        yield from _sentences(path, columns, encoding)


def _sentences(path: epath.Path, columns: Columns, encoding: str) -> Iterator[Tagged]:
    lines = _words(path, read_lines(path, encoding), columns)
    for between, group in itertools.groupby(lines, key=lambda line: line is None):
        if between:
            continue
        words = [line for line in group if line is not None]
        records = [fields for _, fields in words]
        predicate: tuple[int, ...] = ()
        if columns.predicate:
            marks = _column(records, columns.predicate)
            predicate = tuple(i for i, mark in enumerate(marks) if mark not in _NO_PREDICATE)
        yield Tagged(
            _column(records, columns.word),
            _column(records, columns.tag) if columns.tag else None,
            [f"{path}, line {number}" for number, _ in words],
            predicate,
        )


def _words(
    path: epath.Path, lines: Iterable[tuple[int, str]], columns: Columns
) -> Iterator[tuple[int, list[str]] | None]:
    """Number and fields of each line with a word, None for a line between sentences."""
    wanted = [column for column in columns if column]
    needed = max(len(wanted), *map(abs, wanted))
    width = None
    for number, line in lines:
        line = line.strip(" \r\n")
        if not line.strip("\t") or line.startswith("-DOCSTART-"):
            yield None
            continue
        fields = line.split("\t") if "\t" in line else re.split(" +", line)
        fits = len(fields) >= needed and len(fields) == (width or len(fields))
        if line.startswith("#"):  # a word or a comment
            is_word = is_tag(_field(fields, columns.tag)) if fits and columns.tag else bool(width)
            if not (fits and is_word):
                continue
        if not fits:
            raise UserError(
                f"{path}, line {number}: {len(fields)} columns, "
                + (f"but {width} in the lines before" if width else f"fewer than {needed}")
                + "; columns are separated by tabs, or else by spaces"
            )
        if not _field(fields, columns.word):
            raise UserError(f"{path}, line {number}: the word is empty")
        width = len(fields)
        yield number, fields


def _column(records: Sequence[Sequence[str]], column: int) -> list[str]:
    return [_field(fields, column) for fields in records]


def _field(fields: Sequence[str], column: int) -> str:
    return fields[column - 1 if column > 0 else column]
