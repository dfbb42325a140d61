"""Curves of one or more runs as a picture."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from bert_jax.errors import UserError
from bert_jax.report.figures import label, save
from bert_jax.report.units import is_share, titled

Line = Mapping[str, Any]
Axis = Literal["steps", "tokens"]

PRETRAINING = {  # metric -> title
    "mlm_loss": "Masked LM loss (nats)",
    "mlm_accuracy": "Masked LM accuracy (%)",
    "mntp_loss": "Masked next-token loss (nats)",
    "mntp_accuracy": "Masked next-token accuracy (%)",
    "clm_loss": "Causal LM loss (nats)",
    "clm_accuracy": "Causal LM accuracy (%)",
    "rtd_loss": "Replaced-token loss (nats)",
    "rtd_accuracy": "Replaced-token accuracy (%)",
    "rtd_precision": "Replaced-token precision (%)",
    "rtd_recall": "Replaced-token recall (%)",
    "logits_loss": "Teacher's words loss (nats)",
    "hidden_loss": "Distance of states from the teacher's",
    "relations_loss": "Teacher's relations loss (nats)",
    "vectors_loss": "Distance of vectors from the teacher's (1 - cosine)",
    "nsp_loss": "Sentence pair loss (nats)",
    "nsp_accuracy": "Sentence pair accuracy (%)",
}
BASELINES = {
    **dict.fromkeys(("mlm_loss", "mntp_loss", "clm_loss"), "unigram distribution"),
    **dict.fromkeys(("mlm_accuracy", "mntp_accuracy", "clm_accuracy"), "most frequent token"),
    "nsp_loss": "label frequencies",
    "nsp_accuracy": "most frequent label",
}
STYLES: Mapping[str, Mapping[str, Any]] = {
    "train": {"alpha": 0.45, "linewidth": 1},
    "heldout": {"marker": "o", "markersize": 3.5, "linewidth": 1.6},
    "heldout_ema": {"marker": "^", "markersize": 3.5, "linewidth": 1, "linestyle": ":"},
    "baseline": {"linestyle": "--", "linewidth": 1},
}
SPLITS = {
    "train": "train",
    "heldout": "held-out",
    "heldout_ema": "held-out, EMA",
    "baseline": "baseline",
}


def draw_curves(
    runs: Mapping[str, Sequence[Line]], output: epath.PathLike, x: Axis = "steps"
) -> None:
    """Draws losses and accuracies; dashed lines are each run's baselines.

    Args:
      runs: name or path of a run -> its lines of metrics, at least one; the panels are those of
        the first run.
      output: path of the PNG.
      x: what to draw over: optimizer steps, or the tokens trained on.

    Raises:
      UserError: `x` is "tokens" and a run has no rates from which to count them.
    """
    panels = _panels(next(iter(runs.values())))
    rows = -(-len(panels) // 2)
    # Without pyplot, whose state threads share: this draws in any thread, without a screen.
    figure = Figure(figsize=(11, 3.6 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    suites = _suites(next(iter(runs.values())))
    colors = {name: f"C{i}" for i, name in enumerate(runs)}
    for (metric, title), axis in zip(panels.items(), axes.flat):
        for name, lines in runs.items():
            position = _tokens(name, lines) if x == "tokens" else float
            _draw_run(axis, lines, metric, position, colors[name])
        _name_baselines(axis, "chance" if metric in suites else BASELINES.get(metric, "baseline"))
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("tokens" if x == "tokens" else "step")
        if x == "tokens":
            axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.grid(alpha=0.25)
        axis.margins(x=0.01, y=0.08)
    one = len(runs) == 1
    entries = [Line2D([], [], color=c, label=n) for n, c in zip(_short(runs), colors.values())]
    present = {line["split"] for line in itertools.chain(*runs.values())}
    styles = [
        Line2D([], [], color="C0" if one else "gray", label=SPLITS[split], **style)
        for split, style in STYLES.items()
        if split != "heldout_ema" or split in present
    ]
    handles = styles if one else [*entries, *styles]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    save(figure, output, dpi=110)


def _panels(lines: Sequence[Line]) -> dict[str, str]:
    """Metric -> title: the panels of pretraining, or one for each metric of a task."""
    known = {m: title for m, title in PRETRAINING.items() if any(m in line for line in lines)}
    if known:
        return known | {name: titled(label(name), is_regression=False) for name in _suites(lines)}
    heldout = [line for line in lines if line["split"] == "heldout"] or lines
    names = dict.fromkeys(name for line in heldout for name in line)
    metrics = [name for name in names if name not in ("step", "split")]
    is_regression = any(name in metrics for name in ("pearson", "spearman"))
    return {name: titled(label(name), is_regression=is_regression) for name in metrics}


def _suites(lines: Sequence[Line]) -> list[str]:
    """The metrics of suites as a whole."""
    names = dict.fromkeys(n for line in lines if line["split"] == "suites" for n in line)
    return [name for name in names if name not in ("step", "split") and "/" not in name]


def _short(names: Mapping[str, Any]) -> list[str]:
    """The parts of paths in which they differ."""
    paths = [name.strip("/").split("/") for name in names]
    while len(paths) > 1 and min(map(len, paths)) > 1 and len({path[0] for path in paths}) == 1:
        paths = [path[1:] for path in paths]
    while len(paths) > 1 and min(map(len, paths)) > 1 and len({path[-1] for path in paths}) == 1:
        paths = [path[:-1] for path in paths]
    return [label("/".join(path)) for path in paths]


def _tokens(name: str, lines: Sequence[Line]) -> Callable[[float], float]:
    """Step -> tokens trained on until then, from the rates of the lines of training."""
    steps, tokens = [0.0], [0.0]
    for line in lines:
        if line["split"] == "train" and line.get("steps_per_second"):
            per_step = line.get("tokens_per_second", 0.0) / line["steps_per_second"]
            tokens.append(tokens[-1] + (line["step"] - steps[-1]) * per_step)
            steps.append(line["step"])
    if not tokens[-1]:
        raise UserError(f"{name}: its metrics have no tokens_per_second: draw over steps instead")
    return lambda step: float(np.interp(step, steps, tokens))


def _draw_run(
    axis: Axes,
    lines: Sequence[Line],
    metric: str,
    position: Callable[[float], float],
    color: str,
) -> None:
    scale = 100 if is_share(metric) else 1
    for split in ("train", "heldout", "heldout_ema", "suites"):
        points = [
            (position(line["step"]), line[metric] * scale)
            for line in lines
            if line["split"] == split and metric in line
        ]
        if points:
            style = STYLES.get(split, STYLES["heldout"])
            axis.plot(*zip(*points), color=color, **style)
    # Every phase of a run has a baseline, which holds until the next one.
    baselines = [line for line in lines if line["split"] == "baseline" and metric in line]
    ends = [*(line["step"] for line in baselines[1:]), max(line["step"] for line in lines)]
    for line, end in zip(baselines, ends):
        span = [position(line["step"]), position(end)]
        axis.plot(
            span, [line[metric] * scale] * 2, color=color, gid="baseline", **STYLES["baseline"]
        )


def _name_baselines(axis: Axes, name: str) -> None:
    """Says at the last of the baselines what guesses so."""
    ends = [tuple(np.array(line.get_xydata())[-1]) for line in axis.lines if line.get_gid()]
    if ends:
        axis.annotate(name, max(ends), ha="right", va="bottom", fontsize=8, color="gray")
