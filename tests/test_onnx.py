"""Models as ONNX: the results of ONNX Runtime are ours, at any batch size and length."""

import json

import numpy as np
import pytest
from etils import epath
from portables import make_portable

import bert_jax
from bert_jax.__main__ import main
from bert_jax.data.wordpiece import SPECIAL_TOKENS, WordPiece
from bert_jax.inference import choices, onnx
from bert_jax.interop.workdir import write_workdir
from bert_jax.model.int8 import in_int8

WORDPIECE = WordPiece((*SPECIAL_TOKENS, *(f"word{n}" for n in range(95))), lowercase=True)
SMALL = {"hidden_size": 32, "num_heads": 2, "intermediate_size": 48}
MODERN = {
    "num_layers": 4,
    "position_embedding": {"name": "rope", "theta": 160_000.0, "local_theta": 10_000.0},
    "feed_forward": "glu",
    "norm_position": "pre",
    "first_norm": False,
    "final_norm": True,
    "global_every": 3,
    "local_window": 8,
    "type_vocab_size": 0,
    "pooler": "transform",
    "layer_norm_eps": 1e-5,
    **dict.fromkeys(("norm_bias", "attention_bias", "feed_forward_bias", "head_bias"), False),
}
TEXTS = ["word3 word4 word5 word90", "word1", "word7 word7 word8 word9 word10 word11"]


@pytest.fixture(scope="module")
def runtime():
    for library in choices.ONNX_LIBRARIES:
        pytest.importorskip(library)
    return pytest.importorskip("onnxruntime")


def exported(tmp_path, runtime, capsys, parts, **changes):
    """A model, its tokens for TEXTS by transformers' tokenizer, and a session of its export."""
    from transformers import AutoTokenizer

    write_workdir(epath.Path(tmp_path / "model"), make_portable(WORDPIECE, parts, **changes))
    command = ["export", f"--model={tmp_path}/model", f"--output={tmp_path}/out", "--to=onnx"]
    assert main(command) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == f"{tmp_path}/out"
    assert float(said[-2].split(" by ")[1].split()[0]) <= onnx.TOLERANCE
    session = runtime.InferenceSession(tmp_path / "out" / "model.onnx")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    tokens = tokenizer(TEXTS, padding=True, return_tensors="np")
    inputs = {name.name: tokens[name.name] for name in session.get_inputs()}
    return bert_jax.load(tmp_path / "model"), inputs, session


def test_classifier(tmp_path, runtime, capsys):
    from onnx import TensorProto
    from onnx import load as load_onnx
    from onnx.numpy_helper import to_array

    parts = ("pooler", "sequence_classifier")
    bert, inputs, session = exported(tmp_path, runtime, capsys, parts, **SMALL)
    assert list(inputs) == ["input_ids", "attention_mask", "token_type_ids"]
    assert [(output.name, output.shape) for output in session.get_outputs()] == [
        ("logits", ["batch", 3])
    ]
    (logits,) = session.run(["logits"], inputs)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected = [list(of_text.values()) for of_text in bert.classify(TEXTS)]
    np.testing.assert_allclose(odds / odds.sum(axis=1, keepdims=True), expected, atol=1e-5)
    other = make_portable(WORDPIECE, parts, **SMALL)
    other.params["sequence_classifier"]["bias"][1] += 0.5
    assert onnx.largest_difference(tmp_path / "out" / "model.onnx", other) == pytest.approx(0.5)
    (alone,) = session.run(["logits"], {name: x[1:2, :3] for name, x in inputs.items()})
    np.testing.assert_allclose(alone, logits[1:2], atol=1e-5)  # without padding
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["id2label"] == {"0": "negative", "1": "neutral", "2": "positive"}
    assert not list((tmp_path / "out").glob("*.safetensors"))

    # In int8 it has the integers of the model in int8.
    onnx._quantize(tmp_path / "out" / "model.onnx")
    graph = load_onnx(tmp_path / "out" / "model.onnx").graph
    weights = [to_array(each) for each in graph.initializer if each.data_type == TensorProto.INT8]
    layers = in_int8(make_portable(WORDPIECE, parts, **SMALL).params)["bert"]["encoder"]["layers"]
    for part, name in (("attention", "query"), ("feed_forward", "output")):
        for kernel in layers[part][name]["kernel"]:
            assert any(np.array_equal(kernel, each) for each in weights)


@pytest.mark.parametrize(
    ("parts", "changes", "outputs"),
    [
        ((), {}, ["last_hidden_state"]),
        (("answer_span",), {"fake_int8": True}, ["start_logits", "end_logits"]),
        (("masked_lm",), MODERN, ["logits"]),
    ],
    ids=["encoder", "answers", "modern"],
)
def test_other_heads(tmp_path, runtime, capsys, parts, changes, outputs):
    bert, inputs, session = exported(tmp_path, runtime, capsys, parts, **SMALL, **changes)
    assert ("token_type_ids" in inputs) == (changes is not MODERN)
    assert [output.name for output in session.get_outputs()] == outputs
    found = dict(zip(outputs, session.run(outputs, inputs)))
    if not parts:
        for states, expected in zip(found["last_hidden_state"], bert.encode(TEXTS, "tokens")):
            np.testing.assert_allclose(states[: len(expected)], expected, atol=1e-5)
    if parts == ("masked_lm",):
        assert found["logits"].shape == (*inputs["input_ids"].shape, len(WORDPIECE.vocab))


@pytest.mark.core
def test_results_that_differ_are_refused(tmp_path, monkeypatch, capsys):
    write_workdir(epath.Path(tmp_path / "model"), make_portable(WORDPIECE, (), **SMALL))
    monkeypatch.setattr(choices, "ONNX_LIBRARIES", ())
    monkeypatch.setattr(onnx, "RUNTIME", "json")  # which is installed
    monkeypatch.setattr(onnx, "_write_graph", lambda *arguments: None)
    monkeypatch.setattr(onnx, "largest_difference", lambda *arguments: float("nan"))
    command = ["export", f"--model={tmp_path}/model", f"--output={tmp_path}/out", "--to=onnx"]
    assert main(command) == 2
    assert capsys.readouterr().err.splitlines() == [
        "bert-jax export: error: model.onnx was not written: its results differ from the model's "
        "by nan, more than 1e-04"
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.mark.core
def test_refusals(tmp_path, monkeypatch, capsys):
    alibi = make_portable(WORDPIECE, (), **SMALL, position_embedding={"name": "alibi"})
    write_workdir(epath.Path(tmp_path / "model"), alibi)
    command = ["export", f"--model={tmp_path}/model", f"--output={tmp_path}/out", "--to=onnx"]
    monkeypatch.setattr(choices, "ONNX_LIBRARIES", ("json", "no_such_library"))
    assert main(command) == 2
    assert capsys.readouterr().err.splitlines() == [
        "bert-jax export: error: --to=onnx needs no_such_library: pip install no_such_library"
    ]
    monkeypatch.setattr(choices, "ONNX_LIBRARIES", ())
    assert main(command) == 2
    assert "model.position_embedding is alibi" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
