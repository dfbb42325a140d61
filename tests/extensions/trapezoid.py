"""A schedule: constant after warmup, then a linear decay over the last steps."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from bert_jax.fields import field
from bert_jax.train.schedules import Schedule


@dataclass(frozen=True)
class Trapezoid(Schedule):
    """1, and from `steps * (1 - decay_share)` on down to 0."""

    decay_share: float = field(0.2, "share of the steps that decay", bounds="(0, 1]")

    def factor(self, t: jax.Array, steps: int, warmup_steps: int) -> jax.Array:
        return jnp.clip((1 - t / steps) / self.decay_share, 0.0, 1.0)
