"""Dropout as a pure function of its key."""

import jax
import jax.numpy as jnp

from bert_jax.model.parts import row_bits

LEVELS = 256  # values of a byte


def dropout(
    x: jax.Array, rate: float, key: jax.Array | None, *, has_rows: bool = True
) -> jax.Array:
    """Zeroes elements of `x` with probability `rate` and rescales the rest.

    One random byte decides each element: a quarter of the random bits that a float would need, and
    random bits are a large part of a training step. The rate is therefore the nearest multiple of
    1/256 (0.1 becomes 26/256 = 0.1016) and the rescaling uses that rate, so the mean is kept.

    Args:
      x: any shape, floating point.
      rate: in [0, 1).
      key: a typed PRNG key; None turns dropout off.
      has_rows: whether the first axis of `x` is that of the batch.
    """
    dropped = dropped_levels(rate)
    if key is None or dropped == 0:
        return x
    draw = row_bits if has_rows else jax.random.bits
    keep = draw(key, x.shape, jnp.uint8) >= dropped
    return jnp.where(keep, x * (LEVELS / (LEVELS - dropped)), 0).astype(x.dtype)


def dropped_levels(rate: float) -> int:
    """How many of the `LEVELS` values of a byte drop an element."""
    return round(rate * LEVELS)


def split_key(key: jax.Array | None, num: int) -> list[jax.Array | None]:
    """`num` keys, or `num` times None if dropout is off."""
    return [None] * num if key is None else list(jax.random.split(key, num))
