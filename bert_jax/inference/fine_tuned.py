"""The task that a trained model was fine-tuned on, which says how it reads texts."""

from typing import Any, TypeVar

from etils import epath

from bert_jax.config.saved import read_task
from bert_jax.errors import UserError
from bert_jax.fields import Plain, build, to_plain
from bert_jax.inference.exported import is_exported
from bert_jax.inference.load_bert import MANIFEST
from bert_jax.interop.portable import Portable
from bert_jax.interop.workdir import CONFIG_FILE
from bert_jax.model.heads import DECODER
from bert_jax.model.search import Search
from bert_jax.storage import read_json
from bert_jax.tasks import (
    AnsweringTask,
    ClassificationTask,
    GenerationTask,
    MultiLabelTask,
    MultipleChoiceTask,
    TaggingTask,
    Task,
    TextTask,
)
from bert_jax.tasks.protocol import AnyTask

SomeTask = TypeVar("SomeTask", bound=AnyTask)


def task_in(path: epath.Path) -> AnyTask | None:
    """The task of the model in a directory, read without its parameters; None if not known.

    Raises:
      UserError: as `known_task`.
    """
    if is_exported(path):
        fields = read_json(path / MANIFEST).get("task")
    elif (path / CONFIG_FILE).exists():
        fields = read_task(path / CONFIG_FILE)
    else:
        fields = None
    return _task(fields) if fields else None


def known_task(model: Portable) -> AnyTask | None:
    """The task that a model was fine-tuned on, without its data; None if that is not known.

    Raises:
      UserError: its class cannot be imported, or its fields are damaged.
    """
    if model.task is None:
        return None
    return _task(model.task).with_labels(model.labels)


def task_as(model: Portable, kind: type[SomeTask], **changes: Any) -> SomeTask:
    """The task that a model was fine-tuned on, with the model's labels.

    If that is not known, or of another kind, it is a `kind` with default fields.

    Args:
      model: any model.
      kind: a class of tasks.
      **changes: fields to set; those that are None stay as they are.

    Raises:
      UserError: as `known_task`; a field does not exist or has a wrong value; `max_seq_length` is
        more than the model's positions.
    """
    changes = {name: value for name, value in changes.items() if value is not None}
    positions = model.architecture.max_position_embeddings
    if changes.get("max_seq_length", 0) > positions:
        raise UserError(
            f"max_seq_length={changes['max_seq_length']}: the model has {positions} positions"
        )
    known, fields = known_task(model), _defaults(model, kind)
    if isinstance(known, kind):
        kind, fields = type(known), to_plain(known)
    elif known is not None:
        fields["max_seq_length"] = known.max_seq_length
    task = build(kind, {"name": kind.called(), **fields, **changes}, "task")
    return task.with_labels(model.labels)


def task_of(model: Portable) -> AnyTask:
    """The task that a model was fine-tuned on, or else the one that its head is for.

    Raises:
      UserError: as `known_task`; or the model has no head of a task.
    """
    if known := known_task(model):
        return known
    if model.problem_type == "regression" and model.outputs > 1:
        raise UserError(
            f"problem_type is {model.problem_type} with {model.outputs} outputs, which no task "
            "scores: compare what `bert-jax predict classify` gives with your labels"
        )
    kinds: tuple[type[AnyTask], ...]
    kinds = (text_kind(model), TaggingTask, AnsweringTask, MultipleChoiceTask, GenerationTask)
    for kind in kinds:
        task = task_as(model, kind)
        if task.head.part in model.params:
            return task
    heads = ", ".join(kind().head.part for kind in kinds)
    raise UserError(
        f"the model has no head of a task, none of {heads}: fine-tune it, or score its "
        "vectors, by the task similarity"
    )


def text_kind(model: Portable) -> type[TextTask]:
    """The class of the task of a classifier or regression, from its fine-tuning or its head."""
    if isinstance(known := known_task(model), TextTask):
        return type(known)
    several = model.problem_type == MultiLabelTask().head.problem_type
    return MultiLabelTask if several else ClassificationTask


def _task(fields: Plain) -> AnyTask:
    task: AnyTask = build(Task, fields, "task")  # type: ignore[type-abstract]
    return task


def _defaults(model: Portable, kind: type[AnyTask]) -> Plain:
    """Fields of a task that nothing is known about but the model's labels."""
    fields: Plain = {}
    if issubclass(kind, GenerationTask):
        positions = model.architecture.max_position_embeddings
        fields["max_seq_length"] = positions
        fields["search"] = {"max_length": min(Search.max_length, positions)}
        fields["shared_weights"] = DECODER not in model.params
    if issubclass(kind, TextTask):
        fields["max_seq_length"] = model.architecture.max_position_embeddings
        if not model.labels and issubclass(kind, ClassificationTask):
            fields |= {"regression": True, "metric_names": ["pearson", "spearman"]}
    return fields
