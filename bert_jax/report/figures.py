"""What all pictures share: texts that are drawn as they are, and files that are written whole."""

import functools
from typing import Any

import matplotlib
from etils import epath
from matplotlib.figure import Figure
from matplotlib.font_manager import FontEntry, fontManager, get_font
from matplotlib.text import Text

from bert_jax.storage import whole_file
from bert_jax.terminal import printable

LONGEST = 40  # characters of a label
_OWN = "DejaVu Sans"  # matplotlib brings it: Latin, Greek, Cyrillic, Arabic and other scripts


def label(text: object, longest: int = LONGEST) -> str:
    """A text of users or data as pictures show it: one line, its middle left out if it is long.

    Characters that no installed font has become escapes, instead of boxes.
    """
    text = printable(text)
    if len(text) > longest:
        tail = (longest - 1) // 2
        text = f"{text[: longest - 1 - tail]}…{text[-tail:]}"
    return "".join(c if _family(c) else c.encode("unicode_escape").decode() for c in text)


def save(figure: Figure, path: epath.PathLike, *, dpi: int, **options: Any) -> None:
    """Writes a figure as a PNG. Nothing in its texts is read as a formula: a $ is a $."""
    for axes in figure.axes:
        axes.get_xticklabels(), axes.get_yticklabels()  # sets their texts
    texts = [found for found in figure.findobj(Text) if isinstance(found, Text)]
    characters = sorted({character for text in texts for character in text.get_text()})
    families = dict.fromkeys([_OWN, *filter(None, map(_family, characters))])
    for text in texts:
        text.set_parse_math(False)
        text.set_fontfamily(list(families))
    with whole_file(path) as unfinished, unfinished.open("wb") as file:
        figure.savefig(file, format="png", dpi=dpi, **options)


@functools.cache
def _family(character: str) -> str | None:
    """The first font family that has a character, or None."""
    if character == "\n":
        return _OWN
    found = (font.name for font in _fonts() if _has(font, character))
    return next(found, None)


@functools.cache
def _fonts() -> list[FontEntry]:
    """Matplotlib's own font, then the upright ones of the system.

    Others of matplotlib hold parts of formulas or placeholders; those of colour are not drawn.
    """
    upright = [font for font in fontManager.ttflist if font.style == "normal"]
    own = [font for font in upright if font.name == _OWN and font.weight == 400]
    others = [
        font
        for font in upright
        if not font.fname.startswith(matplotlib.get_data_path())
        and not any(word in font.name.lower() for word in ("emoji", "color", "last resort"))
    ]
    return [*own[:1], *sorted(others, key=lambda font: (font.weight != 400, font.name))]


def _has(font: FontEntry, character: str) -> bool:
    try:
        return get_font(font.fname).get_char_index(ord(character)) != 0
    except (OSError, RuntimeError):  # the file is gone or damaged
        return False
