"""Ranks of the right texts in a retrieval, and their metrics."""

from collections.abc import Mapping

import numpy as np

QUERIES = 1024  # compared with all texts at once


def ranks(queries: np.ndarray, texts: np.ndarray, right: np.ndarray) -> np.ndarray:
    """int32 [n]: the rank of the right text of each query by cosine, 1 for the most similar.

    Of texts that are equally similar, the right one is the last.

    Args:
      queries: fp32 [n, features], vectors of length 1.
      texts: fp32 [m, features], the same for the texts to find.
      right: [n], the number of the text that belongs to each query.
    """
    found = np.empty(len(queries), np.int32)
    for first in range(0, len(queries), QUERIES):
        some = slice(first, first + QUERIES)
        cosines = queries[some] @ texts.T
        own = np.take_along_axis(cosines, right[some, None], axis=1)
        found[some] = np.sum(cosines >= own, axis=1)
    return found


def retrieval_metrics(found: np.ndarray) -> dict[str, float]:
    """`mrr@10`, `recall@1` and `recall@10` of ranks [n]."""
    reciprocal = np.where(found <= 10, 1 / np.maximum(found, 1), 0)
    return {
        "mrr@10": float(reciprocal.mean()),
        "recall@1": float((found <= 1).mean()),
        "recall@10": float((found <= 10).mean()),
    }


def of_random_order(count: int) -> Mapping[str, float]:
    """What `retrieval_metrics` are on average, if `count` texts are in random order."""
    best = np.arange(1, min(count, 10) + 1)
    return {
        "mrr@10": float(np.sum(1 / best) / count),
        "recall@1": 1 / count,
        "recall@10": len(best) / count,
    }
