"""Documents as ids: sentences, tokens and words."""

import itertools
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bert_jax.data.heldout_documents import document_hash, tail_start
from bert_jax.data.line_breaks import LineBreaks
from bert_jax.data.manifest import SPLITS, token_dtype
from bert_jax.data.sentences import split_sentences
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.data.words import continues, load_segmenter

_MAX_WORD = 100  # characters; longer words are [UNK] in every BERT


class EncodedSplit:
    """Documents of a split, in order, as ids."""

    def __init__(self, dtype: np.dtype) -> None:
        self.tokens = [np.empty(0, dtype)]  # of each sentence
        self.sentence_lengths: list[int] = []  # in tokens
        self.document_lengths: list[int] = []  # in sentences
        self.characters: Counter[str] = Counter()  # the counts of a manifest that end so
        self.continues = [np.empty(0, bool)]  # of each sentence, if the store says it


class EncodedChunk(NamedTuple):
    """Some documents of a corpus, in order, as ids.

    Attributes:
      splits: documents with tokens, by split.
      num_empty: documents without.
      line_breaks: what their line breaks are like.
    """

    splits: dict[str, EncodedSplit]
    num_empty: int
    line_breaks: LineBreaks

    @property
    def tokens(self) -> int:
        """Tokens of both splits."""
        return sum(map(len, itertools.chain(*(split.tokens for split in self.splits.values()))))

    @property
    def has_documents(self) -> bool:
        """Whether any has tokens."""
        return any(split.document_lengths for split in self.splits.values())


@dataclass(frozen=True)
class Encoder:
    """Splits documents into sentences and tokenises them.

    Attributes:
      tokenizer, heldout_bound, heldout_tail, segmenter: see `write_store`.
    """

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
        return token_dtype(len(self.tokenizer.vocab))

    def __call__(self, texts: list[str]) -> EncodedChunk:
        splits = {split: EncodedSplit(self.dtype) for split in SPLITS}
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
        return EncodedChunk(splits, num_empty, line_breaks)

    def _split(self, text: str) -> str:
        return "heldout" if document_hash(text) < self.heldout_bound else "train"

    def _encode(self, split: EncodedSplit, sentences: list[str]) -> bool:
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
