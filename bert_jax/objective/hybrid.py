"""The objective of GPT-BERT: masked and causal prediction of the next token, by one encoder.

Reference: Charpentier and Samuel 2024, https://arxiv.org/abs/2410.24159, and
https://github.com/ltgoslo/gpt-bert, pretraining/.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bert_jax.errors import UserError
from bert_jax.fields import field
from bert_jax.model.architecture import Architecture, Numerics
from bert_jax.model.heads import MASKED_LM
from bert_jax.model.losses import nats_and_correct
from bert_jax.objective.masking import (
    BoundMasking,
    choose_tokens,
    count_words,
    example_keys,
    hide_tokens,
    of_example,
)
from bert_jax.objective.pretraining import MlmNsp, PreTraining
from bert_jax.objective.protocol import Batch, Sums, own_masks

# Masks fold an epoch into the key of the seed, and dropout 2^31.
_CAUSAL_STREAM = 2**31 + 1


@dataclass(frozen=True, eq=False)
class MaskedAndCausal(PreTraining):
    """`Hybrid` for a model; see `BoundObjective`.

    A prepared batch has `causal` [rows, length] bool, true in causal examples, unless none is. Its
    `masked_lm_positions` are those before the predicted tokens. Rows with causal examples need a
    slot for every position.

    Attributes:
      causal_share: share of the examples that are causal.
    """

    causal_share: float = 0.0

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of the predictions."""
        return (*["mntp"] * (self.causal_share < 1), *["clm"] * (self.causal_share > 0))

    @property
    def heads(self) -> tuple[str, ...]:
        return (*self.kinds, *(f"{kind}_z" for kind in self.kinds if self.z_loss))

    @property
    def word_heads(self) -> tuple[str, ...]:
        return self.kinds

    @property
    def factors(self) -> Mapping[str, float]:
        if len(self.kinds) == 1:
            return {}
        masked, causal = 1 - self.causal_share, self.causal_share
        return {head: masked if head.startswith("mntp") else causal for head in self.heads}

    def prepare(self, batch: Batch, step: jax.Array | None = None) -> Batch:
        """Masks the examples that are not causal.

        In evaluation every example counts in both ways, so the rows are there twice.
        """
        assert self.masking is not None  # as `Hybrid.bind` checks
        key = jax.random.key(self.seed, impl="threefry2x32")
        slots, length = self.masking.slots, batch["segment_ids"].shape[1]
        if step is None and len(self.kinds) == 2:
            batch = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), batch)
        is_candidate, chosen, seen_ids = choose_tokens(batch, self.masking, key, step)
        if self.causal_share > 0:
            causal = self._causal(batch, key, is_drawn=step is not None)
            chosen = jnp.where(causal, is_candidate, chosen)
            seen_ids = jnp.where(causal, batch["input_ids"], seen_ids)
            batch, slots = batch | {"causal": causal}, length
        # The first token of an example has none before it.
        batch = hide_tokens(batch, chosen & (batch["position_ids"] > 0), seen_ids, slots)
        before = jnp.maximum(batch["masked_lm_positions"] - 1, 0)
        return batch | {"masked_lm_positions": before}

    def _causal(self, batch: Batch, key: jax.Array, *, is_drawn: bool) -> jax.Array:
        """[rows, length] bool: whether a position's example is causal."""
        shape = batch["segment_ids"].shape
        if self.causal_share == 1:
            return jnp.ones(shape, bool)
        if not is_drawn:
            return jnp.broadcast_to(jnp.arange(shape[0])[:, None] % 2 == 1, shape)
        keys = example_keys(batch, jax.random.fold_in(key, _CAUSAL_STREAM))
        bits = jax.vmap(jax.vmap(jax.random.bits))(keys)
        return of_example(bits < self.causal_share * 2.0**32, batch)

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Per head, fp32 weights of a prepared batch: 1 for used slots of its kind."""
        weights, positions = batch["masked_lm_weights"], batch["masked_lm_positions"]
        if len(self.kinds) == 1:
            return dict.fromkeys(self.heads, weights)
        causal = jnp.take_along_axis(batch["causal"], positions, axis=1).astype(jnp.float32)
        by_kind = {"mntp": weights * (1 - causal), "clm": weights * causal}
        return {head: by_kind[head.removesuffix("_z")] for head in self.heads}

    def sums(self, params: Any, batch: Batch, dropout_key: jax.Array | None = None) -> Sums:
        """As in `PreTraining`."""
        model = nnx.merge(self.graphdef, params)
        hidden = model.encode(batch, dropout_key)
        words = MASKED_LM.apply(model, MASKED_LM.read(model.bert, hidden, batch))
        # All kinds share one pass over the logits.
        nats, correct = nats_and_correct(words, batch["masked_lm_ids"])
        summed = {kind: {"loss": nats, "correct": correct} for kind in self.kinds}
        if self.z_loss:
            penalty = self.z_loss * jax.nn.logsumexp(words, axis=-1) ** 2
            summed |= {f"{kind}_z": {"loss": penalty} for kind in self.kinds}
        by_head = self.weights(batch)
        masked = by_head.get("mntp", jnp.zeros_like(batch["masked_lm_weights"]))
        sums: Sums = count_words(self.masking, batch, words, masked)
        for head, weights in by_head.items():
            sums |= {f"{head}_{name}": jnp.sum(x * weights) for name, x in summed[head].items()}
            sums[f"{head}_count"] = jnp.sum(weights)
        return sums


@dataclass(frozen=True)
class Hybrid(MlmNsp, name="hybrid"):
    """Masked next-token prediction, and causal prediction in a share of the examples."""

    causal_share: float = field(
        1 / 16,
        "share of the examples that are causal, and of their loss in the loss; 0 masks all "
        "examples, 1 none",
        bounds="[0, 1]",
    )

    @property
    def parts(self) -> tuple[str, ...]:
        return (MASKED_LM.part,)

    def check_model(self, path: str, model: Architecture, numerics: Numerics) -> None:
        if self.causal_share > 0 and numerics.attention == "splash":
            raise UserError(
                f"{path}.numerics.attention='splash' has no causal examples: use auto or xla, or "
                f"{path}.objective.causal_share=0"
            )

    def predicted(self, masked: float) -> float:
        return (1 - self.causal_share) * masked + self.causal_share

    def bind(
        self, graphdef: nnx.GraphDef[Any], masking: BoundMasking | None, seed: int
    ) -> MaskedAndCausal:
        masking = own_masks("hybrid", masking)
        return MaskedAndCausal(graphdef, masking, seed, self.z_loss, self.causal_share)
