"""Summaries of documents, each a few of its sentences."""

from collections.abc import Iterable, Iterator
from typing import Any

from bert_jax.errors import UserError
from bert_jax.inference.fine_tuned import known_task, task_as
from bert_jax.inference.runner import Runner
from bert_jax.inference.texts import checked
from bert_jax.inference.uses.chunks import chunks
from bert_jax.tasks import ExtractionTask
from bert_jax.tasks.classification.example import Example
from bert_jax.tasks.extraction.task import Extract


def extract(
    runner: Runner, texts: Iterable[str], max_seq_length: int | None, **options: Any
) -> Iterator[Extract]:
    """The summary of each document; see `TrainedBert.extract`."""

    def extracts() -> Iterator[Extract]:
        for some in chunks(checked(texts, pair=False)):
            documents = [Example(text, None, None, "", "") for text in some]
            yield from runner.outputs(task, documents).predictions

    if not isinstance(known_task(runner.model), ExtractionTask):
        raise UserError("the model chooses no sentences: fine-tune it on the task extraction")
    task = task_as(runner.model, ExtractionTask, max_seq_length=max_seq_length, **options)
    return extracts()
