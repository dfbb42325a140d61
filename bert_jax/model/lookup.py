"""Embedding lookup with gradients summed in fp32."""

import math

import jax
import jax.numpy as jnp


@jax.custom_vjp
def lookup(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows of an embedding table as fp32; their gradients are summed in fp32 too.

    Args:
      table: [rows, hidden] in any float type, or [copies, rows, hidden].
      ids: [batch, length] int32; with copies, each serves its part of the batch.

    Returns:
      [batch, length, hidden] fp32.
    """
    tables = table.reshape(-1, *table.shape[-2:])
    found = jax.vmap(lambda table, ids: table[ids])(tables, ids.reshape(len(tables), -1))
    return found.reshape(*ids.shape, -1).astype(jnp.float32)


def _lookup_forward(
    table: jax.Array, ids: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return lookup(table, ids), (table, ids)


def _lookup_backward(
    residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, None]:
    table, ids = residuals
    zeros = jnp.zeros((math.prod(table.shape[:-2]), *table.shape[-2:]), jnp.float32)
    ids = ids.reshape(len(zeros), -1)
    gradient = gradient.reshape(*ids.shape, -1)
    total = jax.vmap(lambda zeros, ids, gradient: zeros.at[ids].add(gradient))(zeros, ids, gradient)
    return total.reshape(table.shape).astype(table.dtype), None


lookup.defvjp(_lookup_forward, _lookup_backward)
