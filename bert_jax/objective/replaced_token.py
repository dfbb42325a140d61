"""Replaced-token detection: which words of a text did a generator write?

References: Clark et al. 2020, https://arxiv.org/abs/2003.10555, and
https://github.com/google-research/electra, run_pretraining.py.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bert_jax.errors import UserError
from bert_jax.fields import NOT_NEGATIVE, field
from bert_jax.model.architecture import Architecture, Numerics, Parallel
from bert_jax.model.dropout import split_key
from bert_jax.model.generator import (
    BertWithGenerator,
    decoupled_embeddings,
    generator_of,
    join_generator,
)
from bert_jax.model.heads import MASKED_LM, REPLACED_TOKEN
from bert_jax.model.model import Model, model_of
from bert_jax.model.parameters import Params
from bert_jax.objective.masking import BoundMasking, count_words, mask_tokens, position_keys
from bert_jax.objective.protocol import Batch, Objective, Sums, own_masks

# Masks fold an epoch into the key of the seed, dropout 2^31.
_SAMPLING_STREAM = 2**31 + 2


@dataclass(frozen=True, eq=False)
class Detection:
    """`ReplacedTokens` for a model; see `BoundObjective`.

    A prepared batch is masked, and also has `original_ids` [rows, length] int32 and
    `sampling_keys` [rows, slots, 2] uint32, the keys by (epoch, example, position) with which the
    generator draws a word for each slot.

    Attributes:
      graphdef: structure of a `BertWithGenerator`.
      masking: how to mask the generator's input.
      seed: seed of masks and samples.
      weight: factor of the loss of the detection.
    """

    graphdef: nnx.GraphDef[Any]
    masking: BoundMasking
    seed: int
    weight: float

    heads = ("mlm", "rtd")
    word_heads = ("mlm",)

    @property
    def factors(self) -> Mapping[str, float]:
        return {"rtd": self.weight}

    def prepare(self, batch: Batch, step: jax.Array | None = None) -> Batch:
        """Masks the rows of a global batch and makes the keys of the samples."""
        key = jax.random.key(self.seed, impl="threefry2x32")
        masked = mask_tokens(batch, self.masking, key, step)
        keys = position_keys(batch, jax.random.fold_in(key, _SAMPLING_STREAM))
        keys = jnp.take_along_axis(keys, masked["masked_lm_positions"], axis=1)
        return masked | {
            "original_ids": batch["input_ids"],
            "sampling_keys": jax.random.key_data(keys),
        }

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """fp32, 1 for used slots, and for all tokens."""
        tokens = (batch["segment_ids"] > 0).astype(jnp.float32)
        return {"mlm": batch["masked_lm_weights"], "rtd": tokens}

    def sums(self, params: Any, batch: Batch, dropout_key: jax.Array | None = None) -> Sums:
        """Runs generator and model on a prepared batch.

        Returns:
          fp32 scalars "<head>_loss" (nats), "<head>_correct" and "<head>_count", each a sum, and
          numbers of tokens: "rtd_replaced", "rtd_flagged" as replaced, "rtd_found", both; and what
          `count_words` gives.
        """
        model = nnx.merge(self.graphdef, decoupled_embeddings(params))
        keys = split_key(dropout_key, 2)
        weights = self.weights(batch)
        hidden = model.generator.encode(batch, keys[0])
        inputs = MASKED_LM.read(model.generator.bert, hidden, batch)
        words = MASKED_LM.apply(model.generator, inputs)
        mlm = MASKED_LM.sums(words, batch["masked_lm_ids"], weights["mlm"], batch)
        by_word = count_words(self.masking, batch, words, weights["mlm"])

        batch = batch | {"input_ids": replaced(batch, words)}
        labels = (batch["input_ids"] != batch["original_ids"]).astype(jnp.int32)
        hidden = model.encode(batch, keys[1])
        scores = REPLACED_TOKEN.apply(model, REPLACED_TOKEN.read(model.bert, hidden, batch))
        rtd = REPLACED_TOKEN.sums(scores, labels, weights["rtd"], batch)
        flagged = weights["rtd"] * (scores[..., 0] > 0)
        rtd |= {
            "replaced": jnp.sum(weights["rtd"] * labels),
            "flagged": jnp.sum(flagged),
            "found": jnp.sum(flagged * labels),
        }
        heads = {"mlm": mlm, "rtd": rtd}
        return by_word | {
            f"{head}_{name}": value for head, sums in heads.items() for name, value in sums.items()
        }


def replaced(batch: Batch, words: jax.Array) -> jax.Array:
    """[rows, length] int32: the original ids, with a sample in each used slot.

    Args:
      batch: a prepared batch.
      words: [rows, slots, vocabulary] fp32, logits of the generator. No gradient goes through.
    """
    keys = jax.random.wrap_key_data(batch["sampling_keys"], impl="threefry2x32")
    noise = functools.partial(jax.random.gumbel, shape=words.shape[-1:])
    # The largest sum of a logit and Gumbel noise is a sample of the softmax.
    samples = jnp.argmax(jax.lax.stop_gradient(words) + jax.vmap(jax.vmap(noise))(keys), axis=-1)
    ids = batch["original_ids"]
    unused = ids.shape[1]  # out of the row
    places = jnp.where(batch["masked_lm_weights"] > 0, batch["masked_lm_positions"], unused)
    put = jax.vmap(lambda ids, places, samples: ids.at[places].set(samples, mode="drop"))
    return put(ids, places, samples.astype(ids.dtype))


@dataclass(frozen=True)
class ReplacedTokens(Objective, name="replaced_token"):
    """Finding the tokens that a smaller generator, a masked LM, has replaced, as in ELECTRA."""

    generator_size: float = field(
        0.25,
        "width, heads and feed-forward of the generator as a share of the model's; both have as "
        "many layers",
        bounds="(0, 1]",
    )
    embeddings: str = field(
        "shared",
        '"shared" by generator and model, as in ELECTRA; "decoupled", as in DeBERTaV3: the model '
        "adds a difference of its own to the generator's tables, which only the generator's loss "
        "changes (https://arxiv.org/abs/2111.09543)",
        choices=("shared", "decoupled"),
    )
    weight: float = field(
        50.0,
        "factor of the loss of the detection; that of the generator's is 1",
        bounds=NOT_NEGATIVE,
    )

    @property
    def parts(self) -> tuple[str, ...]:
        return (REPLACED_TOKEN.part,)

    def check_model(self, path: str, model: Architecture, numerics: Numerics) -> None:
        generator = generator_of(model, self.generator_size)
        if generator.hidden_size < 1 or generator.hidden_size % generator.num_heads:
            raise UserError(
                f"{path}.objective.generator_size={self.generator_size} gives the generator "
                f"{generator.hidden_size} features, which its {generator.num_heads} attention "
                "heads cannot share equally"
            )
        relative = model.position_embedding.buckets_of_distances() is not None
        if self.embeddings == "decoupled" and relative:
            raise UserError(
                f"{path}.objective.embeddings='decoupled' has no relative positions: use shared, "
                f"or another {path}.model.position_embedding"
            )
        try:
            generator.check("generator")
        except UserError as error:
            raise UserError(
                f"{path}.objective.generator_size={self.generator_size}: {error}"
            ) from error

    def encoders(self, model: Architecture) -> tuple[Architecture, ...]:
        return (model, generator_of(model, self.generator_size))

    def model(
        self,
        architecture: Architecture,
        numerics: Numerics,
        parallel: Parallel,
        parts: Sequence[str],
        teacher: Architecture | None = None,
    ) -> Model:
        del teacher
        return model_of(
            lambda rngs: BertWithGenerator(
                architecture,
                numerics,
                parallel,
                rngs,
                parts=parts,
                generator=generator_of(architecture, self.generator_size),
                decoupled=self.embeddings == "decoupled",
            )
        )

    def initial(self, params: Params, generator: Params | None) -> Params:
        return join_generator(params, generator, decoupled=self.embeddings == "decoupled")

    def bind(
        self, graphdef: nnx.GraphDef[Any], masking: BoundMasking | None, seed: int
    ) -> Detection:
        return Detection(graphdef, own_masks("replaced_token", masking), seed, self.weight)
