"""JSON: that of others is parsed and checked, with errors that name the place; ours is valid."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from bert_jax.errors import UserError

T = TypeVar("T")

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(text: str, place: str) -> Any:
    """The value that a JSON text holds.

    Args:
      text: one JSON document.
      place: what errors name: a file, or a file and its line.

    Raises:
      UserError: not JSON, nested too deeply, or a string in it is no Unicode text.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise UserError(f"{place}: not usable JSON (brackets nested too deeply)") from error
    except ValueError as error:
        likely = "cut short or damaged?"
        if text.strip() in ("{", "["):  # the first line of what others print with indents
            likely = "its value goes on in other lines: write each record in one line"
        raise UserError(f"{place}: not JSON ({error}); {likely}") from error
    if _SURROGATE.search(text):
        # Two such escapes may make one character; one alone is no text and cannot be encoded.
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(error.object[error.start]):04x}"
            raise UserError(f"{place}: {half} is half a character, not Unicode text") from error
    return value


def typed(value: Any, kind: type[T], place: str) -> T:
    """`value` as a `kind`: a dataclass, a `dict[str, int]`, or any other type that msgspec reads.

    Fields that `kind` does not have are ignored; fields without a default must be there. Strings
    are not taken for numbers, nor booleans for integers.

    Raises:
      UserError: `value` or a part of it is missing or of another type; the message names the field.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        what, _, where = str(error).replace("`", "").partition(" - at ")
        field = where.removeprefix("$").removeprefix(".")
        what = what.replace("Expected", "expected").replace("Object", "object")
        raise UserError(f"{place}: {f'field {field}: ' if field else ''}{what}") from error


def dump_json(value: Any, *, indent: int | None = None, ensure_ascii: bool = False) -> str:
    """A plain value as JSON text; NaN and infinity, which JSON does not have, become null."""
    try:
        return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, allow_nan=False)
    except ValueError:
        return json.dumps(_with_nulls(value), indent=indent, ensure_ascii=ensure_ascii)


def _with_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _with_nulls(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_with_nulls(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
