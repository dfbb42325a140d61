"""Curves of one or more runs as a picture."""

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Line = Mapping[str, Any]

PANELS = (  # metric, title, scale of the values
    ("mlm_loss", "Masked LM loss (nats)", 1),
    ("mlm_accuracy", "Masked LM accuracy (%)", 100),
    ("nsp_loss", "Sentence pair loss (nats)", 1),
    ("nsp_accuracy", "Sentence pair accuracy (%)", 100),
)


def draw_curves(runs: Mapping[str, Sequence[Line]], output: epath.PathLike) -> None:
    """Draws losses and accuracies over steps, with the baselines as dashed lines.

    Args:
      runs: name of a run -> its lines of metrics; the baselines are those of the first.
      output: path of the PNG.
    """
    first = next(iter(runs.values()))
    panels = _panels(first)
    rows = -(-len(panels) // 2)
    # Without pyplot, whose state threads share: this draws in any thread, without a screen.
    figure = Figure(figsize=(11, 3.6 * rows), layout="tight")
    axes = figure.subplots(rows, 2, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for (metric, title, scale), axis in zip(panels, axes.flat):
        for color, (name, lines) in enumerate(runs.items()):
            _draw_run(axis, lines, metric, scale, f"C{color}", name if len(runs) > 1 else "")
        # Every phase of a run has a baseline, which holds until the next one.
        baselines = [line for line in first if line["split"] == "baseline" and metric in line]
        last = max(line["step"] for lines in runs.values() for line in lines)
        for line, end in zip(baselines, [*(x["step"] for x in baselines[1:]), last]):
            value = line[metric] * scale
            axis.hlines(value, line["step"], end, color="gray", linestyle="--", linewidth=1)
            axis.annotate(
                _BASELINE_NAMES.get(metric, "baseline"),
                (end, value),
                ha="right",
                va="bottom",
                fontsize=8,
                color="gray",
            )
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step")
        axis.grid(alpha=0.25)
        axis.margins(x=0.01, y=0.08)
    axes.flat[0].legend(fontsize=8)
    with epath.Path(output).open("wb") as file:
        figure.savefig(file, format="png", dpi=110)


def _panels(lines: Sequence[Line]) -> list[tuple[str, str, int]]:
    """The panels of pretraining, or one for each metric of a task."""
    known = [p for p in PANELS if any(p[0] in line for line in lines)]
    if known:
        return known
    heldout = [line for line in lines if line["split"] == "heldout"] or lines
    names = dict.fromkeys(name for line in heldout for name in line)
    return [(name, name, 1) for name in names if name not in ("step", "split")]


_BASELINE_NAMES = {
    "mlm_loss": "unigram distribution",
    "mlm_accuracy": "most frequent token",
    "nsp_loss": "label frequencies",
    "nsp_accuracy": "most frequent label",
}


def _draw_run(
    axis: Axes, lines: Sequence[Line], metric: str, scale: float, color: str, name: str
) -> None:
    style: dict[str, Any]
    for split, style in (
        ("train", {"alpha": 0.45, "linewidth": 1}),
        ("heldout", {"marker": "o", "markersize": 3.5, "linewidth": 1.6}),
    ):
        points = [
            (x["step"], x[metric] * scale) for x in lines if x["split"] == split and metric in x
        ]
        if points:
            label = f"{name} {split.replace('heldout', 'held-out')}".strip()
            axis.plot(*zip(*points), color=color, label=label, **style)
