"""A confusion matrix as a picture."""

from collections.abc import Sequence

import numpy as np
from etils import epath
from matplotlib.figure import Figure

from bert_jax.report.figures import label, save

MAX_NUMBERED = 20  # classes whose counts are readable


def draw_confusion(matrix: np.ndarray, labels: Sequence[str], output: epath.PathLike) -> None:
    """Draws what examples of each class are predicted as, in shares of the class, with counts.

    Args:
      matrix: [classes, classes] counts; rows are the true classes.
      labels: names of the classes.
      output: path of the PNG.
    """
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    names = [label(name) for name in labels]
    # Inches of the matrix, and of the longest name beside it.
    size = 1.5 + 0.45 * min(len(names), 2 * MAX_NUMBERED) + 0.08 * max(map(len, names))
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axis, label="share of the class")
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set_xlabel("predicted")
    axis.set_ylabel("class")
    if len(names) <= MAX_NUMBERED:
        for (row, column), count in np.ndenumerate(matrix):
            color = "white" if shares[row, column] > 0.5 else "black"
            axis.text(column, row, f"{count:,}", ha="center", va="center", color=color, fontsize=8)
    save(figure, output, dpi=110)
