"""Results of a sweep as a table and as a picture."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from etils import epath
from matplotlib.figure import Figure

from bert_jax.report.figures import label, save
from bert_jax.report.units import is_share, shown, titled


class Group(NamedTuple):
    """The runs of a combination.

    Attributes:
      fields: field -> value.
      values: the metric of each seed.
    """

    fields: Mapping[str, str]
    values: Sequence[float]

    @property
    def name(self) -> str:
        """The fields without their groups, as text."""
        pairs = (f"{name.rpartition('.')[2]}={value}" for name, value in self.fields.items())
        return " ".join(pairs) or "all runs"

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.values)


def table(groups: Sequence[Group], metric: str) -> Iterator[str]:
    """Lines with the mean of each combination, the best first."""
    best_first = sorted(groups, key=lambda group: group.mean, reverse=not metric.endswith("loss"))
    width = max(len(group.name) for group in groups)
    yield f"{'':<{width}}  {metric + ', mean':>15}{'std':>9}{'runs':>6}"
    for group in best_first:
        spread = statistics.stdev(group.values) if len(group.values) > 1 else None
        std = "" if spread is None else shown(metric, spread)
        mean = shown(metric, group.mean)
        yield f"{group.name:<{width}}  {mean:>15}{std:>9}{len(group.values):>6}"


def draw_sweep(groups: Sequence[Group], metric: str, output: epath.PathLike) -> None:
    """Draws the values of every combination as points, with their mean as a line.

    Args:
      groups: combinations, at least one, in the order of the grid.
      metric: name of the metric.
      output: path of the PNG.
    """
    scale = 100 if is_share(metric) else 1
    height = 1.2 + 0.32 * len(groups)
    figure = Figure(figsize=(8, height), layout="constrained")
    axis = figure.subplots()
    for row, group in enumerate(groups):
        axis.plot([x * scale for x in group.values], [row] * len(group.values), "o", color="C0")
        axis.plot([group.mean * scale] * 2, [row - 0.3, row + 0.3], color="C1", linewidth=2)
    axis.set_yticks(range(len(groups)), [label(group.name, 60) for group in groups], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel(titled(metric, is_regression=False))
    axis.set_title("points: seeds; lines: means", fontsize=9)
    axis.grid(axis="x", alpha=0.25)
    save(figure, output, dpi=110)
