"""`predict` says what `evaluate --predictions` writes: it reads texts as fine-tuning did."""

import csv
import json

import numpy as np
import pytest
from portables import make_portable

from bert_jax import evaluate, export, load
from bert_jax.__main__ import main
from bert_jax.data.wordpiece import SPECIAL_TOKENS, WordPiece
from bert_jax.errors import UserError
from bert_jax.inference.fine_tuned import task_of
from bert_jax.interop.formats import read
from bert_jax.interop.workdir import write_workdir
from bert_jax.tasks import AnsweringTask, ClassificationTask, TaggingTask

pytestmark = pytest.mark.core

WORDS = [f"w{index}" for index in range(40)]
WORDPIECE = WordPiece((*SPECIAL_TOKENS, *WORDS, ".", "?"), lowercase=True)
TAGS = ("O", "B-X", "I-X")
POOLED = ("pooler", "sequence_classifier")
ANSWERS = {"max_seq_length": 24, "doc_stride": 5, "max_query_length": 6, "max_answer_length": 3}


def texts(count, seed, longest=60):
    random = np.random.default_rng(seed)
    lengths = random.integers(3, longest, count)
    return [" ".join(random.choice(WORDS, length)) for length in lengths]


def classifier(task, labels=None):
    model = make_portable(WORDPIECE, POOLED)
    if labels is None:
        return model._replace(task=task)
    head = {name: each[..., :1] for name, each in model.params["sequence_classifier"].items()}
    return model._replace(params=model.params | {"sequence_classifier": head}, labels=(), task=task)


