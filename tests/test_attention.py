"""The splash kernel, in its interpreter, computes what XLA does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from configured import configured

from bert_jax.errors import UserError
from bert_jax.model.attention import attention, splash_attention
from bert_jax.parallel.mesh import make_mesh
from bert_jax.parallel.parallelism import choose_attention

pytestmark = pytest.mark.core


def inputs(rows=2, length=128, heads=2, head_dim=64):
    """Query, key, value, and segment ids of two examples and padding in a row."""
    keys = jax.random.split(jax.random.key(0), 3)
    arrays = [jax.random.normal(key, (rows, length, heads, head_dim)) for key in keys]
    ids = jnp.where(jnp.arange(length) < 50, 1, jnp.where(jnp.arange(length) < 90, 2, 0))
    return *arrays, jnp.tile(ids, (rows, 1))


def outputs_and_gradients(attend):
    query, key, value, segment_ids = inputs()

    def loss(query, key, value):
        result = attend(query, key, value, segment_ids)
        return jnp.sum(jnp.sin(result)), result

    gradients, result = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(query, key, value)
    return result, gradients


def test_splash_agrees_with_xla():
    expected = outputs_and_gradients(attention)
    found = outputs_and_gradients(lambda *args: splash_attention(*args, interpret=True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, expected)


def test_splash_on_a_mesh():
    """Rows over data and fsdp, heads over tensor."""
    arrays = inputs(rows=4)
    mesh = make_mesh(2, 2, 2)
    found = jax.jit(choose_attention("splash", mesh))(*arrays)
    np.testing.assert_allclose(found, attention(*arrays), atol=2e-5)


def test_auto_is_xla_off_tpus():
    assert choose_attention("auto", make_mesh()) is attention
    assert choose_attention("xla", make_mesh()) is attention


@pytest.mark.parametrize(("dropout", "length"), [(0.1, 128), (0.0, 96)])
def test_what_splash_cannot_do_is_an_error(dropout, length):
    fields = {"numerics.attention": "splash", "numerics.attention_dropout": dropout}
    with pytest.raises(UserError, match=r"config\.numerics\.attention='splash' takes"):
        configured(**fields, **{"data.max_seq_length": length})
