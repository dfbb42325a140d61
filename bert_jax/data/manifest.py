"""Manifests of token stores: what a store holds, and what its files must be.

A store is one or more shards. A shard is two splits, `train/` and `heldout/`, of flat little-endian
arrays (see `Split`), and a manifest with the size and checksum of each array:

    store/manifest.json  vocab.txt  tokenizer_config.json  train/  heldout/
    store/shards/00000/manifest.json
    store/shards/00001/manifest.json  train/  heldout/  totals.bin
    ...

The arrays of the first shard are in the folder of the store. If it is the only one, its manifest is
that of the store, version 1, and there is no folder `shards`. Otherwise the store's manifest is of
version 2 and has the fingerprint and the counts of each shard. So shards are added to a store
without a change to those that it has. The last shard's `totals.bin` counts each id in all shards.
"""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import numpy as np
from etils import epath

from bert_jax.data.split import BLOCK_BYTES
from bert_jax.errors import UserError
from bert_jax.json_values import typed
from bert_jax.storage import UNFINISHED, is_remote, read_json

FORMAT, VERSION, SHARDED = "bert_jax token store", 1, 2
SPLITS = ("train", "heldout")
ARRAYS = ("tokens", "sentences", "documents", "token_counts")
FILES = frozenset(f"{split}/{array}.bin" for split in SPLITS for array in ARRAYS)
CONTINUES = "continues"
CONTINUES_FILES = frozenset(f"{split}/{CONTINUES}.bin" for split in SPLITS)
MANIFEST, SHARDS, TOTALS = "manifest.json", "shards", "totals.bin"
OFFSET = np.dtype("<i8")


@dataclass(frozen=True)
class File:
    """What a manifest says about an array.

    Attributes:
      bytes: size.
      sha256: of the content, in hex.
      block_crc32: CRC-32 of each `BLOCK_BYTES`, in hex; only of tokens, and not in older stores.
    """

    bytes: int
    sha256: str
    block_crc32: str = ""

    def size_problem(self, path: epath.Path) -> str:
        """What is wrong with the size of a file; empty if nothing."""
        size = path.stat().length if path.exists() else None
        if size == self.bytes:
            return ""
        found = "is missing" if size is None else f"has {size:,} bytes"
        return f"{found}; the manifest says {self.bytes:,}"


@dataclass(frozen=True)
class Counts:
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
class Epoch:
    """What a manifest says about an epoch; see `Usage`, which is not loaded here."""

    tokens: float
    label_1: float


@dataclass(frozen=True)
class Shard:
    """What the manifest of a store says about a shard."""

    fingerprint: str
    splits: dict[str, Counts]


@dataclass(frozen=True, kw_only=True)
class _Manifest:
    """The fields of a manifest that are read, of a shard or a store; older stores lack some.

    Attributes:
      wrapped_at: width at which lines were hard-wrapped, in characters; 0 if they were not.
      epoch: what next-sentence pairs in rows of `EPOCH_LENGTH` tokens use; see `Usage`. None if
        there are no such pairs.
    """

    dtype: str
    vocab_size: int
    vocab_hash: str
    splits: dict[str, Counts]
    empty_documents: int
    heldout_bound: float
    sources: list[dict[str, Any]] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    skipped_records: int = 0
    heldout_tail: float = 0.0
    wrapped_at: int = 0
    epoch: Epoch | None = None

    def inconsistency(self) -> str:
        """What in it cannot be true; empty if nothing."""
        if self.dtype != token_dtype(self.vocab_size).str:
            expected = token_dtype(self.vocab_size).str
            return f"dtype: must be {expected} for vocab_size {self.vocab_size}"
        return _wrong_counts(self.splits)


