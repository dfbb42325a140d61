"""The tasks by name."""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from bert_jax.errors import UserError
from bert_jax.tasks.answering import AnsweringTask
from bert_jax.tasks.classification import GLUE, ClassificationTask
from bert_jax.tasks.tagging import TaggingTask

Task = ClassificationTask | TaggingTask | AnsweringTask

TASKS: Mapping[str, Task] = {
    "classification": ClassificationTask(),
    "tagging": TaggingTask(),
    "answering": AnsweringTask(),
    **{f"glue/{name}": glue.task for name, glue in GLUE.items()},
}


def build_task(name: str, options: Mapping[str, Any], labels: Sequence[str] = ()) -> Task:
    """The task `name` with some of its fields set.

    Args:
      name: of `TASKS`.
      options: fields of its class.
      labels: of a trained model; replace those of a task that takes them from its examples.

    Raises:
      UserError: no such task or field.
    """
    if name not in TASKS:
        raise UserError(f"config.task.name={name!r}: use one of {', '.join(TASKS)}")
    fields = [field.name for field in dataclasses.fields(TASKS[name])]
    for option in options:
        if option not in fields:
            close = difflib.get_close_matches(option, fields, n=1)
            meant = f"; did you mean {close[0]}?" if close else f"; there are {', '.join(fields)}"
            raise UserError(f"config.task.options.{option}: {name} has no such option{meant}")
    task = dataclasses.replace(TASKS[name], **options)
    if labels and not getattr(task, "labels", labels):
        task = dataclasses.replace(task, labels=tuple(labels))
    return task


def submission_name(name: str, source: str) -> str | None:
    """What GLUE's server calls the predictions on a test split, `tfds:glue/sst2:test` say."""
    glue = GLUE.get(name.removeprefix("glue/"))
    return glue.submission.get(source.rpartition(":")[2]) if glue else None
