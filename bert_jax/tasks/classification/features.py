"""Token sequences of texts and pairs of texts."""

from collections.abc import Sequence

import numpy as np

from bert_jax.data.tokenizer import Tokenizer
from bert_jax.tasks.classification.example import Example
from bert_jax.tasks.classification.labels import is_known
from bert_jax.tasks.features import Features, pair_ids


def make_features(
    examples: Sequence[Example], labels: np.ndarray, tokenizer: Tokenizer, max_seq_length: int
) -> Features:
    """A token sequence for each example.

    A text without tokens is kept, as `[CLS] [SEP]`. `counts` has `examples`, `unlabelled` ones,
    `truncated` ones, the `tokens_cut` from those, and `empty_texts`.

    Args:
      examples: single texts, or pairs.
      labels: int32 or float32 [n]: their classes or scores.
      tokenizer: vocabulary of the model.
      max_seq_length: longer sequences are cut.
    """
    a_ids = tokenizer.encode([example.text_a for example in examples])
    seconds = iter(tokenizer.encode([e.text_b for e in examples if e.text_b is not None]))
    b_ids = [None if example.text_b is None else next(seconds) for example in examples]
    sequences = [
        pair_ids(tokenizer, a, b, max_seq_length) for a, b in zip(a_ids, b_ids, strict=True)
    ]
    cut = [tokens_cut for _, _, tokens_cut in sequences]
    return Features(
        input_ids=[ids for ids, _, _ in sequences],
        b_start=np.array([b_start for _, b_start, _ in sequences], np.int32),
        labels=labels,
        counts={
            "examples": len(examples),
            "unlabelled": int(np.sum(~is_known(labels))),
            "truncated": sum(n > 0 for n in cut),
            "tokens_cut": sum(cut),
            "empty_texts": a_ids.count([]) + b_ids.count([]),
        },
    )
