"""One split of a token store."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Split:
    """One split of a store, memory-mapped.

    Attributes:
      name: 'train' or 'heldout'.
      tokens: uint16 or uint32 [num_tokens], concatenated sentences without special tokens.
      sentences: int64 [num_sentences + 1], token offset of each sentence and the end.
      documents: int64 [num_documents + 1], sentence offset of each document and the end.
      token_counts: int64 [vocab_size], how often each id occurs in `tokens`.
    """

    name: str
    tokens: np.ndarray
    sentences: np.ndarray
    documents: np.ndarray
    token_counts: np.ndarray
