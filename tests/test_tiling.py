"""A large model that begins with the weights of a smaller one."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny import ARCHITECTURE, NUMERICS

from bert_jax.config.pretraining import PretrainConfig
from bert_jax.data.tokenizer_json import load_tokenizer
from bert_jax.errors import UserError
from bert_jax.fields import build, to_plain
from bert_jax.interop.initial import follow_weights, initial_params
from bert_jax.interop.portable import Portable
from bert_jax.interop.tiling import middle, spread, tiled
from bert_jax.interop.workdir import write_workdir
from bert_jax.model.model import build_model

PARTS = ("pooler", "masked_lm", "next_sentence")


@pytest.mark.parametrize(
    ("small", "large", "expected"),
    [
        (3, 8, [1, 2, 0, 1, 2, 0, 1, 2]),  # as in the tests of ModernBERT: 2 3 1 2 3 1 2 3
        (3, 5, [2, 0, 1, 2, 0]),
        (4, 4, [0, 1, 2, 3]),
        (2, 7, [0, 1, 0, 1, 0, 1, 0]),
    ],
)
def test_the_middle_goes_on_from_the_other_end(small, large, expected):
    assert middle(small, large).tolist() == expected


def test_layers_are_spread_evenly():
    found = spread(22, 28).tolist()
    assert found == [round(n * 22 / 28) for n in range(28)]
    assert set(found) == set(range(22))
    assert spread(2, 5).tolist() == [0, 0, 1, 1, 1]
    assert spread(3, 3).tolist() == [0, 1, 2]


@pytest.fixture(scope="module")
def small(sotu_store, tmp_path_factory):
    """A model of two layers and two heads of 8 features with the vocabulary of the store."""
    architecture = dataclasses.replace(
        ARCHITECTURE, vocab_size=1000, hidden_size=16, num_heads=2, intermediate_size=24
    )
    tokenizer = load_tokenizer(sotu_store)
    params = jax.device_get(
        build_model(architecture, NUMERICS, parts=PARTS).init(jax.random.key(0))
    )
    path = tmp_path_factory.mktemp("small") / "model"
    write_workdir(path, Portable(architecture, NUMERICS, tokenizer, params, ()))
    return path, architecture, params, tokenizer


def larger(path, architecture, **changes):
    sizes = {"num_layers": 3, "hidden_size": 32, "num_heads": 4, "intermediate_size": 40}
    model = to_plain(architecture) | sizes | changes
    fields = {"model": model, "init_from": str(path), "init_tiled": True}
    return build(PretrainConfig, fields | {"data": {"max_seq_length": 64}})


def test_weights_are_those_of_loops(small):
    """Every element is taken from the place that the rule names."""
    path, architecture, params, tokenizer = small
    config = larger(path, architecture)
    found, _ = initial_params(config, tokenizer, PARTS)
    query = found["bert"]["encoder"]["layers"]["attention"]["query"]["kernel"]
    old = params["bert"]["encoder"]["layers"]["attention"]["query"]["kernel"]
    assert query.shape == (3, 32, 32)
    for layer, row, column in np.ndindex(*query.shape):
        head, feature = divmod(column, 8)
        source = (min(round(layer * 2 / 3), 1), (row - 8) % 16, (head - 1) % 2 * 8 + feature)
        assert query[layer, row, column] == old[source]
    output = found["bert"]["encoder"]["layers"]["feed_forward"]["output"]["kernel"]
    old = params["bert"]["encoder"]["layers"]["feed_forward"]["output"]["kernel"]
    for layer, row, column in np.ndindex(*output.shape):
        source = (min(round(layer * 2 / 3), 1), (row - 8) % 24, (column - 8) % 16)
        assert output[layer, row, column] == old[source]
    words = found["bert"]["embeddings"]["word"]["embedding"]
    np.testing.assert_array_equal(words[:, 8:24], params["bert"]["embeddings"]["word"]["embedding"])
    model = build_model(config.model, config.numerics, parts=PARTS)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert jax.tree.map(np.shape, found) == jax.tree.map(lambda x: x.shape, shapes)
    same = tiled(params, architecture, architecture)
    jax.tree.map(np.testing.assert_array_equal, same, params)


def test_the_sizes_are_those_of_the_recipe(small):
    path, architecture, _, _ = small
    config = larger(path, architecture, hidden_act="silu")
    followed, lines = follow_weights(config, [])
    assert followed.model.hidden_act == architecture.hidden_act
    assert (followed.model.num_layers, followed.model.hidden_size) == (3, 32)
    assert "hidden_size" not in lines[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_layers": 1},
            r"has num_layers=2, which cannot be tiled to config\.model\.num_layers=1",
        ),
        ({"intermediate_size": 16}, r"intermediate_size=24, which cannot be tiled"),
        ({"num_heads": 2}, r"heads of 8 features, and .* of 16: set config\.model\.num_heads=4"),
        ({"hidden_act": "silu"}, r"is another model: set --config\.model\.hidden_act="),
        ({"max_position_embeddings": 128}, r"set --config\.model\.max_position_embeddings=64"),
    ],
)
def test_what_cannot_be_tiled_is_refused(changes, message, small):
    path, architecture, _, tokenizer = small
    with pytest.raises(UserError, match=message):
        initial_params(larger(path, architecture, **changes), tokenizer, PARTS)
