"""Changes of a text, and where parts of it are afterwards."""

import re
from collections.abc import Sequence
from typing import NamedTuple


class Edit(NamedTuple):
    """The characters `start` to `end` of a text become `text`."""

    start: int
    end: int
    text: str


Edits = Sequence[Edit]  # in the order of their characters, of which they share none


def edited(text: str, edits: Edits) -> str:
    """The text after its edits."""
    parts, position = [], 0
    for start, end, new in edits:
        parts += [text[position:start], new]
        position = end
    return "".join([*parts, text[position:]])


def followed(start: int, end: int, edits: Edits) -> tuple[int, int] | None:
    """Where the characters `start` to `end` are after the edits.

    None if an edit crosses their bounds. What is inserted at a bound is outside.
    """
    before = inside = 0
    for edit in edits:
        growth = len(edit.text) - (edit.end - edit.start)
        if edit.end <= start:
            before += growth
        elif edit.start >= end:
            break
        elif edit.start < start or edit.end > end:
            return None
        else:
            inside += growth
    return start + before, end + before + inside


def drops_word(text: str, edits: Edits) -> bool:
    """Whether one of the edits takes a whole word, such as stands between spaces, out of a text."""
    words = [found.span() for found in re.finditer(r"\S+", text)]
    return any(
        not new and start <= first and last <= end
        for start, end, new in edits
        for first, last in words
    )


def edited_words(words: Sequence[str], edits: Edits) -> list[list[str]]:
    """What becomes of each word: no word, one or several.

    Args:
      words: words of a text, in which a space stands between them.
      edits: edits of this text. New text belongs to the word in which it begins; what is inserted
        between words is left out.
    """
    found, start = [], 0
    for word in words:
        end = start + len(word)
        parts, position = [], start
        for edit in edits:
            if edit.end <= start or edit.start >= end:
                continue
            parts.append(word[position - start : max(edit.start - start, 0)])
            if edit.start >= start:
                parts.append(edit.text)
            position = min(edit.end, end)
        found.append("".join([*parts, word[position - start :]]).split())
        start = end + 1
    return found
