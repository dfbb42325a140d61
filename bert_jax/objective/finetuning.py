"""Objectives of fine-tuning: a class or score of each example, a class of each token, a span."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bert_jax.objective.losses import cross_entropy

ELSEWHERE = -1e9  # a logit that no softmax sees

Batch = dict[str, jax.Array]
Sums = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class FineTuning:
    """What a step needs to know of a task.

    A batch has `input_ids`, `token_type_ids`, `position_ids`, `segment_ids` [rows, length],
    `cls_positions` [rows, examples] and `labels`: int32 classes [rows, examples] of a
    `sequence_classifier`, -1 where there is none, or fp32 scores, NaN where there is none; int32
    classes [rows, length] of a `token_classifier`, -1 where there is none; the first and the last
    position [rows, examples, 2] of an `answer_span` in its row, -1 where there is no example.

    Attributes:
      graphdef: structure of a `BertWithHeads` that has `head`.
      head: "sequence_classifier", "token_classifier" or "answer_span".
      dropout_rate: on what the classifiers read; a span has none, as in BERT.
      freeze: encoder (not the pooler) as it is; its gradients are not computed.
    """

    graphdef: Any
    head: str
    dropout_rate: float = 0.0
    freeze: bool = False

    heads = ("task",)

    def prepare(self, batch: Batch) -> Batch:
        """Leaves a batch as it is."""
        return batch

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """fp32, 1 where there is a label."""
        labels = batch["labels"]
        if self.head == "answer_span":
            labels = labels[..., 0]
        # NaN is not at least anything.
        known = labels > -jnp.inf if labels.dtype == jnp.float32 else labels >= 0
        return {"task": known.astype(jnp.float32)}

    def logits(self, params: Any, batch: Batch, dropout_key: jax.Array | None = None) -> jax.Array:
        """fp32 [rows, examples, classes] of a sequence classifier, else [rows, length, classes]."""
        return nnx.merge(self.graphdef, params).score(
            self.head,
            batch["input_ids"],
            batch["token_type_ids"],
            batch["position_ids"],
            batch["segment_ids"],
            batch["cls_positions"],
            dropout_key,
            head_dropout=self.dropout_rate,
            freeze=self.freeze,
        )

    def sums(self, params: Any, batch: Batch, dropout_key: jax.Array | None = None) -> Sums:
        """The scalars "task_loss" (nats, or squared error of a score), "_correct" and "_count".

        The loss of a span is the mean of those of its two ends, each over the tokens of the
        example. A score is never correct: there is no such scalar.
        """
        return self.sums_of(self.logits(params, batch, dropout_key), batch)

    def sums_of(self, logits: jax.Array, batch: Batch) -> Sums:
        """The same from what `logits` gave."""
        labels, weights = batch["labels"], self.weights(batch)["task"]
        if self.head == "answer_span":
            ends = [self._end(logits[..., end], labels[..., end], weights, batch) for end in (0, 1)]
            sums = jax.tree.map(lambda start, end: (start + end) / 2, *ends)
        elif labels.dtype == jnp.float32:
            errors = jnp.where(weights > 0, logits[..., 0] - labels, 0)
            sums = {"loss": jnp.sum(errors**2), "count": jnp.sum(weights)}
        else:
            sums = cross_entropy(logits, labels, weights)
        return {f"task_{name}": value for name, value in sums.items()}

    def _end(self, logits, labels, weights, batch):
        examples = jnp.arange(labels.shape[1]) + 1
        own = batch["segment_ids"][:, None, :] == examples[:, None]
        return cross_entropy(jnp.where(own, logits[:, None, :], ELSEWHERE), labels, weights)
