"""Reads texts and pairs of texts: lines of plain text, and rows of tables."""

import itertools
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

from etils import epath

from bert_jax.data.lines import decoded_lines, suffixes
from bert_jax.data.tables import parse_rows, read_rows
from bert_jax.data.tfds import dataset_and_split
from bert_jax.errors import UserError

# By the suffix of a file. `text` has one text per line; the others are tables, as
# `bert_jax.data.tables.read_rows` reads them, or the examples of a task.
FORMATS = {
    ".txt": "text",
    ".tsv": "tsv",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".conll": "conll",
}
TABLES = ("tsv", "csv", "jsonl", "json", "parquet")
# If the first line of a TSV file without known columns has one of these, it is still a header.
_OF_HEADERS = ("label", "labels", "index", "idx", "id", "score")
_STDIN = "standard input"

Names = tuple[str, ...]  # of a column; the first that a row has is used


@dataclass(frozen=True)
class Columns:
    """Where the rows of a table have their texts.

    Attributes:
      text: column of a text; empty if there must be pairs.
      pair: columns of the two texts of a pair; empty if there must be single texts.
      words: columns of a list of words, which may stand in the place of a text.
    """

    text: Names = ("text", "sentence")
    pair: tuple[Names, ...] = (
        ("text_a", "sentence1", "premise", "question"),
        ("text_b", "sentence2", "hypothesis", "context"),
    )
    words: Names = ()

    @property
    def names(self) -> list[str]:
        """The names of all columns."""
        return [name for names in (self.text, *self.pair, self.words) for name in names]

    def find(self, values: Mapping[str, Any]) -> str | tuple[str, str] | list[str]:
        """The text, pair or words among the values of a row; a text goes before words.

        Raises:
          UserError: there is none.
        """
        is_single = not self.pair or any(name in values for name in self.text)
        if not any(name in values for name in self.text):
            for name in self.words:
                if name in values:
                    return _words(name, values[name])
        found = []
        for names in (self.text,) if is_single else self.pair:
            name = next((name for name in names if name in values), names[0])
            if not isinstance(values.get(name), str):
                pair = " and ".join(names[0] for names in self.pair)
                wanted = ", or ".join([*self.text[:1], *([pair] if pair else [])])
                there = ", ".join(values)
                raise UserError(f"no text in {name}; there must be {wanted} [{there}]")
            found.append(values[name])
        if not all(text.strip() for text in found):
            raise UserError("empty text")
        return found[0] if is_single else (found[0], found[1])


