"""Models as others publish them: padded tables, wrapped names, unknown heads, other meanings."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
from etils import epath
from others import VOCAB, write_model
from safetensors.numpy import load_file, save_file

from bert_jax.__main__ import main
from bert_jax.errors import UserError
from bert_jax.inference.trained import load
from bert_jax.interop.formats import read, read_architecture
from bert_jax.interop.tokenizer import read_tokenizer
from bert_jax.model.heads import parts_of

pytestmark = pytest.mark.core

WEIGHTS = "model.safetensors"
TEXT = "the cat sat on the mat"


def rename(path, pattern, replacement):
    tensors = load_file(path / WEIGHTS)
    renamed = {re.sub(pattern, replacement, name): x for name, x in tensors.items()}
    save_file(renamed, path / WEIGHTS, metadata={"format": "pt"})


def rewrite(path, name="config.json", **fields):
    values = json.loads((path / name).read_text()) | fields
    (path / name).write_text(json.dumps(values))


def assert_same(path, other):
    jax.tree.map(np.testing.assert_array_equal, read(path).params, read(other).params)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("plain") / "model")


@pytest.mark.parametrize(
    ("pattern", "replacement", "line"),
    [
        ("^", "module.", "the tensors under module."),
        ("^", "module._orig_mod.", "the tensors under module._orig_mod."),
        ("^", "model.", "the tensors under model."),
        (r"^bert\.", "0.auto_model.", "the tensors under 0.auto_model."),
        (r"^bert\.", "", ""),
        (r"(intermediate|pooler|transform)\.dense\b", r"\1.dense_act", ""),
    ],
)
def test_names_of_wrappers(plain, tmp_path, pattern, replacement, line):
    path = shutil.copytree(plain, tmp_path / "model")
    rename(path, pattern, replacement)
    lines = []
    model = read(path, report=lines.append)
    assert lines == ([f"read without their prefix: {line}"] if line else [])
    assert parts_of(model.params) == ("pooler", "masked_lm", "next_sentence")
    assert_same(path, plain)


def test_two_models_in_a_file(plain, tmp_path):
    path = shutil.copytree(plain, tmp_path / "model")
    one = load_file(path / WEIGHTS)
    both = {f"{side}.{name}": x for side in ("query", "document") for name, x in one.items()}
    save_file(both, path / WEIGHTS)
    with pytest.raises(UserError, match=r"there are 2 models \(document\., query\.\): keep"):
        read(path)


def test_rows_beyond_the_vocabulary_are_left_out_and_told(tmp_path, capsys):
    rows = 2 * len(VOCAB)
    path = write_model(tmp_path / "padded", rows=rows)
    tensors = load_file(path / WEIGHTS)
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
    save_file(tensors, path / WEIGHTS)
    assert main(["convert", str(path), str(tmp_path / "same"), "--to=huggingface"]) == 0
    assert f"left out: the last {len(VOCAB)} of {rows} rows of bert.emb" in capsys.readouterr().out
    written = load_file(tmp_path / "same" / WEIGHTS)
    for name in ("bert.embeddings.word_embeddings.weight", "cls.predictions.bias"):
        np.testing.assert_array_equal(written[name], tensors[name][: len(VOCAB)])
    assert json.loads((tmp_path / "same" / "config.json").read_text())["vocab_size"] == len(VOCAB)
    assert read_architecture(path).vocab_size == len(VOCAB)
    rewrite(path, vocab_size=len(VOCAB) - 1)
    with pytest.raises(UserError, match="but the vocabulary beside it has"):
        read(path)


@pytest.mark.parametrize("more", [6, 8 - len(VOCAB) % 8])
def test_rows_that_nobody_rounded_up_to_are_doubted(tmp_path, more):
    rows, lines = len(VOCAB) + more, []
    read(write_model(tmp_path / "model", rows=rows), report=lines.append)
    doubt = f"{rows} is no multiple of 8: is the end of the vocabulary missing?"
    assert [doubt in line for line in lines] == [rows % 8 != 0] * 2


def test_blank_lines_after_the_last_word_are_left_out_and_told(plain, tmp_path, caplog):
    path = shutil.copytree(plain, tmp_path / "model")
    words = (path / "vocab.txt").read_text()
    (path / "vocab.txt").write_text(f"{words}\n \n")
    assert read(path).tokenizer == read(plain).tokenizer
    assert f"2 blank lines at the end are left out, since the model has {len(VOCAB)}" in caplog.text
    assert read_architecture(path) == read_architecture(plain)
    command = ["convert", str(path), str(tmp_path / "again"), "--to=huggingface"]
    assert main(command) == 0
    assert (tmp_path / "again" / "vocab.txt").read_text() == words
    with (tmp_path / "again" / "vocab.txt").open("a") as file:  # beside a tokenizer.json
        file.write("\n\n")
    assert read(tmp_path / "again").tokenizer == read(plain).tokenizer
    rewrite(path, vocab_size=len(VOCAB) + 2)  # a token of the model
    assert len(read_tokenizer(epath.Path(path)).vocab) == len(VOCAB) + 2
    (path / "vocab.txt").write_text(f"{words}more\n\n")
    rewrite(path, vocab_size=len(VOCAB))
    with pytest.raises(UserError, match="but the vocabulary beside it has"):
        read(path)


def test_a_vocabulary_in_another_encoding(plain, tmp_path):
    path = shutil.copytree(plain, tmp_path / "model")
    words = (path / "vocab.txt").read_text()
    (path / "vocab.txt").write_bytes(words.encode("utf-16"))
    with pytest.raises(UserError, match=r"vocab.txt: not UTF-8 text .* one token per line"):
        read(path)


@pytest.mark.parametrize("architectures", [["BertForSomethingElse"], ["BertCrf"], None])
def test_an_unknown_head_can_be_left_out(tmp_path, capsys, architectures):
    path = write_model(tmp_path / "choice", "choice")
    rewrite(path, architectures=architectures)
    command = ["convert", str(path), str(tmp_path / "encoder"), "--to=huggingface"]
    assert main(command) == 2
    assert "or leave it out by `bert-jax convert --no-strict`" in capsys.readouterr().err
    assert main([*command, "--no-strict", "--architecture=BertModel"]) == 0
    assert "left out: classifier.bias, classifier.weight" in capsys.readouterr().out
    written, source = load_file(tmp_path / "encoder" / WEIGHTS), load_file(path / WEIGHTS)
    assert {f"bert.{name}" for name in written} == {n for n in source if n.startswith("bert.")}
    for name, values in written.items():
        np.testing.assert_array_equal(values, source[f"bert.{name}"])


def test_a_head_of_other_shape_can_be_left_out(tmp_path):
    path = write_model(tmp_path / "model", "sequence", labels=("no", "yes"))
    tensors = load_file(path / WEIGHTS)
    del tensors["classifier.bias"]
    save_file(tensors | {"crf.transitions": np.zeros((2, 2), np.float32)}, path / WEIGHTS)
    with pytest.raises(UserError, match=r"classifier\.bias is missing"):
        read(path)
    lines = []
    assert parts_of(read(path, strict=False, report=lines.append).params) == ("pooler",)
    assert "left out: classifier.weight, crf.transitions (unknown)" in lines


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"id2label": {"0": "a", "1": "a"}}, "id2label has the name 'a' twice"),
        ({"id2label": ["a", "b"]}, "field id2label: expected object"),
        ({"id2label": {"0": [], "1": "b"}}, "field id2label"),
        ({"architectures": "BertModel"}, "field architectures: expected array"),
        ({"architectures": [1]}, r"field architectures\[0\]: expected str"),
        ({"problem_type": "ranking"}, "field problem_type: Invalid enum value 'ranking'"),
    ],
)
def test_fields_of_the_heads(tmp_path, fields, message):
    path = write_model(tmp_path / "model", "sequence", labels=("no", "yes"))
    rewrite(path, **fields)
    with pytest.raises(UserError, match=message):
        read(path)


def test_a_state_dict_within_a_checkpoint_is_named(plain, tmp_path):
    torch = pytest.importorskip("torch")
    path = shutil.copytree(plain, tmp_path / "model")
    state = {name: torch.from_numpy(x) for name, x in load_file(path / WEIGHTS).items()}
    (path / WEIGHTS).unlink()
    torch.save({"epoch": 3, "model": state}, path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"holds one as 'model': save that alone, torch\.save"):
        read(path)
    name = "bert.pooler.dense.bias"
    torch.save(state | {name: state[name].to_sparse()}, path / "pytorch_model.bin")
    with pytest.raises(UserError, match="is not a state_dict"):
        read(path)


def test_safetensors_headers_that_lie(plain, tmp_path):
    path = shutil.copytree(plain, tmp_path / "model")
    whole = (path / WEIGHTS).read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + size])
    names = [name for name in header if name != "__metadata__"]

    def with_header(change):
        fields = json.loads(json.dumps(header))
        change(fields)
        text = json.dumps(fields).encode()
        return len(text).to_bytes(8, "little") + text + whole[8 + size :]

    broken = [
        (2**63 - 1).to_bytes(8, "little") + whole[8:],
        (size + 10**6).to_bytes(8, "little") + whole[8:],
        with_header(lambda h: h[names[0]].update(data_offsets=h[names[1]]["data_offsets"])),
        with_header(lambda h: h[names[0]].update(data_offsets=[0, 2**62])),
        with_header(lambda h: h[names[0]].update(shape=[2**40, 2**40])),
        with_header(lambda h: h[names[0]].update(shape=[-1])),
        with_header(lambda h: h.update({names[0]: None})),
    ]
    for content in broken:
        (path / WEIGHTS).write_bytes(content)
        with pytest.raises(UserError, match=r"model\.safetensors is damaged or cut short"):
            read(epath.Path(path))


def logits_of(path, text):
    """What transformers gives."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    model = transformers.BertForSequenceClassification.from_pretrained(path)
    tokens = transformers.AutoTokenizer.from_pretrained(path)(text, return_tensors="pt")
    with torch.no_grad():
        return model(**tokens).logits[0].numpy().astype(np.float64)


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression", None])
def test_what_a_classifier_means(tmp_path, problem_type):
    """As in the pipeline of transformers: sigmoid, scores, or softmax; every format keeps it."""
    labels = ("toxic", "insult", "threat")
    fields = {"problem_type": problem_type} if problem_type else {}
    path = write_model(tmp_path / "model", "sequence", labels=labels, **fields)
    logits = logits_of(path, TEXT)
    if problem_type == "regression":
        values = logits
    elif problem_type:
        values = 1 / (1 + np.exp(-logits))
    else:
        values = np.exp(logits) / np.exp(logits).sum()
    expected = dict(zip(labels, values))
    assert main(["convert", str(path), str(tmp_path / "ours"), "--to=bert_jax"]) == 0
    assert (
        main(["convert", str(tmp_path / "ours"), str(tmp_path / "again"), "--to=huggingface"]) == 0
    )
    for name in ("model", "ours", "again"):
        (found,) = load(tmp_path / name).classify([TEXT])
        assert found == pytest.approx(expected, abs=1e-5)
        assert list(found) == sorted(expected, key=expected.get, reverse=True)
    exported = tmp_path / "export"
    arguments = ["export", f"--model={tmp_path / 'ours'}", f"--output={exported}"]
    assert main([*arguments, "--platforms=cpu"]) == 0
    assert load(exported).classify([TEXT])[0] == pytest.approx(expected, abs=1e-5)
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config.get("problem_type") == problem_type
    data = tmp_path / "data.tsv"
    data.write_text(f"text\tlabel\n{TEXT}\ttoxic\n")
    code = main(["evaluate", f"--workdir={path}", f"--data={data}"])
    assert code == (2 if problem_type == "regression" else 0)


