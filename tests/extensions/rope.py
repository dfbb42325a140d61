"""A position encoding: RoPE (Su et al. 2021, https://arxiv.org/abs/2104.09864)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from bert_jax.fields import POSITIVE, field
from bert_jax.model.positions import PositionEncoding


@dataclass(frozen=True)
class Rope(PositionEncoding):
    """Turns pairs of features of queries and keys by angles that grow with the position."""

    theta: float = field(10_000.0, "ratio of the slowest and the fastest turn", bounds=POSITIVE)

    def rotate(self, x: jax.Array, position_ids: jax.Array) -> jax.Array:
        half = x.shape[-1] // 2
        rates = self.theta ** (-jnp.arange(half) / half)
        angles = (position_ids[..., None] * rates)[:, :, None]  # [batch, length, 1, half]
        cos, sin = jnp.cos(angles), jnp.sin(angles)
        left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
        turned = [left * cos - right * sin, right * cos + left * sin]
        return jnp.concatenate(turned, axis=-1).astype(x.dtype)
