"""Token sequences of documents with a [CLS] before each sentence."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bert_jax.data.sentences import split_sentences
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.tasks.classification.example import Example
from bert_jax.tasks.extraction.selection import oracle
from bert_jax.tasks.features import Features

OUT, IN = range(2)  # classes of a sentence


@dataclass(frozen=True, kw_only=True)
class ExtractionFeatures(Features):
    """Documents, `[CLS] sentence [SEP]` for each sentence, as many as fit.

    Attributes:
      sentences: all sentences of each document.
      starts: n arrays, int32: where the [CLS] of each sentence is, of those that fit.
    """

    sentences: list[list[str]]
    starts: list[np.ndarray]


def make_features(
    examples: Sequence[Example], tokenizer: Tokenizer, max_seq_length: int, num_sentences: int
) -> ExtractionFeatures:
    """A sequence for each document.

    `labels` of the features has the class of a sentence at its [CLS], and -1 elsewhere: whether it
    is one of the `oracle`'s. `counts` has `examples`, `sentences`, `sentences_cut`, those that do
    not fit, and `empty_documents`, those without a sentence.

    Args:
      examples: documents, with summaries as labels.
      tokenizer: vocabulary of the model.
      max_seq_length: tokens to which documents are cut.
      num_sentences: most sentences that the oracle takes.

    Raises:
      UserError: `max_seq_length` leaves no room for a sentence.
    """
    if max_seq_length < 3:
        raise UserError(f"max_seq_length: {max_seq_length} leaves no room for a sentence")
    sentences = [split_sentences(example.text_a) for example in examples]
    encoded = iter(tokenizer.encode([*itertools.chain.from_iterable(sentences)]))
    input_ids: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    starts_of: list[np.ndarray] = []
    for example, some in zip(examples, sentences):
        pieces = [[tokenizer.cls_id, *next(encoded), tokenizer.sep_id] for _ in some]
        begins = np.cumsum([0, *map(len, pieces)])[:-1].astype(np.int32)
        ids = np.array([*itertools.chain.from_iterable(pieces)], np.int32)[:max_seq_length]
        if not some:
            ids = np.array([tokenizer.cls_id, tokenizer.sep_id], np.int32)
        ids[-1] = tokenizer.sep_id
        starts = begins[begins < max_seq_length - 2]  # a token and [SEP] follow
        classes = np.full(len(ids), -1, np.int32)
        if example.label is not None:
            classes[starts] = OUT
            chosen = oracle(some[: len(starts)], str(example.label), num_sentences)
            classes[starts[chosen]] = IN
        input_ids.append(ids)
        labels.append(classes)
        starts_of.append(starts)
    return ExtractionFeatures(
        input_ids=input_ids,
        b_start=np.array([len(ids) for ids in input_ids], np.int32),
        labels=labels,
        counts={
            "examples": len(examples),
            "sentences": sum(map(len, sentences)),
            "sentences_cut": sum(map(len, sentences)) - sum(map(len, starts_of)),
            "empty_documents": sentences.count([]),
        },
        sentences=sentences,
        starts=starts_of,
    )
