"""Lines of text files, decompressed and decoded."""

import bz2
import gzip
import io
import lzma
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, TypeVar, cast

from etils import epath

from bert_jax.data.limits import COMPRESSIONS
from bert_jax.errors import UserError, throw

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

T = TypeVar("T")

_DECOMPRESS: dict[str, Callable[[BinaryIO], Iterable[bytes]]] = dict(
    zip(COMPRESSIONS, (gzip.open, lzma.open, bz2.open, zstd.open), strict=True)
)
_SHORT = {".tgz": (".tar", ".gz"), ".txz": (".tar", ".xz"), ".tbz2": (".tar", ".bz2")}
DAMAGED = (EOFError, OSError, lzma.LZMAError, zlib.error, zstd.ZstdError)
# How files begin that hold no text; the rest of bzip2's tells it from a word.
_BEGINNINGS = {
    ".gz": re.compile(rb"\x1f\x8b"),
    ".xz": re.compile(rb"\xfd7zXZ\x00"),
    ".bz2": re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"),
    ".zst": re.compile(rb"\x28\xb5\x2f\xfd"),
    ".parquet": re.compile(rb"PAR1"),
    ".arrow": re.compile(rb"ARROW1\0\0"),
    ".zip": re.compile(rb"PK\x03\x04"),
}
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # its byte order marks


def decoded_lines(
    path: epath.Path,
    file: BinaryIO,
    encoding: str = "utf-8",
    remedy: str = "convert the file, for example with iconv -t utf-8",
    refuse: Callable[[UserError], object] = throw,
) -> Iterator[tuple[int, str]]:
    """Number, from 1, and text of each line of `file`, which is `path` opened for reading bytes.

    It is decompressed according to its suffix (.gz, .xz, .bz2, .zst). A byte order mark is dropped.
    A line that is not text in `encoding` goes to `refuse` as a `UserError`, which ends with
    `remedy`; if `refuse` returns, the line is left out.

    Raises:
      UserError: the file is damaged or not what its suffix says, or `refuse` raises.
    """
    number, content = 0, decompressed(path, file)
    try:
        for number, line in enumerate(content, 1):
            try:
                text = line.decode(encoding)
            except UnicodeDecodeError as error:
                reason = f"byte {error.start + 1} of the line is not {encoding.upper()}"
                if number == 1 and line.startswith(_UTF_16):
                    reason = f"UTF-16, as its byte order mark says, not {encoding.upper()}"
                refuse(UserError(f"{path}, line {number}: {reason}; {remedy}"))
                continue
            if number == 1 and b"\r" in line.rstrip(b"\r") and not line.endswith(b"\n"):
                advice = f"tr '\\r' '\\n' < {path} > NEW"
                refuse(UserError(f"{path}: carriage returns end its lines; convert it: {advice}"))
                continue
            if 3 * line.count(b"\0") > len(line):
                reason = "mostly NUL bytes: UTF-16, or part of a damaged file"
                refuse(UserError(f"{path}, line {number}: {reason}; {remedy}"))
                continue
            yield number, text.removeprefix("\ufeff" if number == 1 else "")
    except DAMAGED as error:
        raise UserError(f"{path}: damaged or cut short after line {number} ({error})") from error


def advancing(items: Iterator[T], file: BinaryIO, advance: Callable[[int], object]) -> Iterator[T]:
    """The items, read from `file`; `advance` is called with its bytes read since the last one."""
    if not file.seekable():  # a pipe
        yield from items
        return
    position = file.tell()
    for item in items:
        advance(file.tell() - position)
        position = file.tell()
        yield item


def _check_beginning(path: epath.Path, file: BinaryIO, compression: str) -> None:
    if isinstance(file, io.BufferedReader):  # even of what cannot seek: a pipe, a part of a stream
        start = file.peek(10)[:10]
    else:
        start = file.read(10)
        file.seek(0)
    if compression and not start:
        raise UserError(f"{path}: damaged or cut short: an empty file is no {compression} file")
    found = format_of(start)
    if found and found != compression:
        raise UserError(f"{path}: holds {found} data; unpack it, or give it that suffix")


def format_of(start: bytes) -> str:
    """The suffix of files that are no text, by their first bytes; empty for text."""
    return next((kind for kind, beginning in _BEGINNINGS.items() if beginning.match(start)), "")


def decompressed(path: epath.Path, file: BinaryIO) -> BinaryIO:
    """The content of `file`, which is `path` opened for reading bytes, by its suffix.

    Raises:
      UserError: the file is not what its suffix says.
    """
    compression = suffixes(path)[1]
    _check_beginning(path, file, compression)
    return cast(BinaryIO, _DECOMPRESS[compression](file)) if compression else file


def suffixes(path: epath.Path) -> tuple[str, str]:
    """('.jsonl', '.gz') for 'a.jsonl.gz', ('.tar', '.gz') for 'a.tgz'."""
    if path.suffix in _DECOMPRESS:
        return path.with_suffix("").suffix, path.suffix
    return _SHORT.get(path.suffix, (path.suffix, ""))
