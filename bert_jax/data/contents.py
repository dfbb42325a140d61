"""What a store holds, in numbers: lengths, pieces, copies of documents."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numba import njit

from bert_jax.data.split import Split

LONGEST = 2**20  # tokens; what is longer counts as that long
_VARIED = 200  # ratio of lengths
_AT_ONCE = 2**22  # offsets that are in memory together


@dataclass(frozen=True, eq=False)
class Lengths:
    """How often each length occurs.

    Attributes:
      counts: int64 [longest + 1], by length in tokens.
    """

    counts: np.ndarray

    def __bool__(self) -> bool:
        return bool(self.counts.any())

    @property
    def mean(self) -> float:
        return float(self.counts @ np.arange(len(self.counts)) / max(1, self.counts.sum()))

    def quantile(self, share: float) -> int:
        """The least length that at least this share of all does not exceed."""
        return int(np.searchsorted(np.cumsum(self.counts), share * self.counts.sum()))

    def bins(self) -> tuple[np.ndarray, np.ndarray]:
        """Edges of at most 36 bins, and the share of all lengths in each.

        The last edge is not in its bin. Bins are of equal width or, if lengths differ much, of
        equal ratio. The shortest and the longest half a percent are in none.
        """
        low, high = max(1, self.quantile(0.005)), self.quantile(0.995) + 1
        if self.are_varied:
            edges = np.unique(np.rint(np.geomspace(low, high, 37)).astype(np.int64))
        else:
            width = max(1, -(-(high - low) // 36))
            edges = np.arange(low, max(low + 1, high) + width, width)
        sums = np.append(0, np.cumsum(self.counts))
        return edges, np.diff(sums[np.minimum(edges, len(self.counts))]) / max(1, sums[-1])

    @property
    def are_varied(self) -> bool:
        """Whether the longest are so much longer than the shortest that bins grow."""
        return self.quantile(0.995) + 1 > _VARIED * max(1, self.quantile(0.005))


@dataclass(frozen=True, eq=False)
class Documents:
    """The documents of a store, of both splits.

    Attributes:
      sentence_lengths: tokens of its sentences.
      document_lengths: tokens of its documents.
      duplicates: share of the documents that are the same tokens as an earlier one.
    """

    sentence_lengths: Lengths
    document_lengths: Lengths
    duplicates: float


def read_documents_of(splits: Iterator[Split]) -> Documents:
    """Reads all of some splits, after their checksums.

    Takes 8 bytes of memory for each document.

    Raises:
      UserError: tokens are damaged.
    """
    sentences, documents = np.zeros(LONGEST + 1, np.int64), np.zeros(LONGEST + 1, np.int64)
    hashes = [np.empty(0, np.uint64)]
    for split in splits:
        for lengths in _differences(split.sentences):
            sentences += np.bincount(np.minimum(lengths, LONGEST), minlength=LONGEST + 1)
        starts = split.sentences[split.documents]
        documents += np.bincount(np.minimum(np.diff(starts), LONGEST), minlength=LONGEST + 1)
        if split.blocks is not None:
            split.blocks.check(np.zeros(1, np.int64), np.array([len(split.tokens)]))
        hashes.append(_hashes(np.asarray(split.tokens), starts))
    every = np.concatenate(hashes)
    duplicates = 1 - len(np.unique(every)) / max(1, len(every))
    return Documents(Lengths(sentences), Lengths(documents), duplicates)


def _differences(offsets: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(offsets) - 1, _AT_ONCE):
        yield np.diff(offsets[start : start + _AT_ONCE + 1])


@njit(nogil=True, cache=True)
def _hashes(tokens: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """uint64 [documents]: a hash (FNV-1a, mixed) of the tokens of each document."""
    hashes = np.empty(len(starts) - 1, np.uint64)
    for document in range(len(hashes)):
        value = np.uint64(0xCBF29CE484222325)
        for i in range(starts[document], starts[document + 1]):
            value = (value ^ np.uint64(tokens[i])) * np.uint64(0x100000001B3)
            value ^= value >> np.uint64(29)
        hashes[document] = value
    return hashes
