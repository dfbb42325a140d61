"""Objectives, as a training step sees them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
from flax import nnx

from bert_jax.errors import UserError
from bert_jax.fields import Choice
from bert_jax.model.architecture import Architecture, Numerics, Parallel
from bert_jax.model.heads import PRETRAINING
from bert_jax.model.model import Model, build_model
from bert_jax.model.parameters import Params
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
        """Per head, fp32 "<head>_loss" (nats), "<head>_count" and perhaps "<head>_correct".

        The batch may be the rows of one device, under `jax.vmap`; the step adds up the sums. Draw
        random numbers of rows with `row_bits`, or from keys of examples.
        """


def own_masks(name: str, masking: BoundMasking | None) -> BoundMasking:
    """Raises UserError if the examples are masked already, but an objective masks them itself."""
    if masking is None:
        raise UserError(
            f"config.objective={name!r} chooses the tokens to predict, but those of "
            "config.data.store are masked already: use mlm_nsp"
        )
    return masking


class Teacher(NamedTuple):
    """What an objective knows of a trained model that it reads.

    Attributes:
      architecture: its architecture.
      parts: which of `bert_jax.model.heads.PARTS` it has.
      pooling: how its authors make the vector of a text, "mean" if they do not say.
    """

    architecture: Architecture
    parts: Sequence[str]
    pooling: str


@dataclass(frozen=True)
class Objective(Choice):
    """What a pretraining run learns. Each kind has its own fields."""

    teacher = ""  # path of a trained model that it reads and does not train

    @property
    def teacher_parts(self) -> tuple[str, ...]:
        """Which of `bert_jax.model.heads.PARTS` it reads of the teacher."""
        return ()

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

    def check_teacher(self, path: str, model: Architecture, teacher: Teacher) -> None:
        """Raises UserError if it cannot train a model with a teacher; see `check_model`."""

    def encoders(self, model: Architecture) -> tuple[Architecture, ...]:
        """Those that it trains: the model first; the last predicts words."""
        return (model,)

    def model(
        self,
        architecture: Architecture,
        numerics: Numerics,
        parallel: Parallel,
        parts: Sequence[str],
        teacher: Architecture | None = None,
    ) -> Model:
        """The model with some of `parts`, and what is trained beside it.

        Args:
          architecture, numerics, parallel: see their classes.
          parts: parts of the model.
          teacher: architecture of the teacher, which is then beside the model; None for the model
            alone.
        """
        del teacher
        return build_model(architecture, numerics, parallel, parts=parts)

    def initial(self, params: Params, generator: Params | None) -> Params:
        """The first parameters of training.

        Args:
          params: nested dict of numpy arrays, those of a model that are given.
          generator: those of the generator that was trained beside it; None if there was none.
        """
        del generator
        return params

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
