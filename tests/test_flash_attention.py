"""The kernel with dropout, in its interpreter, computes what XLA does with the same bits."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from configured import configured

from bert_jax.errors import UserError
from bert_jax.model import flash_attention as module
from bert_jax.model.attention import Reach, attention, attention_probabilities
from bert_jax.model.dropout import LEVELS, dropped_levels
from bert_jax.model.flash_attention import (
    dropout_streams,
    flash_attention,
    kept,
    visible_keys,
)
from bert_jax.parallel import rules
from bert_jax.parallel.mesh import make_mesh
from bert_jax.parallel.parallelism import check_attention, choose_attention
from bert_jax.parallel.topologies import topology_devices

pytestmark = pytest.mark.core

ROWS, LENGTH, HEADS, HEAD_DIM = 2, 256, 2, 64
RATE = 0.1
KEY = jax.random.key(3)


@functools.cache
def arrays():
    """Query, key, value, and segment ids of examples and padding that end within blocks."""
    keys = jax.random.split(jax.random.key(0), 3)
    shape = (ROWS, LENGTH, HEADS, HEAD_DIM)
    place = jnp.arange(LENGTH)
    first = jnp.where(place < 50, 1, jnp.where(place < 190, 2, 0))
    second = jnp.where(place < 128, 1, jnp.where(place < 130, 2, 3))
    return *(jax.random.normal(key, shape) for key in keys), jnp.stack([first, second])


def causal():
    """The first example of the first row and the last of the second."""
    place = jnp.arange(LENGTH)
    return jnp.stack([place < 50, place >= 130])


def dropped_by_xla(query, key, value, segment_ids, streams, reach):
    """`attention` with the bits of the kernel."""
    found = attention_probabilities(query, key, segment_ids, value.dtype, reach=reach)
    keep = mask(streams, query.shape[1])
    found = jnp.where(keep, found * LEVELS / (LEVELS - dropped_levels(RATE)), 0)
    return jnp.einsum("bhkq,bkhd->bqhd", found, value)


def mask(streams, length):
    """[rows, heads, keys, queries]: what is kept of whole rows."""

    def one(stream):
        return kept((stream[0], stream[1]), 0, 0, (length, length), dropped_levels(RATE))

    return jax.vmap(jax.vmap(one))(streams)


def outputs_and_gradients(attend):
    """Of a function of query, key and value."""

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1, 2), has_aux=True)
    def run(*arrays):
        result = attend(*arrays)
        return jnp.sum(jnp.sin(result)), result

    return run(*arrays()[:3])


def assert_close(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, expected)


@pytest.mark.parametrize(
    ("window", "with_causal", "block"),
    [(None, False, 128), (None, False, 256), (60, True, 128)],
)
def test_agrees_with_xla(window, with_causal, block):
    streams = dropout_streams(KEY, ROWS, HEADS)
    flags = causal() if with_causal else None
    ids = arrays()[3]
    reach = Reach(window=window, causal=flags)
    expected = outputs_and_gradients(lambda *x: dropped_by_xla(*x, ids, streams, reach))
    found = outputs_and_gradients(
        lambda *x: flash_attention(
            *x,
            ids,
            streams,
            flags,
            window=window,
            dropout_rate=RATE,
            block=block,
            interpret=True,
        )
    )
    assert_close(found, expected)


@pytest.mark.parametrize("rate", [0.0, 1 / 1024])
def test_without_dropout_it_is_attention(rate):
    """A rate that rounds to 0 drops nothing, as elsewhere."""
    ids, streams = arrays()[3], dropout_streams(KEY, ROWS, HEADS)
    expected = outputs_and_gradients(lambda *x: attention(*x, ids))
    found = outputs_and_gradients(
        lambda *x: flash_attention(*x, ids, streams, dropout_rate=rate, interpret=True)
    )
    assert_close(found, expected)


def test_bits_do_not_depend_on_blocks():
    stream = tuple(dropout_streams(KEY, 1, 1)[0, 0])
    levels = dropped_levels(RATE)
    whole = kept(stream, 0, 0, (1024, 256), levels)
    part = kept(stream, jnp.int32(384), jnp.int32(100), (256, 7), levels)
    np.testing.assert_array_equal(part, whole[384:640, 100:107])


def test_bits_are_random():
    """The share that is kept, in all, by key, query, head and row; neighbours do not depend."""
    rows, heads, length = 4, 4, 512
    dropped = ~np.asarray(mask(dropout_streams(KEY, rows, heads), length))
    rate = dropped_levels(RATE) / LEVELS

    def deviations(mean, count):
        return np.abs(mean - rate) / np.sqrt(rate * (1 - rate) / count)

    assert deviations(dropped.mean(), dropped.size) < 4
    for axes in [(1, 2, 3), (0, 2, 3), (0, 1, 3), (0, 1, 2), (2, 3)]:
        means = dropped.mean(axes)
        assert deviations(means, dropped.size / means.size).max() < 5
    # Two elements are both dropped with the square of the rate: neighbours in each axis, the four
    # keys of one word, and the same place of other rows and heads.
    for axis, step in [(0, 1), (1, 1), (2, 1), (3, 1), (2, 32), (2, 64), (2, 96), (2, 128)]:
        others = np.roll(dropped, step, axis)
        both = (dropped & others).mean()
        spread = np.sqrt(rate**2 * (1 - rate**2) / dropped.size)
        assert abs(both - rate**2) < 5 * spread, (axis, step)


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg"])
def test_streams_depend_on_key_row_and_head(implementation):
    keys = jax.random.split(jax.random.key(0, impl=implementation), 2)
    streams = np.concatenate([dropout_streams(key, 3, 4).reshape(-1, 2) for key in keys])
    assert len(np.unique(streams)) == streams.size


def test_visible_keys():
    ids = jnp.asarray([[1, 1, 1, 1, 2, 2, 0, 0]])
    flags = jnp.asarray([[True] * 4 + [False] * 4])
    expected = [[0, 0, 0, 0, 4, 4, 6, 6], [3, 3, 3, 3, 5, 5, 7, 7]]
    np.testing.assert_array_equal(visible_keys(ids, None, None)[0], expected)
    expected = [[0, 0, 1, 2, 4, 4, 6, 6], [0, 1, 2, 3, 5, 5, 7, 7]]
    np.testing.assert_array_equal(visible_keys(ids, 2, flags)[0], expected)


def test_on_a_mesh(monkeypatch):
    """Rows over data and fsdp, heads over tensor: the same bits as on one device."""
    monkeypatch.setattr(module, "STEP_TOKENS", 2 * LENGTH)  # two groups of heads on one device
    query, key, value, ids = (jnp.concatenate([x, x[::-1]]) for x in arrays())
    four_heads = [jnp.concatenate([x, -x], axis=2) for x in (query, key, value)]
    results = [
        jax.jit(
            functools.partial(choose_attention("flash", mesh), dropout_rate=RATE, dropout_key=KEY)
        )(*four_heads, ids)
        for mesh in (make_mesh(2, 2, 2), make_mesh(devices=jax.devices()[:1]))
    ]
    np.testing.assert_allclose(*results, atol=1e-6)
    streams = dropout_streams(KEY, len(query), 2 * HEADS)
    expected = dropped_by_xla(*four_heads, ids, streams, Reach())
    np.testing.assert_allclose(results[0], expected, atol=2e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data.max_seq_length": 96}, "rows of a multiple of 128 tokens up to 8,192, not 96"),
        ({"model.hidden_size": 48}, "heads of a multiple of 16 features, not 24"),
        ({"model.position_embedding": "alibi"}, "no ALiBi and no relative positions"),
    ],
)
def test_what_the_kernel_cannot_do_is_an_error(fields, message):
    fields = {"numerics.attention": "flash", "data.max_seq_length": 128} | fields
    with pytest.raises(UserError, match=rf"config\.numerics\.attention='flash' takes {message}"):
        configured(**fields)
    configured(**fields, **{"numerics.attention_dropout": 0})


def test_rows_of_another_length_are_an_error():
    """The length of fine-tuning's rows follows from the data."""
    attend = choose_attention("flash", make_mesh())
    short = [x[:, :96] for x in arrays()]
    with pytest.raises(UserError, match="takes rows of a multiple of 128 tokens"):
        attend(*short, dropout_rate=RATE, dropout_key=KEY)
    np.testing.assert_array_equal(attend(*short, dropout_rate=RATE), attention(*short))


