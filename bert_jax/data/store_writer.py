"""Writes token stores, and more shards into them."""

import contextlib
import dataclasses
import hashlib
import itertools
import pathlib
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import tokenizers
from etils import epath

from bert_jax.data.encoding import EncodedChunk, EncodedSplit, Encoder
from bert_jax.data.line_breaks import LineBreaks
from bert_jax.data.manifest import (
    CONTINUES,
    FORMAT,
    MANIFEST,
    OFFSET,
    SHARDED,
    SHARDS,
    SPLITS,
    TOTALS,
    VERSION,
    Counts,
    File,
    Shard,
    ShardedManifest,
    ShardManifest,
    read_manifest,
    shard_folder,
    shard_identity,
    sharded_identity,
    sum_of_counts,
)
from bert_jax.data.split import BLOCK_BYTES
from bert_jax.data.store import (
    ALL_UNKNOWN,
    TokenStore,
    cache,
    copy_files,
    open_token_store,
    unfinished,
)
from bert_jax.data.tokenizer import CONFIG_FILE, TOKENIZER_FILE, VOCAB_FILE, Tokenizer
from bert_jax.data.workers import CHUNK_CHARACTERS, in_chunks, in_workers
from bert_jax.errors import UserError
from bert_jax.json_values import typed
from bert_jax.locks import locked
from bert_jax.storage import files_below, is_remote, read_json, write_json

SHARD_TOKENS = 2**28
EPOCH_LENGTH = 128  # tokens of the rows in the summary of a store


def check_unused(path: epath.Path) -> None:
    """Raises UserError unless `path` is an empty folder or does not exist.

    In object storage it may also hold the remains of an interrupted copy.
    """
    ours = (*SPLITS, SHARDS, VOCAB_FILE, TOKENIZER_FILE, CONFIG_FILE) if is_remote(path) else ()
    if path.exists() and (not path.is_dir() or any(p.name not in ours for p in path.iterdir())):
        raise UserError(f"{path}: exists and is not empty; choose another folder or delete it")


class ShardMaker(Protocol):
    """What makes the shards of a store from documents that it knows."""

    def __call__(
        self, store: epath.Path, first: int, encoder: Encoder, shard_tokens: int
    ) -> Iterator["Written"]:
        """Writes shards, from number `first` of a store on, cut as `in_shards` says.

        Their files may be in the folder of the store already, if that is in object storage.

        Args:
          store: a local folder, of which the files become those of the store.
          first: number of the first of these shards.
          encoder: makes ids of documents, in the chunks of `in_chunks`.
          shard_tokens: see `write_store`.
        """


def write_store(
    path: epath.PathLike,
    documents: Iterable[str] | ShardMaker,
    tokenizer: Tokenizer,
    *,
    heldout_bound: float,
    workers: int = 1,
    provenance: Mapping[str, Any],
    num_skipped: Callable[[], int] = lambda: 0,
    heldout_tail: float = 0.0,
    segmenter: str = "",
    shard_tokens: int = SHARD_TOKENS,
) -> TokenStore:
    """Splits documents into sentences, tokenises them and writes the store.

    The bytes depend neither on `workers` nor on the time. Memory is bounded by the largest document
    and about three megabytes of text per worker. Documents without tokens are left out and counted.
    The next run removes the remains of an interrupted one.

    Args:
      path: a folder that does not exist yet, or is empty.
      documents: read once; a line break ends a sentence. Or what makes shards of them.
      tokenizer: vocabulary.
      heldout_bound: as from the function of that name.
      workers: processes that tokenise; 1 uses this process.
      provenance: further entries of the manifest: what the store was made from, and how.
      num_skipped: gives the number of records that `documents` left out, once they are read.
      heldout_tail: share of each document that is held out, its last sentences; for a corpus of
        one document.
      segmenter: what says where Chinese words are, see `load_segmenter`; empty: each ideograph is a
        word.
      shard_tokens: tokens, those of both splits, from which on a shard is full. It ends with the
        million characters, or as many characters as it has tokens if they are fewer, in which it
        gets full.

    Raises:
      UserError: `path` is in use, no document has a token, every word is unknown, or a worker was
        killed.
    """
    path = epath.Path(path)
    check_unused(path)
    encoder = Encoder(tokenizer, heldout_bound, heldout_tail, segmenter)
    with _new(path) as directory:
        tokenizer.save(directory)
        first, *others = _write_shards(directory, 0, documents, encoder, workers, shard_tokens)
        # The order of the entries is that of older stores.
        manifest = first.manifest | {"skipped_records": num_skipped()}
        files, libraries = manifest.pop("files"), manifest.pop("libraries")
        manifest |= {**provenance, "files": files, "libraries": libraries}
        counts = sum((shard.token_counts for shard in others), first.token_counts)
        if 0 < counts[0].sum() == counts[0][tokenizer.special_ids].sum():
            raise UserError(ALL_UNKNOWN)
        if others:
            _write_first(directory, first.manifest)
            manifest = _with_shards(directory, manifest, others, counts)
        write_json(directory / MANIFEST, manifest)
    return open_token_store(path)


