"""Embeddings: the input of the first layer."""

import jax
import jax.numpy as jnp
from flax import nnx

from bert_jax.model.architecture import Architecture, Numerics
from bert_jax.model.dropout import dropout
from bert_jax.model.int8 import rounded_rows
from bert_jax.model.lookup import lookup
from bert_jax.model.parameters import linear, make_norm, table

TRAINED_MASKS = 0.15 * 0.8  # share of tokens that are [MASK] in training, in all ESM models


class Embeddings(nnx.Module):
    """Word + position + token type embeddings, norm, dropout, and perhaps a projection."""

    def __init__(self, architecture: Architecture, numerics: Numerics, rngs: nnx.Rngs):
        self.word = table(("vocab", "embed"), architecture.padded_vocab_size, architecture, rngs)
        positions = architecture.position_embedding.make_table(architecture, rngs)
        if positions is not None:
            self.position = positions
        if types := architecture.type_vocab_size:
            self.token_type = table(("token_type", "hidden"), types, architecture, rngs)
        if architecture.embedding_norm:
            self.norm = make_norm(architecture, rngs, size=architecture.embedding_features)
        if architecture.embedding_size is not None:
            sizes = (architecture.embedding_size, architecture.hidden_size)
            self.projection = linear(("embed", "hidden"), sizes, architecture, rngs, numerics)
        self.architecture = architecture
        self.numerics = numerics

    def __call__(
        self,
        input_ids: jax.Array,
        token_type_ids: jax.Array,
        position_ids: jax.Array,
        segment_ids: jax.Array,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """[batch, length, hidden_size] in the compute dtype; see `Bert` for the arguments."""
        hidden = lookup(self.word.embedding[...], input_ids)
        if (scale := getattr(self.word, "scale", None)) is not None:  # of embeddings in int8
            hidden = hidden * scale[...][input_ids][:, :, None]
        elif self.numerics.fake_int8:
            hidden = rounded_rows(hidden)
        if self.architecture.token_dropout_id is not None:
            is_mask = input_ids == self.architecture.token_dropout_id
            hidden = hidden * _token_dropout(is_mask, segment_ids)[:, :, None]
        positions = self.architecture.position_embedding.vectors(
            getattr(self, "position", None), position_ids, self.architecture
        )
        if positions is not None:
            hidden = hidden + positions
        if self.architecture.type_vocab_size:
            # In models with one type, the second text of a pair has it too.
            one = self.architecture.type_vocab_size == 1
            types = jnp.zeros_like(token_type_ids) if one else token_type_ids
            hidden = hidden + lookup(self.token_type.embedding[...], types)
        if self.architecture.embedding_norm:
            hidden = self.norm(hidden)
        hidden = hidden.astype(jnp.dtype(self.numerics.compute_dtype))
        hidden = dropout(hidden, self.numerics.rate("embedding_dropout"), dropout_key)
        return self.projection(hidden) if self.architecture.embedding_size is not None else hidden

    def distances(self) -> jax.Array | None:
        """The `distance_vectors` of the position encoding, in the compute dtype; or None."""
        encoding = self.architecture.position_embedding
        vectors = encoding.distance_vectors(getattr(self, "position", None))
        return None if vectors is None else vectors.astype(jnp.dtype(self.numerics.compute_dtype))


def _token_dropout(is_mask: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """[batch, length] fp32: by how much ESM-2 scales the embedding of each token.

    Masked tokens are like tokens that were dropped: their embeddings are 0. The others have the
    sum that they would have if as many tokens of their example were masked as in training.
    Reference: Lin et al. 2023, https://doi.org/10.1126/science.ade2574, and its code,
    https://github.com/facebookresearch/esm, esm/model/esm2.py.
    """

    def share(is_mask: jax.Array, segments: jax.Array) -> jax.Array:
        counts = jnp.zeros((segments.shape[0] + 1, 2), jnp.float32)  # of masks, of tokens
        ones = jnp.stack([is_mask, jnp.ones_like(is_mask)], axis=1).astype(jnp.float32)
        masks, tokens = counts.at[segments].add(ones)[segments].T
        return masks / tokens

    masked = jax.vmap(share)(is_mask, segment_ids)
    # An example of masks alone has no token to scale.
    return jnp.where(is_mask, 0.0, (1 - TRAINED_MASKS) / jnp.where(is_mask, 1.0, 1 - masked))
