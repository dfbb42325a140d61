"""Documents as a stream of strings, from files and from public datasets.

One document is in memory at a time. A newline inside a document ends a sentence, as does a blank
line; `bert_jax.data.sentences` finds the ends of sentences within a line.
"""

import atexit
import functools
import glob
import hashlib
import importlib.resources
import inspect
import json
import logging
import re
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol, Self, cast

from etils import epath

from bert_jax.data.columnar import columnar_rows, saved_dataset
from bert_jax.data.hub import dataset_files
from bert_jax.data.limits import COMPRESSIONS, FORMATS
from bert_jax.data.lines import DAMAGED, advancing, decoded_lines, decompressed, format_of, suffixes
from bert_jax.data.tables import read_rows
from bert_jax.data.tfds import TfdsExamples, dataset_and_split, tfds_examples
from bert_jax.errors import UserError, throw
from bert_jax.fields import import_object
from bert_jax.json_values import parse_json
from bert_jax.storage import files_below, glob_files

_COLUMNAR = FORMATS[1]
_PLAIN = [suffix for group in FORMATS if group != _COLUMNAR for suffix in group]
_KNOWN = f"{', '.join(_PLAIN)}, plain or {', '.join(COMPRESSIONS)}; or {', '.join(_COLUMNAR)}"
_OWN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")  # MODULE:NAME
_NUM_LOGGED = 3

Advance = Callable[[int], object]  # called with the bytes of a source read since the last call
Refuse = Callable[[UserError], object]  # takes the error of a record: raises it, or skips it


class Source(Protocol):
    """A source of documents, read more than once; it must give the same ones every time."""

    @property
    def size(self) -> int:
        """Amount to read, in bytes or any other unit, for a progress bar."""

    def fingerprint(self) -> dict[str, Any]:
        """Identifies the documents: plain values for a store's manifest."""

    def documents(self, advance: Advance) -> Iterator[str]:
        """The text of every document; a line break ends a sentence.

        Args:
          advance: to be called with the amount read since the last call.
        """


class SkippedRecords:
    """A `Refuse` that leaves records out: it counts them, and logs the first few."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, error: UserError) -> None:
        self.count += 1
        if self.count <= _NUM_LOGGED:
            _warn(f"skipped: {error}")


@dataclass(frozen=True)
class _File:
    """A file of documents."""

    path: epath.Path
    name: str  # in a manifest: without the folders that differ between machines
    text_field: str

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self.path.stat().length

    def fingerprint(self) -> dict[str, Any]:
        with self.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"name": self.name, "bytes": self.size, "sha256": digest}


@dataclass(frozen=True)
class _Texts(_File):
    """A file of texts, or of files with texts, and how they are read."""

    document_per_file: bool
    unwrap: bool
    refuse: Refuse = throw
    separator: re.Pattern[str] | None = None


@dataclass(frozen=True)
class TextFile(_Texts):
    """A `.txt` or `.jsonl` file, plain or compressed (.gz, .xz, .bz2, .zst)."""

    def documents(self, advance: Advance) -> Iterator[str]:
        with self.path.open("rb") as file:
            yield from advancing(self.read(file), file, advance)

    def read(self, file: BinaryIO) -> Iterator[str]:
        """The documents in `file`, which is this file, opened for reading bytes."""
        lines = decoded_lines(self.path, file, refuse=self.refuse)
        is_jsonl = suffixes(self.path)[0] == ".jsonl"
        for text in self._records(lines) if is_jsonl else self._texts(lines):
            yield _unwrap(text) if self.unwrap else text

    def _texts(self, lines: Iterator[tuple[int, str]]) -> Iterator[str]:
        if self.document_per_file:
            yield "".join(line for _, line in lines)
            return
        document: list[str] = []
        separators = 0
        for _, line in lines:
            if self._is_separator(line.strip()):
                separators += 1
                if document:
                    yield "".join(document)
                document = []
            else:
                document.append(line)
        if document and not separators:
            self._warn_of_one_document()
        if document:
            yield "".join(document)

    def _warn_of_one_document(self) -> None:
        _warn(
            f"{self.path}: no {'separator' if self.separator else 'blank line'}, so the whole "
            "file is one document. Put a blank line between documents, name what separates "
            "them with --document-separator, or pass --document-per-file if it really is one."
        )

    def _is_separator(self, line: str) -> bool:
        return bool(self.separator.fullmatch(line)) if self.separator else not line

    def _records(self, lines: Iterator[tuple[int, str]]) -> Iterator[str]:
        for number, line in lines:
            if not line.strip():
                continue
            place = f"{self.path}, line {number}"
            try:
                record = parse_json(line.removeprefix("\ufeff"), place)
                text = _field(record, self.text_field, place)
            except UserError as error:
                self.refuse(error)
            else:
                yield text


@dataclass(frozen=True)
class _Member(TextFile):
    """A text file in an archive, which says once for all of them what is odd."""

    archive: str = ""

    def _warn_of_one_document(self) -> None:
        _warn(
            f"{self.archive}: files without a blank line are one document each; pass "
            "--document-per-file if all are"
        )


@dataclass(frozen=True)
class TarFile(_Texts):
    """A `.tar` file, plain or compressed, whose `.txt` and `.jsonl` files are read in its order."""

    def documents(self, advance: Advance) -> Iterator[str]:
        with self.path.open("rb") as file:
            try:
                content = decompressed(self.path, file)
                with tarfile.open(fileobj=content, mode="r|", tarinfo=_Header) as archive:
                    yield from advancing(self._texts(archive), file, advance)
            except (tarfile.TarError, *DAMAGED) as error:
                raise UserError(f"{self.path}: not tar, damaged or cut short ({error})") from error

    def _texts(self, archive: tarfile.TarFile) -> Iterator[str]:
        count = 0
        for entry in archive:
            path = self.path / entry.name.lstrip("/")
            # macOS adds a file of attributes, ._NAME, to every file.
            if not entry.isfile() or path.name.startswith("._") or not _is_of(path, FORMATS[0]):
                continue
            content = archive.extractfile(entry)
            assert content is not None  # it is a file
            count += 1
            member = _Member(
                path,
                entry.name,
                self.text_field,
                self.document_per_file,
                self.unwrap,
                self.refuse,
                self.separator,
                str(self.path),
            )
            yield from member.read(cast(BinaryIO, content))
        if not count:
            raise UserError(f"{self.path}: no {' or '.join(FORMATS[0])} file in it")


class _Header(tarfile.TarInfo):
    """What tells one file from the next in an archive; a damaged one does not end it silently."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"at byte {archive.offset:,}: {error}") from error


