"""Token sequences of the two texts of pairs."""

from collections.abc import Sequence

import numpy as np

from bert_jax.data.tokenizer import Tokenizer
from bert_jax.tasks.classification.example import Example
from bert_jax.tasks.features import Features, pair_ids


def make_features(
    examples: Sequence[Example], scores: np.ndarray, tokenizer: Tokenizer, max_seq_length: int
) -> Features:
    """Two token sequences for each pair, one after the other.

    `counts` has `examples`, the `truncated` texts, the `tokens_cut` from those, and `empty_texts`.

    Args:
      examples: pairs of texts.
      scores: fp32 [n] in [0, 1], NaN where there is none. If there is none at all, texts that are
        the same have the same key; otherwise each pair has its own.
      tokenizer: vocabulary of the model.
      max_seq_length: longer texts are cut.
    """
    texts = [text for example in examples for text in (example.text_a, example.text_b or "")]
    encoded = tokenizer.encode(texts)
    sequences = [pair_ids(tokenizer, ids, None, max_seq_length) for ids in encoded]
    pair = np.arange(len(examples))
    keys = passages(examples)[1] if np.isnan(scores).all() else pair
    labels = np.zeros((len(examples), 2, 3), np.float32)
    labels[:, 1, 0] = 1
    labels[:, :, 1] = keys[:, None]
    labels[:, :, 2] = scores[:, None]
    cut = [tokens_cut for _, _, tokens_cut in sequences]
    return Features(
        input_ids=[ids for ids, _, _ in sequences],
        b_start=np.array([b_start for _, b_start, _ in sequences], np.int32),
        labels=labels.reshape(-1, 3),
        group=np.repeat(pair, 2).astype(np.int32),
        counts={
            "examples": len(examples),
            "truncated": sum(n > 0 for n in cut),
            "tokens_cut": sum(cut),
            "empty_texts": encoded.count([]),
        },
    )


def passages(examples: Sequence[Example]) -> tuple[np.ndarray, np.ndarray]:
    """The distinct second texts: for each one a pair that has it, and for each pair its number."""
    numbers: dict[str, int] = {}
    of_pair = [numbers.setdefault(example.text_b or "", len(numbers)) for example in examples]
    _, first = np.unique(of_pair, return_index=True)
    return first, np.array(of_pair)