def test_a_regression_is_a_score_for_transformers_too(tmp_path):
    path = write_model(tmp_path / "model", "sequence", labels=("similarity",))
    (score,) = load(path).classify([TEXT])
    assert score == pytest.approx(logits_of(path, TEXT).item(), abs=1e-5)
    assert main(["convert", str(path), str(tmp_path / "same"), "--to=huggingface"]) == 0
    config = json.loads((tmp_path / "same" / "config.json").read_text())
    assert config["problem_type"] == "regression"


def test_pairs_need_two_token_types(tmp_path, capsys):
    path = write_model(tmp_path / "model", "sequence", labels=("0", "1"), type_vocab_size=1)
    bert = load(path)
    assert len(bert.classify(["the cat"])) == 1
    for use in (bert.encode, bert.classify):
        with pytest.raises(UserError, match=r"a pair of texts needs 2 token types"):
            use([("the cat", "sat")])
    with pytest.raises(UserError, match=r"a pair of texts needs 2 token types"):
        bert.attention(("the cat", "sat"))
    data = tmp_path / "pairs.tsv"
    data.write_text("label\ta\tb\n" + "0\tthe cat\tsat on\n1\tthe dog\tran on\n" * 9)
    columns = [f"--config.task.{name}" for name in ("text_a=a", "text_b=b", "max_seq_length=32")]
    splits = [f"--config.task.{split}={data}" for split in ("train", "dev")]
    recipe = ["--config=finetune:classification", f"--config.init_from={path}"]
    capsys.readouterr()
    assert main(["finetune", *recipe, *splits, *columns, f"--workdir={tmp_path / 'run'}"]) == 2
    assert "a pair of texts needs 2 token types" in capsys.readouterr().err
    assert main(["evaluate", f"--workdir={path}", f"--data={data}", *columns]) == 2
    assert "a pair of texts needs 2 token types" in capsys.readouterr().err


