"""Token sequences of sources and of their targets."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bert_jax.data.tokenizer import Tokenizer
from bert_jax.tasks.classification.example import Example
from bert_jax.tasks.features import Features, pair_ids

LENGTH_MULTIPLE = 32  # lengths of targets are padded to multiples of it


@dataclass(frozen=True, kw_only=True)
class GenerationFeatures(Features):
    """Sources, `[CLS] source [SEP]`.

    Attributes:
      labels: int32 [n, length + 1]: `[CLS] target [SEP]`, then -1; only -1 if it is not known.
      tokenizer: what turns the tokens of a written text into text.
    """

    tokenizer: Tokenizer


def make_features(
    examples: Sequence[Example], tokenizer: Tokenizer, max_seq_length: int, max_target_length: int
) -> GenerationFeatures:
    """A sequence and a target for each example.

    `counts` has `examples`, the `sources_cut` and `targets_cut`, and `empty_sources`.

    Args:
      examples: sources, with targets as labels.
      tokenizer: vocabulary of the model.
      max_seq_length: tokens to which sources are cut, [CLS] and [SEP] included.
      max_target_length: tokens to which targets are cut, [SEP] included.

    Raises:
      UserError: `max_seq_length` leaves no room for a source.
    """
    encoded = tokenizer.encode([example.text_a for example in examples])
    sequences = [pair_ids(tokenizer, ids, None, max_seq_length) for ids in encoded]
    targets = tokenizer.encode([str(example.label or "") for example in examples])
    kept = [ids[: max_target_length - 1] for ids in targets]
    known = [example.label is not None for example in examples]
    longest = max(len(ids) + 1 for ids in kept)
    padded = -(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    labels = np.full((len(examples), min(padded, max_target_length) + 1), -1, np.int32)
    for row, ids, is_known in zip(labels, kept, known):
        if is_known:
            row[: len(ids) + 2] = [tokenizer.cls_id, *ids, tokenizer.sep_id]
    return GenerationFeatures(
        input_ids=[ids for ids, _, _ in sequences],
        b_start=np.array([b_start for _, b_start, _ in sequences], np.int32),
        labels=labels,
        counts={
            "examples": len(examples),
            "sources_cut": sum(cut > 0 for _, _, cut in sequences),
            "targets_cut": sum(len(ids) > len(some) for ids, some in zip(targets, kept)),
            "empty_sources": encoded.count([]),
        },
        tokenizer=tokenizer,
    )


def text_of(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """The text that a model wrote, from its tokens, in one line."""
    ids = list(ids)
    if tokenizer.sep_id in ids:
        ids = ids[: ids.index(tokenizer.sep_id)]
    special = {tokenizer.pad_id, tokenizer.cls_id, tokenizer.mask_id}
    return " ".join(tokenizer.decode([each for each in ids if each not in special]).split())
