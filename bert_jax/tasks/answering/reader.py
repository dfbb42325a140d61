"""Reads questions from SQuAD's JSON files, rows of the library `datasets`, and TFDS."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from bert_jax.data.lines import suffixes
from bert_jax.data.tables import find_files, read_lines, read_rows
from bert_jax.data.tfds import dataset_and_split
from bert_jax.errors import UserError
from bert_jax.json_values import parse_json
from bert_jax.tasks.answering.example import Question

Record = tuple[str, Mapping[str, Any]]  # place of a question, and its object in a file

_COLUMNS = ("id", "question", "context", "answers")
_TABLES = (".jsonl", ".parquet", ".csv", ".tsv")


def read_questions(
    source: str, *, labelled: bool, unanswerable: bool, repair: bool, data_dir: str
) -> list[Question]:
    """The questions of files in SQuAD's format, of rows, or of `tfds:squad/v1.1[:SPLIT]`.

    A row has `id`, `question`, `context` and `answers`, as in the library `datasets`: `answers` has
    the lists `text` and `answer_start`, or is a list of objects with one of each. A question
    without answers is impossible, unless its `is_impossible` is false.

    Args:
      source: a file or a glob of several, local or gs://, plain or compressed (.gz, .xz, .bz2,
        .zst), or a dataset; its split is `train` by default. A .jsonl or Parquet file has rows; a
        .json file has SQuAD's articles, or rows: under "data", as a list, or one per line.
      labelled: whether answers are read; False ignores any.
      unanswerable: whether questions may be impossible.
      repair: accept an answer that is not at its stated position but occurs exactly once in the
        context.
      data_dir: where TFDS keeps its datasets; empty for its default.

    Raises:
      UserError: the source is not of that format, or an id occurs twice; if `labelled`, a
        question without an answer, an answer that is not at its stated position, or impossible
        questions without `unanswerable`.
    """
    questions: dict[str, Question] = {}
    for place, record in _records(source, data_dir):
        asked, context = (_text(record, key, place) for key in ("question", "context"))
        question = Question(_id(record, place), asked, context)
        if labelled:
            question = _with_answers(question, record, place, unanswerable, repair)
        if question.id in questions:
            raise UserError(f"{place}: the id occurs twice; ids must be unique")
        questions[question.id] = question
    if not questions:
        raise UserError(f"{source}: no questions found")
    return list(questions.values())


def _with_answers(
    question: Question, record: Mapping[str, Any], place: str, unanswerable: bool, repair: bool
) -> Question:
    answers = _answers(record, place)
    is_impossible = record.get("is_impossible")
    if is_impossible is None:
        is_impossible = not answers
    elif is_impossible not in (True, False):  # also 1 and 0
        raise UserError(f"{place}: is_impossible is {is_impossible!r}; it must be true or false")
    if is_impossible and not unanswerable:
        kind = "is_impossible is true" if record.get("is_impossible") else "there are no answers"
        raise UserError(f"{place}: {kind}; set unanswerable=True for SQuAD 2.0")
    if bool(is_impossible) == bool(answers):
        kind = "impossible" if is_impossible else "possible"
        raise UserError(f"{place}: the question is {kind} and has {len(answers)} answers")
    found = [_find(answer, question.context, place, repair) for answer in answers]
    return question._replace(
        answers=tuple((answer["text"], at) for answer, at in zip(answers, found)),
        num_repaired=sum(at != answer["answer_start"] for answer, at in zip(answers, found)),
    )


def _answers(record: Mapping[str, Any], place: str) -> list[Mapping[str, Any]]:
    """Objects with `text` and `answer_start`."""
    answers = record.get("answers")
    if isinstance(answers, Mapping):
        texts, starts = answers.get("text"), answers.get("answer_start")
        if isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts):
            return [{"text": t, "answer_start": at} for t, at in zip(texts, starts)]
    elif answers is None:
        return []
    elif isinstance(answers, list) and all(isinstance(answer, Mapping) for answer in answers):
        return answers
    raise UserError(
        f"{place}: answers must be a list of objects with text and answer_start, or an object with "
        "equally long lists of both"
    )


def _find(answer: Mapping[str, Any], context: str, place: str, repair: bool) -> int:
    """The character of the context where the answer begins."""
    text, start = _text(answer, "text", place), answer.get("answer_start")
    if isinstance(start, float) and start.is_integer():
        start = int(start)  # as columns of numbers with gaps have it
    if not isinstance(start, int | np.integer) or isinstance(start, bool) or start < 0:
        raise UserError(f"{place}: answer_start is {start!r}; it must be a character's position")
    if context.startswith(text, start):
        return int(start)
    times = sum(context.startswith(text, at) for at in range(len(context)))
    if repair and times == 1:
        return context.index(text)
    there = context[start : start + len(text)]
    raise UserError(
        f"{place}: the answer {text!r} is not at character {start} of the context, where "
        f"{there!r} is; the context has it {times} times"
        + ("; repair=True uses that position" if times == 1 else "")
    )


def _text(record: Mapping[str, Any], field: str, place: str) -> str:
    """A required field of text that is not blank."""
    text = record.get(field)
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{place}: {field} is {text!r}; it must be a text that is not blank")
    return text


def _id(record: Mapping[str, Any], place: str) -> str:
    """The id, which some files have as a number."""
    id_ = record.get("id")
    return str(id_) if type(id_) is int else _text(record, "id", place)


def _records(source: str, data_dir: str) -> Iterator[Record]:
    if dataset_and_split(source):
        yield from _rows(source, data_dir=data_dir)
        return
    for path in find_files(source):
        if suffixes(path)[0] in _TABLES:
            yield from _rows(str(path))
        else:
            yield from _json_records(path)


def _rows(source: str, *, format: str = "", data_dir: str = "") -> Iterator[Record]:
    for row in read_rows(source, _COLUMNS, format=format, data_dir=data_dir):
        yield row.place, row.values


def _json_records(path: epath.Path) -> Iterator[Record]:
    lines = [line for _, line in read_lines(path, "utf-8") if line.strip()]
    if len(lines) > 1 and lines[0].rstrip().endswith("}"):  # objects, one per line
        yield from _rows(str(path), format="jsonl")
        return
    content = parse_json("".join(lines), str(path))
    records = content
    if isinstance(content, Mapping):
        records = [content] if "question" in content else content.get("data")
    if not isinstance(records, list):
        raise UserError(f'{path}: not a JSON object with "data", a list, as SQuAD has it')
    for number, record in enumerate(records, 1):
        if isinstance(record, Mapping) and "question" in record:
            yield f"{path}, item {number}", record
        else:
            yield from _article(record, f"{path}, article {number}")


def _article(article: Any, place: str) -> Iterator[Record]:
    """The questions of one of SQuAD's articles."""
    for p, paragraph in enumerate(_parts(article, "paragraphs", place), 1):
        there = f"{place}, paragraph {p}"
        for q, record in enumerate(_parts(paragraph, "qas", there), 1):
            if not isinstance(record, Mapping):
                raise UserError(f"{there}, question {q}: not in SQuAD's format: not an object")
            name = f"{there}, question {q} ({record.get('id')})"
            yield name, {**record, "context": paragraph.get("context")}


def _parts(whole: Any, field: str, place: str) -> list[Any]:
    parts = whole.get(field) if isinstance(whole, Mapping) else None
    if not isinstance(parts, list):
        raise UserError(f"{place}: not in SQuAD's format: no list '{field}'")
    return parts
