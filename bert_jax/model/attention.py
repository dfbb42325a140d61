"""Multi-head scaled dot-product attention within segments: by XLA, or by a TPU kernel."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from bert_jax.model.dropout import dropout

# Computes attention as `attention` below does, perhaps with another kernel.
Attend = Callable[..., jax.Array]

SPLASH_MULTIPLE = 128  # row lengths and kernel blocks are multiples of it
WHOLE_LENGTH = 1024  # longer rows are attended to in blocks


class Distances(NamedTuple):
    """Relative positions: the score of a query and a key has two more summands.

    They are query x key vector and key x query vector, both vectors those of the bucket of the
    distance, the query's place minus the key's. Scores are divided by sqrt(3 head_dim). Reference:
    He et al. 2021, https://arxiv.org/abs/2006.03654; here as in GPT-BERT,
    https://github.com/ltgoslo/gpt-bert, pretraining/model_extra.py.

    Attributes:
      query, key: [buckets, heads, head_dim] in the compute dtype.
      bucket: [2 n + 1], the buckets of the distances -n ... n, which are those of all farther ones.
    """

    query: jax.Array
    key: jax.Array
    bucket: np.ndarray


class Reach(NamedTuple):
    """Which positions of its example a position attends to, and how strongly by distance.

    Attributes:
      window: width in tokens, half on each side; None for the whole example.
      slopes: [heads], by how much the score falls with each token of distance (ALiBi); None for 0.
      distances: vectors that queries and keys are compared with by distance; None for none.
      causal: [batch, length] bool, positions that attend to none after them; None for none.
    """

    window: int | None = None
    slopes: tuple[float, ...] | None = None
    distances: Distances | None = None
    causal: jax.Array | None = None


EVERYWHERE = Reach()


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    *,
    reach: Reach = EVERYWHERE,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Attends from every position to the positions with the same segment id.

    Several examples can share a row: their segment ids differ, so attention is block-diagonal.
    Padding has segment id 0; its results have no meaning, but are finite. Rows of more than
    `WHOLE_LENGTH` tokens, and local attention in rows of more than two windows, are computed in
    blocks of queries, which never stores length x length scores.

    Args:
      query, key, value: [batch, length, heads, head_dim] in the compute dtype.
      segment_ids: [batch, length] int32.
      reach: limits within an example.
      dropout_rate: share of the attention probabilities to drop.
      dropout_key: a typed PRNG key; None turns dropout off.

    Returns:
      [batch, length, heads, head_dim] in the dtype of `value`. Scores and softmax are fp32.

    References: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.2.1; windows:
    Beltagy et al. 2020, https://arxiv.org/abs/2004.05150; ALiBi: Press et al. 2022,
    https://arxiv.org/abs/2108.12409; relative positions: `Distances`.
    """
    length = query.shape[1]
    drop = functools.partial(dropout, rate=dropout_rate)
    # An export is lowered for any length, which is no int then, and has one program for all.
    if isinstance(length, int) and reach.window is not None and length > 2 * reach.window:
        return _in_windows(query, key, value, segment_ids, reach, dropout_key, drop)
    if isinstance(length, int) and length > WHOLE_LENGTH:
        return _in_blocks(query, key, value, segment_ids, reach, dropout_key, drop)
    probabilities = attention_probabilities(query, key, segment_ids, value.dtype, reach=reach)
    return jnp.einsum("bhkq,bkhd->bqhd", drop(probabilities, key=dropout_key), value)