def _words(name: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise UserError(f"{name} must be a list of words")
    if not any(word.strip() for word in value):
        raise UserError("empty text")
    return value


class Line(NamedTuple):
    """A text of a file.

    Attributes:
      number: its line or row, from 1.
      text: a text, a pair or a list of words.
      fields: fields of the JSON object or row; for other formats, those that it would have.
      size: bytes read since the line before; 0 if that is not known.
    """

    number: int
    text: Any
    fields: Mapping[str, Any]
    size: int = 0

    def merged(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """The fields and what was found.

        A field of the input with the name of a result is called `input_NAME`.
        """
        given = {f"input_{n}" if n in results else n: value for n, value in self.fields.items()}
        return given | dict(results)


@dataclass
class TextLines:
    """The texts of a file, read lazily.

    Attributes:
      name: path of a file, "-" for standard input, or tfds:NAME:SPLIT.
      format: "text" or one of `TABLES`; not used for datasets.
      columns: columns of tables. Lines of plain text are in a column called `text`.
      skip: leave out lines that cannot be read, instead of raising.
      must_have: what every text must contain; if not empty, blank lines are left out uncounted.
      skipped: number of lines left out.
      first_skipped: the first of them, and why it was left out.
      size: bytes, the sum of the lines' sizes; None if those are not known.
    """

    name: str
    format: str
    columns: Columns = field(default_factory=Columns)
    skip: bool = False
    must_have: str = ""
    skipped: int = 0
    first_skipped: str = ""
    size: int | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._position = 0  # bytes read
        self._first: list[Line] = []
        self._rest: Iterator[Line] | None = None
        self._is_dataset = dataset_and_split(self.name) is not None
        if self.name != "-" and not self._is_dataset:
            check_file(self.name)
            if self.format not in ("tsv", "parquet"):
                self.size = epath.Path(self.name).stat().length

    def check(self) -> None:
        """Reads the first text, so that an unusable file is found before a model is loaded.

        Raises:
          UserError: as when iterating.
        """
        self._rest = self._read()
        self._first = [*itertools.islice(self._rest, 1)]

    def __iter__(self) -> Iterator[Line]:
        """Yields the lines.

        Raises:
          UserError: a line is not UTF-8, not of the format, or has no text; or no line can be read.
        """
        return self._read() if self._rest is None else itertools.chain(self._first, self._rest)

    def _read(self) -> Iterator[Line]:
        before, is_empty = 0, True
        for place, values in self._rows():
            try:
                text = self.columns.find(values)
                if self.must_have and self.must_have not in text:
                    raise UserError(f"no {self.must_have} in the text")
            except UserError as error:
                self._refuse(UserError(f"{place}: {error}"))
            else:
                number = int(place.rpartition(" ")[2])
                yield Line(number, text, values, self._position - before)
                before, is_empty = self._position, False
        if is_empty:
            name = _STDIN if self.name == "-" else self.name
            reason = f"; {self.first_skipped}" if self.skipped else ""
            raise UserError(f"{name}: no text to read{reason}")

    def _rows(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Place, which ends in a number from 1, and values of each row."""
        if self.format == "text":
            for number, line in self._lines():
                if line.strip() or not self.must_have:
                    yield f"{self._path}, line {number}", {"text": line.rstrip("\r\n")}
            return
        names = self.columns.names
        if self.format == "tsv":  # may have no header
            names += ["1", "2", *_OF_HEADERS]
        rows = (
            parse_rows(str(self._path), self._lines(), names, self.format, refuse=self._refuse)
            if self.name == "-" or self.size is not None
            # Reads a .tsv file twice, to find out whether it is quoted.
            else read_rows(self.name, names, format=self._given_format, refuse=self._refuse)
        )
        for place, values in rows:
            if self.format == "parquet" or self._is_dataset:  # may have dates, bytes, arrays
                values = json.loads(json.dumps(dict(values), default=str))
            is_named = any(name in values for name in self.columns.names)
            if self.format != "tsv" or is_named or not all(map(str.isdecimal, values)):
                yield place, values
            elif len(values) == 2 and self.columns.pair:
                yield place, dict(zip(("text_a", "text_b"), values.values()))
            else:
                reason = f"{len(values)} fields; must be two texts with a tab between them"
                self._refuse(UserError(f"{place}: {reason}"))

    @property
    def _given_format(self) -> str:
        """The format, if the file's suffix does not say it."""
        return "" if format_of(self.name) == self.format else self.format

    @property
    def _path(self) -> epath.Path:
        """The path for messages."""
        return epath.Path(_STDIN if self.name == "-" else self.name)

    def _lines(self) -> Iterator[tuple[int, str]]:
        try:
            with self._open() as file:
                for number, line in decoded_lines(self._path, file, refuse=self._refuse):
                    self._position = file.tell() if self.size else 0
                    yield number, line
        except OSError as error:  # such as a closed standard input
            raise UserError(f"{self._path}: {error.strerror or error}") from error

    def _open(self) -> AbstractContextManager[BinaryIO]:
        if self.name != "-":
            return epath.Path(self.name).open("rb")
        if sys.stdin is None:
            raise UserError(f"{_STDIN} is closed: name a FILE, or give a TEXT")
        return nullcontext(sys.stdin.buffer)

    def _refuse(self, error: UserError) -> None:
        """Counts a line that cannot be read, or raises its error."""
        if not self.skip:
            raise UserError(f"{error}; fix it or pass --skip-bad-lines") from error
        self.first_skipped = self.first_skipped or str(error)
        self.skipped += 1


class GivenLines(list[Line]):
    """Texts that are in memory, with the attributes of `TextLines`."""

    skipped = 0
    first_skipped = ""
    size = None


Lines = TextLines | GivenLines


def check_file(name: str) -> None:
    """Raises UserError if there is no such file."""
    path = epath.Path(name)
    if not path.exists():
        raise UserError(f"{name}: no such file")
    if path.is_dir():
        raise UserError(f"{name}: a folder; name a file in it")


def format_of(name: str) -> str | None:
    """The format that the suffix of a file stands for; it may be followed by one of compression."""
    return FORMATS.get(suffixes(epath.Path(name))[0].lower())
