"""Embeddings: the input of the first layer."""

import jax
import jax.numpy as jnp
from flax import nnx

from bert_jax.model.architecture import Architecture, Numerics
from bert_jax.model.dropout import dropout
from bert_jax.model.lookup import lookup
from bert_jax.model.parameters import make_norm, table


class Embeddings(nnx.Module):
    """Word + position + token type embeddings, norm, dropout."""

    def __init__(self, architecture: Architecture, numerics: Numerics, rngs: nnx.Rngs):
        self.word = table(("vocab", "embed"), architecture.padded_vocab_size, architecture, rngs)
        positions = architecture.position_embedding.make_table(architecture, rngs)
        if positions is not None:
            self.position = positions
        if types := architecture.type_vocab_size:
            self.token_type = table(("token_type", "hidden"), types, architecture, rngs)
        if architecture.embedding_norm:
            self.norm = make_norm(architecture, rngs)
        self.architecture = architecture
        self.numerics = numerics

    def __call__(
        self,
        input_ids: jax.Array,
        token_type_ids: jax.Array,
        position_ids: jax.Array,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """[batch, length, hidden_size] in the compute dtype; see `Bert` for the arguments."""
        hidden = lookup(self.word.embedding[...], input_ids)
        positions = self.architecture.position_embedding.vectors(
            getattr(self, "position", None), position_ids, self.architecture
        )
        if positions is not None:
            hidden = hidden + positions
        if self.architecture.type_vocab_size:
            hidden = hidden + lookup(self.token_type.embedding[...], token_type_ids)
        if self.architecture.embedding_norm:
            hidden = self.norm(hidden)
        hidden = hidden.astype(jnp.dtype(self.numerics.compute_dtype))
        return dropout(hidden, self.numerics.rate("embedding_dropout"), dropout_key)
