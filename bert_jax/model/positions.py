"""Position encodings: how the model is told where a token is in its example.

An encoding adds a vector to each token's embedding, rotates the queries and keys of attention,
lowers attention scores by distance, or compares queries and keys with vectors of distances.
Positions restart in every example of a row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bert_jax.errors import UserError
from bert_jax.fields import NOT_NEGATIVE, POSITIVE, Choice, field
from bert_jax.model.lookup import lookup
from bert_jax.model.parameters import initializer
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
          [batch, length, embedding_features] fp32, or None to add nothing.
        """
        del table, position_ids, architecture
        return None

    def rotate(self, x: jax.Array, position_ids: jax.Array, *, is_local: bool = False) -> jax.Array:
        """Rotates queries or keys by their positions.

        Args:
          x: [batch, length, heads, head_dim] in the compute dtype.
          position_ids: [batch, length] int32.
          is_local: whether the layer attends within a window.

        Returns:
          The same shape and dtype.
        """
        del position_ids, is_local
        return x

    def slopes(self, num_heads: int) -> tuple[float, ...] | None:
        """[num_heads], by how much attention scores fall per token of distance; None for 0."""
        del num_heads
        return None

    def buckets_of_distances(self) -> np.ndarray | None:
        """[2 n + 1] int32, the buckets of the distances -n ... n; None without relative positions.

        Farther distances are in the first and the last of them.
        """
        return None

    def distance_vectors(self, table: nnx.Module | None) -> jax.Array | None:
        """[buckets, hidden_size] fp32, which each layer projects as it does its input; or None.

        Args:
          table: result of `make_table`.
        """
        del table
        return None

    def check_architecture(self, architecture: Architecture, path: str) -> None:
        """Raises UserError, with `path` before field names, if the architecture does not fit."""
        del architecture, path


@dataclass(frozen=True)
class Learned(PositionEncoding, name="learned"):
    """One learned vector per position, as in BERT."""

    offset: int = field(
        0,
        "rows of the table before that of the first position: 2 in RoBERTa, which counts from the "
        "id of its padding + 1",
        bounds=NOT_NEGATIVE,
    )

    def make_table(self, architecture: Architecture, rngs: nnx.Rngs) -> nnx.Module:
        rows = architecture.max_position_embeddings + self.offset
        return embedding_table(("position", "hidden"), rows, architecture, rngs)

    def vectors(
        self, table: nnx.Module | None, position_ids: jax.Array, architecture: Architecture
    ) -> jax.Array:
        assert isinstance(table, nnx.Embed)  # as `make_table` made it
        rows = position_ids + self.offset if self.offset else position_ids
        return lookup(table.embedding[...], rows)


@dataclass(frozen=True)
class Sinusoidal(PositionEncoding, name="sinusoidal"):
    """The fixed vectors of Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.5."""

    def vectors(
        self, table: nnx.Module | None, position_ids: jax.Array, architecture: Architecture
    ) -> jax.Array:
        # Vaswani et al. scale word embeddings up; here the encoding is scaled down instead.
        # LayerNorm follows, so only the ratio matters.
        vectors = sinusoidal_positions(
            architecture.max_position_embeddings, architecture.embedding_features
        )
        return architecture.initializer_range * jnp.asarray(vectors)[position_ids]


