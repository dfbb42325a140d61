"""Reads questions with choices from tables."""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bert_jax.data.tables import Row, read_rows
from bert_jax.errors import UserError
from bert_jax.tasks.classification.names import Names, all_of, either
from bert_jax.tasks.classification.reader import text_of
from bert_jax.tasks.multiple_choice.example import Question


@dataclass(frozen=True)
class Columns:
    """Names of the columns; of alternatives the first that a row has is used.

    Attributes:
      context: column of the context; "" if there is none.
      question: column of the question.
      choices: column of a list, or a column for each choice.
      answer: column of the answer.
      index: column of the question's name in prediction files.
    """

    context: Names
    question: Names
    choices: tuple[str, ...]
    answer: Names
    index: Names


def read_questions(
    source: str,
    columns: Columns,
    *,
    labelled: bool,
    format: str,
    encoding: str,
    data_dir: str,
) -> list[Question]:
    """The questions of a source, in order.

    Args:
      source: as in `read_rows`.
      columns: columns of the source; a question without an index gets its number, from 0.
      labelled: whether answers are read; False ignores any.
      format, encoding, data_dir: as in `read_rows`.

    Raises:
      UserError: as `read_rows`; no rows; a column is missing or has something else than text; there
        is no such choice as an answer names; if `labelled`, no answer is known. The message names
        the line.
    """
    names = (columns.context, columns.question, columns.choices, columns.index)
    wanted = (*names, columns.answer) if labelled else names
    rows = read_rows(
        source,
        [name for each in wanted for name in all_of(each)],
        format=format,
        encoding=encoding,
        data_dir=data_dir,
    )
    questions = [
        _question(row, columns, labelled, default_index=str(number))
        for number, row in enumerate(rows)
    ]
    if not questions:
        raise UserError(f"{source}: no rows")
    if labelled and all(question.answer is None for question in questions):
        raise UserError(f"{source}: no row has an answer in {either(columns.answer)}")
    return questions


def _question(row: Row, columns: Columns, labelled: bool, default_index: str) -> Question:
    choices, names = _choices(row, columns.choices)
    index = all_of(columns.index)
    answer = row.get(*all_of(columns.answer)) if labelled else None
    return Question(
        text_of(row, columns.context) if columns.context else None,
        text_of(row, columns.question),
        choices,
        _answer(answer, names, len(choices), row.place),
        str(row.get(*index)) if row.has(*index) else default_index,
        row.place,
    )


def _choices(row: Row, columns: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The texts of the choices, and their names if the row has some."""
    names: Any = ()
    found: Any = [row.get(column) for column in columns]
    if len(columns) == 1:
        (found,) = found
        if isinstance(found, Mapping) and {"text", "label"} <= found.keys():  # CommonsenseQA, ARC
            found, names = found["text"], found["label"]
    if not isinstance(found, list) or not all(isinstance(choice, str) for choice in found):
        raise UserError(f"{row.place}: {', '.join(columns)}: the choices must be a list of texts")
    if len(found) < 2:
        raise UserError(f"{row.place}: {', '.join(columns)}: a question needs two choices")
    return tuple(found), tuple(map(str, names))


def _answer(answer: Any, names: Sequence[str], count: int, place: str) -> int | None:
    """The number of a choice that an answer means: a name, a number from 0, or a letter from A."""
    said = "" if answer is None else str(answer).strip()
    if said in ("", "-1"):
        return None
    if said in names:
        return names.index(said)
    if isinstance(answer, float) and answer.is_integer():
        said = str(int(answer))  # as columns of numbers with gaps have it
    letters = string.ascii_uppercase
    if said.isdecimal():
        number = int(said)
    else:
        number = letters.index(said.upper()) if len(said) == 1 and said.upper() in letters else -1
    if not 0 <= number < count:
        known = ", ".join(names) or f"0 to {count - 1}, A to {letters[min(count, 26) - 1]}"
        raise UserError(f"{place}: answer {answer!r} is none of the choices, {known}")
    return number
