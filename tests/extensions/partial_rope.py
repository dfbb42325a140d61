"""A position encoding: RoPE on a share of the features (https://arxiv.org/abs/2204.06745)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from bert_jax.fields import field
from bert_jax.model.positions import Rope


@dataclass(frozen=True)
class PartialRope(Rope):
    """Rotates the first features of each head by the position; the others carry content only."""

    share: float = field(0.25, "share of the features that is rotated", bounds="(0, 1]")

    def rotate(self, x: jax.Array, position_ids: jax.Array, *, is_local: bool = False) -> jax.Array:
        size = int(x.shape[-1] * self.share / 2) * 2
        rotated = super().rotate(x[..., :size], position_ids, is_local=is_local)
        return jnp.concatenate([rotated, x[..., size:]], axis=-1)
