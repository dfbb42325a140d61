"""Parts of a model, alone and together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from flax.traverse_util import flatten_dict

from bert_jax.inference.functions import part_functions
from bert_jax.model.heads import MASKED_LM, NEXT_SENTENCE, PARTS, PRETRAINING, parts_of

pytestmark = pytest.mark.core


@pytest.mark.parametrize("parts", [(), ("masked_lm",), PRETRAINING, PARTS])
def test_parameters_tell_the_parts_and_axes_their_shapes(parts):
    model = tiny.make_model(parts=parts, outputs=3)
    params = jax.eval_shape(model.init, jax.random.key(0))
    assert parts_of(params) == parts
    leaves = flatten_dict(params, sep="/")
    assert model.axes.keys() == leaves.keys()
    for path, leaf in leaves.items():
        assert len(model.axes[path]) == leaf.ndim, path
    sizes = {
        (name, n) for path, leaf in leaves.items() for name, n in zip(model.axes[path], leaf.shape)
    }
    expected = {("vocab", 384), ("position", 64), ("token_type", 2), ("embed", 32), ("hidden", 32)}
    expected |= {("heads", 32), ("mlp", 64), ("layer", 2)}
    assert {size for size in sizes if size[0] != "output"} == expected


def test_parts_together_give_the_logits_of_the_whole_model():
    model = tiny.make_model()
    params = model.init(jax.random.key(0))
    functions = part_functions(model.graphdef, parts_of(params))
    batch = tiny.make_batch([[20, 12], [48]])
    batch["masked_lm_positions"] = np.array([[3, 25], [7, 40]])
    whole = nnx.merge(model.graphdef, params)
    states = whole.encode(batch)
    words, pairs = (
        head.apply(whole, head.read(whole.bert, states, batch))
        for head in (MASKED_LM, NEXT_SENTENCE)
    )

    rows = [batch[n] for n in ("input_ids", "token_type_ids", "position_ids", "segment_ids")]
    hidden = functions["encoder"](params, *rows)[-1]
    positions, cls_positions = batch["masked_lm_positions"], batch["cls_positions"]
    masked = jnp.take_along_axis(hidden, positions[..., None], axis=1).reshape(4, -1)
    np.testing.assert_allclose(
        functions["masked_lm"](params, masked), words.reshape(4, -1), rtol=1e-5, atol=1e-5
    )
    cls = jnp.take_along_axis(hidden, cls_positions[..., None], axis=1).reshape(4, -1)
    scores = functions["next_sentence"](params, functions["pooler"](params, cls))
    np.testing.assert_allclose(scores, pairs.reshape(4, 2), rtol=1e-5, atol=1e-5)


def test_attention_stays_in_its_segment_and_sums_to_one():
    graphdef, init, _ = tiny.make_model()
    params = init(jax.random.key(0))
    functions = part_functions(graphdef, PRETRAINING)
    batch = tiny.make_batch([[20, 12], [40]])
    rows = [batch[n] for n in ("input_ids", "token_type_ids", "position_ids", "segment_ids")]
    states = functions["encoder"](params, *rows)
    probabilities = np.asarray(functions["attention"](params, states, batch["segment_ids"]))
    assert probabilities.shape == (2, 2, 4, 48, 48)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
    same = batch["segment_ids"][:, None, :, None] == batch["segment_ids"][:, None, None, :]
    assert np.all(probabilities[:, ~np.broadcast_to(same, (2, 4, 48, 48))] == 0)


def test_all_layers_end_with_the_last():
    graphdef, init, _ = tiny.make_model()
    bert = nnx.merge(graphdef, init(jax.random.key(0))).bert
    batch = tiny.make_batch([[20, 12], [40]])
    rows = [batch[n] for n in ("input_ids", "token_type_ids", "position_ids", "segment_ids")]
    states = bert(*rows, all_layers=True)
    np.testing.assert_array_equal(states[-1], bert(*rows))
    np.testing.assert_array_equal(states[0], bert.embeddings(*rows[:4]))
    layer = jax.tree.map(lambda x: x[0], nnx.split(bert.encoder.layers)[1])
    first = nnx.merge(nnx.split(bert.encoder.layers)[0], layer)
    np.testing.assert_allclose(
        states[1], first(states[0], *rows[2:], None, bert.encoder.kinds[0])[0], rtol=1e-5, atol=1e-5
    )
