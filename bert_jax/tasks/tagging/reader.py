"""Reads words and tags from CoNLL files and TFDS."""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from etils import epath

from bert_jax.data.tables import Row, find_files, read_lines, read_rows
from bert_jax.errors import UserError
from bert_jax.tasks.tagging.schemes import is_tag

ROW_SUFFIXES = (".jsonl", ".json", ".parquet")  # of files with a row per sentence
_WORDS = ("tokens", "words")
_TAGS = ("ner_tags", "ner", "tags", "labels")
_OF_SEVERAL = re.compile(r"[0-9]+[-.][0-9]+")  # in CoNLL-U: words written together, or left out
_CONLLU_COLUMNS = 10
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


def read_token_rows(
    source: str, labels: Sequence[str], *, labelled: bool, encoding: str, data_dir: str
) -> Iterator[Tagged]:
    """The sentences of rows with lists of words and tags, in files or TFDS.

    Args:
      source: as in `read_rows`.
      labels: what numbers as tags stand for.
      labelled: whether tags are read.
      encoding, data_dir: as in `read_rows`.

    Raises:
      UserError: as `read_rows`; words or tags are no lists of text, or are not as many. The message
        names the line.
    """
    for row in read_rows(source, _WORDS, encoding=encoding, data_dir=data_dir):
        words = _texts(row, _WORDS)
        tags = _texts(row, _TAGS, labels) if labelled else None
        if tags is not None and len(tags) != len(words):
            raise UserError(f"{row.place}: {len(words)} words, but {len(tags)} tags")
        if words:
            yield Tagged(words, tags, [f"{row.place}, word {i}" for i in range(len(words))])


def _texts(row: Row, columns: Sequence[str], names: Sequence[str] = ()) -> list[str]:
    """A list of texts; numbers in it count `names`."""
    values = row.get(*columns)
    if not isinstance(values, list):
        raise UserError(f"{row.place}: {columns[0]} is {type(values).__name__}, not a list")
    texts = []
    for value in values:
        if isinstance(value, int) and 0 <= value < len(names):
            value = names[value]
        if not isinstance(value, str):
            hint = "; list the tags in `labels`, in their order" if isinstance(value, int) else ""
            raise UserError(f"{row.place}: {value!r} in {columns[0]} is not text{hint}")
        texts.append(value)
    return texts


def read_conll(source: str, columns: Columns, encoding: str) -> Iterator[Tagged]:
    """The sentences of a file with one word per line and blank lines between sentences.

    Columns are separated by tabs or else by spaces. Lines that begin with -DOCSTART- are skipped,
    and so are comments: lines that begin with #, have no tab, and do not end in a tag that
    occurred before or has a prefix. CoNLL-U is read with `word` = 2.

    Raises:
      UserError: no such file, another encoding or number of columns, or its words are numbers. The
        message names the line.
    """
    for path in find_files(source):
        sentences = [*_sentences(path, columns, encoding)]
        if sentences and all(_is_counted(each.words) for each in sentences):
            raise UserError(
                f"{path}: its words are the numbers 1, 2, ...; set word_column=2, as in CoNLL-U, "
                "and tag_column=4 for parts of speech"
            )
        yield from sentences


def _is_counted(words: Sequence[str]) -> bool:
    found = [word for word in words if not _OF_SEVERAL.fullmatch(word)]
    return found == [str(number) for number in range(1, len(found) + 1)]


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
    width, tags = None, set()
    for number, line in lines:
        line = line.strip(" \r\n")
        if not line.strip("\t") or line.startswith("-DOCSTART-"):
            yield None
            continue
        fields = line.split("\t") if "\t" in line else re.split(" +", line)
        fits = len(fields) >= needed and len(fields) == (width or len(fields))
        if line.startswith("#"):  # a word or a comment
            is_word = fits and (bool(width) if not columns.tag else "\t" in line)
            if fits and columns.tag and not is_word:
                tag = _field(fields, columns.tag)
                is_word = tag in tags or is_tag(tag)
            if not is_word:
                continue
        if not fits:
            raise UserError(
                f"{path}, line {number}: {len(fields)} columns, "
                + (f"but {width} in the lines before" if width else f"fewer than {needed}")
                + "; columns are separated by tabs, or else by spaces"
            )
        is_conllu = len(fields) == _CONLLU_COLUMNS and _field(fields, columns.word) != fields[0]
        if is_conllu and _OF_SEVERAL.fullmatch(fields[0]):
            continue
        if not _field(fields, columns.word):
            raise UserError(f"{path}, line {number}: the word is empty")
        width = len(fields)
        if columns.tag:
            tags.add(_field(fields, columns.tag))
        yield number, fields


def _column(records: Sequence[Sequence[str]], column: int) -> list[str]:
    return [_field(fields, column) for fields in records]


def _field(fields: Sequence[str], column: int) -> str:
    return fields[column - 1 if column > 0 else column]
