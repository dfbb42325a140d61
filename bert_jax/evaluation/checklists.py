"""Behavioural tests of classifiers in CheckList's form.

Reference: Ribeiro et al. 2020, https://arxiv.org/abs/2005.04118.

A file has a JSON object in each line, a case of a test:

- a minimum functionality test (MFT): `text`, and the `label` that must be predicted;
- an invariance test (INV): `texts`, of which all must be predicted as the first is;
- a directional expectation test (DIR): `texts`, a `label` and a `direction`, "up" or "down". The
  probability of the label must not change otherwise from the first text to any other, by more than
  `tolerance` (default 0).

Each has the name of its `test` and its `type`. A text may be a list of two, a pair.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from etils import epath

from bert_jax.data.lines import decoded_lines
from bert_jax.errors import UserError
from bert_jax.json_values import parse_json, typed

Text = str | tuple[str, str]


@dataclass(frozen=True)
class Case:
    """A line of a file; see the module."""

    test: str
    type: Literal["MFT", "INV", "DIR"]
    text: Text | None = None
    texts: tuple[Text, ...] = ()
    label: str | None = None
    direction: Literal["up", "down"] | None = None
    tolerance: float = 0.0

    @property
    def all_texts(self) -> tuple[Text, ...]:
        """Its texts, the one to compare with first."""
        return self.texts if self.text is None else (self.text, *self.texts)


# The fields that each type needs, and those that it may have besides.
_FIELDS = {
    "MFT": ({"text", "label"}, set()),
    "INV": ({"texts"}, set()),
    "DIR": ({"texts", "label", "direction"}, {"tolerance"}),
}


def read_cases(path: epath.PathLike, labels: Sequence[str]) -> list[Case]:
    """The cases of a file, in order.

    Args:
      path: the file.
      labels: the classes of the model.

    Raises:
      UserError: there is no such file, or a line is no case; the message names it.
    """
    path = epath.Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file")
    cases: list[Case] = []
    types: dict[str, str] = {}
    with path.open("rb") as file:
        for number, line in decoded_lines(path, file):
            if line.strip():
                place = f"{path}, line {number}"
                case = _checked(parse_json(line, place), labels, place)
                if types.setdefault(case.test, case.type) != case.type:
                    raise UserError(f"{place}: {case.test!r} is a test of type {types[case.test]}")
                cases.append(case)
    if not cases:
        raise UserError(f"{path}: no cases")
    return cases


def _checked(value: Any, labels: Sequence[str], place: str) -> Case:
    case = typed(value, Case, place)
    needed, optional = _FIELDS[case.type]
    given = {name for name in value if value[name] is not None}
    if missing := sorted(needed - given):
        raise UserError(f"{place}: a case of type {case.type} needs the field {missing[0]}")
    if strange := sorted(given - needed - optional - {"test", "type"}):
        raise UserError(f"{place}: a case of type {case.type} has no field {strange[0]}")
    if "texts" in needed and len(case.texts) < 2:
        raise UserError(f"{place}: texts needs two or more, the first to compare the others with")
    if case.label is not None and case.label not in labels:
        raise UserError(f"{place}: label {case.label!r} is none of {', '.join(labels)}")
    if not 0 <= case.tolerance < 1:
        raise UserError(f"{place}: tolerance {case.tolerance} must be from 0 to below 1")
    return case


@dataclass(frozen=True)
class Said:
    """What a model says of a text: the predicted class, and the probability of each."""

    label: str
    probabilities: Mapping[str, float]


def failures(case: Case, said: Sequence[Said]) -> Iterator[tuple[Text, str]]:
    """The texts of a case that fail, and why.

    Args:
      case: the case.
      said: what the model says of each of `case.all_texts`.
    """
    texts, first = case.all_texts, said[0]
    if case.type == "MFT":
        if first.label != case.label:
            yield texts[0], f"{first.label} instead of {case.label}"
        return
    for text, found in zip(texts[1:], said[1:]):
        if case.type == "INV":
            if found.label != first.label:
                yield text, f"{found.label} instead of {first.label} as for {_shown(texts[0])}"
            continue
        assert case.label is not None
        before, after = first.probabilities[case.label], found.probabilities[case.label]
        wrong = before - after if case.direction == "up" else after - before
        if wrong > case.tolerance:
            numbers = f"{case.label} {before:.1%} to {after:.1%}"
            yield text, f"{numbers} instead of {case.direction} from {_shown(texts[0])}"


def _shown(text: Text) -> str:
    return repr(text) if isinstance(text, str) else " / ".join(map(repr, text))


def results(cases: Sequence[Case], said: Sequence[Sequence[Said]]) -> dict[str, Any]:
    """For each test its `type`, its numbers of `cases` and of those that `failed`, and `failures`.

    A case fails if one of its texts does. A failure has the `text`, and `why`.
    """
    tests: dict[str, Any] = {}
    for case, of_case in zip(cases, said, strict=True):
        empty: dict[str, Any] = {"type": case.type, "cases": 0, "failed": 0, "failures": []}
        test = tests.setdefault(case.test, empty)
        found = [{"text": text, "why": why} for text, why in failures(case, of_case)]
        test["cases"] += 1
        test["failed"] += bool(found)
        test["failures"] += found
    return {"tests": tests}