@contextlib.contextmanager
def _new(path: epath.Path) -> Iterator[epath.Path]:
    """An empty local folder, of which the content becomes the store at `path`."""
    if not is_remote(path):
        with unfinished(pathlib.Path(path)) as directory:
            yield epath.Path(directory)
            directory.rename(path)
        return
    cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache()) as temporary:
        made = epath.Path(temporary) / "store"
        made.mkdir()
        yield made
        copy_files(made, path, _files(made))
        _, stated = read_manifest(made)
        if isinstance(stated, ShardManifest) and (made / SPLITS[0]).exists():
            with contextlib.suppress(FileExistsError):  # the cache has this content already
                made.rename(cache() / stated.identity)


def append_to_store(
    path: epath.PathLike,
    documents: Iterable[str] | ShardMaker,
    *,
    workers: int = 1,
    provenance: Mapping[str, Any],
    num_skipped: Callable[[], int] = lambda: 0,
    shard_tokens: int = SHARD_TOKENS,
) -> TokenStore:
    """Adds documents to a store, as new shards; those that it has are not touched.

    The store gets another fingerprint. Vocabulary, segmenter and what is held out are as before,
    so copies of a document are in the same split. An interrupted call leaves the store as it was.

    Args:
      path: folder of the store.
      documents, workers, num_skipped, shard_tokens: see `write_store`.
      provenance: what the documents are, for the manifest's list `appended`.

    Raises:
      UserError: there is no such store, another process writes it, no document has a token, or a
        worker was killed.
    """
    path = epath.Path(path)
    with _more_of(path) as directory:
        before, stated = read_manifest(path)
        store = open_token_store(path)
        segmenter = stated.options.get("segmenter") or ""
        encoder = Encoder(store.tokenizer, stated.heldout_bound, stated.heldout_tail, segmenter)
        count = len(stated.shards)
        added = [*_write_shards(directory, count, documents, encoder, workers, shard_tokens)]
        counts = np.stack([store.totals[split] for split in SPLITS])
        counts = sum((shard.token_counts for shard in added), counts)
        manifest = _with_shards(directory, before, added, counts)
        manifest["skipped_records"] = stated.skipped_records + num_skipped()
        manifest["appended"] = [*before.get("appended", ()), dict(provenance)]
        if isinstance(stated, ShardManifest):
            _write_first(directory, before)
        for source in sorted((directory / SHARDS).iterdir()):
            target = path / SHARDS / source.name
            if is_remote(path):
                copy_files(source, target, _files(source))
                continue
            target.parent.mkdir(exist_ok=True)
            if target.exists():  # of an interrupted call
                target.rmtree()
            source.rename(target)
        write_json(path / MANIFEST, manifest)
    return open_token_store(path)


@contextlib.contextmanager
def _more_of(path: epath.Path) -> Iterator[epath.Path]:
    """An empty local folder for more shards of a store, which no other process writes meanwhile."""
    with contextlib.ExitStack() as stack:
        if is_remote(path):
            stack.enter_context(locked(path / "lock", str(path)))
            cache().mkdir(parents=True, exist_ok=True)
            yield epath.Path(stack.enter_context(tempfile.TemporaryDirectory(dir=cache())))
            return
        directory = epath.Path(stack.enter_context(unfinished(pathlib.Path(path))))
        yield directory
        directory.rmtree()


class Written(NamedTuple):
    """A shard on the disk.

    Attributes:
      manifest: its manifest, which is written for all but the first one of a store.
      token_counts: int64 [2, vocab_size], how often each id occurs in its splits.
    """

    manifest: dict[str, Any]
    token_counts: np.ndarray


def _write_shards(
    store: epath.Path,
    first: int,
    documents: Iterable[str] | ShardMaker,
    encoder: Encoder,
    workers: int,
    shard_tokens: int,
) -> Iterator[Written]:
    """Writes documents as shards, from number `first` of a store on."""
    if not isinstance(documents, Iterable):
        yield from documents(store, first, encoder, shard_tokens)
        return
    chunks = in_workers(encoder, in_chunks(documents, chunk_characters(shard_tokens)), workers)
    for index, of_shard in itertools.groupby(in_shards(chunks, shard_tokens), lambda item: item[0]):
        writer = ShardWriter(store, first + index, encoder)
        for _, chunk in of_shard:
            writer.append(chunk)
        yield writer.finish()