def test_a_head_is_taken_over_by_the_names_of_its_classes(tmp_path, capsys):
    """Two models that differ in the order of their classes alone train to the same."""
    labels = ("a", "b", "c")
    path = write_model(tmp_path / "model", "sequence", labels=labels)
    other = shutil.copytree(path, tmp_path / "other")
    order = [2, 0, 1]
    tensors = load_file(path / WEIGHTS)
    for name in ("classifier.weight", "classifier.bias"):
        tensors[name] = tensors[name][order]
    save_file(tensors, other / WEIGHTS, metadata={"format": "pt"})
    rewrite(other, id2label={str(i): labels[j] for i, j in enumerate(order)})
    data = tmp_path / "data.tsv"
    data.write_text("text\tlabel\n" + "the cat\ta\nsat on\tb\nthe mat\tc\n" * 6)
    for source in (path, other):
        arguments = {
            "init_from": source, "task.train": data, "task.dev": data, "batch_size": 8,
            "epochs": 0.5, "optimizer.learning_rate": 1e-30, "task.max_seq_length": 16,
        }  # fmt: skip
        flags = [f"--config.{name}={value}" for name, value in arguments.items()]
        workdir = f"--workdir={tmp_path / 'runs' / source.name}"
        assert main(["finetune", "--config=finetune:classification", *flags, workdir]) == 0
    said = capsys.readouterr().out
    assert said.count("taken over by the names of its classes: sequence_classifier") == 1
    assert "starts at random" not in said
    assert_same(tmp_path / "runs" / "model" / "best", tmp_path / "runs" / "other" / "best")
    expected = load(path).classify([TEXT])[0]
    for name in ("model", "other"):
        found = load(tmp_path / "runs" / name / "best", compute_dtype="float32").classify([TEXT])
        assert found[0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (
            lambda bert: bert.classify([TEXT]),
            r"fine-tune it with `bert-jax finetune --config=fin",
        ),
        (lambda bert: bert.tag([TEXT]), r"--config=finetune:tagging --config.init_from=MODEL`$"),
        (lambda bert: bert.answer([(TEXT, TEXT)]), r"--config=finetune:answering --config.init"),
    ],
)
def test_a_pretrained_model_must_be_fine_tuned_for_a_task(plain, use, message):
    with pytest.raises(UserError, match=message):
        use(load(plain))


