"""The token store: a tokenised corpus in memory-mapped files.

A folder with `manifest.json`, `vocab.txt`, `tokenizer_config.json` and, in `train/` and `heldout/`,
flat little-endian arrays: `tokens.bin`, `sentences.bin`, `documents.bin`, `token_counts.bin` (see
`Split`). It is written under a temporary name, manifest last, and renamed when complete.

A store in object storage is written to a local disk and copied, manifest last. It is read from a
local copy below $XDG_CACHE_HOME (default ~/.cache), shared by all processes of a host and verified
by its checksums.
"""

import contextlib
import fcntl
import hashlib
import json
import multiprocessing
import os
import pathlib
import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tokenizers
from etils import epath
from tqdm import tqdm

from bert_jax.data.sentences import split_sentences
from bert_jax.data.split import Split
from bert_jax.data.wordpiece import CONFIG_FILE, VOCAB_FILE, WordPiece, load_wordpiece
from bert_jax.errors import UserError
from bert_jax.storage import UNFINISHED, is_remote, write_json

if TYPE_CHECKING:
    from bert_jax.data.batches import BatchStream
    from bert_jax.data.sampling import Sampling

FORMAT, VERSION = "bert_jax token store", 1
SPLITS = ("train", "heldout")
_MANIFEST = "manifest.json"
_OFFSET = np.dtype("<i8")
_CHUNK_CHARACTERS = 1_000_000
_COPY_BYTES = 2**24


@dataclass(frozen=True)
class TokenStore:
    """An open token store, a `bert_jax.data.stores.Store`.

    `fingerprint` identifies its data: vocabulary and every array, not options.
    """

    path: epath.Path
    manifest: Mapping[str, Any]
    wordpiece: WordPiece
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
        """Accepts any sampling."""

    def training_batches(
        self, sampling: "Sampling", *, seed: int, host_rows: np.ndarray
    ) -> "BatchStream":
        """Pairs, short sequences and rows are drawn anew in every epoch."""
        from bert_jax.data.batches import Batches  # imports Numba, which `prepare` does not need

        return Batches(self.train, sampling, self.wordpiece, seed=seed, host_rows=host_rows)

    def heldout_batches(
        self, sampling: "Sampling", *, num_batches: int, host_rows: np.ndarray
    ) -> Iterable[dict[str, np.ndarray]]:
        from bert_jax.data.batches import HELDOUT_SEED, Batches, one_epoch

        stream = Batches(
            self.heldout,
            sampling,
            self.wordpiece,
            seed=HELDOUT_SEED,
            num_epochs=1,
            host_rows=host_rows,
        )
        return one_epoch(stream, sampling.batch_size, num_batches)


def open_token_store(path: epath.PathLike) -> TokenStore:
    """Opens a store after checking manifest, vocabulary and file sizes; reads no tokens.

    The first process of a host that opens a store in object storage copies it to the local disk.

    Raises:
      UserError: the store is missing, unfinished, incomplete or of a newer format; if remote, its
        content has changed or there is no room for the copy.
    """
    path = epath.Path(path)
    manifest = _read_manifest(path)
    local = _stage(path, manifest) if is_remote(path) else path
    for name, file in manifest["files"].items():
        size = (local / name).stat().length if (local / name).exists() else None
        if size != file["bytes"]:
            found = "is missing" if size is None else f"has {size:,} bytes"
            raise UserError(
                f"{local / name}: {found}; the manifest says {file['bytes']:,}. Restore the file, "
                "or delete the store and prepare it again"
            )
    wordpiece = load_wordpiece(local)
    if wordpiece.vocab_hash != manifest["vocab_hash"]:
        raise UserError(f"{path}: the vocabulary is not the one that the tokens were made with")
    dtype = np.dtype(manifest["dtype"])
    return TokenStore(
        path=path,
        manifest=manifest,
        wordpiece=wordpiece,
        **{split: _open_split(local / split, dtype) for split in SPLITS},
        fingerprint=_fingerprint(manifest),
    )


def verify_store(path: epath.PathLike) -> None:
    """Reads every file and compares its sha256 with the manifest's.

    Raises:
      UserError: as `open_token_store`, or the content of a file has changed.
    """
    store = open_token_store(path)
    for name, file in store.manifest["files"].items():
        with (store.path / name).open("rb") as content:
            if hashlib.file_digest(content, "sha256").hexdigest() != file["sha256"]:
                raise UserError(f"{store.path / name}: content changed since it was written")


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


def is_store(path: epath.Path) -> bool:
    """Whether `path` holds a complete store: `write_store` writes the manifest last."""
    return (path / _MANIFEST).exists()


def check_unused(path: epath.Path) -> None:
    """Raises UserError unless `path` is an empty folder or does not exist.

    In object storage it may also hold the remains of an interrupted copy.
    """
    ours = (*SPLITS, VOCAB_FILE, CONFIG_FILE) if is_remote(path) else ()
    if path.exists() and (not path.is_dir() or any(p.name not in ours for p in path.iterdir())):
        raise UserError(f"{path}: exists and is not empty; choose another folder or delete it")


