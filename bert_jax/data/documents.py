"""Documents as a stream of strings, from text files, JSONL and TensorFlow Datasets.

One document is in memory at a time. A newline inside a document ends a sentence, as does a blank
line; `bert_jax.data.sentences` finds the ends of sentences within a line.
"""

import bz2
import functools
import glob
import gzip
import hashlib
import importlib.resources
import json
import logging
import lzma
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

from etils import epath

from bert_jax.errors import UserError, throw
from bert_jax.fields import import_object
from bert_jax.storage import files_below, is_remote

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_DECOMPRESS: dict[str, Callable[[BinaryIO], Iterable[bytes]]] = {
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".bz2": bz2.open,
    ".zst": zstd.open,
}
_FORMATS = (".txt", ".jsonl")
_OWN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")  # MODULE:NAME
_DAMAGED = (EOFError, OSError, lzma.LZMAError, zlib.error, zstd.ZstdError)

Advance = Callable[[int], object]  # called with the bytes of a source read since the last call


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


class TfdsExamples(Protocol):
    """The examples of a split of TensorFlow Datasets, read one by one."""

    @property
    def dataset_info(self) -> Any:
        """The `DatasetInfo` of the dataset."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Mapping[str, Any]]: ...


@dataclass(frozen=True)
class TextFile:
    """A `.txt` or `.jsonl` file, plain or compressed (.gz, .xz, .bz2, .zst)."""

    path: epath.Path
    name: str  # in a manifest: without the folders that differ between machines
    text_field: str
    document_per_file: bool
    unwrap: bool

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self.path.stat().length

    def fingerprint(self) -> dict[str, Any]:
        with self.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"name": self.name, "bytes": self.size, "sha256": digest}

    def documents(self, advance: Advance) -> Iterator[str]:
        is_jsonl = suffixes(self.path)[0] == ".jsonl"
        with self.path.open("rb") as file:
            lines = decoded_lines(self.path, file)
            position = 0
            for text in self._records(lines) if is_jsonl else self._texts(lines):
                advance(file.tell() - position)
                position = file.tell()
                yield _unwrap(text) if self.unwrap else text

    def _texts(self, lines: Iterator[tuple[int, str]]) -> Iterator[str]:
        if self.document_per_file:
            yield "".join(line for _, line in lines)
            return
        document, blank_lines = [], 0
        for _, line in lines:
            if line.strip():
                document.append(line)
            else:
                blank_lines += 1
                if document:
                    yield "".join(document)
                document = []
        if not blank_lines:
            _warn(
                f"{self.path}: no blank line, so the whole file is one document. Put a blank line "
                "between documents, or pass --document-per-file if it really is one."
            )
        if document:
            yield "".join(document)

    def _records(self, lines: Iterator[tuple[int, str]]) -> Iterator[str]:
        for number, line in lines:
            if not line.strip():
                continue
            place = f"{self.path}, line {number}"
            try:
                record = json.loads(line)
            except ValueError as error:
                raise UserError(
                    f"{place}: not JSON ({error}): each line must hold one object"
                ) from error
            yield _field(record, self.text_field, place)


@dataclass(frozen=True)
class TfdsSplit:
    """A split in TensorFlow Datasets, in a random-access format (ArrayRecord)."""

    name: str  # 'wikipedia/20230601.en', optionally with ':1.0.0'
    split: str
    text_field: str
    unwrap: bool
    data_dir: str | None

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
            text = _field(example, self.text_field, f"tfds:{self.name}, example {index}")
            advance(int(share * (index + 1)) - int(share * index))
            yield _unwrap(text) if self.unwrap else text


def find_sources(
    names: Sequence[str | Source],
    *,
    text_field: str = "text",
    document_per_file: bool = False,
    unwrap: bool = False,
    data_dir: str | None = None,
) -> list[Source]:
    """The sources that `names` stand for, in order; files of a folder or glob sorted by path.

    Args:
      names: files ending in .txt or .jsonl, optionally with .gz, .xz, .bz2 or .zst; folders
        (searched at any depth, other files ignored); globs; all of them local or gs://;
        `tfds:NAME[:SPLIT]`, split `train` by default; `corpus:sotu`, the corpus that comes with
        the package; `MODULE:NAME`, your own `Source` or a callable that returns one; or a `Source`
        itself.
      text_field: key of the text in JSONL objects and TFDS features, `outer/inner` if nested.
      document_per_file: a .txt file is one document and its blank lines end paragraphs; otherwise
        they end documents.
      unwrap: lines are hard-wrapped: only a blank line ends a paragraph.
      data_dir: where TFDS keeps its datasets; None for its default.

    Raises:
      UserError: a name matches no file, or a file of another format.
    """

    def text_file(path: epath.Path, name: str) -> TextFile:
        return TextFile(path, name, text_field, document_per_file, unwrap)

    sources: list[Source] = []
    for name in names:
        if not isinstance(name, str):
            sources.append(name)
        elif found := dataset_and_split(name):
            sources.append(TfdsSplit(*found, text_field, unwrap, data_dir))
        elif name.startswith("corpus:"):
            corpora = epath.Path(importlib.resources.files("bert_jax") / "corpora")
            path = corpora / f"{name.removeprefix('corpus:')}.jsonl.xz"
            if not path.exists():
                raise UserError(f"{name}: no such corpus in the package; there is corpus:sotu")
            sources.append(TextFile(path, name, "text", False, unwrap))
        elif _OWN.fullmatch(name) and not epath.Path(name).exists():
            own = import_object(name, "SOURCE")
            sources.append(own() if callable(own) else own)
        else:
            sources += [text_file(path, label) for path, label in _find_files(name)]
    return sources


def read_documents(
    sources: Sequence[Source], advance: Advance = lambda size: None
) -> Iterator[str]:
    """The text of every document of `sources`, in order, empty ones included.

    Args:
      sources: as from `find_sources`.
      advance: called with the bytes of the source read since the last call, for a progress bar:
        over a whole source they add up to about its `size`.

    Raises:
      UserError: text that is not UTF-8, a damaged file, a line that is not JSON, a missing field.
    """
    for source in sources:
        yield from source.documents(advance)


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
      UserError: the file is damaged, or `refuse` raises.
    """
    number, compression = 0, suffixes(path)[1]
    try:
        for number, line in enumerate(_DECOMPRESS[compression](file) if compression else file, 1):
            try:
                text = line.decode(encoding)
            except UnicodeDecodeError as error:
                reason = f"byte {error.start + 1} of the line is not {encoding.upper()}"
                refuse(UserError(f"{path}, line {number}: {reason}; {remedy}"))
            else:
                yield number, text.removeprefix("\ufeff" if number == 1 else "")
    except _DAMAGED as error:
        raise UserError(f"{path}: damaged or cut short after line {number} ({error})") from error


