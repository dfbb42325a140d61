"""Fine-tuning tasks: labelled texts in, predictions and metrics out, in NumPy.

Importing this package registers the names of its tasks with `Task`.
"""

from bert_jax.tasks.answering.task import AnsweringTask
from bert_jax.tasks.classification.glue import GlueTask
from bert_jax.tasks.classification.task import ClassificationTask
from bert_jax.tasks.classification.text_task import TextTask
from bert_jax.tasks.extraction.task import ExtractionTask
from bert_jax.tasks.generation.task import GenerationTask
from bert_jax.tasks.multi_label.task import MultiLabelTask
from bert_jax.tasks.multiple_choice.task import MultipleChoiceTask
from bert_jax.tasks.protocol import Task
from bert_jax.tasks.similarity.task import SimilarityTask
from bert_jax.tasks.tagging.task import TaggingTask

__all__ = [
    "AnsweringTask",
    "ClassificationTask",
    "ExtractionTask",
    "GenerationTask",
    "GlueTask",
    "MultiLabelTask",
    "MultipleChoiceTask",
    "SimilarityTask",
    "TaggingTask",
    "Task",
    "TextTask",
]
