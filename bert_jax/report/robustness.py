"""Drops of a metric under perturbations, and failures of a checklist, as tables and a picture.

All take the plain values that `bert_jax.evaluation` gives, as they are in the files of results.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath
from matplotlib.figure import Figure

from bert_jax.report.figures import label, save
from bert_jax.report.units import is_share, shown
from bert_jax.terminal import printable

Values = Mapping[str, Any]
_NAME = 36  # columns of a table for a name
_SHOWN = 3  # failures of each test


def drops_table(result: Values) -> Iterator[str]:
    """The lines of a table, none of more than 80 columns."""
    metric, level = result["metric"], result["level"]
    yield f"{'':<16}{metric:>10}{'drop':>9}{f'{level} % interval':>20}{'changed':>9}{'kept':>7}"
    yield f"{'as they are':<16}{shown(metric, result['score']):>10}"
    for name, found in result["by_perturbation"].items():
        interval = f"{_points(metric, found['low'])} to {_points(metric, found['high'])}"
        yield (
            f"{name:<16}{shown(metric, found['score']):>10}{_points(metric, found['drop']):>9}"
            f"{interval:>20}{found['changed']:>9,}{found['kept']:>7,}"
        )
    yield f"{result['examples']:,} examples, seed {result['seed']}"


def _points(metric: str, value: float) -> str:
    """A difference of metrics, of shares in points of percent."""
    return f"{100 * value:.1f}" if is_share(metric) else f"{value:.3f}"


def draw_drops(result: Values, output: epath.PathLike, *, title: str) -> None:
    """Draws by how much each perturbation lowers the metric, with its interval.

    Args:
      result: as from `Robustness.to_dict`.
      output: path of the PNG.
      title: what was scored.
    """
    drops, metric = result["by_perturbation"], result["metric"]
    scale = 100 if is_share(metric) else 1
    figure = Figure(figsize=(6.4, 1.5 + 0.36 * len(drops)), layout="constrained")
    axis = figure.subplots()
    for y, found in enumerate(drops.values()):
        axis.barh(y, scale * found["drop"], height=0.62, color="#4477aa")
        bounds = [scale * found["low"], scale * found["high"]]
        axis.plot(bounds, [y, y], color="#222222", linewidth=1.2, marker="|", markersize=7)
    axis.set_yticks(range(len(drops)), [label(name) for name in drops])
    axis.set_ylim(len(drops) - 0.5, -0.5)
    axis.axvline(0, color="#222222", linewidth=0.8)
    axis.xaxis.grid(alpha=0.25)
    axis.set_axisbelow(True)
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)
    unit = " (points)" if is_share(metric) else ""
    axis.set_xlabel(f"drop of {metric}{unit}, with {result['level']} % intervals")
    was = f"{shown(metric, result['score'])} on {result['examples']:,} examples as they are"
    axis.set_title(f"{label(title, 60)}: {was}", fontsize=10)
    save(figure, output, dpi=110)


def checklist_table(result: Values) -> Iterator[str]:
    """The lines of a table of a checklist, then some failures of each test."""
    yield f"{'':<{_NAME}}{'type':>6}{'cases':>8}{'failed':>8}{'rate':>8}"
    for name, found in result["tests"].items():
        yield (
            f"{_cut(printable(name), _NAME - 2):<{_NAME}}{found['type']:>6}{found['cases']:>8,}"
            f"{found['failed']:>8,}{found['failed'] / found['cases']:>8.1%}"
        )
    for name, found in result["tests"].items():
        if found["failures"]:
            yield ""
            yield f"{printable(name)}:"
        for failure in found["failures"][:_SHOWN]:
            yield f"  {_cut(printable(failure['text']), 100)}"
            yield f"    {printable(failure['why'])}"


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
