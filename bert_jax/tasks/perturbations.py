"""Perturbations: seeded changes of a text after which people read it as before, or nearly so.

Each is a function of a text and a random generator that gives the edits. The generator follows from
the text and a seed alone, so a text is always changed in the same way.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

import numpy as np
from etils import epath

from bert_jax.data.lines import decoded_lines
from bert_jax.data.words import is_punctuation
from bert_jax.errors import UserError
from bert_jax.tasks.edits import Edit

Perturbation = Callable[[str, np.random.Generator], list[Edit]]

RATE = 0.1  # share of the words that are changed, at least one

# Letters beside each other on a keyboard.
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_NEIGHBOURS = {
    letter: row[max(0, place - 1) : place] + row[place + 1 : place + 2]
    for row in _ROWS
    for place, letter in enumerate(row)
}


def typos(text: str, random: np.random.Generator) -> list[Edit]:
    """Slips of the keyboard: a letter that is swapped, left out, doubled or a neighbour."""
    edits = []
    for start, end in _some(_spans(r"[^\W\d_]{2,}", text), random):
        # The first letter stays: slips there are rare.
        place = start + int(random.integers(1, end - start))
        letter = text[place]
        slips = [Edit(place, place + 1, ""), Edit(place, place + 1, 2 * letter)]
        if place + 1 < end and text[place + 1] != letter:
            slips.append(Edit(place, place + 2, text[place + 1] + letter))
        if near := _NEIGHBOURS.get(letter.lower()):
            new = near[random.integers(len(near))]
            slips.append(Edit(place, place + 1, new.upper() if letter.isupper() else new))
        edits.append(slips[random.integers(len(slips))])
    return edits


def case(text: str, random: np.random.Generator) -> list[Edit]:
    """The whole text in small letters, in capitals, or each word with a capital."""
    words = _spans(r"\S+", text)
    found = []
    for change in (str.lower, str.upper, str.capitalize):
        changed = [Edit(start, end, change(text[start:end])) for start, end in words]
        found.append([edit for edit in changed if edit.text != text[edit.start : edit.end]])
    found = [edits for edits in found if edits]
    return found[random.integers(len(found))] if found else []


def punctuation(text: str, random: np.random.Generator) -> list[Edit]:
    """Each mark is left out with probability one half; one more or less at the end."""
    stripped = len(text.rstrip())
    if not stripped:
        return []
    marks = [place for place, letter in enumerate(text[:stripped]) if is_punctuation(letter)]
    if marks and marks[-1] == stripped - 1:
        marks, last = marks[:-1], Edit(stripped - 1, stripped, "")
    else:
        last = Edit(stripped, stripped, ".")
    return [*(Edit(place, place + 1, "") for place in marks if random.random() < 0.5), last]


def whitespace(text: str, random: np.random.Generator) -> list[Edit]:
    """Gaps between words that are left out, doubled, or the end of a line."""
    gaps = [gap for gap in _spans(r"\s+", text) if gap[0] > 0 and gap[1] < len(text)]
    chosen = _some(gaps, random)
    return [Edit(*gap, ("", "  ", "\n")[random.integers(3)]) for gap in chosen]


def dropped_words(text: str, random: np.random.Generator) -> list[Edit]:
    """Words that are left out, with the space after them."""
    words = _spans(r"\S+\s*", text)
    if len(words) < 2:
        return []
    dropped = _some(words, random)[: len(words) - 1]  # one stays
    return [Edit(start, end, "") for start, end in dropped]


def names(groups: Sequence[Sequence[str]]) -> Perturbation:
    """Names that stand for one another.

    Args:
      groups: lists of names; one is replaced by another of its group.
    """
    others = {name: [o for o in group if o != name] for group in groups for name in group}
    longest_first = sorted(others, key=len, reverse=True)
    pattern = rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)"

    def swap(text: str, random: np.random.Generator) -> list[Edit]:
        edits = []
        for start, end in _spans(pattern, text):
            choice = others[text[start:end]]
            edits.append(Edit(start, end, choice[random.integers(len(choice))]))
        return edits

    return swap


PERTURBATIONS: Mapping[str, Perturbation] = {
    "typos": typos,
    "case": case,
    "punctuation": punctuation,
    "whitespace": whitespace,
    "dropped_words": dropped_words,
}
NAMES = "names"  # the perturbation that needs a list


def perturbations(kinds: Sequence[str], names_file: str | None) -> dict[str, Perturbation]:
    """The perturbations of these names.

    Args:
      kinds: names of `PERTURBATIONS`, or `NAMES`.
      names_file: file for `NAMES`; see `read_names`.

    Raises:
      UserError: there is no such perturbation, or no such file, or it has no names.
    """
    known = [*PERTURBATIONS, NAMES]
    if wrong := [kind for kind in kinds if kind not in known]:
        raise UserError(f"perturb: no {wrong[0]!r}; use some of {', '.join(known)}")
    if (NAMES in kinds) != (names_file is not None):
        raise UserError(f"perturb: {NAMES} needs a file of names, and nothing else takes one")
    found = dict(PERTURBATIONS)
    if names_file is not None:
        found[NAMES] = names(read_names(names_file))
    return {kind: found[kind] for kind in dict.fromkeys(kinds)}


def read_names(path: str) -> list[list[str]]:
    """Groups of names: one in a line, and a blank line between groups.

    Raises:
      UserError: there is no such file, a group has one name only, or a name occurs twice.
    """
    if not epath.Path(path).exists():
        raise UserError(f"{path}: no such file")
    with epath.Path(path).open("rb") as file:
        lines = [(n, line.strip()) for n, line in decoded_lines(epath.Path(path), file)]
    groups: list[list[str]] = []
    seen: dict[str, int] = {}
    for is_name, some in groupby(lines, key=lambda line: bool(line[1])):
        if not is_name:
            continue
        group = list(some)
        if len(group) == 1:
            number, name = group[0]
            raise UserError(f"{path}, line {number}: {name!r} is alone in its group of names")
        for number, name in group:
            if name in seen:
                raise UserError(f"{path}, line {number}: {name!r} is on line {seen[name]}, too")
            seen[name] = number
        groups.append([name for _, name in group])
    if not groups:
        raise UserError(f"{path}: no names")
    return groups


def edits_of(kind: str, perturbation: Perturbation, text: str, seed: int) -> list[Edit]:
    """The edits of a text by a perturbation; they follow from these arguments alone."""
    digest = hashlib.sha256(f"{seed}\0{kind}\0{text}".encode("utf-8", "surrogatepass")).digest()
    return perturbation(text, np.random.default_rng(int.from_bytes(digest[:16])))


def _spans(pattern: str, text: str) -> list[tuple[int, int]]:
    return [found.span() for found in re.finditer(pattern, text)]


def _some(spans: Sequence[tuple[int, int]], random: np.random.Generator) -> list[tuple[int, int]]:
    """A `RATE` of the spans, at least one if there are any, in their order."""
    if not spans:
        return []
    chosen = random.random(len(spans)) < RATE
    if not chosen.any():
        chosen[random.integers(len(spans))] = True
    return [span for span, is_chosen in zip(spans, chosen) if is_chosen]