POOLING = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}


def sentence_files(path, *, length=8, pooling=None, normalize=True, further=()):
    """The files of sentence-transformers."""
    (path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": length}))
    kinds = ["Transformer", "Pooling", *(["Normalize"] * normalize), *further]
    modules = [
        {
            "idx": i,
            "path": f"{i}_{kind}" if i else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, kind in enumerate(kinds)
    ]
    (path / "modules.json").write_text(json.dumps(modules))
    (path / "1_Pooling").mkdir(exist_ok=True)
    (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling or POOLING))


def test_vectors_are_those_of_sentence_transformers(plain, tmp_path, caplog):
    path = shutil.copytree(plain, tmp_path / "model")
    long = " ".join([TEXT] * 4)
    states = load(plain).encode([" ".join(long.split()[:6])], "tokens")[0]  # 8 with [CLS], [SEP]
    assert len(states) == 8
    results = {
        "mean": states.mean(axis=0),
        "max": states.max(axis=0),
        "cls": states[0],
    }
    for name, expected in results.items():
        pooling = {"pooling_mode_mean_tokens": False, f"pooling_mode_{name}_tokens": True}
        if name == "cls":
            pooling = {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}
        sentence_files(path, pooling=pooling)
        bert = load(path)
        assert len(bert.tokens(long)) == 8
        np.testing.assert_allclose(
            bert.encode([long, long])[1], expected / np.linalg.norm(expected), atol=1e-5
        )
        np.testing.assert_allclose(bert.encode([long], "max")[0], results["max"], atol=1e-5)
    assert "2 of 2 texts cut to 8 tokens" in caplog.text
    sentence_files(path, normalize=False)
    assert main(["convert", str(path), str(tmp_path / "ours"), "--to=bert_jax"]) == 0
    np.testing.assert_allclose(
        load(tmp_path / "ours").encode([long])[0], results["mean"], atol=1e-5
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"further": ["Dense"]}, "the model's own pooling is Dense, which is not available"),
        ({"pooling": {"pooling_mode_lasttoken": True}}, "own pooling is pooling_mode_lasttoken"),
        ({"pooling": POOLING | {"pooling_mode_cls_token": True}}, "own pooling is cls and mean"),
        ({"length": "16"}, "field max_seq_length: expected int"),
        ({"length": 0}, "max_seq_length: 0 is too small"),
    ],
)
def test_settings_for_vectors_that_are_not_available(plain, tmp_path, settings, message):
    path = shutil.copytree(plain, tmp_path / "model")
    sentence_files(path, **settings)
    with pytest.raises(UserError, match=message):
        load(path).encode([TEXT])
