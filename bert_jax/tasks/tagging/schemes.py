"""Tagging schemes, BIO and BIOES, and the entities that tags mark.

Tags are read as by conlleval, the script of the CoNLL tasks (Tjong Kim Sang and De Meulder 2003,
https://aclanthology.org/W03-0419): an I- or E- that continues nothing begins an entity.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from bert_jax.errors import UserError

SCHEMES = ("BIO", "BIOES")  # named after the first letters of their tags

_TAG = re.compile("O|[BIES]-.+")


class Span(NamedTuple):
    """An entity among words: its type, and the indices of its first and last word."""

    type: str
    first: int
    last: int


def is_tag(text: str) -> bool:
    """Whether `text` is a tag of any scheme."""
    return _TAG.fullmatch(text) is not None


def tags_of(types: Iterable[str], scheme: str) -> tuple[str, ...]:
    """O, then all tags of the types, in their order."""
    prefixes = [prefix for prefix in scheme if prefix != "O"]
    return ("O", *(f"{prefix}-{type_}" for type_ in types for prefix in prefixes))


def find_spans(tags: Sequence[str]) -> list[Span]:
    """The entities that the tags of a sentence mark, in order."""
    spans: list[Span] = []
    before, type_before = "O", ""
    for index, tag in enumerate(tags):
        prefix, type_ = tag[0], tag.split("-", maxsplit=1)[-1]  # the whole tag if without prefix
        if before not in "OES" and prefix not in "OBS" and type_ == type_before:
            spans[-1] = spans[-1]._replace(last=index)
        elif prefix != "O":
            spans.append(Span(type_, index, index))
        before, type_before = prefix, type_
    return spans


def spell(spans: Iterable[Span], length: int, scheme: str) -> list[str]:
    """Tags of `length` words that mark the entities."""
    tags = ["O"] * length
    for type_, first, last in spans:
        tags[first : last + 1] = [f"I-{type_}"] * (last + 1 - first)
        tags[first] = f"B-{type_}"
        if scheme == "BIOES":
            tags[last] = f"E-{type_}" if last > first else f"S-{type_}"
    return tags


def checked(tags: Sequence[str], places: Sequence[str], scheme: str, repair: bool) -> list[str]:
    """The tags of a sentence, made to follow the scheme.

    Args:
      tags: one per word.
      places: where each word comes from, for messages.
      scheme: one of `SCHEMES`.
      repair: read tags that do not fit their neighbours as conlleval does.

    Raises:
      UserError: a tag is not of the scheme, or without `repair` it does not fit its neighbours.
    """
    for tag, place in zip(tags, places, strict=True):
        if not is_tag(tag) or tag[0] not in scheme:
            raise UserError(f"{place}: {tag!r} is not a {scheme} tag; check scheme and tag_column")
    fixed = spell(find_spans(tags), len(tags), scheme)
    broken = [index for index, tag in enumerate(tags) if tag != fixed[index]]
    if broken and not repair:
        index = broken[0]
        raise UserError(
            f"{places[index]}: tag {tags[index]!r} does not fit its neighbours; "
            f"{scheme} has {fixed[index]!r} there; repair=True reads it so"
        )
    return fixed


def check_known(tag: str, place: str, labels: Collection[str]) -> None:
    """Raises a UserError that begins with `place` unless the tag is among the labels."""
    if tag not in labels:
        raise UserError(
            f"{place}: tag {tag!r} is none of {', '.join(labels)}, the labels given or those of "
            "the training examples"
        )