def write_store(
    path: epath.PathLike,
    documents: Iterable[str],
    wordpiece: WordPiece,
    *,
    heldout_bound: float,
    workers: int = 1,
    provenance: Mapping[str, Any],
    num_skipped: Callable[[], int] = lambda: 0,
) -> TokenStore:
    """Splits documents into sentences, tokenises them and writes the store.

    The bytes depend neither on `workers` nor on the time. Memory is bounded by the largest document
    and about three megabytes of text per worker. Documents without tokens are left out and counted.
    The next run removes the remains of an interrupted one.

    Args:
      path: a folder that does not exist yet, or is empty.
      documents: read once; a line break ends a sentence.
      wordpiece: vocabulary.
      heldout_bound: as from the function of that name.
      workers: processes that tokenise; 1 uses this process.
      provenance: further entries of the manifest: what the store was made from, and how.
      num_skipped: gives the number of records that `documents` left out, once they are read.

    Raises:
      UserError: `path` is in use, no document has a token, or a worker was killed.
    """
    path = epath.Path(path)
    check_unused(path)
    if is_remote(path):
        _cache().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_cache()) as directory:
            local = write_store(
                pathlib.Path(directory) / "store",
                documents,
                wordpiece,
                heldout_bound=heldout_bound,
                workers=workers,
                provenance=provenance,
                num_skipped=num_skipped,
            )
            _copy(local.path, path, local.manifest)
            with contextlib.suppress(FileExistsError):  # the cache has this content already
                local.path.rename(_cache() / local.fingerprint)
        return open_token_store(path)
    path = pathlib.Path(path)
    encoder = _Encoder(wordpiece, heldout_bound)
    with _unfinished(path) as directory:
        wordpiece.save(directory)
        writers = {split: _SplitWriter(directory, split, encoder) for split in SPLITS}
        num_empty = 0
        for chunk in _encode(_chunks(documents), encoder, workers):
            num_empty += chunk.num_empty
            for split in SPLITS:
                writers[split].append(chunk.splits[split])
        if not any(writer.counts["documents"] for writer in writers.values()):
            raise UserError("no document with text: check the sources")
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "dtype": encoder.dtype.str,
            "vocab_size": len(wordpiece.vocab),
            "vocab_hash": wordpiece.vocab_hash,
            "splits": {split: writer.counts for split, writer in writers.items()},
            "empty_documents": num_empty,
            "skipped_records": num_skipped(),
            "heldout_bound": heldout_bound,
            **provenance,
            "files": {k: v for writer in writers.values() for k, v in writer.finish().items()},
            "libraries": {"numpy": np.__version__, "tokenizers": tokenizers.__version__},
        }
        write_json(epath.Path(directory) / _MANIFEST, manifest)
        directory.rename(path)
    return open_token_store(path)


def _read_manifest(path: epath.Path) -> dict[str, Any]:
    file = path / _MANIFEST
    if not file.exists():
        if not is_remote(path) and _unfinished_path(path).exists():
            raise UserError(f"{path}: not finished; run the same `bert-jax prepare` again")
        raise UserError(f"{path}: no token store there; make one with `bert-jax prepare`")
    try:
        manifest = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file}: not JSON ({error}); prepare the store again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{file}: not the manifest of a token store")
    if manifest["version"] > VERSION:
        raise UserError(
            f"{path}: format version {manifest['version']}, this bert_jax reads {VERSION}; "
            "update bert_jax, or prepare the store again"
        )
    return manifest


def _fingerprint(manifest: Mapping[str, Any]) -> str:
    identity = [manifest["vocab_hash"], {k: v["sha256"] for k, v in manifest["files"].items()}]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _cache() -> epath.Path:
    caches = epath.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return caches.expanduser() / "bert_jax" / "stores"


def _stage(path: epath.Path, manifest: Mapping[str, Any]) -> epath.Path:
    """The local copy of a remote store, made by one process per host while others wait."""
    local = _cache() / _fingerprint(manifest)
    local.parent.mkdir(parents=True, exist_ok=True)
    with local.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released even if the process is killed
        if not local.exists():
            needed = sum(file["bytes"] for file in manifest["files"].values())
            if (free := shutil.disk_usage(local.parent).free) < needed:
                raise UserError(
                    f"{local.parent}: {free:,} bytes free, {path} has {needed:,}; "
                    "set XDG_CACHE_HOME to a folder with more room"
                )
            with _unfinished(local) as directory:
                _copy(path, epath.Path(directory), manifest)
                directory.rename(local)
    return local


