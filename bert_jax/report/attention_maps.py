"""Attention maps of a text: an interactive page, and a picture of all attention heads."""

from collections.abc import Sequence

import numpy as np
from etils import epath
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from bert_jax.report.figures import label, save
from bert_jax.report.templates import fill_with_data

MAX_TOKENS = 128  # more would make a page of tens of megabytes
SCALE = 10_000  # the page holds weights as integers, which are shorter than fractions

# Sizes in the picture, in pixels.
CELL, SMALLEST_LABELLED_CELL = 13, 8
LONGEST_SIDE = 8_000
DPI = 100


def write_page(
    path: epath.PathLike,
    tokens: Sequence[str],
    b_start: int,
    attention: np.ndarray,
    *,
    title: str,
) -> None:
    """Writes a self-contained HTML page: a head view and a model view of the attention.

    The views follow those of BertViz (Vig 2019, https://arxiv.org/abs/1906.05714).

    Args:
      path: path of the page.
      tokens: at most `MAX_TOKENS`, without padding.
      b_start: where the tokens of the second text begin; the number of tokens if there is none.
      attention: [num_layers, heads, query, key] floats, probabilities over the last axis.
      title: title of the page.
    """
    data = {
        "title": title,
        "tokens": list(tokens),
        "b_start": b_start,
        "scale": SCALE,
        "attention": np.rint(np.asarray(attention) * SCALE).astype(int).tolist(),
    }
    fill_with_data(path, "attention_maps.html", data)


def draw_picture(
    path: epath.PathLike, tokens: Sequence[str], attention: np.ndarray, *, title: str
) -> bool:
    """Draws all attention heads as heat maps, a row of maps per layer; rows attend to columns.

    Args:
      path: path of the PNG.
      tokens, attention, title: see `write_page`.

    Returns:
      Whether the maps are labelled with the tokens. Labels are left out if there are too many to
      be readable.
    """
    num_layers, num_heads, length, _ = attention.shape
    step = length + 1  # an empty row and column between maps
    cell = min(CELL, LONGEST_SIDE // (step * max(num_layers, num_heads)))
    labelled = cell >= SMALLEST_LABELLED_CELL

    # One image of all maps: an axis for each would take minutes to draw.
    image = np.pad(attention, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=np.nan)
    image = image.transpose(0, 2, 1, 3).reshape(num_layers * step, num_heads * step)[:-1, :-1]
    height, width = (side * max(cell, 1) / DPI for side in image.shape)
    figure = Figure(figsize=(width, height))
    axis = figure.add_axes((0, 0, 1, 1))
    # Most weights are small: the square root shows differences among them.
    norm = PowerNorm(0.5, vmin=0, vmax=1)
    picture = axis.imshow(image, cmap="Blues", norm=norm, aspect="auto", interpolation="nearest")
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0, pad=2)
    fontsize = 0.8 * cell * 72 / DPI
    for set_ticks, maps, rotation in (
        (axis.set_yticks, num_layers, 0),
        (axis.set_xticks, num_heads, 90),
    ):
        places = [start * step + place for start in range(maps) for place in range(length)]
        if labelled:
            names = [label(token) for token in tokens] * maps
            set_ticks(places, names, rotation=rotation, fontsize=fontsize)
        else:
            set_ticks([])
    middle = (length - 1) / 2
    for head in range(num_heads):
        axis.text(head * step + middle, -1, f"head {head + 1}", ha="center", va="bottom")
    for layer in range(num_layers):
        axis.text(image.shape[1], layer * step + middle, f"layer {layer + 1}", va="center")
    axis.set_title(f"{label(title)}\nrows attend to columns", pad=26, fontsize=11)
    colors = figure.add_axes((1 + 0.9 / width, 0, 0.15 / width, min(1, 2.5 / height)))
    figure.colorbar(picture, cax=colors, label="share of attention")

    save(figure, path, dpi=DPI, bbox_inches="tight", pad_inches=0.2)
    return labelled
