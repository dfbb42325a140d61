"""The splits of token stores and of their shards, and checks that make them safe to read."""

import functools
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from bert_jax.errors import UserError

BLOCK_BYTES = 2**18
SHARDS_AT_ONCE = 4  # shards of a store that are open together
_OFFSETS_AT_ONCE = 2**20


class TokenBlocks:
    """Checks the tokens of a file block by block, each before its first use. Thread-safe.

    Reading all tokens of a large store would delay every start. A block takes 0.1 ms.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        checksums: np.ndarray | None,
        *,
        vocab_size: int,
        where: str,
        remedy: str,
    ):
        """Reads nothing.

        Args:
          tokens: content of the file.
          checksums: CRC-32 of each `BLOCK_BYTES` of the file; None: only ids are checked.
          vocab_size: ids must be below it.
          where: the file, for errors.
          remedy: what to do, for errors.
        """
        self._tokens, self._checksums, self._vocab_size = tokens, checksums, vocab_size
        self._where, self._remedy = where, remedy
        self._block = BLOCK_BYTES // tokens.itemsize
        self._is_whole = np.zeros(-(-len(tokens) // self._block), bool)

    def check(self, starts: np.ndarray, lengths: np.ndarray) -> None:
        """Checks the blocks of `tokens[start : start + length]` that were not checked before.

        Raises:
          UserError: a block is not what was written, or has an id outside the vocabulary.
        """
        starts, lengths = starts[lengths > 0], lengths[lengths > 0]
        first, last = starts // self._block, (starts + lengths - 1) // self._block
        is_new = ~(self._is_whole[first] & self._is_whole[last]) | (last > first + 1)
        blocks = {
            block
            for a, b in zip(first[is_new].tolist(), last[is_new].tolist())
            for block in range(a, b + 1)
        }
        for block in sorted(blocks):
            if not self._is_whole[block]:
                self._check(block)
                self._is_whole[block] = True

    def _check(self, block: int) -> None:
        tokens = self._tokens[block * self._block : (block + 1) * self._block]
        where = f"{self._where}: bytes from {block * BLOCK_BYTES:,}"
        if self._checksums is not None and zlib.crc32(tokens.data) != self._checksums[block]:
            raise UserError(f"{where} changed since they were written. {self._remedy}")
        if (largest := int(tokens.max())) >= self._vocab_size:
            raise UserError(
                f"{where} have id {largest:,}, but the vocabulary {self._vocab_size:,} tokens. "
                f"{self._remedy}"
            )


@dataclass(frozen=True)
class Split:
    """One split of a store, memory-mapped.

    Attributes:
      name: 'train' or 'heldout'.
      tokens: uint16 or uint32 [num_tokens], concatenated sentences without special tokens.
      sentences: int64 [num_sentences + 1], token offset of each sentence and the end.
      documents: int64 [num_documents + 1], sentence offset of each document and the end.
      token_counts: int64 [vocab_size], how often each id occurs in `tokens`.
      blocks: to be asked before tokens are used; None: they need no check.
      continues: uint8 [ceil(num_tokens / 8)], bit i % 8 of byte i // 8: whether token i continues a
        word; None: the vocabulary says it.
    """

    name: str
    tokens: np.ndarray
    sentences: np.ndarray
    documents: np.ndarray
    token_counts: np.ndarray
    blocks: TokenBlocks | None = None
    continues: np.ndarray | None = None

    def num_words(self, is_continuation: np.ndarray) -> int:
        """Words in `tokens`, given which tokens of the vocabulary continue one."""
        if self.continues is None:
            return int(self.token_counts[~is_continuation].sum())
        return len(self.tokens) - int(np.bitwise_count(self.continues).sum())

    def wrong_offsets(self) -> str:
        """What makes it unsafe to follow the offsets, and in which array; empty if nothing."""
        for name, offsets, end in (
            ("sentences", self.sentences, len(self.tokens)),
            ("documents", self.documents, len(self.sentences) - 1),
        ):
            if (
                not len(offsets)
                or offsets[0] != 0
                or offsets[-1] != end
                or not _is_ascending(offsets)
            ):
                return f"{name}: offsets must ascend from 0 to {end:,}"
        if self.token_counts.min(initial=0) < 0 or self.token_counts.sum() != len(self.tokens):
            return f"token_counts: must add up to {len(self.tokens):,}"
        return ""


class Size(Protocol):
    """How large a split is."""

    @property
    def documents(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def single_sentence_documents(self) -> int | None: ...


class Shards:
    """The same split of all shards of a store, each opened and checked when it is used.

    Thread-safe.

    Attributes:
      name: 'train' or 'heldout'.
      sizes: of each shard, what the store says of it.
    """

    def __init__(self, name: str, sizes: Sequence[Size], open_shard: Callable[[int], Split]):
        """Opens nothing.

        Args:
          name: 'train' or 'heldout'.
          sizes: of each shard.
          open_shard: opens a shard, by its index; its errors are those of `[]`.
        """
        self.name, self.sizes = name, sizes
        self._open = functools.lru_cache(SHARDS_AT_ONCE)(open_shard)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Split:
        return self._open(index)

    def __iter__(self) -> Iterator[Split]:
        return map(self._open, range(len(self)))


@dataclass(frozen=True)
class _Size:
    documents: int
    tokens: int
    single_sentence_documents: int | None = None


def one_shard(split: Split) -> Shards:
    """A split as that of a store of one shard."""
    return Shards(split.name, [_Size(len(split.documents) - 1, len(split.tokens))], lambda _: split)


def _is_ascending(offsets: np.ndarray) -> bool:
    return all(
        bool((part[:-1] <= part[1:]).all())
        for start in range(0, len(offsets), _OFFSETS_AT_ONCE)
        for part in [offsets[start : start + _OFFSETS_AT_ONCE + 1]]
    )
