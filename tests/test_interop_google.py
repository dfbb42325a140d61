"""Checkpoints of Google's code: written here by TensorFlow 1's own means, and read by them."""

import contextlib
import importlib
import json
import os
import re

import numpy as np
import pytest
from etils import epath
from portables import make_portable
from test_interop import assert_same, assert_same_logits, convert, transformers, wordpiece

from bert_jax.__main__ import main
from bert_jax.errors import UserError
from bert_jax.interop import formats
from bert_jax.interop.google_tf import read_google, write_google
from bert_jax.interop.huggingface import ARCHITECTURES
from bert_jax.interop.tokenizer import write_tokenizer
from bert_jax.interop.workdir import write_workdir

__all__ = ["transformers", "wordpiece"]  # fixtures

LAYERS, HIDDEN, FFN, POSITIONS = 2, 128, 512, 128
CONFIG = {
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": HIDDEN,
    "initializer_range": 0.02,
    "intermediate_size": FFN,
    "max_position_embeddings": POSITIONS,
    "num_attention_heads": 2,
    "num_hidden_layers": LAYERS,
    "type_vocab_size": 2,
    "vocab_size": 1003,
}


@pytest.fixture(scope="module")
def tf():
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    # PyTorch imports it on GPU machines, which crashes if TensorFlow is there before.
    with contextlib.suppress(ImportError):
        importlib.import_module("triton")
    return pytest.importorskip("tensorflow")


def google_variables(v1, vocab_size: int) -> list:
    """The variables of run_pretraining.py as its code makes them, scope by scope.

    `tf.layers.dense` calls its variables kernel and bias, `tf.contrib.layers.layer_norm` beta and
    gamma.
    """
    made = []

    def variable(name, *shape):
        initializer = v1.random_normal_initializer(stddev=0.1)
        made.append(v1.get_variable(name, shape, initializer=initializer))

    def dense(scope, inputs, outputs):
        with v1.variable_scope(scope):
            variable("kernel", inputs, outputs)
            variable("bias", outputs)

    def layer_norm():
        with v1.variable_scope("LayerNorm"):
            variable("beta", HIDDEN)
            variable("gamma", HIDDEN)

    with v1.variable_scope("bert"):
        with v1.variable_scope("embeddings"):
            variable("word_embeddings", vocab_size, HIDDEN)
            variable("token_type_embeddings", 2, HIDDEN)
            variable("position_embeddings", POSITIONS, HIDDEN)
            layer_norm()
        with v1.variable_scope("encoder"):
            for layer in range(LAYERS):
                with v1.variable_scope(f"layer_{layer}"):
                    with v1.variable_scope("attention"):
                        with v1.variable_scope("self"):
                            for name in ("query", "key", "value"):
                                dense(name, HIDDEN, HIDDEN)
                        with v1.variable_scope("output"):
                            dense("dense", HIDDEN, HIDDEN)
                            layer_norm()
                    with v1.variable_scope("intermediate"):
                        dense("dense", HIDDEN, FFN)
                    with v1.variable_scope("output"):
                        dense("dense", FFN, HIDDEN)
                        layer_norm()
        with v1.variable_scope("pooler"):
            dense("dense", HIDDEN, HIDDEN)
    with v1.variable_scope("cls/predictions"):
        with v1.variable_scope("transform"):
            dense("dense", HIDDEN, HIDDEN)
            layer_norm()
        variable("output_bias", vocab_size)
    with v1.variable_scope("cls/seq_relationship"):
        variable("output_weights", 2, HIDDEN)
        variable("output_bias", 2)
    return made


@pytest.fixture(scope="module")
def checkpoint(tf, wordpiece, tmp_path_factory):
    """A directory as Google publishes them, optimizer included, and its variables by name."""
    directory = tmp_path_factory.mktemp("google")
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        v1.set_random_seed(0)
        variables = google_variables(v1, len(wordpiece.vocab))
        for variable in variables:  # AdamWeightDecayOptimizer
            for slot in ("adam_m", "adam_v"):
                name = f"{variable.op.name}/{slot}"
                v1.get_variable(name, variable.shape, initializer=v1.zeros_initializer())
        v1.train.get_or_create_global_step()
        session.run(v1.global_variables_initializer())
        values = {v.op.name: value for v, value in zip(variables, session.run(variables))}
        saver = v1.train.Saver()
        saver.save(session, str(directory / "bert_model.ckpt"), write_state=False)
    (directory / "bert_config.json").write_text(json.dumps(CONFIG))
    (directory / "vocab.txt").write_text("".join(f"{token}\n" for token in wordpiece.vocab))
    return directory, values