def chunk_characters(shard_tokens: int) -> int:
    """Characters after which a chunk ends, where a shard has so many tokens."""
    return min(CHUNK_CHARACTERS, shard_tokens)


class Size(Protocol):
    """What of a chunk tells where shards end; see `EncodedChunk`."""

    @property
    def tokens(self) -> int: ...
    @property
    def has_documents(self) -> bool: ...


C = TypeVar("C", bound=Size)


def in_shards(chunks: Iterable[C], shard_tokens: int) -> Iterator[tuple[int, C]]:
    """All chunks, in order, each with the number of its shard, from 0.

    A shard ends with the chunk that fills it, and those after it without documents.

    Raises:
      UserError: no chunk has documents.
    """
    shard = tokens = 0
    has_documents = False
    for chunk in chunks:
        if tokens >= shard_tokens and chunk.has_documents:
            shard, tokens = shard + 1, 0
        tokens += chunk.tokens
        has_documents |= chunk.has_documents
        yield shard, chunk
    if not has_documents:
        raise UserError("no document with text: check the sources")


def _write_first(store: epath.Path, manifest: Mapping[str, Any]) -> None:
    """Writes the manifest of the first shard of a store of several."""
    folder = shard_folder(store, 0)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / MANIFEST, manifest)


def _with_shards(
    store: epath.Path, before: Mapping[str, Any], added: Sequence[Written], counts: np.ndarray
) -> dict[str, Any]:
    """Writes the totals of a store with more shards, and returns its manifest.

    Args:
      store: where the new shards are.
      before: the manifest of the store without them.
      added: the new shards.
      counts: int64 [2, vocab_size], how often each id occurs in all shards.
    """
    stated: ShardManifest | ShardedManifest
    if before["version"] == SHARDED:
        stated = typed(before, ShardedManifest, str(store))
    else:
        stated = typed(before, ShardManifest, str(store))
    manifests = [each.manifest for each in added]
    new = [typed(manifest, ShardManifest, str(store)) for manifest in manifests]
    shards = [*stated.shards, *(Shard(each.identity, each.splits) for each in new)]
    file = HashedFile(pathlib.Path(shard_folder(store, len(shards) - 1)) / TOTALS, in_blocks=False)
    file.write(counts)
    totals = file.close()
    parts = [each for each in (stated, *new) if each.epoch]
    weights = [each.splits["train"].tokens for each in parts]
    epoch = {
        name: float(np.average([getattr(each.epoch, name) for each in parts], weights=weights))
        for name in ("tokens", "label_1")
    }
    manifest = {name: value for name, value in before.items() if name != "files"} | {
        "version": SHARDED,
        "fingerprint": sharded_identity(stated.vocab_hash, shards),
        "splits": {
            split: dataclasses.asdict(each)
            for split, each in sum_of_counts([shard.splits for shard in shards]).items()
        },
        "empty_documents": sum(each.empty_documents for each in (stated, *new)),
        "wrapped_at": next((each.wrapped_at for each in (stated, *new) if each.wrapped_at), 0),
        "epoch": epoch if parts else None,
        "shards": [dataclasses.asdict(shard) for shard in shards],
        "totals": totals,
    }
    return manifest


def _files(folder: epath.Path) -> dict[str, File | None]:
    """All files below the folder of a store or shard, in the order in which they may be copied.

    The last one makes it complete. Of arrays there is what their manifests say.
    """
    found: dict[str, File | None] = {}
    for path in sorted(files_below(folder), key=lambda path: (path.name == MANIFEST, path)):
        found[str(path.relative_to(folder))] = None
    for name in [name for name in found if epath.Path(name).name == MANIFEST]:
        place = str(folder / name)
        manifest = read_json(folder / name)
        if manifest["version"] != SHARDED:
            below = epath.Path(name).parent
            arrays = typed(manifest, ShardManifest, place).files
            if str(below / next(iter(arrays))) not in found:  # those of the first shard
                below = epath.Path(".")
            files = {str(below / array): file for array, file in arrays.items()}
            found |= {array: file for array, file in files.items() if array in found}
    return {name: found[name] for name in [*(n for n in found if n != MANIFEST), MANIFEST]}


