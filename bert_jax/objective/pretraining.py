"""BERT's objective: masked LM plus next sentence (or sentence order) prediction."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bert_jax.objective.losses import cross_entropy
from bert_jax.objective.masking import Masking, mask_tokens

Batch = dict[str, jax.Array]
Sums = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class PreTraining:
    """What a step needs to know of the task: how to prepare a batch, count it and sum its losses.

    Attributes:
      graphdef: structure of a `BertWithHeads` that has those of pretraining.
      masking: how to mask.
      seed: of the masks. They are drawn by threefry, whatever generator dropout uses, so that they
        are the same on every mesh.
    """

    graphdef: Any
    masking: Masking
    seed: int

    heads = ("mlm", "nsp")

    def prepare(self, batch: Batch) -> Batch:
        """Masks the rows of a global batch; see `mask_tokens` for what it adds.

        A batch of pre-masked examples is complete and stays as it is.
        """
        if "masked_lm_positions" in batch:
            return batch
        return mask_tokens(batch, self.masking, jax.random.key(self.seed, impl="threefry2x32"))

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Per head, fp32 weights of a prepared batch: masked slots, examples that have a label."""
        return {
            "mlm": batch["masked_lm_weights"],
            "nsp": (batch["next_sentence_label"] >= 0).astype(jnp.float32),
        }

    def sums(self, params: Any, batch: Batch, dropout_key: jax.Array | None = None) -> Sums:
        """Runs the model on a prepared batch.

        Returns:
          fp32 scalars "<head>_loss" (nats), "<head>_correct" and "<head>_count", each a sum.
        """
        word_logits, pair_logits = nnx.merge(self.graphdef, params)(
            batch["input_ids"],
            batch["token_type_ids"],
            batch["position_ids"],
            batch["segment_ids"],
            batch["masked_lm_positions"],
            batch["cls_positions"],
            dropout_key,
        )
        weights = self.weights(batch)
        heads = {
            "mlm": cross_entropy(word_logits, batch["masked_lm_ids"], weights["mlm"]),
            "nsp": cross_entropy(pair_logits, batch["next_sentence_label"], weights["nsp"]),
        }
        return {
            f"{head}_{name}": value for head, sums in heads.items() for name, value in sums.items()
        }