def test_training_needs_a_tpu():
    numerics = configured(**{"numerics.attention": "flash", "data.max_seq_length": 128}).numerics
    with pytest.raises(UserError, match="'flash' is a kernel for TPUs, and these devices are of"):
        check_attention(make_mesh(), numerics)
    check_attention(make_mesh(), dataclasses.replace(numerics, attention_dropout=0.0))


def test_compiles_for_a_tpu():
    """Forward and backward; more chips and lengths are in docs/scaling.md."""
    pytest.importorskip("libtpu", reason="the compiler for TPUs is in libtpu")
    mesh = make_mesh(devices=topology_devices("v5e:2x2"))
    attend = choose_attention("flash", mesh)

    def loss(*arrays):
        result = attend(*arrays, dropout_rate=RATE, dropout_key=KEY)
        return jnp.sum(result.astype(jnp.float32))

    sharding = rules.batch_sharding(mesh)
    tokens = jax.ShapeDtypeStruct((4, 1024, 2, 64), jnp.bfloat16, sharding=sharding)
    ids = jax.ShapeDtypeStruct((4, 1024), jnp.int32, sharding=sharding)
    step = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(tokens, tokens, tokens, ids).compile()
    # Of a device's row, the scores of one head would take 4 MiB.
    assert step.memory_analysis().temp_size_in_bytes < 2**20
    # What the kernels state: 7 products of 64 features for each score, at 2 FLOPs.
    products = 7 * 2 * 64 * 2 * 1024**2
    assert products <= step.cost_analysis()["flops"] < 1.02 * products
