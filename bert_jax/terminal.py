"""What is printed: plain text that cannot act on a terminal, and what to do if nobody reads it."""

import contextlib
import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from typing import Any, Protocol

from bert_jax.json_values import dump_json

# Those of C0 and C1, line and paragraph separators, changes of direction, halves of characters.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_OUTPUT = "standard output"  # the name that errors give it
_SECONDS_PER_LINE = 60.0  # of progress in a log
_quiet = False


def printable(text: object) -> str:
    r"""The text in one line: control characters become escapes such as \n and \x1b."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def json_line(value: Any, *, encoding: str = "utf-8") -> str:
    r"""A value as one line of JSON, in which control characters are escapes such as \u001b.

    Args:
      value: plain values; see `dump_json`.
      encoding: of the output; if it is not UTF-8, everything beyond ASCII becomes an escape.
    """
    is_utf8 = encoding.lower().replace("-", "") == "utf8"
    text = dump_json(value, ensure_ascii=not is_utf8)
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def say(line: object) -> None:
    """Prints a line on standard output, at once; see `printable`."""
    with output_errors():
        print(printable(line), flush=True)


def say_progress(line: object) -> None:
    """As `say`, unless only results are wanted."""
    if not _quiet:
        say(line)


def be_quiet() -> None:
    """Prints results, warnings and errors only, from now on."""
    global _quiet
    _quiet = True


def is_quiet() -> bool:
    """Whether progress is left out."""
    return _quiet


def be_verbose() -> None:
    """Shows what libraries log, such as absl and JAX, from now on."""
    for name in ("", "absl"):
        logging.getLogger(name).setLevel(logging.INFO)


def say_json(value: Any) -> None:
    """Prints a line of JSON on standard output; see `json_line`."""
    with output_errors():
        print(json_line(value, encoding=sys.stdout.encoding or "ascii"))


class Progress(Protocol):
    """Shows how much of a work is done.

    Attributes:
      n: units done.
    """

    n: float

    def update(self, n: int) -> object:
        """Counts `n` more units as done."""

    def note(self, text: str) -> None:
        """Shows `text` as well, from the next time on."""


@contextlib.contextmanager
def progress(label: str, total: int | None, unit: str = "B") -> Iterator[Progress]:
    """Shows progress on standard error: a bar on a terminal, else a line each minute.

    Shows nothing if only results are wanted.

    Args:
      label: what is done.
      total: units in all; None or 0 if that is not known.
      unit: name of a unit, as it follows a number.
    """
    lines = _Lines(label, total, unit)
    if _quiet or not sys.stderr.isatty():
        yield lines
        lines.close()
        return

    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        def note(self, text: str) -> None:
            self.set_postfix_str(text, refresh=False)

    with Bar(total=total or None, unit=unit, unit_scale=True, desc=label, mininterval=0.5) as bar:
        yield bar


class _Lines:
    """Progress in a log; see `progress`."""

    def __init__(self, label: str, total: int | None, unit: str):
        self._label, self._total, self._unit = label, total, unit
        self.n, self._note = 0.0, ""
        self._start = self._printed = time.monotonic()

    def close(self) -> None:
        if self._printed > self._start:
            self._print()

    def update(self, n: int) -> None:
        self.n += n
        if time.monotonic() - self._printed >= _SECONDS_PER_LINE:
            self._print()

    def note(self, text: str) -> None:
        self._note = text

    def _print(self) -> None:
        from tqdm import tqdm

        self._printed = time.monotonic()
        if _quiet:
            return
        done = tqdm.format_sizeof(self.n, self._unit)
        if self._total:
            done += f" of {tqdm.format_sizeof(self._total, self._unit)}"
        elapsed = tqdm.format_interval(self._printed - self._start)
        line = f"{self._label}: {done} in {elapsed}" + (f", {self._note}" if self._note else "")
        print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def output_errors() -> Iterator[None]:
    """Names standard output in the errors of the block, and writes nothing more to it.

    Raises:
      OSError: as raised in the block; BrokenPipeError if the reader has gone, as `head` does.
    """
    try:
        yield
    except OSError as error:
        error.filename = error.filename or _OUTPUT
        # What is still buffered would fail once more when Python ends.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def is_closed_output(error: OSError) -> bool:
    """Whether an error says that nobody reads standard output any more."""
    return isinstance(error, BrokenPipeError) and error.filename in (None, _OUTPUT)
