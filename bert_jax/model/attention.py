"""Multi-head scaled dot-product attention within segments."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bert_jax.model.dropout import dropout

# Computes attention as `attention` below does, perhaps with another kernel.
Attend = Callable[..., jax.Array]


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    *,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Attends from every position to the positions that bear the same segment id.

    Several examples can share a row: their segment ids differ, so attention is block-diagonal.
    Padding has an id of its own (0) and attends to itself; no row of the mask is ever empty.

    Args:
      query, key, value: [batch, length, heads, head_dim] in the compute dtype.
      segment_ids: [batch, length] int32.
      dropout_rate: share of the attention probabilities to drop.
      dropout_key: a typed PRNG key; None turns dropout off.

    Returns:
      [batch, length, heads, head_dim] in the dtype of `value`. Scores and softmax are fp32.

    Reference: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.2.1.
    """
    # Scores lie as [.., key, query]: softmax reduces over the sublanes of a TPU then, not over its
    # lanes, and dropout finds its bits in the layout in which they were drawn.
    scale = query.shape[-1] ** -0.5
    scores = jnp.einsum("bkhd,bqhd->bhkq", key, query * scale, preferred_element_type=jnp.float32)
    same_segment = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    scores = jnp.where(same_segment, scores, jnp.finfo(jnp.float32).min)
    probabilities = jax.nn.softmax(scores, axis=-2).astype(value.dtype)
    probabilities = dropout(probabilities, dropout_rate, dropout_key)
    return jnp.einsum("bhkq,bkhd->bqhd", probabilities, value)