@dataclass(frozen=True)
class TableFile(_File):
    """A file with one document a row; see `bert_jax.data.tables`."""

    unwrap: bool
    refuse: Refuse = throw

    def documents(self, advance: Advance) -> Iterator[str]:
        for place, values in self._rows(advance):
            try:
                text = _field(values, self.text_field, place)
            except UserError as error:
                self.refuse(error)
            else:
                yield _unwrap(text) if self.unwrap else text

    def _rows(self, advance: Advance) -> Iterator[tuple[str, Mapping[str, Any]]]:
        columns = [self.text_field]
        if self.path.suffix not in _COLUMNAR:
            yield from read_rows(str(self.path), columns, refuse=self.refuse, advance=advance)
            return
        for number, values in enumerate(columnar_rows(self.path, columns, advance), 1):
            yield f"{self.path}, row {number}", values


@dataclass(frozen=True)
class TfdsSplit:
    """A split in TensorFlow Datasets, in a random-access format (ArrayRecord)."""

    name: str  # 'wikipedia/20230601.en', optionally with ':1.0.0'
    split: str
    text_field: str
    unwrap: bool
    data_dir: str | None
    refuse: Refuse = throw

    @functools.cached_property
    def _examples(self) -> TfdsExamples:
        return tfds_examples(self.name, self.split, self.data_dir)

    @property
    def size(self) -> int:
        """Bytes, estimated from the split's share of the dataset's examples."""
        info = self._examples.dataset_info
        return info.dataset_size * len(self._examples) // max(1, info.splits.total_num_examples)

    def fingerprint(self) -> dict[str, Any]:
        full_name = self._examples.dataset_info.full_name
        return {"name": f"tfds:{full_name}:{self.split}", "examples": len(self._examples)}

    def documents(self, advance: Advance) -> Iterator[str]:
        share = self.size / max(1, len(self._examples))
        for index, example in enumerate(self._examples):
            advance(int(share * (index + 1)) - int(share * index))
            try:
                text = _field(example, self.text_field, f"tfds:{self.name}, example {index}")
            except UserError as error:
                self.refuse(error)
            else:
                yield _unwrap(text) if self.unwrap else text