def dataset_and_split(name: str) -> tuple[str, str] | None:
    """('glue/sst2', 'test') for 'tfds:glue/sst2:test'; the split is `train` by default.

    None for any other name. The dataset may end in a version, ':1.0.0'.
    """
    match = re.fullmatch(r"tfds:([^:]+(?::\d+\.[\d*]+\.[\d*]+)?)(?::(.+))?", name)
    return match and (match[1], match[2] or "train")


def tfds_examples(name: str, split: str, data_dir: str | None) -> TfdsExamples:
    """The examples of a TFDS dataset in ArrayRecord format, read without TensorFlow.

    Raises:
      UserError: the dataset is missing, is in another format or has no such split.
    """
    import tensorflow_datasets as tfds  # takes half a second, and other sources do not need it

    try:
        return tfds.data_source(name, split=split, data_dir=data_dir)
    except Exception as error:  # TFDS passes on any error of the download or the builder
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"tfds:{name}:{split}: cannot be read from data_dir {data_dir}: {reason} "
            "Build it with `tfds build --file_format=array_record`"
        ) from error


def suffixes(path: epath.Path) -> tuple[str, str]:
    """('.jsonl', '.gz') for 'a.jsonl.gz'."""
    if path.suffix in _DECOMPRESS:
        return path.with_suffix("").suffix, path.suffix
    return path.suffix, ""


def _find_files(name: str) -> list[tuple[epath.Path, str]]:
    path = epath.Path(name).expanduser()
    if path.is_dir():
        found = [(file, str(file.relative_to(path))) for file in files_below(path)]
    elif glob.has_magic(name):
        found = [(file, file.name) for file in glob_files(path)]
    elif not path.exists():
        raise UserError(f"{name}: no such file or folder")
    elif suffixes(path)[0] not in _FORMATS:
        raise UserError(f"{name}: documents come as .txt or .jsonl, plain or .gz, .xz, .bz2, .zst")
    else:
        found = [(path, path.name)]
    found = sorted((file, label) for file, label in found if suffixes(file)[0] in _FORMATS)
    if not found:
        raise UserError(f"{name}: no .txt or .jsonl file there (nor .txt.gz, .jsonl.zst, ...)")
    return found


def glob_files(pattern: epath.Path) -> Iterator[epath.Path]:
    if not is_remote(pattern):
        return map(epath.Path, glob.glob(str(pattern), recursive=True))
    if "**" in pattern.parts:
        raise UserError(f"{pattern}: no ** in object storage; name the folder for all files below")
    scheme, _, rest = str(pattern).partition("://")
    bucket, _, rest = rest.partition("/")
    return epath.Path(f"{scheme}://{bucket}").glob(rest)


def _field(record: Any, field: str, place: str) -> str:
    for key in field.split("/"):
        if not isinstance(record, Mapping) or key not in record:
            keys = ", ".join(record) if isinstance(record, Mapping) else type(record).__name__
            raise UserError(f"{place}: no text field {field!r} in [{keys}]; pass --text-field")
        record = record[key]
    if isinstance(record, bytes):
        record = record.decode("utf-8")
    if not isinstance(record, str):
        raise UserError(f"{place}: field {field!r} is {type(record).__name__}, not text")
    return record


def _unwrap(text: str) -> str:
    return "\n".join(" ".join(part.split()) for part in re.split(r"\n\s*\n", text))


@functools.cache  # a source is read more than once but warns once
def _warn(message: str) -> None:
    logging.getLogger(__name__).warning(message)
