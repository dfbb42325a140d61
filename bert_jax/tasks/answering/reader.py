"""Reads questions from files of SQuAD's format, from rows with the same fields, and from TFDS."""

from collections.abc import Iterator, Mapping
from numbers import Integral
from typing import Any

from etils import epath

from bert_jax.data.lines import decoded_lines
from bert_jax.data.tables import find_files, has_rows, read_rows
from bert_jax.errors import UserError
from bert_jax.json_values import parse_json
from bert_jax.tasks.answering.example import Question

Record = tuple[str, Mapping[str, Any]]  # place of a question, and its object in a file


def read_questions(
    source: str, *, labelled: bool, unanswerable: bool, repair: bool, data_dir: str
) -> list[Question]:
    """The questions of a source, in order.

    A .json file is of SQuAD's format, or holds a list of rows; .jsonl and .parquet files hold rows,
    as the library `datasets` has them: id, question, context, answers.

    Args:
      source: a file, local or gs://, plain or compressed (.gz, .xz, .bz2, .zst), or a dataset with
        such rows, `tfds:squad/v1.1[:SPLIT]`; its split is `train` by default.
      labelled: whether answers are read; False ignores any.
      unanswerable: whether questions may be impossible: those without an answer are, unless
        `is_impossible` says otherwise.
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
        is_impossible = unanswerable and not answers
    if is_impossible not in (True, False):
        raise UserError(f"{place}: is_impossible is {is_impossible!r}; it must be true or false")
    if is_impossible and not unanswerable:
        raise UserError(f"{place}: is_impossible is true; set unanswerable=True for SQuAD 2.0")
    if bool(is_impossible) == bool(answers):
        kind = "impossible" if is_impossible else "possible"
        hint = "" if unanswerable else "; set unanswerable=True if some questions have none"
        raise UserError(f"{place}: the question is {kind} and has {len(answers)} answers{hint}")
    found = [_find(answer, question.context, place, repair) for answer in answers]
    return question._replace(
        answers=tuple((answer["text"], at) for answer, at in zip(answers, found)),
        num_repaired=sum(at != answer["answer_start"] for answer, at in zip(answers, found)),
    )


def _answers(record: Mapping[str, Any], place: str) -> list[Mapping[str, Any]]:
    """The answers as SQuAD has them, a list of objects with `text` and `answer_start`.

    In rows of the library `datasets` they are one object with a list of both, or with one of both.
    """
    answers = record.get("answers")
    if answers is None:
        return []
    if isinstance(answers, Mapping):
        texts, starts = answers.get("text"), answers.get("answer_start")
        if isinstance(texts, str):
            texts, starts = [texts], [starts]
        if isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts):
            return [{"text": t, "answer_start": at} for t, at in zip(texts, starts)]
    elif isinstance(answers, list) and all(isinstance(each, Mapping) for each in answers):
        return answers
    raise UserError(
        f"{place}: answers must be a list of objects with text and answer_start, or an object with "
        "lists of both"
    )


def _find(answer: Mapping[str, Any], context: str, place: str, repair: bool) -> int:
    """The character of the context where the answer begins."""
    text, start = _text(answer, "text", place), answer.get("answer_start")
    if not isinstance(start, Integral) or isinstance(start, bool) or start < 0:
        raise UserError(f"{place}: answer_start is {start!r}; it must be a character's position")
    start = int(start)
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


def _id(record: Mapping[str, Any], place: str) -> str:
    id_ = record.get("id")
    is_number = isinstance(id_, Integral) and not isinstance(id_, bool)
    return str(id_) if is_number else _text(record, "id", place)


def _records(source: str, data_dir: str) -> Iterator[Record]:
    if has_rows(source):
        for row in read_rows(source, ("question",), data_dir=data_dir):
            yield row.place, row.values
        return
    for path in find_files(source):
        yield from _json_records(path)


def _json_records(path: epath.Path) -> Iterator[Record]:
    with path.open("rb") as file:
        text = "".join(line for _, line in decoded_lines(path, file))
    wanted = f'{path}: not a JSON object with "data", as SQuAD has it, nor a list of rows'
    try:
        found = parse_json(text, str(path))
    except UserError as error:
        raise UserError(f"{wanted} ({str(error).removeprefix(f'{path}: ')})") from error
    if isinstance(found, Mapping):
        found = found.get("data")
    if not isinstance(found, list):
        raise UserError(wanted)
    for number, item in enumerate(found, 1):
        if isinstance(item, Mapping) and "question" in item:
            yield f"{path}, item {number}", item
        else:
            yield from _of_article(item, f"{path}, article {number}")


def _of_article(article: Any, place: str) -> Iterator[Record]:
    for p, paragraph in enumerate(_list(article, "paragraphs", place), 1):
        there = f"{place}, paragraph {p}"
        for q, record in enumerate(_list(paragraph, "qas", there), 1):
            if not isinstance(record, Mapping):
                raise UserError(f"{there}: not in SQuAD's format: question {q} is no object")
            name = f"{there}, question {q} ({record.get('id')})"
            yield name, {**record, "context": paragraph.get("context")}


def _list(holder: Any, field: str, place: str) -> list[Any]:
    found = holder.get(field) if isinstance(holder, Mapping) else None
    if not isinstance(found, list):
        raise UserError(f"{place}: not in SQuAD's format: {field!r} must be a list")
    return found