def to_state_dict(values: dict[str, np.ndarray]):
    """As the script of transformers renamed them."""
    import torch

    state = {}
    for name, value in values.items():
        if name.endswith(("kernel", "output_weights")):
            value = value if name.endswith("output_weights") else value.T
            name = re.sub("/(kernel|output_weights)$", "/weight", name)
        name = name.replace("output_bias", "bias").replace("layer_", "layer.")
        name = name.replace("gamma", "weight").replace("beta", "bias")
        name += "/weight" if name.endswith("_embeddings") else ""
        state[name.replace("/", ".")] = torch.from_numpy(np.ascontiguousarray(value))
    return state


def test_logits_are_those_of_the_torch_model(
    checkpoint, wordpiece, tmp_path, transformers, caplog, capsys
):
    directory, values = checkpoint
    reference = transformers.BertForPreTraining(transformers.BertConfig(**CONFIG))
    loaded = reference.load_state_dict(to_state_dict(values), strict=False)
    assert not loaded.unexpected_keys
    assert {"decoder" in key for key in loaded.missing_keys} <= {True}  # tied
    reference.save_pretrained(tmp_path / "reference")
    write_tokenizer(epath.Path(tmp_path / "reference"), wordpiece, POSITIONS)

    convert(directory, tmp_path / "ours", "bert_jax", "--uncased")
    lines = capsys.readouterr().out.splitlines()
    assert f"ignored: {2 * len(values) + 1} optimizer variables, such as bert/emb" in lines[0]
    assert lines[1].startswith("hidden_act: gelu is read as the exact function")
    model = formats.read(tmp_path / "ours")
    assert model.tokenizer == wordpiece
    assert_same_logits(transformers, tmp_path / "reference", model)


@pytest.mark.parametrize("parts", [(), ARCHITECTURES["BertForPreTraining"], ("answer_span",)])
def test_ours_there_and_back(tf, parts, wordpiece, tmp_path, capsys):
    model = make_portable(wordpiece, parts)
    write_workdir(epath.Path(tmp_path / "ours"), model)
    convert(tmp_path / "ours", tmp_path / "theirs", "google")
    assert_same(formats.read(tmp_path / "theirs"), model)
    assert_same(formats.read(tmp_path / "theirs" / "bert_model.ckpt"), model)


def test_classifier(tf, wordpiece, tmp_path):
    model, lines = make_portable(wordpiece, ARCHITECTURES["BertForSequenceClassification"]), []
    write_google(epath.Path(tmp_path), model, lines.append)
    assert "left out: the names of the classes, negative, neutral, positive" in lines
    back = formats.read(tmp_path)
    assert_same(back._replace(labels=model.labels), model)
    assert back.labels == ("LABEL_0", "LABEL_1", "LABEL_2")


def test_google_reads_what_is_written(tf, wordpiece, tmp_path):
    """As its --init_checkpoint: by names, and each variable that training has is found."""
    model = make_portable(wordpiece, ARCHITECTURES["BertForPreTraining"])
    write_google(epath.Path(tmp_path), model, lambda line: None)
    v1, prefix = tf.compat.v1, str(tmp_path / "bert_model.ckpt")
    with tf.Graph().as_default(), v1.Session() as session:
        variables = google_variables(v1, len(wordpiece.vocab))
        names = [name for name, _ in tf.train.list_variables(prefix)]
        assert sorted(names) == sorted(variable.op.name for variable in variables)
        v1.train.init_from_checkpoint(prefix, {name: name for name in names})
        session.run(v1.global_variables_initializer())
        restored = dict(zip((v.op.name for v in variables), session.run(variables)))
        v1.train.Saver(variables).restore(session, prefix)
        again = dict(zip((v.op.name for v in variables), session.run(variables)))
    embeddings = model.params["bert"]["embeddings"]
    for values in (restored, again):
        words = values["bert/embeddings/word_embeddings"]
        np.testing.assert_array_equal(words, embeddings["word"]["embedding"][:1003])
        kernel = model.params["bert"]["encoder"]["layers"]["attention"]["query"]["kernel"][1]
        query = values["bert/encoder/layer_1/attention/self/query/kernel"]
        np.testing.assert_array_equal(query, kernel)
        weights = values["cls/seq_relationship/output_weights"]
        np.testing.assert_array_equal(weights.T, model.params["next_sentence"]["kernel"])
    fields = json.loads((tmp_path / "bert_config.json").read_text())
    assert fields == CONFIG | {"vocab_size": 1003}


