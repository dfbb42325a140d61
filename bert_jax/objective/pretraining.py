"""BERT's objective: masked LM plus next sentence (or sentence order) prediction."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx

from bert_jax.fields import NOT_NEGATIVE, field
from bert_jax.model.heads import MASKED_LM, NEXT_SENTENCE
from bert_jax.objective.masking import BoundMasking, count_words, mask_tokens
from bert_jax.objective.protocol import Batch, Objective, Sums


@dataclass(frozen=True, eq=False)
class PreTraining:
    """Masked LM and next sentence prediction for a model; see `BoundObjective`.

    Attributes:
      graphdef: structure of a `BertWithHeads` that has the pretraining heads; without
        `next_sentence` no example may have a label for it.
      masking: how to mask; None if the examples are already masked.
      seed: seed of the masks. They are drawn by threefry, whatever generator dropout uses, so that
        they are the same on every mesh.
      z_loss: weight of log(sum(exp(logits)))^2 of each masked token.
    """

    graphdef: nnx.GraphDef[Any]
    masking: BoundMasking | None
    seed: int
    z_loss: float = 0.0

    @property
    def heads(self) -> tuple[str, ...]:
        return ("mlm", "nsp", "z") if self.z_loss else ("mlm", "nsp")

    @property
    def word_heads(self) -> tuple[str, ...]:
        return ("mlm",)

    @property
    def factors(self) -> Mapping[str, float]:
        return {}

    def prepare(self, batch: Batch, step: jax.Array | None = None) -> Batch:
        """Masks the rows of a global batch; see `mask_tokens` for what it adds."""
        if self.masking is None:
            return batch
        key = jax.random.key(self.seed, impl="threefry2x32")
        return mask_tokens(batch, self.masking, key, step)

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Per head, fp32 weights of a prepared batch: 1 for used slots and labelled examples."""
        weights = {
            "mlm": batch["masked_lm_weights"],
            "nsp": NEXT_SENTENCE.weights(batch["next_sentence_label"]),
            "z": batch["masked_lm_weights"],
        }
        return {head: weights[head] for head in self.heads}

    def sums(self, params: Any, batch: Batch, dropout_key: jax.Array | None = None) -> Sums:
        """Runs the model on a prepared batch.

        Returns:
          fp32 scalars "<head>_loss" (nats), "<head>_correct" and "<head>_count", each a sum, and
          what `count_words` gives.
        """
        model = nnx.merge(self.graphdef, params)
        hidden = model.encode(batch, dropout_key)
        words = MASKED_LM.apply(model, MASKED_LM.read(model.bert, hidden, batch))
        weights = self.weights(batch)
        labels = {"mlm": batch["masked_lm_ids"], "nsp": batch["next_sentence_label"]}
        heads = {"mlm": MASKED_LM.sums(words, labels["mlm"], weights["mlm"], batch)}
        if hasattr(model, NEXT_SENTENCE.part):
            pairs = NEXT_SENTENCE.apply(model, NEXT_SENTENCE.read(model.bert, hidden, batch))
            heads["nsp"] = NEXT_SENTENCE.sums(pairs, labels["nsp"], weights["nsp"], batch)
        else:
            heads["nsp"] = dict.fromkeys(("loss", "correct", "count"), jnp.zeros(()))
        if self.z_loss:
            squares = jax.nn.logsumexp(words, axis=-1) ** 2
            count = jnp.sum(weights["z"])
            heads["z"] = {"loss": self.z_loss * jnp.sum(squares * weights["z"]), "count": count}
        found = {
            f"{head}_{name}": value for head, sums in heads.items() for name, value in sums.items()
        }
        return found | count_words(self.masking, batch, words, weights["mlm"])


@dataclass(frozen=True)
class MlmNsp(Objective, name="mlm_nsp"):
    """Masked LM and, where the data have pairs, next sentence or sentence order prediction."""

    z_loss: float = field(
        0.0,
        "weight of log(sum(exp(logits)))^2 of each masked token, which keeps logits small "
        "(https://arxiv.org/abs/2204.02311); held-out losses are without it",
        bounds=NOT_NEGATIVE,
    )

    def for_heldout(self) -> Self:
        return replace(self, z_loss=0.0)

    def parts_for(self, *, pairs: bool) -> tuple[str, ...]:
        """Without pairs nothing trains the head for them, nor the pooler that it reads."""
        return self.parts if pairs else (MASKED_LM.part,)

    def bind(
        self, graphdef: nnx.GraphDef[Any], masking: BoundMasking | None, seed: int
    ) -> PreTraining:
        return PreTraining(graphdef, masking, seed, self.z_loss)
