"""The token store: a tokenised corpus in memory-mapped files.

A folder with `manifest.json`, `vocab.txt`, `tokenizer_config.json` and, in `train/` and `heldout/`,
flat little-endian arrays: `tokens.bin`, `sentences.bin`, `documents.bin`, `token_counts.bin` (see
`Split`). It is written under a temporary name, manifest last, and renamed when complete. A
tokenizer other than WordPiece is in `tokenizer.json` instead of `vocab.txt`. Where the vocabulary
does not say which tokens continue a word, `continues.bin` does.

The manifest has the size and checksum of each array. Opening a store compares sizes, offsets and
counts with it, which takes about a second for 100 million sentences that are in memory. Tokens are
compared in blocks, before their first use. So damage is noticed, and nothing beyond an array is
read.

A store in object storage is written to a local disk and copied, manifest last. It is read from a
local copy below $XDG_CACHE_HOME (default ~/.cache), shared by all processes of a host and verified
by its checksums.
"""

import contextlib
import hashlib
import itertools
import json
import math
import multiprocessing
import os
import pathlib
import shutil
import tempfile
import threading
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tokenizers
from etils import epath

from bert_jax.data.line_breaks import LineBreaks
from bert_jax.data.sentences import split_sentences
from bert_jax.data.split import BLOCK_BYTES, Split, TokenBlocks
from bert_jax.data.tokenizer import CONFIG_FILE, TOKENIZER_FILE, VOCAB_FILE, Tokenizer
from bert_jax.data.tokenizer_json import load_tokenizer
from bert_jax.data.words import continues, load_segmenter
from bert_jax.errors import UserError
from bert_jax.json_values import typed
from bert_jax.locks import locked
from bert_jax.storage import UNFINISHED, errors_name, is_remote, read_json, write_json
from bert_jax.terminal import progress

if TYPE_CHECKING:
    from bert_jax.data.batches import BatchStream, HostRows
    from bert_jax.data.sampling import Sampling

FORMAT, VERSION = "bert_jax token store", 1
SPLITS = ("train", "heldout")
ARRAYS = ("tokens", "sentences", "documents", "token_counts")
FILES = frozenset(f"{split}/{array}.bin" for split in SPLITS for array in ARRAYS)
CONTINUES = "continues"
CONTINUES_FILES = frozenset(f"{split}/{CONTINUES}.bin" for split in SPLITS)
EPOCH_LENGTH = 128  # tokens of the rows in the summary of a store
_MANIFEST = "manifest.json"
_REMEDY = "Restore the file, or delete the store and prepare it again"
_ALL_UNKNOWN = (
    "every word is [UNK], so there is nothing to predict: take a vocabulary of this language, or "
    "none, to train one"
)
_MAX_WORD = 100  # characters; longer words are [UNK] in every BERT
_CHANGED = "content changed since it was written"
_OFFSET = np.dtype("<i8")
_CHUNK_CHARACTERS = 1_000_000
_COPY_BYTES = 2**24


@dataclass(frozen=True)
class _File:
    """What a manifest says about an array.

    Attributes:
      bytes: size.
      sha256: of the content, in hex.
      block_crc32: CRC-32 of each `BLOCK_BYTES`, in hex; only of tokens, and not in older stores.
    """

    bytes: int
    sha256: str
    block_crc32: str = ""


@dataclass(frozen=True)
class _Counts:
    """What a manifest says about a split; older stores lack the last four.

    Attributes:
      characters: of all sentences, white space not counted.
      unknown_characters: of words that became [UNK].
      long_word_characters: of those of them that are longer than any word of BERT.
    """

    documents: int
    sentences: int
    tokens: int
    single_sentence_documents: int | None = None
    characters: int | None = None
    unknown_characters: int | None = None
    long_word_characters: int | None = None


@dataclass(frozen=True)
class _Epoch:
    """What a manifest says about an epoch; see `Usage`, which is not loaded here."""

    tokens: float
    label_1: float