def attention_between(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: tuple[jax.Array, jax.Array],
    *,
    places: tuple[jax.Array, jax.Array] | None = None,
    reach: Reach = EVERYWHERE,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Attends from the positions of some rows to those of others with the same segment id.

    Args:
      query: [batch, queries, heads, head_dim].
      key, value: [batch, keys, heads, head_dim].
      segments: segment ids [batch, queries], [batch, keys]. The result for a query without a key
        has no meaning, but is finite.
      places: places in one row of the queries [1, queries] and of the keys [1, keys], from which
        `reach` measures; None if it is not used.
      reach: limits within an example.
      dropout_rate, dropout_key: see `attention`.

    Returns:
      [batch, queries, heads, head_dim] in the dtype of `value`. Scores and softmax are fp32.
    """
    if places is None:
        places = jnp.arange(query.shape[1])[None], jnp.arange(key.shape[1])[None]
    found = _probabilities(query, key, segments, places, value.dtype, reach)
    found = dropout(found, dropout_rate, dropout_key)
    return jnp.einsum("bhkq,bkhd->bqhd", found, value)


def attention_probabilities(
    query: jax.Array,
    key: jax.Array,
    segment_ids: jax.Array,
    dtype: jnp.dtype,
    *,
    reach: Reach = EVERYWHERE,
) -> jax.Array:
    """[batch, heads, key, query] in `dtype`: how much each query attends to each key."""
    places = jnp.arange(query.shape[1])[None]
    return _probabilities(query, key, (segment_ids, segment_ids), (places, places), dtype, reach)


def _probabilities(
    query: jax.Array,
    key: jax.Array,
    segments: tuple[jax.Array, jax.Array],
    places: tuple[jax.Array, jax.Array],
    dtype: jnp.dtype,
    reach: Reach,
) -> jax.Array:
    """`attention_probabilities` of some queries and some keys of each row.

    Args:
      query, key: [batch, queries, heads, head_dim], [batch, keys, heads, head_dim].
      segments: segment ids [batch, queries], [batch, keys].
      places: places in the row [1, queries], [1, keys].
      dtype: dtype of the result.
      reach: limits within an example; its `causal` is that of the queries.
    """
    # With scores as [.., key, query], softmax reduces over the sublanes of a TPU, not over its
    # lanes, and dropout uses its bits in the layout in which they were drawn.
    scale = query.shape[-1] ** -0.5
    if reach.distances is not None:
        scale *= 3**-0.5
    scores = jnp.einsum("bkhd,bqhd->bhkq", key, query * scale, preferred_element_type=jnp.float32)
    if reach.distances is not None:
        first = places[0][0, 0] - places[1][0, 0]
        scores += _by_distance(query * scale, key * scale, first, reach.distances)
    allowed = segments[1][:, None, :, None] == segments[0][:, None, None, :]
    distance = jnp.abs(places[1][:, None, :, None] - places[0][:, None, None, :])
    if reach.window is not None:
        allowed &= distance <= reach.window // 2
    if reach.causal is not None:
        is_later = places[1][:, None, :, None] > places[0][:, None, None, :]
        allowed &= ~(reach.causal[:, None, None, :] & is_later)
    if reach.slopes is not None:
        scores -= jnp.asarray(reach.slopes, jnp.float32)[:, None, None] * distance
    scores = jnp.where(allowed, scores, jnp.finfo(jnp.float32).min)
    return _softmax(scores, dtype)


def _by_distance(
    query: jax.Array, key: jax.Array, first: jax.Array, distances: Distances
) -> jax.Array:
    """[batch, heads, key, query] fp32: the summands of `Distances`.

    Args:
      query, key: [batch, queries, heads, head_dim], [batch, keys, heads, head_dim]; scaled.
      first: distance of the first query from the first key.
      distances: the vectors.
    """
    queries, keys = query.shape[1], key.shape[1]

    def bucket(distance: jax.Array) -> jax.Array:
        farthest = len(distances.bucket) // 2
        return jnp.asarray(distances.bucket)[jnp.clip(distance, -farthest, farthest) + farthest]

    products = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    if not isinstance(keys, int):  # an export for any length, which cannot be laid out as below
        own = bucket(first + jnp.arange(queries) - jnp.arange(keys)[:, None])[None, None]
        of_queries = products("bqhd,nhd->bhqn", query, distances.key)
        of_keys = products("bkhd,nhd->bhkn", key, distances.query)
        of_queries = jnp.take_along_axis(of_queries, own.swapaxes(2, 3), axis=-1)
        return jnp.take_along_axis(of_keys, own, axis=-1) + of_queries.swapaxes(2, 3)
    # Products with the vectors of all distances that occur, then the row of each place.
    own = bucket(first + queries - 1 - jnp.arange(queries + keys - 1))
    of_queries = products("bqhd,nhd->bhqn", query, distances.key[own])
    # Keys that lie together have few distances from few queries.
    parts = -(-keys // queries)
    starts = queries * jnp.arange(parts)[:, None]
    own = bucket(first - starts - (queries - 1) + jnp.arange(2 * queries - 1))
    key = _pad(key, 0, parts * queries - keys).reshape(-1, parts, queries, *key.shape[2:])
    of_keys = products("bpkhd,pnhd->bhpkn", key, distances.query[own])
    of_keys = _skewed(of_keys).reshape(*of_keys.shape[:2], -1, queries)[:, :, :keys]
    return of_keys + _skewed(of_queries).swapaxes(2, 3)


def _skewed(x: jax.Array) -> jax.Array:
    """[..., n, m] -> [..., n, m - n + 1]: row i without its first n - 1 - i elements.

    Nothing is gathered: rows are stored with one element more than they are read with, so each
    begins one element earlier than the one before.
    """
    rows, width = x.shape[-2:]
    flat = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, 1)]).reshape(*x.shape[:-2], -1)
    return flat[..., : rows * width].reshape(x.shape)[..., rows - 1 :]


def _in_blocks(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    reach: Reach,
    dropout_key: jax.Array | None,
    drop: Callable[..., jax.Array],
) -> jax.Array:
    """`attention` for one block of queries after another; the scores of one are in memory.

    A block computes scores with the keys of its own examples, up to a power of two.
    """
    length = query.shape[1]
    block = WHOLE_LENGTH // 2
    blocks = -(-length // block)
    of_queries = [query, segment_ids, *([] if reach.causal is None else [reach.causal])]
    padded = [_pad(x, 0, blocks * block - length) for x in of_queries]
    keys = None if dropout_key is None else jax.random.split(dropout_key, blocks)

    # The keys that a block sees are those of its examples, which lie together in packed rows.
    widths = [2 * block]
    while widths[-1] < length:
        widths.append(min(2 * widths[-1], length))

    def one(block_and_key: tuple[jax.Array, jax.Array | None]) -> jax.Array:
        index, own_key = block_and_key
        part, ids, *causal = (
            jax.lax.dynamic_slice_in_dim(x, index * block, block, axis=1) for x in padded
        )
        own = reach._replace(causal=causal[0] if causal else None)
        first, last = _seen(ids, segment_ids)

        @functools.partial(jax.checkpoint, static_argnums=0)
        def within(width: int) -> jax.Array:
            start = jnp.minimum(first, length - width)
            keys, values, key_ids = (
                jax.lax.dynamic_slice_in_dim(x, start, width, axis=1)
                for x in (key, value, segment_ids)
            )
            places = (index * block + jnp.arange(block)[None], start + jnp.arange(width)[None])
            found = _probabilities(part, keys, (ids, key_ids), places, value.dtype, own)
            return jnp.einsum("bhkq,bkhd->bqhd", drop(found, key=own_key), values)

        smallest = jnp.searchsorted(jnp.asarray(widths), last + 1 - first)
        return jax.lax.switch(smallest, [functools.partial(within, width) for width in widths])

    found = jax.lax.map(one, (jnp.arange(blocks), keys))
    return found.swapaxes(0, 1).reshape(padded[0].shape)[:, :length]


def _seen(ids: jax.Array, segment_ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """int32: the first and the last place with a segment of a block, in any row; 0, 0 if none.

    Args:
      ids: segment ids of the block, [batch, queries].
      segment_ids: of the rows, [batch, length].
    """
    # Padding, segment 0, is at the end of a row; what its queries see does not matter.
    lowest = jnp.min(jnp.where(ids > 0, ids, jnp.iinfo(ids.dtype).max), axis=1, keepdims=True)
    highest = jnp.max(ids, axis=1, keepdims=True)
    seen = jnp.any((lowest <= segment_ids) & (segment_ids <= highest), axis=0)
    last = seen.size - 1 - jnp.argmax(seen[::-1])
    return jnp.argmax(seen), jnp.where(jnp.any(seen), last, 0)


def _in_windows(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    reach: Reach,
    dropout_key: jax.Array | None,
    drop: Callable[..., jax.Array],
) -> jax.Array:
    """Local `attention`: each block of half a window sees itself and its two neighbours."""
    assert reach.window is not None  # as the caller checked
    batch, length = segment_ids.shape
    block = max(reach.window // 2, 1)
    blocks = -(-length // block)
    fill = blocks * block - length

    def split(x: jax.Array) -> jax.Array:
        """[batch, length, ...] -> [batch * blocks, block, ...]."""
        return x.reshape(-1, block, *x.shape[2:])

    def neighbours(x: jax.Array) -> jax.Array:
        """[batch, length, ...] -> [batch * blocks, 3 * block, ...]."""
        around = _pad(x, block, fill + block)
        shifted = (around[:, i * block : (i + blocks) * block] for i in range(3))
        return jnp.concatenate([split(each) for each in shifted], axis=1)

    # Padding of the row has segment 0; what is added here has -1, so the two do not mix.
    segments = split(_pad(segment_ids, 0, fill, -1)), neighbours(segment_ids + 1) - 1
    places = jnp.arange(block)[None] + block, jnp.arange(3 * block)[None]
    if reach.causal is not None:
        reach = reach._replace(causal=split(_pad(reach.causal, 0, fill)))
    found = _probabilities(
        split(_pad(query, 0, fill)), neighbours(key), segments, places, value.dtype, reach
    )
    found = jnp.einsum("bhkq,bkhd->bqhd", drop(found, key=dropout_key), neighbours(value))
    return found.reshape(batch, blocks * block, *query.shape[2:])[:, :length]


def _pad(x: jax.Array, before: int, after: int, value: int = 0) -> jax.Array:
    """Pads axis 1."""
    widths = [(0, 0), (before, after), *[(0, 0)] * (x.ndim - 2)]
    return jnp.pad(x, widths, constant_values=value)


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
    window: int | None = None,
    interpret: bool = False,
) -> jax.Array:
    """`attention` without dropout, by JAX's splash kernel, which never stores the scores.

    It takes the rows and heads of one device: on a mesh, call it under `jax.shard_map`.

    Args:
      query, key, value, segment_ids: see `attention`; length is a multiple of `SPLASH_MULTIPLE`.
      window: see `Reach`.
      interpret: run the kernel in its interpreter, which is slow but works on any platform.
    """
    _, length, heads, head_dim = query.shape
    block = next(size for size in (512, 256, SPLASH_MULTIPLE) if length % size == 0)
    shape = (length, length)
    mask = (
        splash.FullMask(shape)
        if window is None
        else splash.LocalMask(shape, (window // 2, window // 2), offset=0)
    )
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([mask] * heads),
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
