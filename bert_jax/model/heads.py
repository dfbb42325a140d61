"""The heads, and the encoder with any of them on top."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bert_jax.model.bert import (
    ACTIVATIONS,
    Bert,
    gather_positions,
    initializer,
    layer_norm,
    padded_vocab_size,
    split_key,
)
from bert_jax.model.dropout import dropout

# What a checkpoint can hold beside the encoder.
PARTS = (
    "pooler",
    "masked_lm",
    "next_sentence",
    "sequence_classifier",
    "token_classifier",
    "answer_span",
)
PRETRAINING = PARTS[:3]
IMPOSSIBLE = -1e9  # a logit that no softmax sees, finite so that its gradient is 0 and not NaN


def parts_of(params: Mapping[str, Any]) -> tuple[str, ...]:
    """Which of `PARTS` a nested dict of parameters has."""
    return tuple(part for part in PARTS if part in params or part in params["bert"])


class MaskedLmHead(nnx.Module):
    """Dense, activation, LayerNorm, then the tied word embeddings and a bias of its own."""

    def __init__(
        self,
        *,
        vocab_size: int,
        hidden_size: int,
        hidden_act: str,
        layer_norm_eps: float,
        initializer_range: float,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.dense = nnx.Linear(
            hidden_size,
            hidden_size,
            kernel_init=initializer(initializer_range),
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = layer_norm(hidden_size, layer_norm_eps, rngs)
        self.bias = nnx.Param(jnp.zeros((padded_vocab_size(vocab_size),), jnp.float32))
        self.vocab_size = vocab_size
        self.hidden_act = hidden_act
        self.dtype = dtype

    def __call__(self, hidden: jax.Array, word_embeddings: jax.Array) -> jax.Array:
        """Scores every word at every given position.

        Args:
          hidden: [batch, positions, hidden_size].
          word_embeddings: [padded_vocab, hidden_size], the encoder's own table, or copies of it as
            in `lookup`.

        Returns:
          [batch, positions, padded_vocab] fp32 logits; those of padding rows are `IMPOSSIBLE`.
        """
        hidden = ACTIVATIONS[self.hidden_act](self.dense(hidden))
        hidden = self.norm(hidden).astype(self.dtype)
        tables = word_embeddings.reshape(-1, *word_embeddings.shape[-2:]).astype(self.dtype)
        # One axis of positions: a second-last axis of, say, 20 would be padded to 24 on a TPU.
        logits = jnp.einsum(
            "cnd,cvd->cnv",
            hidden.reshape(len(tables), -1, hidden.shape[-1]),
            tables,
            preferred_element_type=jnp.float32,
        )
        in_vocabulary = jnp.arange(tables.shape[1]) < self.vocab_size
        # Added and not selected: one vector instead of a pass over all logits and their gradient.
        logits += jnp.where(in_vocabulary, self.bias, IMPOSSIBLE)
        return logits.reshape(*hidden.shape[:-1], -1)


class BertWithHeads(nnx.Module):
    """BERT with heads: those of pretraining, or any others.

    Beside the masked LM a head is one dense layer in fp32. `next_sentence` and
    `sequence_classifier` score the pooled [CLS], `token_classifier` and `answer_span` (start and
    end of an answer) every token.

    Args of the constructor:
      parts: which of `PARTS` there are.
      num_labels: outputs of the classifiers.
      **options: of `Bert`.
    """

    def __init__(
        self,
        *,
        parts: Sequence[str] = PRETRAINING,
        num_labels: int = 0,
        rngs: nnx.Rngs,
        **options,
    ):
        self.bert = Bert(with_pooler="pooler" in parts, rngs=rngs, **options)
        names = ("hidden_size", "initializer_range", "dtype")
        names += ("vocab_size", "hidden_act", "layer_norm_eps")
        if "masked_lm" in parts:
            self.masked_lm = MaskedLmHead(rngs=rngs, **{name: options[name] for name in names})
        outputs = {
            "next_sentence": 2,
            "sequence_classifier": num_labels,
            "token_classifier": num_labels,
            "answer_span": 2,
        }
        init = initializer(options["initializer_range"])
        for name, size in outputs.items():
            if name in parts:
                head = nnx.Linear(options["hidden_size"], size, kernel_init=init, rngs=rngs)
                setattr(self, name, head)

    def __call__(
        self,
        input_ids: jax.Array,
        token_type_ids: jax.Array,
        position_ids: jax.Array,
        segment_ids: jax.Array,
        masked_lm_positions: jax.Array,
        cls_positions: jax.Array,
        dropout_key: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Scores masked tokens and sentence pairs, by the heads of pretraining.

        Args:
          input_ids, token_type_ids, position_ids, segment_ids: [batch, length] int32, as `Bert`.
          masked_lm_positions: [batch, predictions] int32, where to predict words.
          cls_positions: [batch, examples] int32, the [CLS] of each example of the row.
          dropout_key: a typed PRNG key; None turns dropout off.

        Returns:
          fp32 logits: [batch, predictions, padded_vocab] of words and [batch, examples, 2] of the
          next sentence (index 0: B follows A, 1: B is random).
        """
        hidden = self.bert(input_ids, token_type_ids, position_ids, segment_ids, dropout_key)
        masked = gather_positions(hidden, masked_lm_positions)
        word_logits = self.masked_lm(masked, self.bert.embeddings.word.embedding[...])
        pooled = self.bert.pool(gather_positions(hidden, cls_positions))
        return word_logits, self.next_sentence(pooled.astype(jnp.float32))

    def score(
        self,
        head: str,
        input_ids: jax.Array,
        token_type_ids: jax.Array,
        position_ids: jax.Array,
        segment_ids: jax.Array,
        cls_positions: jax.Array,
        dropout_key: jax.Array | None = None,
        *,
        head_dropout: float = 0.0,
        freeze: bool = False,
    ) -> jax.Array:
        """What the head of a task makes of examples, or of their tokens.

        Args:
          head: "sequence_classifier", "token_classifier" or "answer_span".
          input_ids, token_type_ids, position_ids, segment_ids, cls_positions: as of `__call__`.
          dropout_key: a typed PRNG key; None turns dropout off.
          head_dropout: rate on what a classifier reads; a span has none, as in BERT.
          freeze: let no gradient into the encoder; the pooler is not part of it.

        Returns:
          fp32 logits, [batch, examples, classes] of a sequence classifier, else
          [batch, length, classes].
        """
        keys = split_key(dropout_key, 2)
        hidden = self.bert(input_ids, token_type_ids, position_ids, segment_ids, keys[0])
        if freeze:
            hidden = jax.lax.stop_gradient(hidden)
        if head == "sequence_classifier":
            hidden = self.bert.pool(gather_positions(hidden, cls_positions))
        if head != "answer_span":
            hidden = dropout(hidden, head_dropout, keys[1])
        return getattr(self, head)(hidden.astype(jnp.float32))
