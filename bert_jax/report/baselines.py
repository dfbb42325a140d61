"""Scores of a model that has learned nothing of context, on the same held-out examples."""

from collections.abc import Iterable, Mapping

import numpy as np


def pretraining_baselines(
    batches: Iterable[Mapping[str, np.ndarray]], token_counts: np.ndarray
) -> dict[str, float]:
    """Scores of guesses that ignore the context.

    Args:
      batches: prepared (masked) held-out batches.
      token_counts: [vocab_size], occurrences of each token in the training documents.

    Returns:
      "mlm_loss": nats of the training documents' unigram distribution, with one added to every
      count, on the masked tokens; "mlm_accuracy": share of them that are the most frequent training
      token; "nsp_accuracy": share of the more frequent label, and "nsp_loss": entropy of the labels
      in nats. The former two only where tokens are masked, the latter two only where examples
      have labels.
    """
    smoothed = token_counts + 1.0
    nats = -np.log(smoothed / smoothed.sum())
    most_frequent = int(np.argmax(token_counts))
    loss = hits = count = 0.0
    labels = np.zeros(2)
    for batch in batches:
        masked = np.asarray(batch["masked_lm_ids"])[np.asarray(batch["masked_lm_weights"]) > 0]
        loss += nats[masked].sum()
        hits += (masked == most_frequent).sum()
        count += masked.size
        label = np.asarray(batch["next_sentence_label"])
        labels += np.bincount(label[label >= 0], minlength=2)
    line = {"mlm_loss": loss / count, "mlm_accuracy": hits / count} if count else {}
    if labels.sum():
        shares = labels / labels.sum()
        line["nsp_loss"] = float(-(shares * np.log(np.maximum(shares, 1e-12))).sum())
        line["nsp_accuracy"] = float(shares.max())
    return {name: float(value) for name, value in line.items()}
