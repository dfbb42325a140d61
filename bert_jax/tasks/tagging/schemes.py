"""Tagging schemes, and the entities that tags mark.

Tags are read as by conlleval, the script of the CoNLL tasks (Tjong Kim Sang and De Meulder 2003,
https://aclanthology.org/W03-0419): an I- or E- that continues nothing begins an entity.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from bert_jax.errors import UserError

# Prefixes of the word that begins an entity, is inside, ends it, and is all of it.
_PREFIXES = {"BIO": "BIIB", "BIOES": "BIES", "BILOU": "BILU", "BMES": "BMES"}
SCHEMES = ("auto", *_PREFIXES, "IOB1", "IO", "none")
MOST_TAGS = 1000  # more of them are no tags, but another column

_TAG = re.compile("O|([BIESLUM])(?:-(.+))?")
# A tag that begins an entity in another notation, and the one that goes on.
_OTHER_NOTATIONS = (
    (re.compile("b([-_].+)"), r"i\1"),
    (re.compile("B(_.+)"), r"I\1"),
    (re.compile("(.+[-_])B"), r"\1I"),
    (re.compile("(.+[-_])b"), r"\1i"),
)
_AS_BIOES = {"M": "I", "L": "E", "U": "S"}
_NO_TYPE = "_"  # the type of entities whose tags are prefixes alone, as seqeval calls it


class Span(NamedTuple):
    """An entity among words: its type, and the indices of its first and last word."""

    type: str
    first: int
    last: int


def is_tag(text: str) -> bool:
    """Whether `text` is a tag of any scheme that has prefixes."""
    return _TAG.fullmatch(text) is not None


def detect(tags: Collection[str]) -> str:
    """The scheme of a set of tags.

    If none has a prefix, it is IO where there is an O: words of an entity have its type as tag. Or
    it is none: tags such as parts of speech, which mark no entities. Tags may also be prefixes
    alone, if all of them are and B is one of them.
    """
    marked = {tag for tag in tags if tag != "O"}
    prefixes = {tag[0] for tag in marked if "-" in tag and is_tag(tag)}
    if not prefixes and "B" in marked and all(map(is_tag, marked)):
        prefixes = marked
    if marked and not prefixes:
        return "IO" if "O" in tags else "none"
    return max(_PREFIXES, key=lambda scheme: len(prefixes.intersection(_PREFIXES[scheme])))


def other_notation(tags: Collection[str]) -> tuple[str, str] | None:
    """Two tags that seem to mean B-X and I-X, such as b-X and i-X, or X-B and X-I."""
    for begin in sorted(tags):
        for pattern, inside in _OTHER_NOTATIONS:
            found = pattern.fullmatch(begin)
            if found and found.expand(inside) in tags:
                return begin, found.expand(inside)
    return None


def is_iob1(sentences: Iterable[Sequence[str]]) -> bool:
    """Whether BIO tags are of its older form, where B- only parts neighbours of the same type.

    That is so if some entity begins with I-, and none with B- elsewhere.
    """
    found = False
    for tags in sentences:
        for before, tag in zip(["O", *tags], tags):
            follows = before[1:] == tag[1:] and before != "O"
            if tag.startswith("B") and not follows:
                return False
            found |= tag.startswith("I") and not follows
    return found


def tags_of(tags: Collection[str], scheme: str) -> tuple[str, ...]:
    """All tags of the types in `tags`: O, then by type."""
    if scheme not in _PREFIXES:
        return tuple(sorted(tags, key=lambda tag: (tag != "O", tag)))
    types = sorted({_parsed(tag)[1] for tag in tags if tag != "O"})
    prefixes = dict.fromkeys(_PREFIXES[scheme])
    return ("O", *(_spelled(prefix, type_) for type_ in types for prefix in prefixes))


def as_bioes(tags: Sequence[str], scheme: str) -> list[str]:
    """Tags of an entity scheme with the prefixes of BIOES, or of BIO for BIO and IO."""
    if scheme == "IO":
        return spell(find_spans(tags, prefixes=False), len(tags), "BIO")
    return [_AS_BIOES.get(tag[0], tag[0]) + tag[1:] for tag in tags]


def find_spans(tags: Sequence[str], *, prefixes: bool = True) -> list[Span]:
    """The entities that the tags of a sentence mark, in order.

    Neighbours with the same tag are one entity where tags have no prefixes.
    """
    spans: list[Span] = []
    before, type_before = "O", ""
    for index, tag in enumerate(tags):
        prefix, type_ = _parsed(tag) if prefixes or tag == "O" else ("I", tag)
        if before not in "OES" and prefix not in "OBS" and type_ == type_before:
            spans[-1] = spans[-1]._replace(last=index)
        elif prefix != "O":
            spans.append(Span(type_, index, index))
        before, type_before = prefix, type_
    return spans


def spell(spans: Iterable[Span], length: int, scheme: str) -> list[str]:
    """Tags of `length` words that mark the entities."""
    begin, inside, end, single = tuple(_PREFIXES[scheme])
    tags = ["O"] * length
    for type_, first, last in spans:
        tags[first : last + 1] = [_spelled(inside, type_)] * (last + 1 - first)
        tags[last] = _spelled(end, type_)
        tags[first] = _spelled(begin if last > first else single, type_)
    return tags


def checked(
    tags: Sequence[str],
    places: Sequence[str],
    scheme: str,
    known: Collection[str],
    repair: bool,
) -> list[str]:
    """The tags of a sentence, made to follow the scheme; those of IOB1 become BIO.

    Args:
      tags: one per word.
      places: where each word comes from, for messages.
      scheme: one of `SCHEMES`, but not "auto".
      known: the tags of all sentences; where one has a type, all must.
      repair: read tags that do not fit their neighbours as conlleval does.

    Raises:
      UserError: a tag is not of the scheme, or without `repair` it does not fit its neighbours.
    """
    if scheme not in (*_PREFIXES, "IOB1"):
        for tag, place in zip(tags, places, strict=True):
            if not tag:
                raise UserError(f"{place}: the tag is empty")
        return list(tags)
    written = "BIO" if scheme == "IOB1" else scheme
    typed = any("-" in tag for tag in known)
    for tag, place in zip(tags, places, strict=True):
        of_scheme = is_tag(tag) and tag[0] in f"O{_PREFIXES[written]}"
        if not of_scheme or (typed and tag != "O" and "-" not in tag):
            raise UserError(
                f"{place}: {tag!r} is not a {scheme} tag; check scheme and tag_column; scheme=none "
                "takes any tags"
            )
    fixed = spell(find_spans(tags), len(tags), written)
    broken = [index for index, tag in enumerate(tags) if tag != fixed[index]]
    if broken and not repair and scheme != "IOB1":
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


def _parsed(tag: str) -> tuple[str, str]:
    """The prefix of a tag, as in BIOES, and its type, which is all of a tag without prefix."""
    found = _TAG.fullmatch(tag)
    if tag == "O" or found is None:
        return ("O", "") if tag == "O" else ("I", tag)
    return _AS_BIOES.get(found[1], found[1]), found[2] or _NO_TYPE


def _spelled(prefix: str, type_: str) -> str:
    return prefix if type_ == _NO_TYPE else f"{prefix}-{type_}"
