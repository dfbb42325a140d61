"""The token store: a tokenised corpus in memory-mapped files.

`manifest.py` says which files. A store is written under a temporary name, manifest last, and
renamed when complete. A tokenizer other than WordPiece is in `tokenizer.json` instead of
`vocab.txt`. Where the vocabulary does not say which tokens continue a word, `continues.bin` does.

Opening a shard compares sizes, offsets and counts with its manifest, which takes about a second for
100 million sentences that are in memory. Tokens are compared in blocks, before their first use. So
damage is noticed, and nothing beyond an array is read. A store of one shard opens it at once; of
several, each is opened when it is used.

A store in object storage is written to a local disk and copied, manifest last. Each shard is read
from a local copy below $XDG_CACHE_HOME (default ~/.cache), shared by all processes of a host and
verified by its checksums.
"""

import contextlib
import functools
import hashlib
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath

from bert_jax.data.manifest import (
    ARRAYS,
    CONTINUES,
    CONTINUES_FILES,
    MANIFEST,
    OFFSET,
    SHARDS,
    SPLITS,
    TOTALS,
    File,
    ShardedManifest,
    ShardManifest,
    read_manifest,
    read_shard_manifest,
    shard_folder,
    token_dtype,
    unfinished_path,
)
from bert_jax.data.split import Shards, Split, TokenBlocks
from bert_jax.data.tokenizer import TOKENIZER_FILE, VOCAB_FILE, Tokenizer
from bert_jax.data.tokenizer_json import load_tokenizer
from bert_jax.errors import UserError
from bert_jax.locks import locked
from bert_jax.storage import cache_folder, errors_name, is_remote
from bert_jax.terminal import progress

if TYPE_CHECKING:
    from bert_jax.data.batches import BatchStream, HostRows
    from bert_jax.data.sampling import Sampling

ALL_UNKNOWN = (
    "every word is [UNK], so there is nothing to predict: take a vocabulary of this language, or "
    "none, to train one"
)
_REMEDY = "Restore the file, or delete the store and prepare it again"
_CHANGED = "content changed since it was written"
_COPY_BYTES = 2**24


@dataclass(frozen=True)
class TokenStore:
    """An open token store, a `bert_jax.data.stores.Store`.

    Attributes:
      path: its folder.
      manifest: its manifest.
      tokenizer: its vocabulary.
      shards: its splits, by name.
      totals: int64 [vocab_size] of each split, how often each id occurs in all shards.
      fingerprint: identifies its data: vocabulary and every array, not options.
    """

    path: epath.Path
    manifest: Mapping[str, Any]
    tokenizer: Tokenizer
    shards: Mapping[str, Shards]
    totals: Mapping[str, np.ndarray]
    fingerprint: str

    is_masked = False

    @property
    def train(self) -> Split:
        """The training split of a store of one shard."""
        return self._only("train")

    @property
    def heldout(self) -> Split:
        """The held-out split of a store of one shard."""
        return self._only("heldout")

    def _only(self, split: str) -> Split:
        (shard,) = self.shards[split]
        return shard

    @property
    def summary(self) -> str:
        sizes = self.shards["train"].sizes
        shards = f" in {len(sizes):,} shards" if len(sizes) > 1 else ""
        return f"{sum(size.tokens for size in sizes):,} training tokens{shards}"

    @property
    def token_counts(self) -> np.ndarray:
        return self.totals["train"]

    def num_words(self, split: str) -> int:
        """Words in a split."""
        first, shards = self.shards[split][0], self.shards[split]
        is_continuation = self.tokenizer.is_continuation
        if first.continues is None:
            return int(self.totals[split][~is_continuation].sum())
        return sum(shard.num_words(is_continuation) for shard in shards)

    def check(self, sampling: "Sampling", max_predictions_per_seq: int, path: str) -> None:
        """Accepts any sampling; raises UserError if a split has nothing to mask."""
        for split, counts in self.totals.items():
            if counts.any() and counts[self.tokenizer.special_ids].sum() == counts.sum():
                raise UserError(f"{self.path}: {split} split: {ALL_UNKNOWN}")

    def training_batches(
        self, sampling: "Sampling", *, seed: int, host_rows: "HostRows", first_row: int = 0
    ) -> "BatchStream":
        """Pairs, short sequences and rows are drawn anew in every pass of a shard."""
        from bert_jax.data.batches import Batches  # imports Numba, which `prepare` does not need
        from bert_jax.data.rows import StoreRows

        rows = StoreRows(self.shards["train"], sampling, seed=seed)
        return Batches(rows, sampling, self.tokenizer, first_row=first_row, host_rows=host_rows)

    def heldout_batches(
        self, sampling: "Sampling", *, num_batches: int, host_rows: np.ndarray
    ) -> Iterable[dict[str, np.ndarray]]:
        from bert_jax.data.batches import HELDOUT_SEED, Batches, one_epoch
        from bert_jax.data.rows import StoreRows

        rows = StoreRows(self.shards["heldout"], sampling, seed=HELDOUT_SEED)
        rows.end_after_one_round(num_batches * sampling.batch_size)
        stream = Batches(rows, sampling, self.tokenizer, host_rows=lambda _: host_rows)
        return one_epoch(stream, sampling.batch_size, num_batches)


