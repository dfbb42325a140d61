"""Dropout as a pure function of its key."""

import jax
import jax.numpy as jnp

_LEVELS = 256


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes elements of `x` with probability `rate` and rescales the rest.

    One random byte decides each element: a quarter of the random bits that a float would need, and
    random bits are a large part of a training step. The rate is therefore the nearest multiple of
    1/256 (0.1 becomes 26/256 = 0.1016) and the rescaling uses that rate, so the mean is kept.

    Args:
      x: any shape, floating point.
      rate: in [0, 1).
      key: a typed PRNG key; None turns dropout off.
    """
    dropped_levels = round(rate * _LEVELS)
    if key is None or dropped_levels == 0:
        return x
    keep = jax.random.bits(key, x.shape, jnp.uint8) >= dropped_levels
    return jnp.where(keep, x * (_LEVELS / (_LEVELS - dropped_levels)), 0).astype(x.dtype)


def split_key(key: jax.Array | None, num: int) -> list[jax.Array | None]:
    """`num` keys, or `num` times None if dropout is off."""
    return [None] * num if key is None else list(jax.random.split(key, num))
