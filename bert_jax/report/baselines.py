"""Scores of a model that has learned nothing of context, on the same held-out examples."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

import numpy as np

Batch = Mapping[str, np.ndarray]


def masked_words(batch: Batch) -> dict[str, np.ndarray]:
    """The weights of masked tokens."""
    return {"mlm": np.asarray(batch["masked_lm_weights"])}


def pretraining_baselines(
    batches: Iterable[Batch],
    token_counts: np.ndarray,
    words: Callable[[Batch], dict[str, np.ndarray]] = masked_words,
) -> dict[str, float]:
    """Scores of guesses that ignore the context.

    Args:
      batches: prepared (masked) held-out batches.
      token_counts: [vocab_size], occurrences of each token in the training documents.
      words: batch -> per head that predicts words, the weights of its `masked_lm_ids`.

    Returns:
      Per head that predicts words, as "mlm_loss": nats of the training documents' unigram
      distribution, with one added to every count, on the predicted tokens; "mlm_accuracy": share of
      them that are the most frequent training token. "nsp_accuracy": share of the more frequent
      label, and "nsp_loss": entropy of the labels in nats. The former only where there are
      predictions, the latter only where examples have labels.
    """
    smoothed = token_counts + 1.0
    nats = -np.log(smoothed / smoothed.sum())
    most_frequent = int(np.argmax(token_counts))
    totals: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(3))  # loss, hits, count
    labels = np.zeros(2)
    for batch in batches:
        for head, weights in words(batch).items():
            ids = np.asarray(batch["masked_lm_ids"])[weights > 0]
            totals[head] += nats[ids].sum(), (ids == most_frequent).sum(), ids.size
        label = np.asarray(batch["next_sentence_label"])
        labels += np.bincount(label[label >= 0], minlength=2)
    line: dict[str, float] = {}
    for head, (loss, hits, count) in totals.items():
        line |= {f"{head}_loss": loss / count, f"{head}_accuracy": hits / count} if count else {}
    if labels.sum():
        shares = labels / labels.sum()
        line["nsp_loss"] = float(-(shares * np.log(np.maximum(shares, 1e-12))).sum())
        line["nsp_accuracy"] = float(shares.max())
    return {name: float(value) for name, value in line.items()}