def _copy(source: epath.Path, target: epath.Path, manifest: Mapping[str, Any]) -> None:
    """Copies a store, manifest last, and verifies the checksum of every array."""
    files = manifest["files"]
    total = sum(file["bytes"] for file in files.values())
    with tqdm(total=total, unit="B", unit_scale=True, desc=f"copying {source}") as bar:
        for name in (VOCAB_FILE, CONFIG_FILE, *files, _MANIFEST):
            digest = hashlib.sha256()
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            with (source / name).open("rb") as reader, (target / name).open("wb") as writer:
                while block := reader.read(_COPY_BYTES):
                    writer.write(block)
                    digest.update(block)
                    bar.update(len(block) if name in files else 0)
            if name in files and digest.hexdigest() != files[name]["sha256"]:
                raise UserError(f"{source / name}: content changed since it was written")


def _open_split(directory: epath.Path, dtype: np.dtype) -> Split:
    def array(name: str, dtype: np.dtype) -> np.ndarray:
        file = directory / f"{name}.bin"
        if file.stat().length == 0:  # cannot be mapped
            return np.empty(0, dtype)
        return np.memmap(file, dtype, mode="r")

    offsets = {name: array(name, _OFFSET) for name in ("sentences", "documents", "token_counts")}
    return Split(directory.name, array("tokens", dtype), **offsets)


def _unfinished_path(path: epath.PathLike) -> pathlib.Path:
    path = pathlib.Path(path)
    return path.with_name(path.name + UNFINISHED)


@contextlib.contextmanager
def _unfinished(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """An empty folder beside `path`, locked by this process, removed on an exception."""
    directory = _unfinished_path(path)
    directory.mkdir(parents=True, exist_ok=True)
    lock = os.open(directory, os.O_RDONLY)  # its lock is released even if the process is killed
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{path}: another process is writing it right now") from error
        for entry in directory.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        try:
            yield directory
        except BaseException:
            shutil.rmtree(directory)
            raise
    finally:
        os.close(lock)


class _EncodedSplit(NamedTuple):
    tokens: np.ndarray  # [num_tokens]
    sentence_lengths: list[int]  # in tokens
    document_lengths: list[int]  # in sentences


class _EncodedChunk(NamedTuple):
    splits: dict[str, _EncodedSplit]
    num_empty: int


@dataclass(frozen=True)
class _Encoder:
    wordpiece: WordPiece
    heldout_bound: float

    @property
    def dtype(self) -> np.dtype:
        return np.dtype("<u2" if len(self.wordpiece.vocab) <= 2**16 else "<u4")

    def __call__(self, texts: list[str]) -> _EncodedChunk:
        tokens = {split: [np.empty(0, self.dtype)] for split in SPLITS}
        sentence_lengths: dict[str, list[int]] = {split: [] for split in SPLITS}
        document_lengths: dict[str, list[int]] = {split: [] for split in SPLITS}
        num_empty = 0
        for text in texts:
            split = "heldout" if document_hash(text) < self.heldout_bound else "train"
            sentences = [ids for ids in self.wordpiece.encode(split_sentences(text)) if ids]
            if not sentences:
                num_empty += 1
                continue
            tokens[split] += [np.array(ids, self.dtype) for ids in sentences]
            sentence_lengths[split] += map(len, sentences)
            document_lengths[split].append(len(sentences))
        splits = {
            split: _EncodedSplit(
                np.concatenate(tokens[split]), sentence_lengths[split], document_lengths[split]
            )
            for split in SPLITS
        }
        return _EncodedChunk(splits, num_empty)


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
        self.counts = {"documents": 0, "sentences": 0, "tokens": 0}
        self._token_counts = np.zeros(len(encoder.wordpiece.vocab), _OFFSET)
        for name in ("tokens", "sentences", "documents"):
            self._files[name] = _HashedFile(directory / split / f"{name}.bin")
        for name in ("sentences", "documents"):
            self._files[name].write(np.zeros(1, _OFFSET))

    def append(self, chunk: _EncodedSplit) -> None:
        self._files["tokens"].write(chunk.tokens)
        for name, lengths, start in (
            ("sentences", chunk.sentence_lengths, self.counts["tokens"]),
            ("documents", chunk.document_lengths, self.counts["sentences"]),
        ):
            self._files[name].write(start + np.cumsum(lengths, dtype=_OFFSET))
        self._token_counts += np.bincount(chunk.tokens, minlength=len(self._token_counts))
        self.counts["tokens"] += len(chunk.tokens)
        self.counts["sentences"] += len(chunk.sentence_lengths)
        self.counts["documents"] += len(chunk.document_lengths)

    def finish(self) -> dict[str, dict[str, Any]]:
        """Closes the files and returns their sizes and checksums."""
        file = _HashedFile(self._directory / self._split / "token_counts.bin")
        file.write(self._token_counts)
        self._files["token_counts"] = file
        return {f"{self._split}/{name}.bin": file.close() for name, file in self._files.items()}


class _HashedFile:
    def __init__(self, path: pathlib.Path):
        self._file = path.open("wb")
        self._hash = hashlib.sha256()

    def write(self, array: np.ndarray) -> None:
        self._file.write(array.data)
        self._hash.update(array.data)

    def close(self) -> dict[str, Any]:
        size = self._file.tell()
        self._file.close()
        return {"bytes": size, "sha256": self._hash.hexdigest()}