@dataclass(frozen=True)
class Rope(PositionEncoding, name="rope"):
    """Queries and keys are rotated by angles proportional to their positions.

    Feature i is paired with feature i + head_dim / 2, as in the published checkpoints. Reference:
    Su et al. 2021, https://arxiv.org/abs/2104.09864.
    """

    theta: float = field(10_000.0, "base of the wavelengths", bounds=POSITIVE)
    local_theta: float | None = field(
        None, "base of the wavelengths in local layers; None for theta", bounds=POSITIVE
    )

    def rotate(self, x: jax.Array, position_ids: jax.Array, *, is_local: bool = False) -> jax.Array:
        half, rates = x.shape[-1] // 2, jnp.asarray(self.rates(x.shape[-1], is_local=is_local))
        angles = position_ids[:, :, None, None].astype(jnp.float32) * rates
        cos, sin = jnp.cos(angles), jnp.sin(angles)
        first, second = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
        rotated = [first * cos - second * sin, second * cos + first * sin]
        return jnp.concatenate(rotated, axis=-1).astype(x.dtype)

    def rates(self, head_dim: int, *, is_local: bool = False) -> np.ndarray:
        """[head_dim / 2] fp32: the angle in radians by which each position rotates a pair."""
        theta = self.theta if self.local_theta is None or not is_local else self.local_theta
        half = head_dim // 2
        return np.asarray(1.0 / theta ** (np.arange(half) / half), np.float32)

    def check_architecture(self, architecture: Architecture, path: str) -> None:
        if architecture.hidden_size // architecture.num_heads % 2:
            raise UserError(
                f"{path}.position_embedding: rope needs an even number of features per head; "
                f"{path}.hidden_size / {path}.num_heads is "
                f"{architecture.hidden_size // architecture.num_heads}"
            )


@dataclass(frozen=True)
class Alibi(PositionEncoding, name="alibi"):
    """Attention scores fall linearly with distance, by a fixed slope per head.

    Reference: Press et al. 2022, https://arxiv.org/abs/2108.12409; in both directions, as in
    MosaicBERT.
    """

    def slopes(self, num_heads: int) -> tuple[float, ...]:
        def powers(heads: int) -> list[float]:
            return [2.0 ** (-8.0 * (head + 1) / heads) for head in range(heads)]

        # Other numbers of heads take every second slope of twice the next power of two.
        closest = 2 ** int(math.log2(num_heads))
        more = powers(2 * closest)[0::2][: num_heads - closest]
        return tuple(powers(closest) + more)


@dataclass(frozen=True)
class Relative(PositionEncoding, name="relative"):
    """Queries and keys are compared with learned vectors of buckets of distances, too.

    Distances below half of the buckets have their own; farther ones share buckets that grow
    logarithmically; both directions have their own. The vectors are normalized, and projected by
    each layer's projections of queries and keys. Reference: `bert_jax.model.attention.Distances`.
    """

    buckets: int = field(
        32, "buckets of the distances in one direction, 0 included", bounds="[4, inf)"
    )
    max_distance: int = field(
        512, "tokens; farther distances are in the last bucket", bounds=POSITIVE
    )

    def make_table(self, architecture: Architecture, rngs: nnx.Rngs) -> nnx.Module:
        return RelativeTable(2 * self.buckets - 1, architecture, rngs)

    def buckets_of_distances(self) -> np.ndarray:
        middle, farthest = self.buckets // 2, self.max_distance - 1
        distances = np.arange(-farthest, farthest + 1)
        far = np.maximum(np.abs(distances), middle) / middle
        logarithms = np.ceil(np.log(far) / np.log(farthest / middle) * (middle - 1)) + middle
        near = np.abs(distances) <= middle
        signed = np.where(near, distances, np.sign(distances) * logarithms)
        return (signed + self.buckets - 1).astype(np.int32)

    def distance_vectors(self, table: nnx.Module | None) -> jax.Array:
        assert isinstance(table, RelativeTable)  # as `make_table` made it
        return table.norm(table.embedding[...].astype(jnp.float32))

    def check_architecture(self, architecture: Architecture, path: str) -> None:
        if self.max_distance <= self.buckets:
            raise UserError(
                f"{path}.position_embedding.max_distance={self.max_distance} must be larger than "
                f"{path}.position_embedding.buckets={self.buckets}"
            )


class RelativeTable(nnx.Module):
    """A vector of `hidden_size` features for each bucket of distances, and their LayerNorm."""

    def __init__(self, rows: int, architecture: Architecture, rngs: nnx.Rngs):
        size = architecture.hidden_size
        init = initializer(architecture.initializer_range)
        self.embedding = nnx.Param(init(rngs.params(), (rows, size)), axes=("position", "hidden"))
        self.norm = nnx.LayerNorm(
            size,
            epsilon=architecture.layer_norm_eps,
            dtype=jnp.float32,
            scale_metadata={"axes": ("hidden",)},
            bias_metadata={"axes": ("hidden",)},
            rngs=rngs,
        )


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