# Each reads far fewer tokens than its texts have, and than the model has positions.
MODELS = {
    "single": classifier({"name": "classification", "max_seq_length": 12}),
    "pair": classifier(
        {"name": "classification", "max_seq_length": 16, "text_a": "one", "text_b": "two"}
    ),
    "score": classifier(
        {
            "name": "classification",
            "max_seq_length": 12,
            "regression": True,
            "metric_names": ["pearson"],
        },
        labels=(),
    ),
    "tags": make_portable(WORDPIECE, ["token_classifier"])._replace(
        labels=TAGS, task={"name": "tagging", "max_seq_length": 10}
    ),
    "answers": make_portable(WORDPIECE, ["answer_span"])._replace(
        task={"name": "answering", **ANSWERS}
    ),
    "no answers": make_portable(WORDPIECE, ["answer_span"])._replace(
        task={"name": "answering", "unanswerable": True, "null_threshold": -0.3, **ANSWERS}
    ),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Directories by name."""
    folder = tmp_path_factory.mktemp("models")
    for name, model in MODELS.items():
        write_workdir(folder / name, model)
    return folder


def write_examples(name, folder):
    """A file for `evaluate`, and files of the same examples for `predict`."""
    if name == "tags":
        data, given = folder / "data.conll", folder / "texts.txt"
        lines = texts(12, 1)
        data.write_text("\n".join("".join(f"{w} O\n" for w in x.split()) for x in lines))
        given.write_text("".join(f"{line}\n" for line in lines))
        return data, [data, given]
    if name in ("answers", "no answers"):
        data, given = folder / "data.json", folder / "asked.jsonl"
        asked = [*zip(texts(12, 2, 9), texts(12, 3))]
        paragraphs = [
            {"context": context, "qas": [{"id": str(number), "question": question, "answers": []}]}
            for number, (question, context) in enumerate(asked)
        ]
        data.write_text(json.dumps({"data": [{"title": "", "paragraphs": paragraphs}]}))
        rows = [{"text_a": question, "text_b": context} for question, context in asked]
        given.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return data, [data, given]
    data, given = folder / "data.csv", folder / "texts.jsonl"
    pairs = [*zip(texts(12, 4), texts(12, 5))]
    rows = "".join(f'"{a}",{b},{a},none\n' for a, b in pairs)
    data.write_text(f"one,two,text,label\n{rows}")
    objects = [{"text_a": a, "text_b": b} if name == "pair" else {"text": a} for a, b in pairs]
    given.write_text("".join(json.dumps(each) + "\n" for each in objects))
    return data, [data, given]


VERB = {"tags": "tag", "answers": "answer", "no answers": "answer"}


def predicted(capsys, name, *arguments):
    """The lines that `predict` prints, without what they repeat of the input."""
    capsys.readouterr()
    assert main(["predict", VERB.get(name, "classify"), *map(str, arguments)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    given = {"text", "one", "two", "text_a", "text_b", "words", "id", "input_label"}
    if name == "score":
        given.add("label")
    return [{key: line[key] for key in line if key not in given} for line in lines]


def close(found, expected):
    """Whether nested values are equal, numbers but for rounding."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        return all(close(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(close, found, expected))
    return found == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("name", MODELS)
def test_predict_says_what_evaluate_writes(name, models, tmp_path, capsys):
    data, given = write_examples(name, tmp_path)
    written = tmp_path / "predictions.jsonl"
    evaluate(models / name, data=str(data), predictions=written)
    expected = [json.loads(line) for line in written.read_text().splitlines()]
    for row in expected:
        for only_of_evaluate in ("index", "id", "text", "words", "tags", "probabilities"):
            if only_of_evaluate != "probabilities" or name == "tags":
                row.pop(only_of_evaluate, None)
    model = f"--model={models / name}"
    for file in given:
        found = predicted(capsys, name, model, file)
        assert len(found) == 12
        assert close(found, expected)
    longer = predicted(capsys, name, model, given[0], "--max-seq-length=60")
    assert not close(longer, expected), "texts are cut to the length of training"
    if name == "no answers":
        assert {line["answer"] == "" for line in found} == {True, False}
        told = predicted(capsys, name, model, given[0], "--no-unanswerable")
        assert all(line["answer"] for line in told)


def test_settings_travel(models, tmp_path, capsys):
    """To a converted model and an export, and into what runs without bert_jax."""
    path = models / "no answers"
    task = task_of(read(path))
    assert task == AnsweringTask(unanswerable=True, null_threshold=-0.3, **ANSWERS)
    assert main(["convert", str(path), str(tmp_path / "again"), "--to=bert_jax"]) == 0
    assert task_of(read(tmp_path / "again")) == task
    export(path, tmp_path / "export", platforms=["cpu"])
    asked = [*zip(texts(5, 2, 9), texts(5, 3))]
    answers = load(tmp_path / "export").answer(asked)
    assert [x.answer.text for x in answers] == [x.answer.text for x in load(path).answer(asked)]
    manifest = json.loads((tmp_path / "export" / "export.json").read_text())
    assert manifest["task"]["null_threshold"] == -0.3
    capsys.readouterr()
    assert main(["convert", str(path), str(tmp_path / "hf"), "--to=huggingface"]) == 0
    assert "max_seq_length=24" in capsys.readouterr().out


def test_what_a_model_without_settings_is_taken_for():
    bare = MODELS["single"]._replace(task=None)
    assert task_of(bare) == ClassificationTask(
        max_seq_length=128, labels=("negative", "neutral", "positive")
    )
    assert task_of(MODELS["score"]._replace(task=None)).regression
    bioes = ("O", "B-X", "I-X", "E-X", "S-X")
    tags = MODELS["tags"]._replace(task=None, labels=bioes)
    assert task_of(tags) == TaggingTask(labels=bioes)
    assert task_of(tags).entity_scheme == "BIOES"
    with pytest.raises(UserError, match="no head of a task, none of sequence_classifier, "):
        task_of(make_portable(WORDPIECE, ["pooler"]))


def test_settings_that_contradict(models):
    with pytest.raises(UserError, match="max_seq_length=129: the model has 128 positions"):
        load(models / "single").classify(["w1"], max_seq_length=129)
    with pytest.raises(UserError, match=r"task\.doc_strid: no such field; did you mean"):
        load(models / "answers").answer([("w1", "w2")], doc_strid=3)
    with pytest.raises(UserError, match="number 1 must be a pair of strings, not 'w1'"):
        load(models / "pair").classify(["w1"])
    with pytest.raises(UserError, match=r"number 1 must be a string, not \('w1', 'w2'\)"):
        load(models / "single").classify([("w1", "w2")])


def test_probabilities_in_columns(models, tmp_path):
    data, _ = write_examples("single", tmp_path)
    files = [tmp_path / name for name in ("p.csv", "p.jsonl", "p.tsv")]
    for file in files:
        evaluate(models / "single", data=str(data), predictions=file)
    with files[0].open(newline="") as file:
        rows = [*csv.DictReader(file)]
    lines = [json.loads(line) for line in files[1].read_text().splitlines()]
    classes = [f"probabilities.{label}" for label in ("negative", "neutral", "positive")]
    assert [*rows[0]] == ["index", "label", "probability", *classes]
    for row, line in zip(rows, lines, strict=True):
        assert (row["index"], row["label"]) == (line["index"], line["label"])
        assert float(row["probability"]) == max(line["probabilities"].values())
        assert sum(float(row[name]) for name in classes) == pytest.approx(1, abs=3e-6)
    said = [f"{line['index']}\t{line['label']}" for line in lines]
    assert files[2].read_text().splitlines() == ["index\tprediction", *said]
    with pytest.raises(UserError, match=r"gone/p\.csv: there is no folder"):
        evaluate(models / "single", data=str(data), predictions=tmp_path / "gone" / "p.csv")


def test_a_published_model_is_scored(models, tmp_path, capsys):
    """By the columns that the command line says, and its labels in its own order."""
    target = tmp_path / "hf"
    assert main(["convert", str(models / "single"), str(target), "--to=huggingface"]) == 0
    lines = texts(30, 6, 9)
    said = [next(iter(found)) for found in load(target).classify(lines)]
    rows = [f"{label},{text}\n" for label, text in zip(said, lines)]
    (tmp_path / "data.csv").write_text("stars,review\n" + "".join(rows))
    command = ["evaluate", f"--workdir={target}", f"--data={tmp_path / 'data.csv'}", "--json"]
    columns = ["--config.task.text_a=review", "--config.task.label=stars"]
    capsys.readouterr()
    assert main([*command, *columns]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["step"] is None
    assert found["baseline"] == {}
    (scores,) = [value for name, value in found.items() if name.endswith("data.csv")]
    assert scores["accuracy"] == 1

    swapped = "--config.task.labels=('positive', 'neutral', 'negative')"
    assert main([*command, *columns, swapped]) == 2
    assert "must be the model's 3, in their order: negative, neut" in capsys.readouterr().err
    assert main([*command, "--config.task.name=tagging"]) == 2
    assert "config.task.name=tagging: the model has no token_class" in capsys.readouterr().err
    assert main([*command, "--config.epochs=3"]) == 2
    assert "only fields of the task" in capsys.readouterr().err
