"""Objectives, as a training step sees them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax
from flax import nnx

from bert_jax.fields import Choice
from bert_jax.model.architecture import Architecture, Numerics
from bert_jax.model.heads import PRETRAINING
from bert_jax.objective.masking import BoundMasking

Batch = dict[str, jax.Array]
Sums = dict[str, jax.Array]


class BoundObjective(Protocol):
    """An objective for one model."""

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of its losses."""

    @property
    def word_heads(self) -> tuple[str, ...]:
        """Those of `heads` that predict `masked_lm_ids` of a prepared batch."""

    @property
    def factors(self) -> Mapping[str, float]:
        """What some losses are multiplied by in the total loss; the others by 1."""

    def prepare(self, batch: Batch, step: jax.Array | None = None) -> Batch:
        """Completes a global batch (masks, labels) before it is split into microbatches.

        Args:
          batch: arrays of all rows.
          step: int32, steps done; None in evaluation.
        """

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Per head, the weights of a prepared batch; they sum to the "<head>_count" of `sums`."""

    def sums(self, params: Any, batch: Batch, dropout_key: jax.Array | None = None) -> Sums:
        """Per head, fp32 "<head>_loss" (nats), "<head>_count" and perhaps "<head>_correct"."""


@dataclass(frozen=True)
class Objective(Choice):
    """What a pretraining run learns. Each kind has its own fields."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Which of `bert_jax.model.heads.PARTS` it can train."""
        return PRETRAINING

    def parts_for(self, *, pairs: bool) -> tuple[str, ...]:
        """Which of `parts` a run trains.

        Args:
          pairs: whether the data have labelled pairs of texts.
        """
        del pairs
        return self.parts

    def for_heldout(self) -> "Objective":
        """The objective that scores held-out examples, without what only guides training."""
        return self

    def check_model(self, path: str, model: Architecture, numerics: Numerics) -> None:
        """Raises UserError if it cannot train a model.

        Args:
          path: what fields of the configuration begin with.
          model: architecture of the model.
          numerics: how it is computed.
        """

    def predicted(self, masked: float) -> float:
        """The share of tokens whose words it predicts, where masking chooses a share."""
        return masked

    def bind(
        self, graphdef: nnx.GraphDef[Any], masking: BoundMasking | None, seed: int
    ) -> BoundObjective:
        """The objective for a model.

        Args:
          graphdef: structure of a `BertWithHeads` that has `parts`.
          masking: how to mask; None if the examples are already masked.
          seed: seed of the masks.
        """
        raise NotImplementedError
