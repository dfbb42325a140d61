"""Reads questions from SQuAD's JSON files and TFDS."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from bert_jax.data.lines import decoded_lines
from bert_jax.data.tables import read_rows
from bert_jax.data.tfds import dataset_and_split
from bert_jax.errors import UserError
from bert_jax.tasks.answering.example import Question

Record = tuple[str, Mapping[str, Any]]  # place of a question, and its object in a file


def read_questions(
    source: str, *, labelled: bool, unanswerable: bool, repair: bool, data_dir: str
) -> list[Question]:
    """The questions of a JSON file of SQuAD's format, or of `tfds:squad/v1.1[:SPLIT]`.

    Args:
      source: a file, local or gs://, plain or compressed (.gz, .xz, .bz2, .zst), or a dataset;
        its split is `train` by default.
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
    is_dataset = dataset_and_split(source) is not None
    records = _tfds_records(source, data_dir) if is_dataset else _json_records(source)
    questions: dict[str, Question] = {}
    for place, record in records:
        id_, asked, context = (_text(record, key, place) for key in ("id", "question", "context"))
        question = Question(id_, asked, context)
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
    is_impossible, answers = record.get("is_impossible", False), record.get("answers", [])
    if is_impossible and not unanswerable:
        raise UserError(f"{place}: is_impossible is true; set unanswerable=True for SQuAD 2.0")
    if not isinstance(answers, list) or not all(isinstance(a, Mapping) for a in answers):
        raise UserError(f"{place}: answers must be a list of objects with text and answer_start")
    if bool(is_impossible) == bool(answers):
        kind = "impossible" if is_impossible else "possible"
        raise UserError(f"{place}: the question is {kind} and has {len(answers)} answers")
    found = [_find(answer, question.context, place, repair) for answer in answers]
    return question._replace(
        answers=tuple((answer["text"], at) for answer, at in zip(answers, found)),
        num_repaired=sum(at != answer["answer_start"] for answer, at in zip(answers, found)),
    )


def _find(answer: Mapping[str, Any], context: str, place: str, repair: bool) -> int:
    """The character of the context where the answer begins."""
    text, start = _text(answer, "text", place), answer.get("answer_start")
    if not isinstance(start, int) or start < 0:
        raise UserError(f"{place}: answer_start is {start!r}; it must be a character's position")
    if context.startswith(text, start):
        return start
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


def _tfds_records(source: str, data_dir: str) -> Iterator[Record]:
    for row in read_rows(source, (), data_dir=data_dir):
        answers = row.get("answers")
        pairs = zip(answers["text"], answers["answer_start"])
        answers = [{"text": text, "answer_start": int(start)} for text, start in pairs]
        yield row.place, {**row.values, "answers": answers}


def _json_records(source: str) -> Iterator[Record]:
    path = epath.Path(source).expanduser()
    if not path.exists():
        raise UserError(f"{source}: no such file")
    with path.open("rb") as file:
        text = "".join(line for _, line in decoded_lines(path, file))
    try:
        articles = json.loads(text)["data"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'{source}: not a JSON object with "data", as SQuAD has it') from error
    for a, article in enumerate(articles, 1):
        place = f"{source}, article {a}"
        try:
            for p, paragraph in enumerate(article["paragraphs"], 1):
                place = f"{source}, article {a}, paragraph {p}"
                for q, record in enumerate(paragraph["qas"], 1):
                    name = f"{place}, question {q} ({record.get('id')})"
                    yield name, {**record, "context": paragraph.get("context")}
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{place}: not in SQuAD's format: {error}") from error
