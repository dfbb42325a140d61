"""The parts of a batch: the rows of one device each, where gradients are added up by part.

A train step with several microbatches runs the model under `jax.vmap` over the parts, so that each
device adds up its own gradients and they are reduced once.
"""

import jax
from jax.custom_batching import custom_vmap
from jax.typing import DTypeLike

PART = "part"  # name of the mapped axis


def is_split() -> bool:
    """Whether the rows at hand are one part of the batch."""
    try:
        jax.lax.axis_size(PART)
    except NameError:
        return False
    return True


def row_bits(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    """Random bits [rows, ...]: each row has its own, however the batch is split into parts.

    Args:
      key: a typed PRNG key, the same for all parts.
      shape: shape of the bits for the rows at hand.
      dtype: an unsigned integer type.
    """
    if not is_split():
        return jax.random.bits(key, shape, dtype)

    @custom_vmap
    def of_part(key: jax.Array, part: jax.Array) -> jax.Array:
        del part
        return jax.random.bits(key, shape, dtype)

    @of_part.def_vmap
    def of_all(
        parts: int, _: list[bool], key: jax.Array, part: jax.Array
    ) -> tuple[jax.Array, bool]:
        del part
        bits = jax.random.bits(key, (parts * shape[0], *shape[1:]), dtype)
        return bits.reshape(parts, *shape), True

    return of_part(key, jax.lax.axis_index(PART))