def cut(file):
    return lambda directory: os.truncate(directory / file, 100)


DATA = "bert_model.ckpt.data-00000-of-00001"
BROKEN = {
    "casing unknown": (
        None,
        [],
        r"vocab\.txt: cased or uncased\? .* also take --uncased or --cased",
    ),
    "index cut": (cut("bert_model.ckpt.index"), ["--uncased"], r"ckpt: damaged or cut short \("),
    "data cut": (cut(DATA), ["--uncased"], r"bert_model\.ckpt: damaged or cut short \("),
    "data gone": (
        lambda directory: (directory / DATA).unlink(),
        ["--uncased"],
        r"bert_model\.ckpt: damaged or cut short \(",
    ),
    "two checkpoints": (
        lambda directory: (directory / "model.ckpt-9.index").touch(),
        ["--cased"],
        r"must hold one checkpoint, but holds bert_model\.ckpt, model\.ckpt-9; name one in",
    ),
    "no checkpoint": (
        lambda directory: (directory / "bert_model.ckpt.index").unlink(),
        ["--cased"],
        r"must hold one checkpoint, but holds none",
    ),
    "fewer layers": (
        lambda directory: (directory / "bert_config.json").write_text(
            json.dumps(CONFIG | {"num_hidden_layers": 1})
        ),
        ["--cased"],
        r"bert_model\.ckpt: the tensors have 2 layers; the config has 1$",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken(name, checkpoint, tmp_path, capsys):
    change, flags, message = BROKEN[name]
    source = tmp_path / "source"
    source.mkdir()
    for file in checkpoint[0].iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    if change:
        change(source)
    assert main(["convert", str(source), str(tmp_path / "new"), "--to=bert_jax", *flags]) == 2
    assert re.search(message, capsys.readouterr().err.strip())
    assert list(tmp_path.iterdir()) == [source]


def test_what_the_format_has_no_place_for(tf, wordpiece, tmp_path):
    for parts, changes, message in (
        (("token_classifier",), {}, "Google's format has no token_classifier"),
        ((), {"layer_norm_eps": 1e-5}, r"layer_norm_eps is 1e-05; Google's code has 1e-12"),
    ):
        model = make_portable(wordpiece, parts, **changes)
        with pytest.raises(UserError, match=message):
            write_google(epath.Path(tmp_path), model, lambda line: None)


def test_other_optimizers_are_ignored(tf, wordpiece, tmp_path):
    model, lines = make_portable(wordpiece, ()), []
    write_google(epath.Path(tmp_path), model, lambda line: None)
    reader = tf.train.load_checkpoint(str(tmp_path / "bert_model.ckpt"))
    names = list(reader.get_variable_to_shape_map())
    values = {name: reader.get_tensor(name) for name in names}
    table = "bert/embeddings/word_embeddings"
    for slot in ("lamb_m", "lamb_v", "Adam", "Adam_1"):
        values[f"{table}/{slot}"] = values[table]
    values |= {"beta1_power": np.float32(0.9), "global_step": np.int64(7)}
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "bert_model.ckpt"),
        tensor_names=list(values),
        shape_and_slices=[""] * len(values),
        tensors=list(values.values()),
    )
    back = read_google(epath.Path(tmp_path), lowercase=True, strict=True, report=lines.append)
    assert_same(back, model)
    assert lines[0].startswith("ignored: 6 optimizer variables, such as ")
