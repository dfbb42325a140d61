"""Answers to questions from their contexts."""

from collections.abc import Iterable, Iterator
from typing import Any

from bert_jax.inference.fine_tuned import task_as
from bert_jax.inference.runner import Runner
from bert_jax.inference.texts import checked
from bert_jax.inference.uses.chunks import chunks
from bert_jax.tasks import AnsweringTask
from bert_jax.tasks.answering.decoding import Prediction
from bert_jax.tasks.answering.example import Question


def answer(
    runner: Runner,
    questions: Iterable[tuple[str, str]],
    max_seq_length: int | None,
    **options: Any,
) -> Iterator[Prediction]:
    """The answer to each question; see `TrainedBert.answer`."""

    def answers() -> Iterator[Prediction]:
        for asked in asked_of(questions):
            yield from runner.outputs(task, asked).predictions

    task = task_as(runner.model, AnsweringTask, max_seq_length=max_seq_length, **options)
    runner.require(*task.head.parts(runner.architecture))
    return answers()


def asked_of(questions: Iterable[tuple[str, str]]) -> Iterator[list[Question]]:
    """Pairs of a question and a context as a task takes them, some hundred at a time."""
    for some in chunks(checked(questions, text=False)):
        yield [Question(str(number), *pair) for number, pair in enumerate(some)]
