"""Multi-head scaled dot-product attention within segments: by XLA, or by a TPU kernel."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from bert_jax.model.dropout import dropout

# Computes attention as `attention` below does, perhaps with another kernel.
Attend = Callable[..., jax.Array]

SPLASH_MULTIPLE = 128  # row lengths and kernel blocks are multiples of it


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    *,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Attends from every position to the positions with the same segment id.

    Several examples can share a row: their segment ids differ, so attention is block-diagonal.
    Padding has segment id 0 and attends to itself, so no row of the mask is empty.

    Args:
      query, key, value: [batch, length, heads, head_dim] in the compute dtype.
      segment_ids: [batch, length] int32.
      dropout_rate: share of the attention probabilities to drop.
      dropout_key: a typed PRNG key; None turns dropout off.

    Returns:
      [batch, length, heads, head_dim] in the dtype of `value`. Scores and softmax are fp32.

    Reference: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.2.1.
    """
    probabilities = attention_probabilities(query, key, segment_ids, value.dtype)
    probabilities = dropout(probabilities, dropout_rate, dropout_key)
    return jnp.einsum("bhkq,bkhd->bqhd", probabilities, value)


def attention_probabilities(
    query: jax.Array, key: jax.Array, segment_ids: jax.Array, dtype: jnp.dtype
) -> jax.Array:
    """[batch, heads, key, query] in `dtype`: how much each query attends to each key."""
    # With scores as [.., key, query], softmax reduces over the sublanes of a TPU, not over its
    # lanes, and dropout uses its bits in the layout in which they were drawn.
    scale = query.shape[-1] ** -0.5
    scores = jnp.einsum("bkhd,bqhd->bhkq", key, query * scale, preferred_element_type=jnp.float32)
    same_segment = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    scores = jnp.where(same_segment, scores, jnp.finfo(jnp.float32).min)
    return _softmax(scores, dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _softmax(scores: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Softmax over axis -2 of fp32 scores, in `dtype`; the gradient is computed in fp32."""
    return _forward(scores, dtype)[0]


def _forward(scores: jax.Array, dtype: jnp.dtype) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    # The backward pass keeps the exponentials in `dtype`: in fp32 they would be a layer's largest
    # residual. The sum is over the rounded values, so the probabilities sum to 1.
    exponentials = jnp.exp(scores - jnp.max(scores, axis=-2, keepdims=True)).astype(dtype)
    scale = 1 / jnp.sum(exponentials, axis=-2, keepdims=True, dtype=jnp.float32)
    return (exponentials * scale).astype(dtype), (exponentials, scale)


def _backward(
    dtype: jnp.dtype, residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array]:
    exponentials, scale = residuals
    probabilities = exponentials * scale
    weighted = probabilities * gradient
    return (weighted - probabilities * jnp.sum(weighted, axis=-2, keepdims=True),)


_softmax.defvjp(_forward, _backward)


def splash_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    *,
    interpret: bool = False,
) -> jax.Array:
    """`attention` without dropout, by JAX's splash kernel, which never stores the scores.

    It takes the rows and heads of one device: on a mesh, call it under `jax.shard_map`.

    Args:
      query, key, value, segment_ids: see `attention`; length is a multiple of `SPLASH_MULTIPLE`.
      interpret: run the kernel in its interpreter, which is slow but works on any platform.
    """
    _, length, heads, head_dim = query.shape
    block = next(size for size in (512, 256, SPLASH_MULTIPLE) if length % size == 0)
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([splash.FullMask((length, length))] * heads),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
        block_sizes=splash.BlockSizes(
            block_q=block,
            block_kv=block,
            block_kv_compute=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_kv_dkv_compute=block,
            use_fused_bwd_kernel=True,
        ),
    )

    def row(
        query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array
    ) -> jax.Array:
        return kernel(query, key, value, splash.SegmentIds(segment_ids, segment_ids))

    query, key, value = (x.swapaxes(1, 2) for x in (query * head_dim**-0.5, key, value))
    return jax.vmap(row)(query, key, value, segment_ids).swapaxes(1, 2).astype(value.dtype)
