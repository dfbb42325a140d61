"""A reliability diagram: accuracy against confidence."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from etils import epath
from matplotlib.figure import Figure

from bert_jax.report.figures import save


class Calibration(Protocol):
    """Calibration of predictions, as `bert_jax.tasks.classification.calibration` finds it."""

    @property
    def ece(self) -> float: ...
    @property
    def sizes(self) -> np.ndarray: ...
    @property
    def confidence(self) -> np.ndarray: ...
    @property
    def accuracy(self) -> np.ndarray: ...


def draw_reliability(found: Mapping[str, Calibration], output: epath.PathLike) -> None:
    """Draws the accuracy of the examples in each bin of confidence, and how many there are.

    Args:
      found: name -> calibration, such as before and after a temperature.
      output: path of the PNG.
    """
    figure = Figure(figsize=(4.2, 5.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], "--", color="gray", linewidth=1, label="as often as it says")
    for name, each in found.items():
        known, edges = each.sizes > 0, np.linspace(0, 1, len(each.sizes) + 1)
        title = f"{name}, ECE {each.ece:.1%}"
        (line,) = upper.plot(each.confidence[known], each.accuracy[known], "o-", label=title)
        lower.stairs(each.sizes / each.sizes.sum(), edges, color=line.get_color())
    upper.set_ylabel("accuracy")
    upper.set_ylim(0, 1)
    upper.legend(fontsize=8)
    lower.set_xlabel("confidence")
    lower.set_ylabel("share of examples")
    lower.set_xlim(0, 1)
    save(figure, output, dpi=110)