@dataclass(frozen=True)
class _Manifest:
    """The fields of a manifest that are read; older stores lack the last ones.

    Attributes:
      wrapped_at: width at which lines were hard-wrapped, in characters; 0 if they were not.
      epoch: what next-sentence pairs in rows of `EPOCH_LENGTH` tokens use; see `Usage`. None if
        there are no such pairs.
    """

    dtype: str
    vocab_size: int
    vocab_hash: str
    splits: dict[str, _Counts]
    empty_documents: int
    heldout_bound: float
    files: dict[str, _File]
    sources: list[dict[str, Any]] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    skipped_records: int = 0
    heldout_tail: float = 0.0
    wrapped_at: int = 0
    epoch: _Epoch | None = None

    @property
    def identity(self) -> str:
        """Fingerprint of the data."""
        return _fingerprint(self.vocab_hash, {k: v.sha256 for k, v in self.files.items()})

    def inconsistency(self) -> str:
        """What in it cannot be true; empty if nothing."""
        if self.files.keys() not in (FILES, FILES | CONTINUES_FILES):
            return f"files: must be {', '.join(sorted(FILES))}"
        if self.splits.keys() != set(SPLITS):
            return f"splits: must be {', '.join(SPLITS)}"
        if self.dtype != _dtype(self.vocab_size).str:
            return f"dtype: must be {_dtype(self.vocab_size).str} for vocab_size {self.vocab_size}"
        for split, counts in self.splits.items():
            if min(counts.documents, counts.sentences, counts.tokens) < 0:
                return f"splits.{split}: has a negative number"
            for array, size in (
                ("tokens", counts.tokens * _dtype(self.vocab_size).itemsize),
                ("sentences", (counts.sentences + 1) * _OFFSET.itemsize),
                ("documents", (counts.documents + 1) * _OFFSET.itemsize),
                ("token_counts", self.vocab_size * _OFFSET.itemsize),
                (CONTINUES, -(-counts.tokens // 8)),
            ):
                file = f"{split}/{array}.bin"
                if file in self.files and self.files[file].bytes != size:
                    return f"files.{file}: bytes must be {size:,}"
            tokens = self.files[f"{split}/tokens.bin"]
            if len(tokens.block_crc32) not in (0, 8 * -(-tokens.bytes // BLOCK_BYTES)):
                return f"files.{split}/tokens.bin: block_crc32 must have 8 digits per block"
        if self.fingerprint not in ("", self.identity):
            return "fingerprint: is not that of vocab_hash and files"
        return ""


@dataclass(frozen=True)
class TokenStore:
    """An open token store, a `bert_jax.data.stores.Store`.

    `fingerprint` identifies its data: vocabulary and every array, not options.
    """

    path: epath.Path
    manifest: Mapping[str, Any]
    tokenizer: Tokenizer
    train: Split
    heldout: Split
    fingerprint: str

    is_masked = False

    @property
    def summary(self) -> str:
        return f"{len(self.train.tokens):,} training tokens"

    @property
    def token_counts(self) -> np.ndarray:
        return self.train.token_counts

    def check(self, sampling: "Sampling", max_predictions_per_seq: int, path: str) -> None:
        """Accepts any sampling; raises UserError if a split has nothing to mask."""
        for split in (self.train, self.heldout):
            special = split.token_counts[self.tokenizer.special_ids].sum()
            if len(split.tokens) and special == len(split.tokens):
                raise UserError(f"{self.path}: {split.name} split: {_ALL_UNKNOWN}")

    def training_batches(
        self, sampling: "Sampling", *, seed: int, host_rows: "HostRows", first_row: int = 0
    ) -> "BatchStream":
        """Pairs, short sequences and rows are drawn anew in every epoch."""
        from bert_jax.data.batches import Batches  # imports Numba, which `prepare` does not need

        return Batches(
            self.train,
            sampling,
            self.tokenizer,
            seed=seed,
            first_row=first_row,
            host_rows=host_rows,
        )

    def heldout_batches(
        self, sampling: "Sampling", *, num_batches: int, host_rows: np.ndarray
    ) -> Iterable[dict[str, np.ndarray]]:
        from bert_jax.data.batches import HELDOUT_SEED, Batches, one_epoch

        stream = Batches(
            self.heldout,
            sampling,
            self.tokenizer,
            seed=HELDOUT_SEED,
            num_epochs=1,
            host_rows=lambda _: host_rows,
        )
        return one_epoch(stream, sampling.batch_size, num_batches)


def open_token_store(path: epath.PathLike) -> TokenStore:
    """Opens a store after checking all of it but the tokens, which are checked as they are read.

    The first process of a host that opens a store in object storage copies it to the local disk.

    Raises:
      UserError: the store is missing, unfinished, incomplete, damaged or of a newer format; if
        remote, its content has changed or there is no room for the copy.
    """
    path = epath.Path(path)
    manifest, stated = _read_manifest(path)
    local = _stage(path, stated) if is_remote(path) else path
    remedy = f"Delete {local}: it is copied again" if is_remote(path) else _REMEDY
    for name, file in stated.files.items():
        if problem := _size_problem(local / name, file):
            raise UserError(f"{local / name}: {problem}. {remedy}")
    return TokenStore(
        path=path,
        manifest=manifest,
        tokenizer=_load_vocabulary(path, local, stated),
        **{split: _open_split(local, split, stated, remedy) for split in SPLITS},
        fingerprint=stated.identity,
    )


def damaged_files(path: epath.PathLike) -> Iterator[tuple[str, str]]:
    """Reads every file of a store, in object storage, too: its name and what is wrong, or "".

    Raises:
      UserError: there is no store, or its manifest is damaged.
    """
    path = epath.Path(path)
    _, stated = _read_manifest(path)
    is_json = (path / TOKENIZER_FILE).exists() and not (path / VOCAB_FILE).exists()
    vocabulary, problem = TOKENIZER_FILE if is_json else VOCAB_FILE, ""
    try:
        _load_vocabulary(path, path, stated)
    except UserError as error:
        problem = str(error)
    yield vocabulary, problem
    for name, file in stated.files.items():
        problem = _size_problem(path / name, file)
        if not problem:
            with (path / name).open("rb") as content:
                if hashlib.file_digest(content, "sha256").hexdigest() != file.sha256:
                    problem = _CHANGED
        yield name, problem


def verify_store(path: epath.PathLike) -> None:
    """Reads every file and compares its sha256 with the manifest's.

    Raises:
      UserError: as `open_token_store`, or the content of a file has changed.
    """
    for name, problem in damaged_files(path):
        if problem:
            raise UserError(f"{epath.Path(path) / name}: {problem}")
    open_token_store(path)


def document_hash(text: str) -> float:
    """A number in [0, 1) that depends only on the text."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=6).digest()
    return int.from_bytes(digest) / 2**48


def heldout_bound(documents: Iterable[str], share: float) -> float:
    """The bound on `document_hash` below which documents are held out.

    A document's split depends neither on order nor on file names, and copies of a document are in
    the same split. The bound is `share` itself, unless the corpus is so small that a split would
    have fewer than two different documents: then it moves only as far as needed (of two or three
    documents one is held out, of one none).

    Stops reading `documents` after two of each split.
    """
    hashes: set[float] = set()
    num_heldout = 0
    for text in documents:
        value = document_hash(text)
        if text.strip() and value not in hashes:
            hashes.add(value)
            num_heldout += value < share
            if num_heldout >= 2 and len(hashes) - num_heldout >= 2:
                return share
    if not hashes:
        return share
    least = min(2, len(hashes) // 2)
    most = len(hashes) - min(2, len(hashes) - least)
    return sorted(hashes)[min(max(num_heldout, least), most)]


def is_single_document(documents: Iterable[str]) -> bool:
    """Whether there is exactly one document with text. Stops reading at the second."""
    return len(list(itertools.islice(filter(str.strip, documents), 2))) == 1


def is_store(path: epath.Path) -> bool:
    """Whether `path` holds a complete store: `write_store` writes the manifest last."""
    return (path / _MANIFEST).exists()


def check_unused(path: epath.Path) -> None:
    """Raises UserError unless `path` is an empty folder or does not exist.

    In object storage it may also hold the remains of an interrupted copy.
    """
    ours = (*SPLITS, VOCAB_FILE, TOKENIZER_FILE, CONFIG_FILE) if is_remote(path) else ()
    if path.exists() and (not path.is_dir() or any(p.name not in ours for p in path.iterdir())):
        raise UserError(f"{path}: exists and is not empty; choose another folder or delete it")


def write_store(
    path: epath.PathLike,
    documents: Iterable[str],
    tokenizer: Tokenizer,
    *,
    heldout_bound: float,
    workers: int = 1,
    provenance: Mapping[str, Any],
    num_skipped: Callable[[], int] = lambda: 0,
    heldout_tail: float = 0.0,
    segmenter: str = "",
) -> TokenStore:
    """Splits documents into sentences, tokenises them and writes the store.

    The bytes depend neither on `workers` nor on the time. Memory is bounded by the largest document
    and about three megabytes of text per worker. Documents without tokens are left out and counted.
    The next run removes the remains of an interrupted one.

    Args:
      path: a folder that does not exist yet, or is empty.
      documents: read once; a line break ends a sentence.
      tokenizer: vocabulary.
      heldout_bound: as from the function of that name.
      workers: processes that tokenise; 1 uses this process.
      provenance: further entries of the manifest: what the store was made from, and how.
      num_skipped: gives the number of records that `documents` left out, once they are read.
      heldout_tail: share of each document that is held out, its last sentences; for a corpus of
        one document.
      segmenter: what says where Chinese words are, see `load_segmenter`; empty: each ideograph is a
        word.

    Raises:
      UserError: `path` is in use, no document has a token, every word is unknown, or a worker was
        killed.
    """
    path = epath.Path(path)
    check_unused(path)
    if is_remote(path):
        _cache().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_cache()) as directory:
            local = write_store(
                pathlib.Path(directory) / "store",
                documents,
                tokenizer,
                heldout_bound=heldout_bound,
                workers=workers,
                provenance=provenance,
                num_skipped=num_skipped,
                heldout_tail=heldout_tail,
                segmenter=segmenter,
            )
            _copy(local.path, path, typed(local.manifest, _Manifest, str(local.path)))
            with contextlib.suppress(FileExistsError):  # the cache has this content already
                local.path.rename(_cache() / local.fingerprint)
        return open_token_store(path)
    path = pathlib.Path(path)
    encoder = _Encoder(tokenizer, heldout_bound, heldout_tail, segmenter)
    with _unfinished(path) as directory:
        tokenizer.save(directory)
        writers = {split: _SplitWriter(directory, split, encoder) for split in SPLITS}
        num_empty, line_breaks = 0, LineBreaks()
        for chunk in _encode(_chunks(documents), encoder, workers):
            num_empty += chunk.num_empty
            line_breaks.merge(chunk.line_breaks)
            for split in SPLITS:
                writers[split].append(chunk.splits[split])
        if not any(writer.counts["documents"] for writer in writers.values()):
            raise UserError("no document with text: check the sources")
        if writers["train"].is_unknown():
            raise UserError(_ALL_UNKNOWN)
        files = {k: v for writer in writers.values() for k, v in writer.finish().items()}
        checksums = {name: file["sha256"] for name, file in files.items()}
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "fingerprint": _fingerprint(tokenizer.vocab_hash, checksums),
            "dtype": encoder.dtype.str,
            "vocab_size": len(tokenizer.vocab),
            "vocab_hash": tokenizer.vocab_hash,
            "splits": {split: writer.counts for split, writer in writers.items()},
            "empty_documents": num_empty,
            "skipped_records": num_skipped(),
            "heldout_bound": heldout_bound,
            "heldout_tail": heldout_tail,
            "wrapped_at": line_breaks.width(),
            "epoch": _epoch_usage(directory / "train"),
            **provenance,
            "files": files,
            "libraries": {"numpy": np.__version__, "tokenizers": tokenizers.__version__},
        }
        write_json(epath.Path(directory) / _MANIFEST, manifest)
        directory.rename(path)
    return open_token_store(path)


def _read_manifest(path: epath.Path) -> tuple[dict[str, Any], _Manifest]:
    """The manifest as it is, and the fields of it that are read, checked."""
    file = path / _MANIFEST
    if not file.exists():
        if not is_remote(path) and _unfinished_path(path).exists():
            raise UserError(f"{path}: not finished; run the same `bert-jax prepare` again")
        raise UserError(f"{path}: no token store there; make one with `bert-jax prepare`")

    def damaged(problem: object) -> UserError:
        return UserError(f"{str(problem).removesuffix('?')}; prepare the store again")

    try:
        manifest = read_json(file)
    except UserError as error:
        raise damaged(error) from error
    if manifest.get("format") != FORMAT:
        raise UserError(f"{file}: not the manifest of a token store")
    version = typed(manifest.get("version"), int, f"{file}: field version")
    if version > VERSION:
        raise UserError(
            f"{path}: format version {version}, this bert_jax reads {VERSION}; "
            "update bert_jax, or prepare the store again"
        )
    try:
        stated = typed(manifest, _Manifest, str(file))
    except UserError as error:
        raise damaged(error) from error
    if problem := stated.inconsistency():
        raise damaged(f"{file}: {problem}")
    return manifest, stated


def _fingerprint(vocab_hash: str, sha256: Mapping[str, str]) -> str:
    identity = [vocab_hash, dict(sha256)]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _dtype(vocab_size: int) -> np.dtype:
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def _size_problem(file: epath.Path, stated: _File) -> str:
    size = file.stat().length if file.exists() else None
    if size == stated.bytes:
        return ""
    found = "is missing" if size is None else f"has {size:,} bytes"
    return f"{found}; the manifest says {stated.bytes:,}"


def _load_vocabulary(path: epath.Path, local: epath.Path, stated: _Manifest) -> Tokenizer:
    tokenizer = load_tokenizer(local)
    if tokenizer.vocab_hash != stated.vocab_hash:
        raise UserError(f"{path}: the vocabulary is not the one that the tokens were made with")
    return tokenizer


def _epoch_usage(train: pathlib.Path) -> dict[str, float] | None:
    """See `_Manifest.epoch`."""
    from bert_jax.data.sampling import Sampling, plan_epoch, usage  # imports Numba

    sentences, documents = (
        np.memmap(train / f"{name}.bin", _OFFSET, mode="r") for name in ("sentences", "documents")
    )
    sampling = Sampling(max_seq_length=EPOCH_LENGTH, packing=False)
    try:
        plan = plan_epoch(sentences, documents, sampling, seed=0, epoch=0)
    except UserError:
        return None
    return usage(plan, sampling, int(sentences[-1]))._asdict()


def _cache() -> epath.Path:
    caches = epath.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return caches.expanduser() / "bert_jax" / "stores"


def _stage(path: epath.Path, stated: _Manifest) -> epath.Path:
    """The local copy of a remote store, made by one process per host while others wait."""
    local = _cache() / stated.identity
    local.parent.mkdir(parents=True, exist_ok=True)
    with locked(local.with_suffix(".lock"), str(local), wait=True):
        if not local.exists():
            needed = sum(file.bytes for file in stated.files.values())
            if (free := shutil.disk_usage(local.parent).free) < needed:
                raise UserError(
                    f"{local.parent}: {free:,} bytes free, {path} has {needed:,}; "
                    "set XDG_CACHE_HOME to a folder with more room"
                )
            with _unfinished(local) as directory:
                _copy(path, epath.Path(directory), stated)
                _load_vocabulary(path, epath.Path(directory), stated)
                directory.rename(local)
    return local


def _copy(source: epath.Path, target: epath.Path, stated: _Manifest) -> None:
    """Copies a store, manifest last, and verifies the checksum of every array."""
    files = stated.files
    total = sum(file.bytes for file in files.values())
    with progress(f"copying {source}", total) as bar:
        vocabulary = VOCAB_FILE if (source / VOCAB_FILE).exists() else TOKENIZER_FILE
        for name in (vocabulary, CONFIG_FILE, *files, _MANIFEST):
            digest = hashlib.sha256()
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            with (source / name).open("rb") as reader, (target / name).open("wb") as writer:
                while block := reader.read(_COPY_BYTES):
                    writer.write(block)
                    digest.update(block)
                    bar.update(len(block) if name in files else 0)
            if name in files and digest.hexdigest() != files[name].sha256:
                raise UserError(f"{source / name}: {_CHANGED}")


def _open_split(local: epath.Path, name: str, stated: _Manifest, remedy: str) -> Split:
    dtypes = dict.fromkeys(ARRAYS, _OFFSET) | {"tokens": _dtype(stated.vocab_size)}
    if stated.files.keys() >= CONTINUES_FILES:
        dtypes[CONTINUES] = np.dtype(np.uint8)
    arrays = {}
    for array, dtype in dtypes.items():
        path, file = local / name / f"{array}.bin", stated.files[f"{name}/{array}.bin"]
        # An empty file cannot be mapped.
        content = np.memmap(path, dtype, mode="r") if file.bytes else np.empty(0, dtype)
        if array != "tokens" and hashlib.sha256(content.data).hexdigest() != file.sha256:
            raise UserError(f"{path}: {_CHANGED}. {remedy}")
        arrays[array] = content
    tokens = stated.files[f"{name}/tokens.bin"]
    checksums = np.frombuffer(bytes.fromhex(tokens.block_crc32), ">u4")
    blocks = TokenBlocks(
        arrays["tokens"],
        checksums if len(checksums) else None,
        vocab_size=stated.vocab_size,
        where=f"{local / name}/tokens.bin",
        remedy=remedy,
    )
    split = Split(name, **arrays, blocks=blocks)
    if problem := split.wrong_offsets():
        raise UserError(f"{local / name}: {problem}. {remedy}")
    return split


def _unfinished_path(path: epath.PathLike) -> pathlib.Path:
    path = pathlib.Path(path)
    return path.with_name(path.name + UNFINISHED)


@contextlib.contextmanager
def _unfinished(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """An empty folder beside `path`, locked by this process, removed on an exception."""
    directory = _unfinished_path(path)
    with locked(f"{directory}.lock", str(path)), errors_name(path, instead_of=directory):
        directory.mkdir(exist_ok=True)
        for entry in directory.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        try:
            yield directory
        except BaseException:
            shutil.rmtree(directory)
            raise


class _EncodedSplit:
    def __init__(self, dtype: np.dtype) -> None:
        self.tokens = [np.empty(0, dtype)]  # of each sentence
        self.sentence_lengths: list[int] = []  # in tokens
        self.document_lengths: list[int] = []  # in sentences
        self.characters: Counter[str] = Counter()  # the counts of a manifest that end so
        self.continues = [np.empty(0, bool)]  # of each sentence, if the store says it


class _EncodedChunk(NamedTuple):
    splits: dict[str, _EncodedSplit]
    num_empty: int
    line_breaks: LineBreaks


def tail_start(num_sentences: int, share: float) -> int:
    """Where the last `share` of a document begins: it and the rest have a sentence each if any."""
    return num_sentences - min(num_sentences - 1, math.ceil(share * num_sentences))


@dataclass(frozen=True)
class _Encoder:
    tokenizer: Tokenizer
    heldout_bound: float
    heldout_tail: float = 0.0
    segmenter: str = ""

    @property
    def says_words(self) -> bool:
        """Whether the store says which tokens continue a word."""
        return bool(self.segmenter) or not self.tokenizer.pieces_tell_words

    @property
    def dtype(self) -> np.dtype:
        return _dtype(len(self.tokenizer.vocab))

    def __call__(self, texts: list[str]) -> _EncodedChunk:
        splits = {split: _EncodedSplit(self.dtype) for split in SPLITS}
        num_empty, line_breaks = 0, LineBreaks()
        for text in texts:
            line_breaks.add(text)
            sentences = split_sentences(text)
            if self.heldout_tail:
                start = tail_start(len(sentences), self.heldout_tail) if sentences else 0
                parts = {"train": sentences[:start], "heldout": sentences[start:]}
            else:
                parts = {self._split(text): sentences}
            num_found = sum(self._encode(splits[split], part) for split, part in parts.items())
            num_empty += not num_found
        for split in splits.values():
            split.tokens = [np.concatenate(split.tokens)]  # so that fewer objects are sent
            split.continues = [np.concatenate(split.continues)]
        return _EncodedChunk(splits, num_empty, line_breaks)

    def _split(self, text: str) -> str:
        return "heldout" if document_hash(text) < self.heldout_bound else "train"

    def _encode(self, split: _EncodedSplit, sentences: list[str]) -> bool:
        """Appends a document; False if it has no tokens."""
        if self.says_words:
            segment = load_segmenter(self.segmenter) if self.segmenter else None
            found = self.tokenizer.encode_sentences(sentences)
            encoded = [ids for ids, _ in found]
            split.continues += [
                continues(sentence, offsets, segment)
                for sentence, (_, offsets) in zip(sentences, found)
            ]
        else:
            encoded = self.tokenizer.encode(sentences)
        for sentence, ids in zip(sentences, encoded):
            split.characters["characters"] += len(sentence) - sentence.count(" ")
            if self.tokenizer.unk_id in ids:
                words = self.tokenizer.unknown_words(sentence)
                split.characters["unknown_characters"] += sum(words)
                split.characters["long_word_characters"] += sum(n for n in words if n > _MAX_WORD)
        whole = [ids for ids in encoded if ids]
        if whole:
            split.tokens += [np.array(ids, self.dtype) for ids in whole]
            split.sentence_lengths += map(len, whole)
            split.document_lengths.append(len(whole))
        return bool(whole)


def _chunks(documents: Iterable[str]) -> Iterator[list[str]]:
    chunk, size = [], 0
    for text in documents:
        chunk.append(text)
        size += len(text)
        if size >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _encode(
    chunks: Iterable[list[str]], encoder: _Encoder, workers: int
) -> Iterator[_EncodedChunk]:
    """Encodes chunks in order, at most three per worker in flight."""
    if workers == 1:
        yield from map(encoder, chunks)
        return
    with ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _start_worker, (encoder,)
    ) as pool:
        pending: deque[Future[_EncodedChunk]] = deque()
        try:
            for chunk in chunks:
                pending.append(pool.submit(_encode_in_worker, chunk))
                if len(pending) == 3 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process was killed, as happens when memory runs out; take fewer workers"
            ) from error


_worker_encoder: Callable[[list[str]], _EncodedChunk]


def _start_worker(encoder: _Encoder) -> None:
    global _worker_encoder
    _worker_encoder = encoder

    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a worker

    # A killed parent does not close the queue that the pool waits on.
    def exit_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()


def _encode_in_worker(chunk: list[str]) -> _EncodedChunk:
    return _worker_encoder(chunk)


class _SplitWriter:
    """Appends encoded chunks to the files of a split and counts their contents."""

    def __init__(self, directory: pathlib.Path, split: str, encoder: _Encoder):
        (directory / split).mkdir()
        self._directory, self._split = directory, split
        self._files: dict[str, _HashedFile] = {}
        self.counts = dict.fromkeys((each.name for each in fields(_Counts)), 0)
        self._special_ids = encoder.tokenizer.special_ids
        self._token_counts = np.zeros(len(encoder.tokenizer.vocab), _OFFSET)
        for name in ("tokens", "sentences", "documents"):
            self._files[name] = _HashedFile(directory / split / f"{name}.bin", name == "tokens")
        for name in ("sentences", "documents"):
            self._files[name].write(np.zeros(1, _OFFSET))
        self._bits = np.empty(0, bool)  # not written yet, less than a byte
        if encoder.says_words:
            self._files[CONTINUES] = _HashedFile(directory / split / f"{CONTINUES}.bin", False)

    def append(self, chunk: _EncodedSplit) -> None:
        tokens = np.concatenate(chunk.tokens)
        self._files["tokens"].write(tokens)
        if CONTINUES in self._files:
            bits = np.concatenate([self._bits, *chunk.continues])
            whole = len(bits) // 8 * 8
            self._files[CONTINUES].write(np.packbits(bits[:whole], bitorder="little"))
            self._bits = bits[whole:]
        for name, lengths, start in (
            ("sentences", chunk.sentence_lengths, self.counts["tokens"]),
            ("documents", chunk.document_lengths, self.counts["sentences"]),
        ):
            self._files[name].write(start + np.cumsum(lengths, dtype=_OFFSET))
        self._token_counts += np.bincount(tokens, minlength=len(self._token_counts))
        self.counts["tokens"] += len(tokens)
        self.counts["sentences"] += len(chunk.sentence_lengths)
        self.counts["documents"] += len(chunk.document_lengths)
        self.counts["single_sentence_documents"] += chunk.document_lengths.count(1)
        for name, number in chunk.characters.items():
            self.counts[name] += number

    def is_unknown(self) -> bool:
        """Whether there are tokens, but none of a known word."""
        return 0 < self.counts["tokens"] == self._token_counts[self._special_ids].sum()

    def finish(self) -> dict[str, dict[str, Any]]:
        """Closes the files and returns their sizes and checksums."""
        file = _HashedFile(self._directory / self._split / "token_counts.bin", False)
        file.write(self._token_counts)
        self._files["token_counts"] = file
        if CONTINUES in self._files:
            self._files[CONTINUES].write(np.packbits(self._bits, bitorder="little"))
        return {f"{self._split}/{name}.bin": file.close() for name, file in self._files.items()}


class _HashedFile:
    """A file and its checksums; `in_blocks`, also one of each block."""

    def __init__(self, path: pathlib.Path, in_blocks: bool):
        self._file = path.open("wb")
        self._hash = hashlib.sha256()
        self._in_blocks = in_blocks
        self._block_crc32: list[int] = []

    def write(self, array: np.ndarray) -> None:
        content = memoryview(array.tobytes())
        size = self._file.tell()
        self._file.write(content)
        self._hash.update(content)
        while self._in_blocks and content:
            filled = size % BLOCK_BYTES
            if not filled:
                self._block_crc32.append(0)
            part = content[: BLOCK_BYTES - filled]
            self._block_crc32[-1] = zlib.crc32(part, self._block_crc32[-1])
            size, content = size + len(part), content[len(part) :]

    def close(self) -> dict[str, Any]:
        size = self._file.tell()
        self._file.close()
        found = {"bytes": size, "sha256": self._hash.hexdigest()}
        if self._in_blocks:
            found["block_crc32"] = "".join(f"{crc:08x}" for crc in self._block_crc32)
        return found
