"""Tasks of fine-tuning: texts with labels in, predictions and their metrics out; none needs JAX.

The import of this package makes the names of its own tasks known to `Task`.
"""

from bert_jax.tasks.answering.task import AnsweringTask
from bert_jax.tasks.classification.glue import GlueTask
from bert_jax.tasks.classification.task import ClassificationTask
from bert_jax.tasks.protocol import Task
from bert_jax.tasks.tagging.task import TaggingTask

__all__ = ["AnsweringTask", "ClassificationTask", "GlueTask", "TaggingTask", "Task"]