def find_sources(
    names: Sequence[str | Source],
    *,
    text_field: str = "text",
    document_per_file: bool = False,
    document_separator: str | None = None,
    unwrap: bool = False,
    data_dir: str | None = None,
    refuse: Refuse = throw,
) -> list[Source]:
    """The sources that `names` stand for, in order; files of a folder or glob sorted by path.

    Args:
      names: what `bert_jax.data.limits.SOURCES` lists: files, local or gs://, text and .tar also
        with .gz, .xz, .bz2 or .zst; folders, searched at any depth, and globs, which give their
        files of the first group of `FORMATS` that they have any of; `hf:`, `tfds:` and `corpus:`
        names, of the split `train` by default; "-"; `MODULE:NAME`, your own `Source` or a callable
        that returns one. Or a `Source` itself.
      text_field: column of the text, or key in JSONL objects and TFDS features; `outer.inner` or
        `outer/inner` if nested.
      document_per_file: a .txt file is one document and its blank lines end paragraphs; otherwise
        they end documents.
      document_separator: regular expression; in a .txt file lines that match it as a whole, white
        space around them aside, separate documents, and blank lines do not. None: blank lines do.
      unwrap: lines are hard-wrapped: only a blank line ends a paragraph.
      data_dir: where TFDS keeps its datasets; None for its default.
      refuse: called with the error of each record of these files and datasets that cannot be read:
        a document of a table or of JSONL, a line of text. If it returns, the record is left out.

    Raises:
      UserError: a name matches no file, or a file of another format; or it is no `Source`.
    """

    try:
        separator = re.compile(document_separator) if document_separator else None
    except re.error as error:
        raise UserError(
            f"--document-separator: {document_separator!r} is no regular expression ({error})"
        ) from error

    def of_file(path: epath.Path, name: str) -> Source:
        suffix = suffixes(path)[0]
        if suffix in FORMATS[0] or suffix == ".tar":
            kind = TarFile if suffix == ".tar" else TextFile
            return kind(path, name, text_field, document_per_file, unwrap, refuse, separator)
        return TableFile(path, name, text_field, unwrap, refuse)

    sources: list[Source] = []
    for name in names:
        if not isinstance(name, str):
            sources.append(name)
        elif name == "-":
            sources.append(of_file(_standard_input(), name))
        elif found := dataset_and_split(name):
            sources.append(TfdsSplit(*found, text_field, unwrap, data_dir, refuse))
        elif name.startswith("hf:"):
            sources += [of_file(path, label) for path, label in dataset_files(name)]
        elif name.startswith("corpus:"):
            corpora = epath.Path(importlib.resources.files("bert_jax") / "corpora")
            path = corpora / f"{name.removeprefix('corpus:')}.jsonl.xz"
            if not path.exists():
                raise UserError(f"{name}: no such corpus in the package; there is corpus:sotu")
            sources.append(TextFile(path, name, "text", False, unwrap))
        elif _OWN.fullmatch(name) and not epath.Path(name).exists():
            sources.append(_own_source(name))
        else:
            sources += [of_file(path, label) for path, label in _find_files(name)]
    return sources


def read_documents(
    sources: Sequence[Source], advance: Advance = lambda size: None, refuse: Refuse = throw
) -> Iterator[str]:
    """The text of every document of `sources`, in order, empty ones included.

    Args:
      sources: as from `find_sources`.
      advance: called with the bytes of the source read since the last call, for a progress bar:
        over a whole source they add up to about its `size`.
      refuse: called with the error of each document that a source of your own gives, and that is
        not text. If it returns, the document is left out. Other sources have their own `refuse`.

    Raises:
      UserError: a damaged file; a record that cannot be read, unless its `refuse` returns.
    """
    for source in sources:
        documents = source.documents(advance)
        if isinstance(documents, str) or not isinstance(documents, Iterable):
            kind = type(documents).__name__
            raise UserError(f"{_describe(source)}: documents() must return texts, not one {kind}")
        for number, text in enumerate(documents, 1):
            if problem := _not_text(text):
                refuse(UserError(f"{_describe(source)}: document {number} {problem}"))
            else:
                yield text


def source_fingerprint(source: Source) -> dict[str, Any]:
    """The fingerprint of a source, which must be the same after it was read from a manifest.

    Raises:
      UserError: it is not of plain JSON values.
    """
    fingerprint = source.fingerprint()
    try:
        plain = json.loads(json.dumps(fingerprint))
    except (TypeError, ValueError):
        plain = None
    if not isinstance(fingerprint, dict) or plain != fingerprint:
        raise UserError(
            f"{_describe(source)}: fingerprint() must return a dict of plain JSON values (text, "
            f"numbers, lists), not {fingerprint!r}"
        )
    return fingerprint