@dataclass(frozen=True, kw_only=True)
class ShardManifest(_Manifest):
    """The manifest of a shard, or of a store of one shard."""

    files: dict[str, File]

    @functools.cached_property
    def identity(self) -> str:
        """Fingerprint of the data."""
        return shard_identity(self.vocab_hash, {k: v.sha256 for k, v in self.files.items()})

    @property
    def shards(self) -> list[Shard]:
        """The shard itself."""
        return [Shard(self.identity, self.splits)]

    def inconsistency(self) -> str:
        if self.files.keys() not in (FILES, FILES | CONTINUES_FILES):
            return f"files: must be {', '.join(sorted(FILES))}"
        if problem := super().inconsistency():
            return problem
        for split, counts in self.splits.items():
            for array, size in (
                ("tokens", counts.tokens * token_dtype(self.vocab_size).itemsize),
                ("sentences", (counts.sentences + 1) * OFFSET.itemsize),
                ("documents", (counts.documents + 1) * OFFSET.itemsize),
                ("token_counts", self.vocab_size * OFFSET.itemsize),
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


@dataclass(frozen=True, kw_only=True)
class ShardedManifest(_Manifest):
    """The manifest of a store of several shards.

    Attributes:
      splits: sums over the shards.
      shards: each of them, in order.
      totals: the file of the counts of all ids in all shards, int64 [2, vocab_size], train first.
      appended: sources and options of every `append_to_store`.
    """

    shards: list[Shard]
    totals: File
    appended: list[dict[str, Any]] = field(default_factory=list)

    @functools.cached_property
    def identity(self) -> str:
        """Fingerprint of the data."""
        return sharded_identity(self.vocab_hash, self.shards)

    def inconsistency(self) -> str:
        if problem := super().inconsistency():
            return problem
        for index, shard in enumerate(self.shards):
            if problem := _wrong_counts(shard.splits):
                return f"shards[{index}].{problem}"
        if len(self.shards) < 2:
            return "shards: must be several"
        if self.splits != sum_of_counts([shard.splits for shard in self.shards]):
            return "splits: must be the sums over shards"
        if self.totals.bytes != (size := 2 * self.vocab_size * OFFSET.itemsize):
            return f"totals: bytes must be {size:,}"
        if self.fingerprint != self.identity:
            return "fingerprint: is not that of vocab_hash and shards"
        return ""


M = TypeVar("M", ShardManifest, ShardedManifest)


def _wrong_counts(splits: Mapping[str, Counts]) -> str:
    if splits.keys() != set(SPLITS):
        return f"splits: must be {', '.join(SPLITS)}"
    for split, counts in splits.items():
        if min(counts.documents, counts.sentences, counts.tokens) < 0:
            return f"splits.{split}: has a negative number"
    return ""


def sum_of_counts(parts: Sequence[Mapping[str, Counts]]) -> dict[str, Counts]:
    """The counts of all shards together, by split; what a shard does not say counts as 0."""
    return {
        split: Counts(
            **{
                each.name: sum(getattr(part[split], each.name) or 0 for part in parts)
                for each in fields(Counts)
            }
        )
        for split in SPLITS
    }


def shard_identity(vocab_hash: str, sha256: Mapping[str, str]) -> str:
    """The fingerprint of a shard, from the checksums of its arrays."""
    return _digest([vocab_hash, dict(sha256)])


def sharded_identity(vocab_hash: str, shards: Sequence[Shard]) -> str:
    """The fingerprint of a store of several shards."""
    return _digest([vocab_hash, [shard.fingerprint for shard in shards]])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def token_dtype(vocab_size: int) -> np.dtype:
    """Type of the ids of a vocabulary in a store."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def shard_folder(store: epath.Path, index: int) -> epath.Path:
    """Where the manifest of a shard is, and its arrays if it is not the first one."""
    return store / SHARDS / f"{index:05}"


def is_store(path: epath.Path) -> bool:
    """Whether `path` holds a complete store: its manifest is written last."""
    return (path / MANIFEST).exists()


def unfinished_path(path: epath.Path) -> epath.Path:
    """Where a store, or more shards of one, are written before they are complete."""
    return path.with_name(path.name + UNFINISHED)


def read_manifest(path: epath.Path) -> tuple[dict[str, Any], ShardManifest | ShardedManifest]:
    """The manifest of a store as it is, and the fields of it that are read, checked.

    Raises:
      UserError: the store is missing or unfinished, or the manifest is damaged or of a newer
        format.
    """
    file = path / MANIFEST
    if not file.exists():
        if not is_remote(path) and unfinished_path(path).exists():
            raise UserError(f"{path}: not finished; run the same `bert-jax prepare` again")
        raise UserError(f"{path}: no token store there; make one with `bert-jax prepare`")
    try:
        manifest = read_json(file)
    except UserError as error:
        raise _damaged(error) from error
    if manifest.get("format") != FORMAT:
        raise UserError(f"{file}: not the manifest of a token store")
    version = typed(manifest.get("version"), int, f"{file}: field version")
    if version > SHARDED:
        raise UserError(
            f"{path}: format version {version}, this bert_jax reads {SHARDED}; "
            "update bert_jax, or prepare the store again"
        )
    if version == SHARDED:
        return manifest, _checked(manifest, ShardedManifest, file)
    return manifest, _checked(manifest, ShardManifest, file)


def read_shard_manifest(store: epath.Path, index: int, stated: Shard) -> ShardManifest:
    """The manifest of a shard, which must be what the manifest of the store says.

    Raises:
      UserError: it is missing, damaged, or that of another shard.
    """
    file = shard_folder(store, index) / MANIFEST
    if not file.exists():
        raise UserError(f"{file}: is missing; restore it, or prepare the store again")
    try:
        found = _checked(read_json(file), ShardManifest, file)
    except UserError as error:
        raise _damaged(error) from error
    if found.identity != stated.fingerprint or found.splits != stated.splits:
        raise _damaged(f"{file}: not the shard that {store / MANIFEST} names")
    return found


def _checked(manifest: Mapping[str, Any], kind: type[M], file: epath.Path) -> M:
    try:
        stated = typed(manifest, kind, str(file))
    except UserError as error:
        raise _damaged(error) from error
    if problem := stated.inconsistency():
        raise _damaged(f"{file}: {problem}")
    return stated


def _damaged(problem: object) -> UserError:
    text = str(problem).removesuffix("?").removesuffix("; prepare the store again")
    return UserError(f"{text}; prepare the store again")