def open_token_store(path: epath.PathLike) -> TokenStore:
    """Opens a store after checking all of it but the tokens, which are checked as they are read.

    Of a store of several shards, each is checked when it is used. The first process of a host that
    uses a shard in object storage copies it to the local disk.

    Raises:
      UserError: the store is missing, unfinished, incomplete, damaged or of a newer format; if
        remote, its content has changed or there is no room for the copy.
    """
    path = epath.Path(path)
    manifest, stated = read_manifest(path)
    tokenizer = _load_vocabulary(path, stated)
    if isinstance(stated, ShardedManifest):
        _check_all_there(path, stated)
        totals = _totals(path, stated)
    sizes = {split: [shard.splits[split] for shard in stated.shards] for split in SPLITS}
    shards = {
        split: Shards(split, sizes[split], functools.partial(_open_split, path, stated, split))
        for split in SPLITS
    }
    if isinstance(stated, ShardManifest):
        totals = {split: shards[split][0].token_counts for split in SPLITS}
    return TokenStore(path, manifest, tokenizer, shards, totals, stated.identity)


def damaged_files(path: epath.PathLike) -> Iterator[tuple[str, str]]:
    """Reads every file of a store, in object storage, too: its name and what is wrong, or "".

    Raises:
      UserError: there is no store, or its manifest is damaged.
    """
    path = epath.Path(path)
    _, stated = read_manifest(path)
    is_json = (path / TOKENIZER_FILE).exists() and not (path / VOCAB_FILE).exists()
    yield TOKENIZER_FILE if is_json else VOCAB_FILE, _problem(_load_vocabulary, path, stated)
    if isinstance(stated, ShardedManifest):
        yield str(_totals_file(path, stated).relative_to(path)), _problem(_totals, path, stated)
    for index in range(len(stated.shards)):
        try:
            shard = _shard_manifest(path, stated, index)
        except UserError as error:
            yield str((shard_folder(path, index) / MANIFEST).relative_to(path)), str(error)
            continue
        for name, file in shard.files.items():
            array = _arrays(path, index) / name
            problem = file.size_problem(array)
            if not problem:
                with array.open("rb") as content:
                    if hashlib.file_digest(content, "sha256").hexdigest() != file.sha256:
                        problem = _CHANGED
            yield str(array.relative_to(path)), problem


def verify_store(path: epath.PathLike) -> None:
    """Reads every file and compares its sha256 with the manifest's.

    Raises:
      UserError: as `open_token_store`, or the content of a file has changed.
    """
    for name, problem in damaged_files(path):
        if problem:
            raise UserError(f"{epath.Path(path) / name}: {problem}")
    open_token_store(path)


def cache() -> epath.Path:
    """Where copies of stores in object storage are."""
    return cache_folder("stores")