def _own_source(name: str) -> Source:
    source = import_object(name, "SOURCE")
    if callable(source):
        try:
            inspect.signature(source).bind()
        except TypeError as error:
            raise UserError(f"{name}: must be callable without arguments ({error})") from error
        source = source()
    for method in ("documents", "fingerprint"):
        if not callable(getattr(source, method, None)):
            raise UserError(f"{name}: {type(source).__name__} is no source: it has no {method}()")
    if not isinstance(getattr(source, "size", None), int):
        raise UserError(f"{name}: {type(source).__name__} is no source: its size is no int")
    return source


def _describe(source: Source) -> str:
    return f"{type(source).__module__}:{type(source).__qualname__}"


def _not_text(text: Any) -> str:
    """Why a document is not text; empty if it is."""
    if not isinstance(text, str):
        return f"is {type(text).__name__}, not text"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"has \\u{ord(text[error.start]):04x}, which is half a character"
    return ""


def _find_files(name: str) -> list[tuple[epath.Path, str]]:
    path = epath.Path(name).expanduser()
    if path.is_dir() and (saved := saved_dataset(path)):
        return [(file, str(file.relative_to(path))) for file in saved]
    if path.is_dir():
        found = [(file, str(file.relative_to(path))) for file in files_below(path)]
    elif glob.has_magic(name) and not path.exists():
        found = [(file, file.name) for file in glob_files(path)]
    elif not path.exists():
        raise UserError(f"{name}: no such file or folder")
    elif not _is_of(path, sum(FORMATS, ())):
        raise UserError(f"{name}: documents come as {_KNOWN}")
    else:
        found = [(path, path.name)]
    for formats in FORMATS:
        if these := sorted(item for item in found if _is_of(item[0], formats)):
            return these
    raise UserError(f"{name}: no file with documents there: {_KNOWN}")


def _is_of(path: epath.Path, formats: Sequence[str]) -> bool:
    suffix, compression = suffixes(path)
    return suffix in formats and not (suffix in _COLUMNAR and compression)


def _standard_input() -> epath.Path:
    """A temporary file with standard input, which can be read only once."""
    if sys.stdin is None or sys.stdin.closed:
        raise UserError("-: standard input is closed")
    directory = tempfile.TemporaryDirectory(prefix="bert_jax_")
    atexit.register(directory.cleanup)
    path = epath.Path(directory.name) / "standard input"
    with path.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    with path.open("rb") as file:
        found = format_of(file.read(10))
    compression = found if found in COMPRESSIONS else ""
    path = path.rename(path.with_name(f"{path.name}.txt{compression}"))
    with path.open("rb") as file:
        lines = decoded_lines(path, file, refuse=lambda error: None)
        first = next((line for _, line in lines if line.strip()), "")
    try:
        is_jsonl = isinstance(parse_json(first, "-"), dict)
    except UserError:
        is_jsonl = False
    return path.rename(path.with_name(f"standard input.jsonl{compression}")) if is_jsonl else path


def _field(record: Any, field: str, place: str) -> str:
    """The text in a field, `outer.inner` or `outer/inner` if nested; names may have such marks."""
    rest = field
    while rest:
        key = rest
        while isinstance(record, Mapping) and key not in record and re.search("[./]", key):
            key = re.sub(r"[./][^./]*\Z", "", key)
        if not isinstance(record, Mapping) or key not in record:
            keys = ", ".join(record) if isinstance(record, Mapping) else type(record).__name__
            raise UserError(f"{place}: no text field {field!r} in [{keys}]; pass --text-field")
        record, rest = record[key], rest[len(key) + 1 :]
    if isinstance(record, bytes):
        try:
            record = record.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{place}: byte {error.start + 1} of {field!r} is not UTF-8") from error
    if not isinstance(record, str):
        raise UserError(f"{place}: field {field!r} is {type(record).__name__}, not text")
    return record


def _unwrap(text: str) -> str:
    return "\n".join(" ".join(part.split()) for part in re.split(r"\n\s*\n", text))


@functools.cache  # a source is read more than once but warns once
def _warn(message: str) -> None:
    logging.getLogger(__name__).warning(message)
