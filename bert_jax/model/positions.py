"""Position encodings: how the model is told where a token is in its example.

An encoding adds a vector to each token's embedding, or rotates the queries and keys of attention,
or both. Positions restart in every example of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bert_jax.fields import Choice
from bert_jax.model.lookup import lookup
from bert_jax.model.parameters import table as embedding_table

if TYPE_CHECKING:
    from bert_jax.model.architecture import Architecture


@dataclass(frozen=True)
class PositionEncoding(Choice):
    """How positions are encoded; the base class encodes nothing."""

    def make_table(self, architecture: Architecture, rngs: nnx.Rngs) -> nnx.Module | None:
        """Its parameters, a module under `bert/embeddings/position`; None if it has none."""
        del architecture, rngs
        return None

    def vectors(
        self, table: nnx.Module | None, position_ids: jax.Array, architecture: Architecture
    ) -> jax.Array | None:
        """The vectors to add to the embeddings.

        Args:
          table: result of `make_table`.
          position_ids: [batch, length] int32.
          architecture: architecture of the model.

        Returns:
          [batch, length, hidden_size] fp32, or None to add nothing.
        """
        del table, position_ids, architecture
        return None

    def rotate(self, x: jax.Array, position_ids: jax.Array) -> jax.Array:
        """Rotates queries or keys [batch, length, heads, head_dim] by their positions."""
        del position_ids
        return x


@dataclass(frozen=True)
class Learned(PositionEncoding, name="learned"):
    """One learned vector per position, as in BERT."""

    def make_table(self, architecture: Architecture, rngs: nnx.Rngs) -> nnx.Module:
        rows = architecture.max_position_embeddings
        return embedding_table(("position", "hidden"), rows, architecture, rngs)

    def vectors(
        self, table: nnx.Module | None, position_ids: jax.Array, architecture: Architecture
    ) -> jax.Array:
        assert isinstance(table, nnx.Embed)  # as `make_table` made it
        return lookup(table.embedding[...], position_ids)


@dataclass(frozen=True)
class Sinusoidal(PositionEncoding, name="sinusoidal"):
    """The fixed vectors of Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.5."""

    def vectors(
        self, table: nnx.Module | None, position_ids: jax.Array, architecture: Architecture
    ) -> jax.Array:
        # Vaswani et al. scale word embeddings up; here the encoding is scaled down instead.
        # LayerNorm follows, so only the ratio matters.
        vectors = sinusoidal_positions(
            architecture.max_position_embeddings, architecture.hidden_size
        )
        return architecture.initializer_range * jnp.asarray(vectors)[position_ids]


def sinusoidal_positions(max_positions: int, hidden_size: int) -> np.ndarray:
    """[max_positions, hidden_size] fp32: the fixed encoding of Vaswani et al. 2017, section 3.5."""
    rates = 10_000.0 ** (-np.arange(0, hidden_size, 2) / hidden_size)
    angles = np.arange(max_positions)[:, None] * rates
    table = np.zeros((max_positions, hidden_size), np.float32)
    table[:, 0::2] = np.sin(angles)
    table[:, 1::2] = np.cos(angles)[:, : hidden_size // 2]
    return table


def restarting_positions(segment_ids: jax.Array) -> jax.Array:
    """[batch, length] int32: the place of each token in its example, from 0.

    Args:
      segment_ids: [batch, length] int32, equal within an example and different from the next one's.
    """
    places = jnp.broadcast_to(jnp.arange(segment_ids.shape[1]), segment_ids.shape)
    before = jnp.pad(segment_ids[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    starts = jnp.where(segment_ids != before, places, 0)
    return places - jax.lax.cummax(starts, axis=1)
