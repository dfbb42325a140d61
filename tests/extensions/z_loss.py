"""An objective: masked LM alone, with a penalty on the logits' normaliser (z-loss)."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bert_jax.fields import NOT_NEGATIVE, field
from bert_jax.model.heads import MASKED_LM
from bert_jax.objective.masking import BoundMasking
from bert_jax.objective.pretraining import PreTraining
from bert_jax.objective.protocol import Batch, Objective, Sums


@dataclass(frozen=True, eq=False)
class MaskedLmWithZLoss(PreTraining):
    """Adds weight * log(sum(exp(logits)))^2 to the loss of each masked token."""

    weight: float = 0.0

    heads = ("mlm",)

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        return {"mlm": batch["masked_lm_weights"]}

    def sums(self, params: Any, batch: Batch, dropout_key: jax.Array | None = None) -> Sums:
        model = nnx.merge(self.graphdef, params)
        hidden = model.encode(batch, dropout_key)
        logits = MASKED_LM.apply(model, MASKED_LM.read(model.bert, hidden, batch))
        weights = batch["masked_lm_weights"]
        sums = MASKED_LM.sums(logits, batch["masked_lm_ids"], weights, batch)
        penalty = jnp.sum(jax.nn.logsumexp(logits, axis=-1) ** 2 * weights)
        loss = sums["loss"] + self.weight * penalty
        return {"mlm_loss": loss, "mlm_correct": sums["correct"], "mlm_count": sums["count"]}


@dataclass(frozen=True)
class ZLoss(Objective):
    """Masked LM with z-loss; the model has no other head."""

    weight: float = field(1e-4, "of the penalty", bounds=NOT_NEGATIVE)

    @property
    def parts(self) -> tuple[str, ...]:
        return ("masked_lm",)

    def bind(
        self, graphdef: nnx.GraphDef[Any], masking: BoundMasking | None, seed: int
    ) -> MaskedLmWithZLoss:
        return MaskedLmWithZLoss(graphdef, masking, seed, weight=self.weight)