@contextlib.contextmanager
def unfinished(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """An empty folder beside `path`, locked by this process, removed on an exception."""
    directory = pathlib.Path(unfinished_path(epath.Path(path)))
    with locked(f"{directory}.lock", str(path)), errors_name(path, instead_of=directory):
        directory.mkdir(exist_ok=True)
        for entry in directory.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        try:
            yield directory
        except BaseException:
            shutil.rmtree(directory)
            raise


def copy_files(source: epath.Path, target: epath.Path, files: Mapping[str, File | None]) -> None:
    """Copies files in the order given; those of which a manifest tells the content are verified.

    Raises:
      UserError: the content of a file has changed since it was written.
    """
    total = sum(file.bytes for file in files.values() if file)
    with progress(f"copying {source}", total) as bar:
        for name, file in files.items():
            digest = hashlib.sha256()
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            with (source / name).open("rb") as reader, (target / name).open("wb") as writer:
                while block := reader.read(_COPY_BYTES):
                    writer.write(block)
                    digest.update(block)
                    bar.update(len(block) if file else 0)
            if file and digest.hexdigest() != file.sha256:
                raise UserError(f"{source / name}: {_CHANGED}")


def _load_vocabulary(path: epath.Path, stated: ShardManifest | ShardedManifest) -> Tokenizer:
    tokenizer = load_tokenizer(path)
    if tokenizer.vocab_hash != stated.vocab_hash:
        raise UserError(f"{path}: the vocabulary is not the one that the tokens were made with")
    return tokenizer


def _problem(read: Callable[..., Any], *arguments: Any) -> str:
    try:
        read(*arguments)
    except UserError as error:
        return str(error)
    return ""


def _check_all_there(path: epath.Path, stated: ShardedManifest) -> None:
    """Raises UserError if the folder of a shard is missing; its files are looked at when used."""
    shards = path / SHARDS
    there = {folder.name for folder in shards.iterdir()} if shards.exists() else set()
    for index in range(len(stated.shards)):
        if (folder := shard_folder(path, index)).name not in there:
            raise UserError(f"{folder}: is missing. {_REMEDY}")


def _totals_file(path: epath.Path, stated: ShardedManifest) -> epath.Path:
    return shard_folder(path, len(stated.shards) - 1) / TOTALS


def _totals(path: epath.Path, stated: ShardedManifest) -> dict[str, np.ndarray]:
    file = _totals_file(path, stated)
    if problem := stated.totals.size_problem(file):
        raise UserError(f"{file}: {problem}. {_REMEDY}")
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != stated.totals.sha256:
        raise UserError(f"{file}: {_CHANGED}. {_REMEDY}")
    counts = np.frombuffer(content, OFFSET).reshape(len(SPLITS), stated.vocab_size)
    return dict(zip(SPLITS, counts))


def _shard_manifest(
    path: epath.Path, stated: ShardManifest | ShardedManifest, index: int
) -> ShardManifest:
    if isinstance(stated, ShardManifest):
        return stated
    return read_shard_manifest(path, index, stated.shards[index])


def _arrays(path: epath.Path, index: int) -> epath.Path:
    """The folder of a shard's arrays."""
    return shard_folder(path, index) if index else path


def _stage(source: epath.Path, stated: ShardManifest) -> epath.Path:
    """The local copy of a remote shard, made by one process per host while others wait."""
    local = cache() / stated.identity
    local.parent.mkdir(parents=True, exist_ok=True)
    with locked(local.with_suffix(".lock"), str(local), wait=True):
        if not local.exists():
            needed = sum(file.bytes for file in stated.files.values())
            if (free := shutil.disk_usage(local.parent).free) < needed:
                raise UserError(
                    f"{local.parent}: {free:,} bytes free, {source} has {needed:,}; "
                    "set XDG_CACHE_HOME to a folder with more room"
                )
            with unfinished(pathlib.Path(local)) as directory:
                copy_files(source, epath.Path(directory), stated.files)
                directory.rename(local)
    return local


def _open_split(
    store: epath.Path, stated: ShardManifest | ShardedManifest, name: str, index: int
) -> Split:
    """Opens a split of a shard; see `open_token_store`."""
    shard, folder = _shard_manifest(store, stated, index), _arrays(store, index)
    local = _stage(folder, shard) if is_remote(store) else folder
    remedy = f"Delete {local}: it is copied again" if is_remote(store) else _REMEDY
    for file_name, file in shard.files.items():
        if problem := file.size_problem(local / file_name):
            raise UserError(f"{local / file_name}: {problem}. {remedy}")
    dtypes = dict.fromkeys(ARRAYS, OFFSET) | {"tokens": token_dtype(shard.vocab_size)}
    if shard.files.keys() >= CONTINUES_FILES:
        dtypes[CONTINUES] = np.dtype(np.uint8)
    arrays = {}
    for array, dtype in dtypes.items():
        path, file = local / name / f"{array}.bin", shard.files[f"{name}/{array}.bin"]
        # An empty file cannot be mapped.
        content = np.memmap(path, dtype, mode="r") if file.bytes else np.empty(0, dtype)
        if array != "tokens" and hashlib.sha256(content.data).hexdigest() != file.sha256:
            raise UserError(f"{path}: {_CHANGED}. {remedy}")
        arrays[array] = content
    tokens = shard.files[f"{name}/tokens.bin"]
    checksums = np.frombuffer(bytes.fromhex(tokens.block_crc32), ">u4")
    blocks = TokenBlocks(
        arrays["tokens"],
        checksums if len(checksums) else None,
        vocab_size=shard.vocab_size,
        where=f"{local / name}/tokens.bin",
        remedy=remedy,
    )
    split = Split(name, **arrays, blocks=blocks)
    if problem := split.wrong_offsets():
        raise UserError(f"{local / name}: {problem}. {remedy}")
    return split
