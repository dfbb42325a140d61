"""The objective of fine-tuning: the loss of one head on the labels of a task."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
from flax import nnx

from bert_jax.model.dropout import split_key
from bert_jax.model.heads import Head
from bert_jax.objective.protocol import Batch, Sums


@dataclass(frozen=True, eq=False)
class FineTuning:
    """The objective of a task, for a model; see `BoundObjective`.

    A batch has `input_ids`, `token_type_ids`, `position_ids`, `segment_ids` [rows, length],
    `cls_positions` [rows, examples] and `labels`, as the head lays them out.

    Attributes:
      graphdef: structure of a `BertWithHeads` that has the head.
      head: head that is trained on the labels.
      dropout_rate: dropout rate of the head's input, if the head has dropout.
      freeze: leave the encoder (not the pooler) unchanged; its gradients are not computed.
      teacher_weight: share of a teacher's outputs in the loss; above 0, `graphdef` is that of a
        `BertWithTeacher`, and parameters have those of the teacher, too.
      temperature: that of the teacher's outputs; see `Head.soft_sums`.
    """

    graphdef: nnx.GraphDef[Any]
    head: Head
    dropout_rate: float = 0.0
    freeze: bool = False
    teacher_weight: float = 0.0
    temperature: float = 1.0

    word_heads: ClassVar[tuple[str, ...]] = ()

    @property
    def heads(self) -> tuple[str, ...]:
        """The labels, and the outputs of a teacher."""
        return ("task", "soft") if self.teacher_weight else ("task",)

    @property
    def factors(self) -> Mapping[str, float]:
        if not self.teacher_weight:
            return {}
        return {"task": 1 - self.teacher_weight, "soft": self.teacher_weight}

    def prepare(self, batch: Batch, step: jax.Array | None = None) -> Batch:
        """Returns the batch unchanged."""
        del step
        return batch

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """fp32, 1 where there is a label, else 0; the teacher also labels unlabelled texts."""
        found = {"task": self.head.weights(batch["labels"])}
        if self.teacher_weight:
            found["soft"] = self.head.soft_weights(batch["labels"], batch)
        return found

    def logits(self, params: Any, batch: Batch, dropout_key: jax.Array | None = None) -> jax.Array:
        """fp32 outputs of the head; see `Head.logits`."""
        model = nnx.merge(self.graphdef, params)
        keys = split_key(dropout_key, 2)
        hidden = model.encode(batch, keys[0])
        if self.freeze:
            hidden = jax.lax.stop_gradient(hidden)
        return self.head.logits(model, hidden, batch, self.dropout_rate, keys[1])

    def sums(self, params: Any, batch: Batch, dropout_key: jax.Array | None = None) -> Sums:
        """The scalars "task_loss", "task_count" and, where accuracy is defined, "task_correct".

        With a teacher also "soft_loss" and "soft_count". Its parameters have no gradients.
        """
        logits = self.logits(params, batch, dropout_key)
        sums = self.sums_of(logits, batch)
        if not self.teacher_weight:
            return sums
        teacher = nnx.merge(self.graphdef, params).teacher
        targets = self.head.logits(teacher, teacher.encode(batch), batch)
        weights = self.weights(batch)["soft"]
        labels, temperature = batch["labels"], self.temperature
        soft = self.head.soft_sums(logits, targets, labels, weights, batch, temperature)
        return sums | {f"soft_{name}": value for name, value in soft.items()}

    def sums_of(self, logits: jax.Array, batch: Batch) -> Sums:
        """As `sums`, from the result of `logits`."""
        weights = self.weights(batch)["task"]
        sums = self.head.sums(logits, batch["labels"], weights, batch)
        return {f"task_{name}": value for name, value in sums.items()}
