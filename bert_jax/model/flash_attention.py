"""Attention with dropout in a TPU kernel, which stores neither scores nor random bits.

References: Dao et al. 2022, https://arxiv.org/abs/2205.14135, section 3 and appendix B.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from bert_jax.model.dropout import LEVELS, dropped_levels
from bert_jax.model.parts import row_bits

LENGTH_MULTIPLE = 128  # row lengths and blocks are multiples of it: the lanes of a register
MAX_LENGTH = 8192  # the kernel keeps all keys of a head in fast memory
HEAD_MULTIPLE = 16  # head sizes are multiples of it: the sublanes of a bf16 register
BLOCKS = (512, 256, 128)
# Heads of so many tokens in all are one step of the kernel's grid; a step has a fixed cost.
STEP_TOKENS = 2048
VMEM_BYTES = 48 * 2**20  # of 64 MiB or more from v5e on; rows of 8,192 tokens need half of it

_LOWEST = float(jnp.finfo(jnp.float32).min)


def dropout_streams(key: jax.Array, rows: int, heads: int) -> jax.Array:
    """[rows, heads, 2] uint32: what the bits of `kept` depend on, besides query and key.

    Args:
      key: a typed PRNG key; the streams are the same on every mesh, whatever its implementation.
      rows, heads: sizes of the global batch, or of a part of it.
    """
    # Keys of rbg are those of threefry, twice. Bits of rbg would depend on the platform.
    key = jax.random.wrap_key_data(jax.random.key_data(key)[:2], impl="threefry2x32")
    return row_bits(key, (rows, heads, 2), jnp.uint32)


def kept(
    stream: tuple[jax.Array, jax.Array],
    first_key: jax.Array | int,
    first_query: jax.Array | int,
    shape: tuple[int, int],
    levels: int,
) -> jax.Array:
    """bool [keys, queries]: which probabilities dropout keeps, in any block of a row.

    A function of the stream, the key and the query alone. One hash gives the bytes of four keys
    that are 32 apart, so that no element of a TPU's registers moves.

    Args:
      stream: the two uint32 of a row and head.
      first_key, first_query: places in the row; the key's is a multiple of `LENGTH_MULTIPLE`.
      shape: numbers of keys (a multiple of `LENGTH_MULTIPLE`) and queries.
      levels: of 256 values of a byte, those that drop.
    """
    keys, queries = shape
    index = jax.lax.broadcasted_iota(jnp.int32, (keys // 4, queries), 0)
    query = jax.lax.broadcasted_iota(jnp.int32, (keys // 4, queries), 1)
    # A counter that no other four keys of the row have, through the finalizer "lowbias32" of
    # https://github.com/skeeto/hash-prospector, with the second half of the stream in its middle.
    word = ((index + (first_key >> 2)) << 16 | (query + first_query)).astype(jnp.uint32)
    word ^= stream[0]
    word = (word ^ (word >> 16)) * jnp.uint32(0x7FEB352D)
    word = (word ^ (word >> 15)) + stream[1]
    word *= jnp.uint32(0x846CA68B)
    word ^= word >> 16
    # Each byte is compared as the highest of a word, whose other bytes decide nothing; signed, as
    # the vector unit compares.
    word = word.astype(jnp.int32).reshape(keys // 128, 32, queries)
    words = jnp.stack([word << shift for shift in (24, 16, 8, 0)], axis=1)
    return words.reshape(keys, queries) >= jnp.int32((levels - 128) << 24)


class _Options(NamedTuple):
    """What a kernel is compiled for: tokens of a block, see `kept`, see `flash_attention`."""

    block: int
    levels: int
    interpret: bool


def flash_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    streams: jax.Array | None = None,
    causal: jax.Array | None = None,
    *,
    window: int | None = None,
    dropout_rate: float = 0.0,
    block: int | None = None,
    interpret: bool = False,
) -> jax.Array:
    """`attention` of one device's rows and heads: on a mesh, call it under `jax.shard_map`.

    Args:
      query, key, value: [batch, length, heads, head_dim] in the compute dtype; for their sizes see
        `what_does_not_fit`.
      segment_ids: [batch, length] int32; equal ids lie together.
      streams: [batch, heads, 2] uint32, the device's part of `dropout_streams`; None drops nothing.
      causal, window: see `Reach`.
      dropout_rate: share of the attention probabilities to drop, rounded as `dropout` does.
      block: one of `BLOCKS` that divides the length; None for the largest. Results differ by
        rounding only.
      interpret: run the kernel in its interpreter, which is slow but works on any platform.

    Returns:
      [batch, length, heads, head_dim] in the dtype of `value`.
    """
    rows, length, heads, head_dim = query.shape
    block = block or next(size for size in BLOCKS if length % size == 0)
    levels = 0 if streams is None else dropped_levels(dropout_rate)
    if streams is None:
        streams = jnp.zeros((rows, heads, 2), jnp.uint32)
    # Features before tokens: a register's lanes are filled whatever the head size, the products
    # with probabilities fill the matrix unit, and sums over keys stay within lanes.
    turned = (x.transpose(0, 2, 3, 1) for x in (query * head_dim**-0.5, key, value))
    visible = visible_keys(segment_ids, window, causal)
    found = _attend(_Options(block, levels, interpret), *turned, visible, streams)
    return found.transpose(0, 3, 1, 2)


def what_does_not_fit(length: int, head_dim: int, *, scored: bool) -> str:
    """What `flash_attention` cannot take; "" if it takes everything.

    Args:
      length: tokens of a row.
      head_dim: features of a head.
      scored: scores also depend on distances, by ALiBi or relative positions.
    """
    if scored:
        return "no ALiBi and no relative positions"
    if head_dim % HEAD_MULTIPLE:
        return f"heads of a multiple of {HEAD_MULTIPLE} features, not {head_dim}"
    if length % LENGTH_MULTIPLE or length > MAX_LENGTH:
        return f"rows of a multiple of {LENGTH_MULTIPLE} tokens up to {MAX_LENGTH:,}, not {length}"
    return ""


def visible_keys(segment_ids: jax.Array, window: int | None, causal: jax.Array | None) -> jax.Array:
    """[batch, 2, length] int32: the first and the last key that each query attends to."""
    length = segment_ids.shape[1]
    place = jnp.arange(length)
    changes = segment_ids[:, 1:] != segment_ids[:, :-1]
    starts = jnp.pad(changes, ((0, 0), (1, 0)), constant_values=True)
    ends = jnp.pad(changes, ((0, 0), (0, 1)), constant_values=True)
    first = jax.lax.cummax(jnp.where(starts, place, 0), axis=1)
    last = jax.lax.cummin(jnp.where(ends, place, length - 1), axis=1, reverse=True)
    if window is not None:
        first = jnp.maximum(first, place - window // 2)
        last = jnp.minimum(last, place + window // 2)
    if causal is not None:
        last = jnp.where(causal, place, last)
    return jnp.stack([first, last], axis=1).astype(jnp.int32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    options: _Options,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visible: jax.Array,
    streams: jax.Array,
) -> jax.Array:
    """[batch, heads, head_dim, length], as query (scaled), key and value are."""
    return _forward(options, query, key, value, visible, streams)[0]


_Residuals = tuple[jax.Array, ...]


def _forward(
    options: _Options,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visible: jax.Array,
    streams: jax.Array,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    specs = _Specs(query.shape, options.block)
    ranges, _ = _ranges(visible, options.block)
    numbers = jax.ShapeDtypeStruct((*query.shape[:2], 1, query.shape[3]), jnp.float32)
    result, normalizer = _call(
        functools.partial(_forward_kernel, options),
        "flash_attention",
        specs,
        options,
        scalars=(ranges, streams),
        inputs=[
            (visible, specs.visible_tile),
            (query, specs.tile),
            (key, specs.row),
            (value, specs.row),
        ],
        outputs=[(value, specs.tile), (numbers, specs.number_tile)],
        products=2,
    )
    return result, (query, key, value, visible, streams, result, normalizer)


def _backward(
    options: _Options, residuals: tuple[jax.Array, ...], gradient: jax.Array
) -> tuple[jax.Array | None, ...]:
    query, key, value, visible, streams, result, normalizer = residuals
    specs = _Specs(query.shape, options.block)
    _, ranges = _ranges(visible, options.block)
    # The factor of dropout is in these two, so that no score needs to be multiplied by it.
    factor = _factor(options.levels)
    products = result.astype(jnp.float32) * gradient.astype(jnp.float32)
    mean = jnp.sum(products, axis=2, keepdims=True) / factor
    gradients = _call(
        functools.partial(_backward_kernel, options),
        "flash_attention_gradient",
        specs,
        options,
        scalars=(ranges, streams),
        inputs=[
            (visible, specs.visible_row),
            (query, specs.row),
            (gradient, specs.row),
            (normalizer - math.log(factor), specs.number_row),
            (mean, specs.number_row),
            (key, specs.tile),
            (value, specs.tile),
        ],
        outputs=[(query, specs.row), (key, specs.tile), (value, specs.tile)],
        products=5,
        scratch=[pltpu.VMEM((specs.heads, *query.shape[2:]), jnp.float32)],
    )
    return *gradients, None, None


_attend.defvjp(_forward, _backward)


class _Specs:
    """Which part of an array is in the fast memory at a step of the grid.

    The grid is rows x groups of heads x blocks of tokens. Arrays are [batch, heads, features,
    length] or, `visible`, [batch, 2, length]. A "tile" holds the step's block of tokens, a "row"
    all of them.
    """

    def __init__(self, shape: tuple[int, ...], block: int):
        rows, heads, head_dim, length = shape
        wanted = max(STEP_TOKENS // length, 1)
        self.heads = next(n for n in range(min(wanted, heads), 0, -1) if heads % n == 0)
        self.grid = (rows, heads // self.heads, length // block)
        self.tile, self.row = self._pair(head_dim, block, length)
        self.number_tile, self.number_row = self._pair(1, block, length)
        self.visible_tile = pl.BlockSpec((1, 2, block), lambda row, _, index, *__: (row, 0, index))
        self.visible_row = pl.BlockSpec((1, 2, length), lambda row, *_: (row, 0, 0))

    def _pair(self, features: int, block: int, length: int) -> tuple[pl.BlockSpec, pl.BlockSpec]:
        return (
            pl.BlockSpec(
                (1, self.heads, features, block), lambda row, group, i, *_: (row, group, 0, i)
            ),
            pl.BlockSpec(
                (1, self.heads, features, length), lambda row, group, *_: (row, group, 0, 0)
            ),
        )


def _call(
    kernel: Callable[..., None],
    name: str,
    specs: _Specs,
    options: _Options,
    *,
    scalars: Sequence[jax.Array],
    inputs: Sequence[tuple[jax.Array, pl.BlockSpec]],
    outputs: Sequence[tuple[jax.Array | jax.ShapeDtypeStruct, pl.BlockSpec]],
    products: int,
    scratch: Sequence[Any] = (),
) -> list[jax.Array]:
    """Runs a kernel; `products` is the number of its matrix products for each block of scores."""
    (query, _), arrays = inputs[1], [x for x, _ in (*inputs, *outputs)]
    scores = query.size // query.shape[2] * query.shape[3]
    return pl.pallas_call(
        kernel,
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x, _ in outputs],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=specs.grid,
            in_specs=[spec for _, spec in inputs],
            out_specs=[spec for _, spec in outputs],
            scratch_shapes=scratch,
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=VMEM_BYTES
        ),
        # As if every query attended to its whole row.
        cost_estimate=pl.CostEstimate(
            flops=2 * products * query.shape[2] * scores,
            transcendentals=scores,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in arrays),
        ),
        interpret=options.interpret,
        name=name,
    )(*(x.reshape(-1) for x in scalars), *(x for x, _ in inputs))


def _ranges(visible: jax.Array, block: int) -> tuple[jax.Array, jax.Array]:
    """[batch, blocks, 2] int32: the first block, and the one after the last,

    of keys that each block of queries attends to, and of queries that attend to each block of keys.
    """
    batch, _, length = visible.shape
    first, last = jnp.moveaxis(visible.reshape(batch, 2, -1, block) // block, 1, 0)
    start, stop = jnp.min(first, axis=-1), jnp.max(last, axis=-1) + 1
    places = jnp.arange(length // block)
    seen = (start[..., None] <= places) & (places < stop[..., None])  # [batch, queries, keys]
    first_to_see = jnp.argmax(seen, axis=1)
    last_to_see = len(places) - 1 - jnp.argmax(seen[:, ::-1], axis=1)
    of_keys = jnp.stack([first_to_see, last_to_see + 1], axis=-1).astype(jnp.int32)
    return jnp.stack([start, stop], axis=-1), of_keys


def _factor(levels: int) -> float:
    """By how much dropout multiplies what it keeps."""
    return LEVELS / (LEVELS - levels)


def _forward_kernel(
    options: _Options,
    ranges: Any,
    streams: Any,
    visible: Any,
    query: Any,
    key: Any,
    value: Any,
    result: Any,
    normalizer: Any,
) -> None:
    """One block of queries: softmax over its blocks of keys, one after another."""
    block, heads, index = options.block, query.shape[1], pl.program_id(2)
    start, stop = _own_range(ranges)
    first_stream = heads * (pl.program_id(0) * pl.num_programs(1) + pl.program_id(1))

    def head(number: jax.Array, _: None) -> None:
        place = 2 * (first_stream + number)
        stream = streams[place], streams[place + 1]
        own = query[0, number]

        def add(other: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            highest, total, weighted = sums
            keys = _tokens(other, block)
            scores = _masked(
                _product(key[0, number, :, keys], own, (0, 0)), visible[0], other * block
            )
            new = jnp.maximum(highest, jnp.max(scores, axis=0, keepdims=True))
            weights, shrink = jnp.exp(scores - new), jnp.exp(highest - new)
            total = total * shrink + jnp.sum(weights, axis=0, keepdims=True)
            if options.levels:
                keep = kept(stream, other * block, index * block, (block, block), options.levels)
                weights = jnp.where(keep, weights, 0)
            values = value[0, number, :, keys]
            weighted = weighted * shrink + _product(values, weights.astype(values.dtype), (1, 0))
            return new, total, weighted

        zeros = jnp.zeros((1, block), jnp.float32)
        first = (zeros + _LOWEST, zeros, jnp.zeros(own.shape, jnp.float32))
        highest, total, weighted = jax.lax.fori_loop(start, stop, add, first)
        result[0, number] = (weighted * (_factor(options.levels) / total)).astype(result.dtype)
        normalizer[0, number] = highest + jnp.log(total)

    jax.lax.fori_loop(0, heads, head, None)


def _backward_kernel(
    options: _Options,
    ranges: Any,
    streams: Any,
    visible: Any,
    query: Any,
    gradient: Any,
    normalizer: Any,
    mean: Any,
    key: Any,
    value: Any,
    query_gradient: Any,
    key_gradient: Any,
    value_gradient: Any,
    sums: Any,
) -> None:
    """One block of keys, with all queries that attend to it; `sums` is the queries' gradient."""
    block, heads, index = options.block, query.shape[1], pl.program_id(2)
    start, stop = _own_range(ranges)
    first_stream = heads * (pl.program_id(0) * pl.num_programs(1) + pl.program_id(1))

    @pl.when(index == 0)
    def _() -> None:
        sums[...] = jnp.zeros(sums.shape, sums.dtype)

    def head(number: jax.Array, _: None) -> None:
        place = 2 * (first_stream + number)
        stream = streams[place], streams[place + 1]
        keys, values = key[0, number], value[0, number]

        def add(other: jax.Array, own: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            of_keys, of_values = own
            tokens = _tokens(other, block)
            queries, results = query[0, number, :, tokens], gradient[0, number, :, tokens]
            scores = _masked(_product(keys, queries, (0, 0)), visible[0, :, tokens], index * block)
            weights = jnp.exp(scores - normalizer[0, number, :, tokens])
            of_weights, dropped = _product(values, results, (0, 0)), weights
            if options.levels:
                keep = kept(stream, index * block, other * block, (block, block), options.levels)
                dropped = jnp.where(keep, weights, 0)
                of_weights = jnp.where(keep, of_weights, 0)
            of_scores = (weights * (of_weights - mean[0, number, :, tokens])).astype(keys.dtype)
            of_values += _product(results, dropped.astype(results.dtype), (1, 1))
            of_keys += _product(queries, of_scores, (1, 1))
            sums[number, :, tokens] += _product(keys, of_scores, (1, 0))
            return of_keys, of_values

        zeros = jnp.zeros(keys.shape, jnp.float32)
        of_keys, of_values = jax.lax.fori_loop(start, stop, add, (zeros, zeros))
        key_gradient[0, number] = of_keys.astype(key_gradient.dtype)
        value_gradient[0, number] = of_values.astype(value_gradient.dtype)

    jax.lax.fori_loop(0, heads, head, None)

    @pl.when(index == pl.num_programs(2) - 1)
    def _() -> None:
        query_gradient[0] = sums[...].astype(query_gradient.dtype)


def _own_range(ranges: Any) -> tuple[jax.Array, jax.Array]:
    place = 2 * (pl.program_id(0) * pl.num_programs(2) + pl.program_id(2))
    return ranges[place], ranges[place + 1]


def _tokens(index: jax.Array, block: int) -> Any:
    return pl.ds(pl.multiple_of(index * block, block), block)


def _masked(scores: jax.Array, visible: jax.Array, first_key: jax.Array) -> jax.Array:
    """Scores [keys, queries], the lowest where the query does not attend to the key.

    Args:
      scores: fp32.
      visible: [2, queries], the first and the last key that each query attends to.
      first_key: place of the first key.
    """
    # One comparison: counted from the lowest integer, keys before the first one overflow and come
    # last.
    lowest = jnp.int32(jnp.iinfo(jnp.int32).min)
    place = first_key + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
    from_first = place - (visible[:1] + lowest)
    return jnp.where(from_first <= visible[1:] - visible[:1] + lowest, scores, _LOWEST)


def _product(a: jax.Array, b: jax.Array, axes: tuple[int, int]) -> jax.Array:
    """The fp32 product of two matrices over an axis of each."""
    contracted = (((axes[0],), (axes[1],)), ((), ()))
    return jax.lax.dot_general(a, b, contracted, preferred_element_type=jnp.float32)
