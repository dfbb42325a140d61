"""Overlapping windows over a text that is too long for one sequence."""

import numpy as np


def make_windows(length: int, size: int, stride: int) -> list[tuple[int, int]]:
    """(start, end) of the windows of at most `size` tokens that cover `length` tokens.

    Each begins `stride` tokens (at most `size`) after the one before it; a short text has one.
    """
    stride = min(stride, size)
    starts = range(0, max(1, length - size + stride), stride)
    return [(start, min(start + size, length)) for start in starts]


def widest_context(windows: list[tuple[int, int]]) -> np.ndarray:
    """int32 [length]: the window in which each token has the most context on its shorter side.

    As in BERT (Devlin et al. 2019) on SQuAD, a hundredth of the window's length is added, and the
    first window wins a tie.
    """
    starts, ends = np.array(windows, np.int32).T[..., None]
    positions = np.arange(ends[-1, 0])
    context = np.minimum(positions - starts, ends - 1 - positions)
    score = np.where(context < 0, -1, context + 0.01 * (ends - starts))
    best: np.ndarray = np.argmax(score, axis=0).astype(np.int32)
    return best
