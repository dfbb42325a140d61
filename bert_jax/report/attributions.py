"""Attributions of texts: a page and a picture, in which tokens have colours.

Both take plain values, as `bert-jax predict attributions` prints them.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from bert_jax.report.figures import label, save
from bert_jax.report.templates import fill_with_data

MAX_ON_PAGE, MAX_IN_PICTURE = 100, 6  # attributions

METHODS = {
    "integrated_gradients": "integrated gradients",
    "input_x_gradient": "input × gradient",
    "rollout": "attention rollout",
}
FOR, AGAINST = "#2166ac", "#b2182b"

# Sizes in the picture, in pixels.
WIDTH, LINE, MARGIN, NAMES = 1200, 30, 24, 190
DPI = 100


def write_page(
    path: epath.PathLike, attributions: Sequence[Mapping[str, Any]], *, title: str
) -> None:
    """Writes a self-contained HTML page of the first `MAX_ON_PAGE` attributions."""
    data = {"title": title, "attributions": attributions[:MAX_ON_PAGE]}
    fill_with_data(path, "attributions.html", data)


def draw_picture(
    path: epath.PathLike, attributions: Sequence[Mapping[str, Any]], *, title: str
) -> None:
    """Draws the first `MAX_IN_PICTURE` attributions: tokens in blue count for, in red against."""
    figure = Figure(dpi=DPI)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    measure = _Measure(figure)
    axis.text(MARGIN, MARGIN, label(title, 100), fontsize=12, fontweight="bold", va="center")
    y = MARGIN + 1.2 * LINE
    for found in attributions[:MAX_IN_PICTURE]:
        axis.text(MARGIN, y, _caption(found), fontsize=10, va="center")
        y += LINE
        for method, name in METHODS.items():
            axis.text(MARGIN, y, name, fontsize=9, color="#666666", va="center")
            strengths = _strengths(method, found[method])
            places = _places([label(token) for token in found["tokens"]], measure)
            top = y
            for (token, x, line, width), strength in zip(places, strengths):
                y = top + line * LINE
                box = FancyBboxPatch(
                    (x, y - 10), width, 20, boxstyle="round,pad=0,rounding_size=3",
                    facecolor=FOR if strength > 0 else AGAINST,
                    alpha=abs(strength), linewidth=0,
                )  # fmt: skip
                axis.add_patch(box)
                color = "white" if abs(strength) > 0.55 else "#222222"
                axis.text(x + 4, y, token, fontsize=9, color=color, va="center")
            y += LINE
        y += LINE / 2
    axis.set_xlim(0, WIDTH)
    axis.set_ylim(y, 0)
    figure.set_size_inches(WIDTH / DPI, y / DPI)
    save(figure, path, dpi=DPI)


def _caption(found: Mapping[str, Any]) -> str:
    text = f": {label(found['text'] or 'no answer')}" if "text" in found else ""
    return (
        f"{label(found['target'])}{text}     logit {found['score']:.3f}, of the baseline "
        f"{found['baseline_score']:.3f}; completeness error {found['completeness_error']:.2g}"
    )


def _strengths(method: str, values: Sequence[float]) -> np.ndarray:
    """Opacities, those of values below 0 negative; see the page."""
    shares = np.asarray(values) / max(np.abs(values).max(), 1e-12)
    return 0.9 * (np.sqrt(shares) if method == "rollout" else shares)


class _Measure:
    """Widths of texts in pixels."""

    def __init__(self, figure: Figure):
        self._renderer = FigureCanvasAgg(figure).get_renderer()
        self._text = figure.text(0, 0, "", fontsize=9)

    def __call__(self, text: str) -> float:
        self._text.set_text(text)
        self._text.set_parse_math(False)
        width = float(self._text.get_window_extent(self._renderer).width)
        self._text.set_text("")
        return width


def _places(tokens: Sequence[str], measure: _Measure) -> Iterator[tuple[str, float, int, float]]:
    """Each token with its left edge, its line and its width."""
    x, line = float(NAMES), 0
    for token in tokens:
        width = measure(token) + 8
        if x + width > WIDTH - MARGIN:
            x, line = float(NAMES), line + 1
        yield token, x, line, width
        x += width + 3
