"""Suites: sentences that a model scores without being fine-tuned.

Minimal pairs are two sentences that differ in one point, of which one is right (Warstadt et al.
2020, https://arxiv.org/abs/1912.00582; Huebner et al. 2021,
https://aclanthology.org/2021.conll-1.49). Single sentences have a label that says whether they are
acceptable (Warstadt et al. 2019, https://arxiv.org/abs/1805.12471).
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
from etils import epath

from bert_jax.data.lines import suffixes
from bert_jax.data.tables import Row, read_lines, read_rows
from bert_jax.errors import UserError

_FIELDS = ("sentence_good", "sentence_bad", "UID", "field", "linguistics_term")  # of BLiMP
T = TypeVar("T")
_log = logging.getLogger(__name__)


class Pair(NamedTuple):
    """Two sentences that differ in one point: a right one and a wrong one."""

    good: str
    bad: str


@dataclass(frozen=True)
class Paradigm:
    """The minimal pairs of one kind.

    Attributes:
      name: name of the paradigm.
      groups: kind of group -> the group that it belongs to, as {"field": "morphology"}; the widest
        first.
      pairs: its pairs.
    """

    name: str
    groups: Mapping[str, str] = field(default_factory=dict)
    pairs: list[Pair] = field(default_factory=list)


class Acceptability(NamedTuple):
    """Sentences, and for each whether it is acceptable, bool [n]."""

    sentences: list[str]
    labels: np.ndarray


class SuiteName(NamedTuple):
    """Kind of a suite, one of `KINDS`, and the file or folder that holds it."""

    kind: str
    path: str

    @property
    def label(self) -> str:
        """Its name in metrics: the kind, and for single files their name, as in cola_dev."""
        name = epath.Path(self.path).name.partition(".")[0]
        return self.kind if self.kind in ("blimp", "zorro") else f"{self.kind}_{name}"


def suite_name(text: str) -> SuiteName:
    """Splits KIND:PATH.

    Raises:
      UserError: it is not of that form.
    """
    kind, colon, path = text.partition(":")
    if kind not in KINDS or not colon or not path:
        raise UserError(f"{text!r}: must be one of {', '.join(f'{kind}:PATH' for kind in KINDS)}")
    return SuiteName(kind, path)


def read_suite(name: SuiteName) -> list[Paradigm] | Acceptability:
    """Reads a suite.

    Raises:
      UserError: there is no such file, or something is wrong in it; with file and line.
    """
    if name.kind == "cola":
        return _cola(name.path)
    return list(_READERS[name.kind](epath.Path(name.path)))


def subsample(items: Sequence[T], count: int) -> list[T]:
    """`count` items at equal distances, always the same; all of them if there are no more."""
    if count >= len(items):
        return list(items)
    return [items[index] for index in np.linspace(0, len(items) - 1, count).round().astype(int)]


def _blimp(path: epath.Path) -> Iterable[Paradigm]:
    """JSON objects with `_FIELDS`, one a line; a paradigm is what has one UID."""
    found: dict[str, Paradigm] = {}
    equal: list[str] = []
    for file in _files(path, ".jsonl"):
        for row in read_rows(str(file), _FIELDS):
            good, bad, name, area, term = (_text(row, column) for column in _FIELDS)
            # Of BLiMP's 67 files, one spells syntax_semantics so.
            groups = {"field": area.replace("/", "_"), "phenomenon": term}
            found.setdefault(name, Paradigm(name, groups)).pairs.append(Pair(good, bad))
            if good == bad:  # 7 of BLiMP's own
                equal.append(row.place)
    if equal:
        _log.warning(
            f"{len(equal)} of the pairs are two equal sentences, which count as ties; the first: "
            f"{equal[0]}"
        )
    return _not_empty(path, list(found.values()))


def _zorro(path: epath.Path) -> Iterable[Paradigm]:
    """Files of lines, a wrong sentence and under it the right one: PHENOMENON-PARADIGM.txt."""
    names: set[str] = set()
    for file in _files(path, ".txt"):
        lines = [
            (f"{file}, line {number}", line.strip()) for number, line in read_lines(file, "utf-8")
        ]
        if len(lines) % 2:
            raise UserError(
                f"{lines[-1][0]}: a last sentence without its pair; lines go two by two"
            )
        name = file.name.partition(".")[0]
        if name in names:
            raise UserError(f"{file}: a second file of the paradigm {name}")
        names.add(name)
        groups = {"phenomenon": name.rpartition("-")[0] or name}
        pairs = [_pair(good, bad) for bad, good in zip(lines[::2], lines[1::2])]
        yield from _not_empty(file, [Paradigm(name, groups, pairs)] if pairs else [])


def _pairs(path: epath.Path) -> Iterable[Paradigm]:
    """A table with the columns good and bad, or without a header in this order."""
    pairs = []
    for row in read_rows(str(path), ("good", "bad", "1", "2")):
        if not row.has("good", "bad") and len(row.values) != 2:
            count = len(row.values)
            raise UserError(f"{row.place}: {count} fields; must be two sentences, good and bad")
        good, bad = (_text(row, *columns) for columns in (("good", "1"), ("bad", "2")))
        pairs.append(_pair((row.place, good), (row.place, bad)))
    return _not_empty(path, [Paradigm(path.name.partition(".")[0], {}, pairs)] if pairs else [])


def _cola(path: str) -> Acceptability:
    """CoLA's table: a source, a label, the author's mark and the sentence; or named columns."""
    names = (("sentence", "4"), ("label", "2"))
    sentences, labels = [], []
    is_tsv = suffixes(epath.Path(path))[0] == ".tsv"  # CoLA's files are never quoted
    columns = [column for columns in names for column in columns]
    for row in read_rows(path, columns, format="tsv" if is_tsv else ""):
        sentence, label = _text(row, *names[0]), str(row.get(*names[1]))
        if label not in ("0", "1"):
            raise UserError(f"{row.place}: label {label!r}: must be 0 or 1 (acceptable)")
        sentences.append(sentence)
        labels.append(label == "1")
    if len(set(labels)) < 2:
        raise UserError(f"{path}: must have acceptable and unacceptable sentences")
    return Acceptability(sentences, np.array(labels))


def _files(path: epath.Path, suffix: str) -> Iterator[epath.Path]:
    """The file, or those of a folder that have the suffix, by name."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    files = [path]
    if path.is_dir():
        found = (file for file in path.iterdir() if not file.name.startswith("."))
        files = sorted(file for file in found if suffixes(file)[0] == suffix)
    if not files:
        raise UserError(f"{path}: no paradigm: a folder without a {suffix} file")
    yield from files


def _text(row: Row, *columns: str) -> str:
    value: Any = row.get(*columns)
    if not isinstance(value, str):
        raise UserError(f"{row.place}: {columns[0]} must be a text, not {value!r:.40}")
    if not value.strip():
        raise UserError(f"{row.place}: empty {columns[0]}")
    return value


def _pair(good: tuple[str, str], bad: tuple[str, str]) -> Pair:
    """A pair from two sentences with their places."""
    for place, sentence in (bad, good):
        if not sentence.strip():
            raise UserError(f"{place}: empty sentence")
    if good[1] == bad[1]:
        raise UserError(f"{good[0]}: the two sentences of a pair are equal")
    return Pair(good[1], bad[1])


def _not_empty(path: epath.Path, paradigms: list[Paradigm]) -> list[Paradigm]:
    if not paradigms:
        raise UserError(f"{path}: no paradigm: no pair of sentences in it")
    return paradigms


_READERS = {"blimp": _blimp, "zorro": _zorro, "pairs": _pairs}
KINDS = (*_READERS, "cola")
