"""Scores of a pruned model as a picture."""

from collections.abc import Mapping

from etils import epath
from matplotlib.figure import Figure

from bert_jax.report.figures import save
from bert_jax.report.units import is_share, titled


def draw_pruning(
    curves: Mapping[str, Mapping[float, float]], metric: str, output: epath.PathLike
) -> None:
    """Draws the score against the share of heads and of layers that are pruned.

    Args:
      curves: name of what is pruned -> share of it -> score.
      metric: name of the score.
      output: path of the PNG.
    """
    scale = 100 if is_share(metric) else 1
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    for name, points in curves.items():
        shares = [100 * share for share in points]
        axis.plot(shares, [scale * score for score in points.values()], "o-", label=name)
    axis.set_xlabel("pruned, %")
    axis.set_ylabel(titled(metric, is_regression=False))
    axis.grid(alpha=0.25)
    axis.legend()
    save(figure, output, dpi=110)