def _epoch_usage(train: pathlib.Path) -> dict[str, float] | None:
    """See `Epoch`."""
    from bert_jax.data.sampling import Sampling, plan_epoch, usage  # imports Numba

    sentences, documents = (
        np.memmap(train / f"{name}.bin", OFFSET, mode="r") for name in ("sentences", "documents")
    )
    sampling = Sampling(max_seq_length=EPOCH_LENGTH, packing=False)
    try:
        plan = plan_epoch(sentences, documents, sampling, seed=0, epoch=0)
    except UserError:
        return None
    return usage(plan, sampling, int(sentences[-1]))._asdict()


class ShardWriter:
    """Writes a shard."""

    def __init__(self, store: epath.Path, index: int, encoder: Encoder):
        """Args:
        store: folder of the store.
        index: number of the shard.
        encoder: makes its documents.
        """
        self._store, self._index, self._encoder = store, index, encoder
        self._folder = pathlib.Path(shard_folder(store, index) if index else store)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._splits = {split: _SplitWriter(self._folder, split, encoder) for split in SPLITS}
        self._num_empty, self._line_breaks = 0, LineBreaks()

    def append(self, chunk: EncodedChunk) -> None:
        self._num_empty += chunk.num_empty
        self._line_breaks.merge(chunk.line_breaks)
        for split, writer in self._splits.items():
            writer.append(chunk.splits[split])

    def finish(self) -> Written:
        """Closes the files; writes the manifest unless it is that of the first shard."""
        encoder, tokenizer = self._encoder, self._encoder.tokenizer
        files = {k: v for writer in self._splits.values() for k, v in writer.finish().items()}
        checksums = {name: file["sha256"] for name, file in files.items()}
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "fingerprint": shard_identity(tokenizer.vocab_hash, checksums),
            "dtype": encoder.dtype.str,
            "vocab_size": len(tokenizer.vocab),
            "vocab_hash": tokenizer.vocab_hash,
            "splits": {split: writer.counts for split, writer in self._splits.items()},
            "empty_documents": self._num_empty,
            "skipped_records": 0,
            "heldout_bound": encoder.heldout_bound,
            "heldout_tail": encoder.heldout_tail,
            "wrapped_at": self._line_breaks.width(),
            "epoch": _epoch_usage(self._folder / "train"),
            "files": files,
            "libraries": {"numpy": np.__version__, "tokenizers": tokenizers.__version__},
        }
        if self._index:
            write_json(shard_folder(self._store, self._index) / MANIFEST, manifest)
        counts = np.stack([self._splits[split].token_counts for split in SPLITS])
        return Written(manifest, counts)


class _SplitWriter:
    """Appends encoded chunks to the files of a split and counts their contents."""

    def __init__(self, directory: pathlib.Path, split: str, encoder: Encoder):
        (directory / split).mkdir()
        self._directory, self._split = directory, split
        self._files: dict[str, HashedFile] = {}
        self.counts = dict.fromkeys((each.name for each in fields(Counts)), 0)
        self.token_counts = np.zeros(len(encoder.tokenizer.vocab), OFFSET)
        for name in ("tokens", "sentences", "documents"):
            self._files[name] = HashedFile(directory / split / f"{name}.bin", name == "tokens")
        for name in ("sentences", "documents"):
            self._files[name].write(np.zeros(1, OFFSET))
        self._bits = np.empty(0, bool)  # not written yet, less than a byte
        if encoder.says_words:
            self._files[CONTINUES] = HashedFile(directory / split / f"{CONTINUES}.bin", False)

    def append(self, chunk: EncodedSplit) -> None:
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
            self._files[name].write(start + np.cumsum(lengths, dtype=OFFSET))
        self.token_counts += np.bincount(tokens, minlength=len(self.token_counts))
        self.counts["tokens"] += len(tokens)
        self.counts["sentences"] += len(chunk.sentence_lengths)
        self.counts["documents"] += len(chunk.document_lengths)
        self.counts["single_sentence_documents"] += chunk.document_lengths.count(1)
        for name, number in chunk.characters.items():
            self.counts[name] += number

    def finish(self) -> dict[str, dict[str, Any]]:
        """Closes the files and returns their sizes and checksums."""
        file = HashedFile(self._directory / self._split / "token_counts.bin", False)
        file.write(self.token_counts)
        self._files["token_counts"] = file
        if CONTINUES in self._files:
            self._files[CONTINUES].write(np.packbits(self._bits, bitorder="little"))
        return {f"{self._split}/{name}.bin": file.close() for name, file in self._files.items()}


class HashedFile:
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
