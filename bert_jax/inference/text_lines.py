"""Reads texts and pairs of texts from files, one per line."""

import json
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

from etils import epath

from bert_jax.errors import UserError

# By the suffix of a file:
#   text   one text per line
#   tsv    two texts, separated by a tab
#   jsonl  a JSON object with `text`, or with `text_a` and `text_b`
FORMATS = {".txt": "text", ".tsv": "tsv", ".jsonl": "jsonl"}


class Line(NamedTuple):
    """A line of a file.

    Attributes:
      number: line number, from 1.
      text: a text or a pair.
      fields: fields of the JSON object; for other formats, those that it would have.
      size: bytes.
    """

    number: int
    text: str | tuple[str, str]
    fields: dict[str, Any]
    size: int


@dataclass
class TextLines:
    """The lines of a file, read lazily.

    Attributes:
      name: path of a file, or "-" for standard input.
      format: see `FORMATS`.
      pairs: accept only pairs.
      skip: leave out lines that cannot be read, instead of raising.
      skipped: number of lines left out.
      first_skipped: the first of them, and why it was left out.
    """

    name: str
    format: str
    pairs: bool = False
    skip: bool = False
    skipped: int = 0
    first_skipped: str = ""

    def __post_init__(self) -> None:
        if self.name != "-" and not epath.Path(self.name).exists():
            raise UserError(f"{self.name}: no such file")

    @property
    def size(self) -> int | None:
        """Bytes; None for standard input."""
        return None if self.name == "-" else epath.Path(self.name).stat().length

    def __iter__(self) -> Iterator[Line]:
        """Yields the lines.

        Raises:
          UserError: a line is not UTF-8, not of the format, or has no text; or no line can be read.
        """
        name = "standard input" if self.name == "-" else self.name
        number = 0
        with self._open() as file:
            for number, line in enumerate(file, 1):
                try:
                    text, fields = self._parse(line)
                except ValueError as error:
                    place = f"{name}, line {number}: {error}"
                    if not self.skip:
                        raise UserError(f"{place}; fix it or pass --skip-bad-lines") from error
                    self.first_skipped = self.first_skipped or place
                    self.skipped += 1
                else:
                    yield Line(number, text, fields, len(line))
        if number == self.skipped:
            raise UserError(f"{name}: no text to read")

    def _open(self) -> AbstractContextManager[BinaryIO]:
        if self.name == "-":
            return nullcontext(sys.stdin.buffer)
        return epath.Path(self.name).open("rb")

    def _parse(self, line: bytes) -> tuple[str | tuple[str, str], dict[str, Any]]:
        try:
            content = line.decode("utf-8").removeprefix("\ufeff").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"byte {error.start + 1} is not UTF-8") from error
        if self.format == "jsonl":
            fields = _json_object(content)
        elif self.format == "tsv":
            texts = content.split("\t")
            if len(texts) != 2:
                raise ValueError(f"{len(texts)} fields; must be two texts with a tab between them")
            fields = {"text_a": texts[0], "text_b": texts[1]}
        else:
            fields = {"text": content}
        names = ["text"] if "text" in fields and not self.pairs else ["text_a", "text_b"]
        if missing := [name for name in names if not isinstance(fields.get(name), str)]:
            there, single = ", ".join(fields), "" if self.pairs else "text, or "
            raise ValueError(
                f"no text in {missing[0]}; there must be {single}text_a and text_b [{there}]"
            )
        found = [fields[name] for name in names]
        if not all(text.strip() for text in found):
            raise ValueError("empty text")
        return found[0] if len(found) == 1 else (found[0], found[1]), fields


def _json_object(content: str) -> dict[str, Any]:
    try:
        fields = json.loads(content)
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise ValueError("not a JSON object")
    return fields
