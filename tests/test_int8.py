"""Models in int8: what is rounded, how it is multiplied, and that every verb reads them."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from configured import configured
from etils import epath
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from portables import make_portable
from tiny import make_batch

import bert_jax
from bert_jax.__main__ import main
from bert_jax.data.wordpiece import SPECIAL_TOKENS, WordPiece
from bert_jax.errors import UserError
from bert_jax.interop import formats, initial
from bert_jax.interop.portable import structure_of
from bert_jax.interop.workdir import write_workdir
from bert_jax.model.heads import HEADS
from bert_jax.model.int8 import (
    FakeInt8Linear,
    Int8Linear,
    in_float32,
    in_int8,
    in_integers,
    is_int8,
)
from bert_jax.model.parameters import LAYERS

pytestmark = pytest.mark.core

WORDPIECE = WordPiece((*SPECIAL_TOKENS, *(f"word{n}" for n in range(95))), lowercase=True)
SMALL = {"hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "num_layers": 3}
# Blocks with every kind of layer that is rounded, and the word embeddings as decoder.
BLOCKS = {"feed_forward": "glu", "value_gate": True, "position_embedding": {"name": "relative"}}
TEXTS = ["word3 word4 [MASK] word90", "[MASK] word1", "word7 word7 word8 [MASK] word10 word11"]


@pytest.fixture(scope="module", params=["bert", "blocks"])
def models(request, tmp_path_factory):
    """Directories of a model and of the same in int8."""
    folder = tmp_path_factory.mktemp(request.param)
    changes = BLOCKS if request.param == "blocks" else {}
    parts = ("pooler", "masked_lm", "sequence_classifier")
    write_workdir(epath.Path(folder / "exact"), make_portable(WORDPIECE, parts, **SMALL, **changes))
    command = ["convert", f"{folder}/exact", f"{folder}/int8", "--to=bert_jax", "--quantize=int8"]
    assert main(command) == 0
    return folder / "exact", folder / "int8"


def test_what_is_rounded(models):
    exact, rounded = (flatten_dict(formats.read(path).params, sep="/") for path in models)
    names = {name for name, values in rounded.items() if values.dtype == np.int8}
    layers = "bert/encoder/layers/"
    assert names == {"bert/embeddings/word/embedding"} | {
        name for name in exact if name.startswith(layers) and name.endswith("kernel")
    }
    for name, values in rounded.items():
        if name not in names:
            if not name.startswith(layers) and name != "bert/embeddings/word/scale":
                np.testing.assert_array_equal(values, exact[name])
            continue
        scale = rounded[name.rpartition("/")[0] + "/scale"]
        axis = -2 if name.endswith("kernel") else -1
        is_zero = np.all(exact[name] == 0, axis=axis)  # rows that pad the vocabulary
        assert np.abs(values).max(axis=axis)[~is_zero].min() == 127
        error = np.abs(values * np.expand_dims(scale, axis) - exact[name])
        assert np.all(error <= np.expand_dims(scale, axis) * 0.5001)


def test_products_are_those_of_integers():
    random = np.random.default_rng(0)
    axes = {"kernel_metadata": {"axes": ("embed", "mlp")}, "bias_metadata": {"axes": ("mlp",)}}
    layer = Int8Linear(nnx.Linear(16, 8, rngs=nnx.Rngs(0), **axes))
    kernel = random.integers(-127, 128, (16, 8))
    scale, bias = random.uniform(0.01, 0.1, 8), random.normal(size=8)
    layer.kernel[...], layer.scale[...] = np.int8(kernel), np.float32(scale)
    layer.bias[...] = np.float32(bias)
    x = random.normal(size=(2, 3, 16)) * np.array([1e-3, 1.0, 1e3])[:, None]
    x[1, 2] = 0
    largest = np.abs(x).max(axis=-1, keepdims=True)
    steps = np.where(largest > 0, largest, 1) / 127
    expected = np.rint(x / steps).astype(int) @ kernel * steps * scale + bias
    np.testing.assert_allclose(layer(np.float32(x)), expected, rtol=1e-5, atol=1e-5)


def test_training_rounds_with_the_gradients_of_what_is_rounded():
    random = np.random.default_rng(0)
    axes = {"kernel_metadata": {"axes": ("embed", "mlp")}, "bias_metadata": {"axes": ("mlp",)}}
    dense = nnx.Linear(16, 8, dtype=np.float32, rngs=nnx.Rngs(0), **axes)
    dense.bias[...] = np.float32(random.normal(size=8))
    graphdef, params = nnx.split(FakeInt8Linear(dense))
    x, up = np.float32(random.normal(size=(3, 16))), np.float32(random.normal(size=(3, 8)))

    def rounded(values, axis):
        steps = np.abs(values).max(axis=axis, keepdims=True) / 127
        return np.rint(values / steps) * steps

    kernel = rounded(dense.kernel[...], 0)
    found, pull = jax.vjp(lambda params, x: nnx.merge(graphdef, params)(x), params, x)
    np.testing.assert_allclose(found, rounded(x, 1) @ kernel + dense.bias[...], atol=1e-5)
    of_params, of_x = pull(up)
    np.testing.assert_allclose(of_x, up @ kernel.T, atol=1e-5)
    np.testing.assert_allclose(of_params["kernel"][...], rounded(x, 1).T @ up, atol=1e-5)
    np.testing.assert_allclose(of_params["bias"][...], up.sum(axis=0), atol=1e-5)


def test_training_rounds_to_the_same_integers():
    kernel = np.random.default_rng(0).normal(size=(4, 384, 1536)).astype(np.float32)
    kernel[0, :, 0] = 0
    params = unflatten_dict({f"{LAYERS}/output/kernel": kernel}, sep="/")
    rounded = flatten_dict(in_int8(params), sep="/")
    integers, scale = jax.jit(in_integers, static_argnums=1)(kernel, -2)
    np.testing.assert_array_equal(integers, rounded[f"{LAYERS}/output/kernel"])
    np.testing.assert_array_equal(scale[:, 0], rounded[f"{LAYERS}/output/scale"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_computes_what_the_model_in_int8_does(models, dtype):
    exact, rounded = map(formats.read, models)
    batch = make_batch([[9, 15], [20]])
    batch["input_ids"] %= exact.architecture.vocab_size
    batch["masked_lm_positions"] = np.array([[1, 5], [2, 7]])

    def outputs(model, **changes):
        numerics = replace(model.numerics, compute_dtype=dtype, **changes)
        graphdef = structure_of(model._replace(numerics=numerics)).graphdef

        @jax.jit
        def run(params):
            network = nnx.merge(graphdef, params)
            states = network.encode(batch)
            heads = (HEADS["masked_lm"], HEADS["sequence_classifier"])
            read = [(head, head.read(network.bert, states, batch)) for head in heads]
            return [states, *(head.apply(network, inputs) for head, inputs in read)]

        return run(model.params)

    expected = outputs(rounded)
    for scan in (True, False):
        for one, other in zip(outputs(exact, scan_layers=scan, fake_int8=True), expected):
            assert one.dtype == other.dtype
            np.testing.assert_allclose(np.float32(one), np.float32(other), atol=1e-5, rtol=1e-5)


def test_results_are_near(models, tmp_path):
    exact, rounded = map(bert_jax.load, models)
    one, other = (bert.encode(TEXTS) for bert in (exact, rounded))
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    assert np.all((one * other).sum(axis=1) / norms > 0.99)
    assert not np.array_equal(one, other)
    for (one,), (other,) in zip(*(bert.fill_mask(TEXTS, top_k=100) for bert in (exact, rounded))):
        other = dict(other)
        assert max(abs(probability - other[token]) for token, probability in one) < 0.05


def test_an_export_computes_the_same(models, tmp_path):
    assert main(["export", f"--model={models[1]}", f"--output={tmp_path}/out"]) == 0
    one, other = (bert_jax.load(path).encode(TEXTS) for path in (models[1], tmp_path / "out"))
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_formats_of_others_get_what_was_rounded(models, tmp_path):
    if models[0].parent.name.startswith("blocks"):
        pytest.skip("no class of transformers has these blocks")
    lines: list[str] = []
    options = {"to": "huggingface", "architecture": "BertForMaskedLM"}
    bert_jax.convert(models[1], tmp_path / "out", **options, report=lines.append)
    assert "written in float32: the weights in int8, as they were rounded" in lines
    written, rounded = (formats.read(path).params for path in (tmp_path / "out", models[1]))
    assert not is_int8(written)
    for params in (written, in_int8(written)):  # rounded again, nothing changes
        expected = flatten_dict(in_float32(rounded) if params is written else rounded, sep="/")
        for name, values in flatten_dict(params, sep="/").items():
            np.testing.assert_allclose(values, expected[name], rtol=1e-6)


def test_training_starts_in_float32(models):
    lines = []
    config = configured(init_from=str(models[1]))
    model = initial.read_initial(config, report=lines.append)
    assert lines == ["read into float32: the weights in int8, as they were rounded"]
    assert {values.dtype for values in jax.tree.leaves(model.params)} == {np.dtype(np.float32)}


def test_other_formats_are_refused(models, tmp_path):
    with pytest.raises(UserError, match="--quantize=int8 needs --to=bert_jax"):
        bert_jax.convert(models[0], tmp_path / "out", to="google", quantize="int8")
    with pytest.raises(UserError, match="--quantize=int4: use int8"):
        bert_jax.convert(models[0], tmp_path / "out", to="bert_jax", quantize="int4")
