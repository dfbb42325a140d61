"""Extractive summaries: what is read and chosen, and that a run learns which sentences to take."""

import json

import numpy as np
import pytest
from etils import epath
from words import WORDPIECE, WORDS

from bert_jax import load
from bert_jax.__main__ import main
from bert_jax.errors import UserError
from bert_jax.tasks import ExtractionTask
from bert_jax.tasks.extraction.selection import choose, oracle
from bert_jax.tasks.extraction.task import Extract

DOCUMENT = "W1 w2 w3. W4 w5 w6. W7 w8 w9. W1 w2 w3 w4."


def documents(path, count, seed):
    """The summary of a document is its fourth sentence."""
    random, lines = np.random.default_rng(seed), []
    for _ in range(count):
        sentences = [" ".join(random.choice(WORDS, 4)).capitalize() + "." for _ in range(5)]
        lines.append(json.dumps({"document": " ".join(sentences), "summary": sentences[3]}) + "\n")
    path.write_text("".join(lines))
    return path


@pytest.mark.parametrize(
    ("summary", "most", "chosen"),
    [
        ("w7 w8 w9", 3, [2]),  # another sentence would make it worse
        ("W4 w5 w6, w7 w8 w9", 3, [1, 2]),
        ("w4 w5 w6 w7 w8 w9", 1, [1]),  # of equals the first
        ("something else", 3, []),
    ],
)
def test_the_oracle_adds_sentences_while_they_help(summary, most, chosen):
    assert oracle(["W1 w2 w3.", "W4 w5 w6.", "W7 w8 w9."], summary, most) == chosen


def test_the_likeliest_sentences_are_chosen_without_repetitions():
    sentences = ["W1 w2 w3.", "W4 w5 w6.", "W7 w8 w9.", "W1 w2 w3 w4."]
    scores = [0.9, -2.0, 0.1, 0.8]
    assert choose(sentences, scores, 2, blocking=True) == [0, 2]
    assert choose(sentences, scores, 2, blocking=False) == [0, 3]
    assert choose(sentences, scores[:2], 3, blocking=True) == [0, 1]


@pytest.mark.parametrize(
    ("length", "starts", "classes"),
    [(64, [0, 6, 12, 18], [0, 1, 0, 0]), (15, [0, 6, 12], [0, 1, 0]), (14, [0, 6], [0, 1])],
)
def test_each_sentence_has_a_label_at_its_cls(tmp_path, length, starts, classes):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"article": DOCUMENT, "highlights": "w4 w5 w6"}) + "\n")
    task = ExtractionTask()
    examples = task.read(str(path))
    features = task.features(examples, WORDPIECE, length)
    ids, labels = features.input_ids[0], features.labels[0]
    assert len(ids) == min(length, 25)
    assert ids[-1] == WORDPIECE.sep_id
    assert (ids[starts] == WORDPIECE.cls_id).all()
    assert np.flatnonzero(labels >= 0).tolist() == features.starts[0].tolist() == starts
    assert labels[starts].tolist() == classes
    assert features.counts["sentences_cut"] == 4 - len(starts)
    unlabelled = task.features(task.read(str(path), labelled=False), WORDPIECE, length)
    assert (unlabelled.labels[0] == -1).all()


def test_scores_are_rouge_beside_the_first_sentences_and_the_best(tmp_path):
    pytest.importorskip("rouge_score")
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"document": DOCUMENT, "summary": "w7 w8 w9"}) + "\n")
    task = ExtractionTask(num_sentences=1)
    examples = task.read(str(path))
    found = task.metrics([Extract("W7 w8 w9.", [2])], examples)
    assert found == {"rouge1": 100, "rouge2": 100, "rougeL": 100}
    baseline = task.baseline([], examples)
    assert baseline == dict.fromkeys(found, 0) | {f"oracle_{name}": 100 for name in found}


def test_a_document_without_sentences_has_an_empty_summary(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"document": " ", "summary": "w1"}\n')
    task = ExtractionTask()
    features = task.features(examples := task.read(str(path)), WORDPIECE, 16)
    assert features.counts["empty_documents"] == 1
    assert task.predictions([np.zeros((2, 2))], features, examples) == [Extract("", [])]


@pytest.mark.parametrize("fields", [{"metric_names": ()}, {"metric_names": ("rouge9",)}])
def test_wrong_metrics_are_named(fields):
    with pytest.raises(UserError, match=r"metric_names: .* must be some of \('rouge1'"):
        ExtractionTask(**fields)


def test_a_run_learns_which_sentences_to_take(model, tmp_path, capsys):
    pytest.importorskip("rouge_score")
    run = epath.Path(tmp_path / "run")
    flags = {
        "init_from": model,
        "task.train": documents(tmp_path / "train.jsonl", 300, 0),
        "task.dev": documents(tmp_path / "dev.jsonl", 40, 1),
        "task.max_seq_length": 64,
        "task.num_sentences": 1,
        "numerics.compute_dtype": "float32",
        "optimizer.learning_rate": 3e-3,
        "batch_size": 16,
        "epochs": 3,
    }
    overrides = [f"--config.{name}={value}" for name, value in flags.items()]
    assert not main(["finetune", "--config=finetune:extraction", f"--workdir={run}", *overrides])
    results = json.loads((run / "results.json").read_text())["dev"]
    assert results["baseline"]["oracle_rouge1"] == pytest.approx(100)
    assert results["metrics"]["rouge1"] > 80 > results["baseline"]["rouge1"]

    rows = [json.loads(line) for line in (tmp_path / "dev.jsonl").read_text().splitlines()]
    found = load(run / "best").extract([row["document"] for row in rows])
    lines = (run / "dev_predictions.txt").read_text().splitlines()
    assert [extract.text for extract in found] == lines
    capsys.readouterr()
    assert not main(["predict", "extract", f"--model={run / 'best'}", str(tmp_path / "dev.jsonl")])
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["summary"] for line in printed] == lines
    assert [line["sentences"] for line in printed] == [extract.sentences for extract in found]


def test_a_model_of_another_task_is_refused(model):
    with pytest.raises(UserError, match="the model chooses no sentences: fine-tune it on"):
        load(model).extract(["W1 w2."])
