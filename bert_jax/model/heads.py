"""The pretraining heads, and the encoder with both of them on top."""

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
)

IMPOSSIBLE = -1e9  # a logit that no softmax sees, finite so that its gradient is 0 and not NaN


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


class BertForPreTraining(nnx.Module):
    """BERT with the masked LM and next sentence heads; arguments are those of `Bert`."""

    def __init__(self, *, rngs: nnx.Rngs, **options):
        self.bert = Bert(rngs=rngs, **options)
        shared = ("hidden_size", "initializer_range", "dtype")
        head_options = {name: options[name] for name in shared}
        self.masked_lm = MaskedLmHead(
            vocab_size=options["vocab_size"],
            hidden_act=options["hidden_act"],
            layer_norm_eps=options["layer_norm_eps"],
            rngs=rngs,
            **head_options,
        )
        self.next_sentence = nnx.Linear(
            options["hidden_size"],
            2,
            kernel_init=initializer(options["initializer_range"]),
            rngs=rngs,
        )

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
        """Scores masked tokens and sentence pairs.

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
        pooled = self.bert.pool(hidden, cls_positions)
        return word_logits, self.next_sentence(pooled.astype(jnp.float32))
