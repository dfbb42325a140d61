"""Atomic file writes, on local disks and in object storage such as gs://BUCKET/PATH.

All paths are `etils.epath` paths. Object storage has no memory-mapped files, appending, locks or
atomic renaming of folders, so this package does not use them there.
"""

import contextlib
import glob
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

from etils import epath

from bert_jax.errors import UserError
from bert_jax.json_values import dump_json, parse_json, typed

# If TensorFlow is installed, etils would use its file system; only gcsfs is tested.
os.environ.setdefault("EPATH_USE_TF", "false")

T = TypeVar("T")

UNFINISHED = ".unfinished"  # suffix of a file that is being written


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path is in object storage."""
    return "://" in os.fspath(path)


def cache_folder(name: str) -> epath.Path:
    """A folder of this user's cache, $XDG_CACHE_HOME (default ~/.cache); it may not exist yet."""
    caches = epath.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return caches.expanduser() / "bert_jax" / name


def files_below(folder: epath.Path) -> Iterator[epath.Path]:
    """All files in a folder, at any depth."""
    for path in folder.iterdir():
        if path.is_dir():
            yield from files_below(path)
        else:
            yield path


def glob_files(pattern: epath.Path) -> Iterator[epath.Path]:
    """The files and folders that a pattern matches.

    Raises:
      UserError: `**` in object storage.
    """
    if not is_remote(pattern):
        return map(epath.Path, glob.glob(str(pattern), recursive=True))
    if "**" in pattern.parts:
        raise UserError(f"{pattern}: no ** in object storage; name the folder for all files below")
    scheme, _, rest = str(pattern).partition("://")
    bucket, _, rest = rest.partition("/")
    return epath.Path(f"{scheme}://{bucket}").glob(rest)


@contextlib.contextmanager
def errors_name(path: epath.PathLike, *, instead_of: epath.PathLike = "") -> Iterator[None]:
    """Names the path in errors of the block that name none, such as a full disk.

    Args:
      path: path to name.
      instead_of: a temporary path, which errors must not name; nor what is below it.
    """
    try:
        yield
    except OSError as error:
        named, hidden = str(error.filename or instead_of), str(instead_of)
        if named == hidden or named.startswith(f"{hidden}/"):
            error.filename = os.fspath(path) + named[len(hidden) :]
        raise


@contextlib.contextmanager
def whole_file(path: epath.PathLike) -> Iterator[epath.Path]:
    """Yields a path to write to; the file appears at `path` when the block ends without an error.

    On a local disk the yielded path is a temporary name of this call, renamed at the end. In
    object storage it is `path` itself, since a file appears there only when it is closed; so it is
    for what is no file, such as /dev/stdout.

    Raises:
      OSError: as raised in the block; it names a path.
    """
    path = epath.Path(path)
    if is_remote(path) or (path.exists() and not path.is_file() and not path.is_dir()):
        with errors_name(path):
            yield path
        return
    unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}{UNFINISHED}")
    try:
        with errors_name(path, instead_of=unfinished):
            yield unfinished
            unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: epath.PathLike, *, last: str) -> Iterator[Path]:
    """Yields a folder to write to; it appears at `path` when the block ends without an error.

    In object storage its files are copied to `path` then, the one named `last` after all others.

    Raises:
      UserError: `path` is not empty.
      OSError: as raised in the block; it names a path.
    """
    path = epath.Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path}: not empty; choose another directory")
    nearby = None if is_remote(path) else path.absolute().parent
    if nearby:
        nearby.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=nearby) as temporary:
        folder = Path(temporary) / "unfinished"
        with errors_name(path, instead_of=folder):
            folder.mkdir()
            yield folder
        if not is_remote(path):
            folder.rename(path)
            return
        for file in sorted(files_below(epath.Path(folder)), key=lambda file: file.name == last):
            target = path / str(file.relative_to(folder))
            target.parent.mkdir(parents=True, exist_ok=True)
            with file.open("rb") as reader, target.open("wb") as writer:
                shutil.copyfileobj(reader, writer)


def write_text(path: epath.PathLike, text: str) -> None:
    """Writes a UTF-8 text file atomically."""
    with whole_file(path) as file:
        file.write_text(text, encoding="utf-8")


def write_json(path: epath.PathLike, value: Mapping[str, Any] | Sequence[Any]) -> None:
    """Writes a JSON file atomically; see `dump_json`."""
    write_text(path, dump_json(value, indent=2) + "\n")


@overload
def read_json(path: epath.Path) -> dict[str, Any]: ...
@overload
def read_json(path: epath.Path, kind: type[T]) -> T: ...
def read_json(path: epath.Path, kind: Any = dict[str, Any]) -> Any:
    """What a JSON file of a run, model or store holds, as a `kind`; see `json_values.typed`.

    Raises:
      UserError: no such file, not JSON, or not a `kind`.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file; is {path.parent} the directory of a run or model?")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not JSON (a byte is not UTF-8); damaged?") from error
    return typed(parse_json(text, str(path)), kind, str(path))
