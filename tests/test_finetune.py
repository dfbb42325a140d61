"""Fine-tuning, from files to results, on models and data of test size."""

import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest
from configured import CONFIGS
from etils import epath
from portables import make_config
from tiny import make_model
from words import WORDS

import bert_jax
from bert_jax import load
from bert_jax.__main__ import main
from bert_jax.api.finetune import finetune
from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.config.recipes import load_config
from bert_jax.data.train_tokenizer import train_tokenizer
from bert_jax.errors import UserError
from bert_jax.fields import build
from bert_jax.inference.fine_tuned import task_of
from bert_jax.interop.portable import Portable
from bert_jax.interop.workdir import read_workdir, write_workdir
from bert_jax.model.architecture import Architecture
from bert_jax.model.heads import (
    ANSWER_SPAN,
    SEQUENCE_CLASSIFIER,
    SEQUENCE_REGRESSION,
    TOKEN_CLASSIFIER,
)
from bert_jax.model.model import build_model
from bert_jax.objective.finetuning import FineTuning
from bert_jax.report.metrics_file import read_metrics
from bert_jax.tasks import Task
from bert_jax.tasks.batches import ExampleBatches
from bert_jax.tasks.features import Features
from bert_jax.train import trainer
from bert_jax.train.checkpoints import Checkpoints
from bert_jax.train.hooks import Patience
from bert_jax.train.optimizers import scale_by_depth


def sentences(count, seed):
    """Lists of words."""
    random = np.random.default_rng(seed)
    return [random.choice(WORDS, random.integers(3, 12)).tolist() for _ in range(count)]


def classes(path, count, seed):
    """Whether a text has more of the first half of the words."""
    lines = ["text\tlabel"]
    for words in sentences(count, seed):
        early = sum(WORDS.index(word) < 20 for word in words)
        lines.append(f"{' '.join(words)}\t{'early' if 2 * early > len(words) else 'late'}")
    path.write_text("\n".join(lines) + "\n")


def tags(path, count, seed):
    """Every word of the last quarter is a name."""
    blocks = []
    for words in sentences(count, seed):
        lines = [f"{word}\t{'B-X' if WORDS.index(word) >= 30 else 'O'}" for word in words]
        blocks.append("\n".join(lines))
    path.write_text("\n\n".join(blocks) + "\n")


def questions(path, count, seed):
    """The one name of the context."""
    random = np.random.default_rng(seed)
    articles = []
    for number in range(count):
        words = random.permutation(WORDS[:30])[:10].tolist()
        at = int(random.integers(10))
        words[at] = answer = str(random.choice(WORDS[30:]))
        start = len(" ".join([*words[:at], ""]))
        answers = [{"text": answer, "answer_start": start}]
        qas = [{"id": f"{seed}-{number}", "question": f"{words[at - 1]} ?", "answers": answers}]
        context = " ".join(words)
        articles.append({"title": "", "paragraphs": [{"context": context, "qas": qas}]})
    path.write_text(json.dumps({"version": "1.1", "data": articles}))


def labels(path, count, seed):
    """Whether a text has words of the first half, as many as others or more; the same of others."""
    rows = []
    for words in sentences(count, seed):
        early = sum(WORDS.index(word) < 20 for word in words)
        found = ["early"] * (2 * early >= len(words)) + ["late"] * (2 * early <= len(words))
        rows.append(json.dumps({"text": " ".join(words), "label": found}) + "\n")
    path.write_text("".join(rows))


WRITE = {"classification": classes, "multi_label": labels, "tagging": tags}
WRITE |= {"answering": questions}
SUFFIX = {"classification": "tsv", "multi_label": "jsonl", "tagging": "conll", "answering": "json"}


def recipe(task, model, folder, train=160, **changes):
    """Writes the data and gives the config."""
    data = {}
    for split, count, seed in (("train", train, 0), ("dev", 40, 1), ("test", 40, 2)):
        path = folder / f"{split}.{SUFFIX[task]}"
        WRITE[task](path, count, seed)
        data[f"task.{split}"] = str(path)
    changes = {
        "init_from": str(model),
        "task.max_seq_length": 32,
        "numerics.compute_dtype": "float32",
        "batch_size": 16,
        "epochs": 2.0,
        "log_every": 10,
        "optimizer.learning_rate": 3e-3,
        **data,
    } | changes
    if task == "answering":
        changes["task.max_query_length"] = 8
    overrides = [f"--config.{name}={value}" for name, value in changes.items()]
    return load_config(FinetuneConfig, [f"--config={CONFIGS / 'finetune.py'}:{task}", *overrides])


LEARNED = {"classification": ("accuracy", 0.7), "tagging": ("f1", 0.7), "answering": ("f1", 0.7)}
LEARNED |= {"multi_label": ("micro_f1", 0.7)}


def said_by_classify(path, folder):
    rows = [line.split("\t") for line in (folder / "test.tsv").read_text().splitlines()[1:]]
    found = load(path).classify([text for text, _ in rows])
    assert all(sum(scores.values()) == pytest.approx(1) for scores in found)
    assert all(list(s.values()) == sorted(s.values(), reverse=True) for s in found)
    said = [f"{index}\t{next(iter(scores))}" for index, scores in enumerate(found)]
    return "\n".join(["index\tprediction", *said]) + "\n"


def said_by_multi_label(path, folder):
    bert = load(path)
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    task = bert.text_task()
    assert {text.split("=")[0] for text in task.thresholds} == {"early", "late"}  # fitted
    found = bert.classify([row["text"] for row in rows])
    chosen = [{*task.said(scores)["labels"]} for scores in found]
    said = [f"{i}\t{','.join(n for n in bert.labels if n in x)}" for i, x in enumerate(chosen)]
    return "\n".join(["index\tprediction", *said]) + "\n"


def said_by_tag(path, folder):
    blocks = (folder / "test.conll").read_text().split("\n\n")
    words = [[line.split("\t")[0] for line in block.splitlines()] for block in blocks]
    texts = [" ".join(sentence) for sentence in words]
    found = load(path).tag(texts, max_seq_length=32)
    for text, entities in zip(texts, found):
        assert all(text[e.start : e.end] == e.text and e.type == "X" for e in entities)
    tags = [
        [f"{word}\t{'B-X' if word in {e.text for e in entities} else 'O'}" for word in sentence]
        for sentence, entities in zip(words, found)
    ]
    return "\n\n".join(map("\n".join, tags)) + "\n"


def said_by_answer(path, folder):
    articles = json.loads((folder / "test.json").read_text())["data"]
    asked = [
        (paragraph["qas"][0]["question"], paragraph["context"])
        for article in articles
        for paragraph in article["paragraphs"]
    ]
    found = load(path).answer(asked, max_seq_length=32, max_query_length=8)
    for (_, context), prediction in zip(asked, found):
        assert context[prediction.answer.start : prediction.answer.end] == prediction.answer.text
    ids = [article["paragraphs"][0]["qas"][0]["id"] for article in articles]
    said = {id_: prediction.answer.text for id_, prediction in zip(ids, found)}
    return json.dumps(said, indent=2) + "\n"


SAID = {"classification": said_by_classify, "tagging": said_by_tag, "answering": said_by_answer}
SAID |= {"multi_label": said_by_multi_label}


@pytest.mark.parametrize("task", WRITE)
def test_a_task_is_learned(task, model, tmp_path, capsys):
    config = recipe(task, model, tmp_path, train=480, epochs=4.0)
    workdir = epath.Path(tmp_path / "run")
    assert finetune(config, workdir)
    results = json.loads((workdir / "results.json").read_text())
    metric, least = LEARNED[task]
    for split in ("dev", "test"):
        assert results[split]["metrics"][metric] > least, results
        assert metric in results[split]["baseline"]
    heldout = [line[metric] for line in read_metrics(workdir) if line["split"] == "heldout"]
    assert results["dev"]["metrics"][metric] == pytest.approx(max(heldout))
    assert (workdir / "curves.png").exists()
    assert (workdir / "test_confusion.png").exists() == (task == "classification")
    assert (workdir / "test_calibration.png").exists() == (task == "classification")
    if task == "classification":
        found = [results[split]["calibration"] for split in ("dev", "test")]
        assert found[0]["temperature"] == found[1]["temperature"]  # fitted on dev
        loss = results["dev"]["metrics"]["loss"]
        assert found[0]["loss_at_temperature"] <= loss + 1e-6
        assert 0 < found[1]["ece"] < 1

    capsys.readouterr()
    assert main(["evaluate", f"--workdir={workdir}", "--data=test", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed == {
        "step": results["step"],
        "test": pytest.approx(results["test"]["metrics"], abs=1e-6),
        "baseline": results["test"]["baseline"],
    }
    kept = task_of(read_workdir(workdir / "best"))
    assert (type(kept), kept.max_seq_length) == (type(config.task), 32)
    (written,) = workdir.glob("test_predictions*")
    again = tmp_path / "again"
    source = f"--data={tmp_path}/test.{SUFFIX[task]}"
    assert main(["evaluate", f"--workdir={workdir}", source, f"--predictions={again}"]) == 0
    if written.is_dir():
        written, again = written / "predictions.json", again / "predictions.json"
    assert SAID[task](workdir / "best", tmp_path) == again.read_text()
    if task == "tagging":  # without the known tags
        lines = [line.split("\t") for line in written.read_text().splitlines()]
        assert again.read_text() == "\n".join("\t".join(x[:1] + x[2:]) for x in lines) + "\n"
    else:
        assert again.read_text() == written.read_text()


def test_several_labels_mean_the_same_to_transformers(model, tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    weights = {"task.class_weights": "balanced", "epochs": 0.2}
    assert finetune(recipe("multi_label", model, tmp_path, **weights), tmp_path / "run")
    target = tmp_path / "converted"
    best = str(tmp_path / "run" / "best")
    assert main(["convert", best, str(target), "--to=huggingface"]) == 0
    theirs = transformers.BertForSequenceClassification.from_pretrained(target)
    assert theirs.config.problem_type == "multi_label_classification"
    tokens = transformers.AutoTokenizer.from_pretrained(target)("w1 w2 w30", return_tensors="pt")
    with torch.no_grad():
        chances = theirs(**tokens).logits[0].sigmoid().tolist()
    expected = dict(zip(("early", "late"), chances))
    for path in (best, target):
        assert load(path).classify(["w1 w2 w30"])[0] == pytest.approx(expected, abs=1e-5)


def test_a_run_without_progress_ends(model, tmp_path, capsys):
    changes = {"optimizer.learning_rate": 1e-9, "evals_per_epoch": 2, "max_examples": 64}
    config = recipe("classification", model, tmp_path, patience=1, **changes)
    workdir = epath.Path(tmp_path / "run")
    assert finetune(config, workdir)
    said = capsys.readouterr().out
    assert "train: 64 examples" in said
    assert "step 4: accuracy has not become better for 1 evaluations" in said
    heldout = [x["step"] for x in read_metrics(workdir) if x["split"] == "heldout"]
    assert heldout == [2, 4]
    assert json.loads((workdir / "results.json").read_text())["step"] == 4  # the latest of equals
    (workdir / "results.json").unlink()
    assert finetune(config, workdir)
    assert [x["step"] for x in read_metrics(workdir) if x["split"] == "heldout"] == heldout
    assert (workdir / "results.json").exists()
    assert finetune(dataclasses.replace(config, patience=0), workdir)
    heldout = [x["step"] for x in read_metrics(workdir) if x["split"] == "heldout"]
    assert heldout == [2, 4, 6, 8]


def test_a_larger_sample_has_the_smaller_one(model, tmp_path):
    config = recipe("classification", model, tmp_path)
    all_of_them = [*range(100)]
    some, more = (dataclasses.replace(config, max_examples=n).chosen(all_of_them) for n in (9, 30))
    assert len(some) == 9
    assert len(more) == 30
    assert {*some} < {*more}
    assert more == sorted(more)
    assert config.chosen(all_of_them) == all_of_them
    with pytest.raises(UserError, match=r"max_examples=9 of .*train\.tsv has only 9 examples"):
        finetune(dataclasses.replace(config, max_examples=9), tmp_path / "run")


def test_folds_are_disjoint_and_each_is_a_dev_set(model, tmp_path, capsys):
    config = recipe("classification", model, tmp_path, epochs=0.5)
    task = dataclasses.replace(config.task, dev="", test="")
    folds = [dataclasses.replace(config, task=task, fold=f"{k}/3") for k in (1, 2, 3)]
    all_of_them = [*range(100)]
    held_out = [fold.held_out(all_of_them) for fold in folds]
    assert sorted(x for part in held_out for x in part) == all_of_them
    assert [len(part) for part in held_out] == [34, 33, 33]
    for fold, part in zip(folds, held_out):
        assert fold.chosen(all_of_them) == sorted({*all_of_them} - {*part})
        assert {*dataclasses.replace(fold, max_examples=9).chosen(all_of_them)}.isdisjoint(part)

    workdir = epath.Path(tmp_path / "run")
    assert finetune(folds[1], workdir)
    said = capsys.readouterr().out
    assert "train: 107 examples" in said
    assert "dev: 53 examples" in said
    results = json.loads((workdir / "results.json").read_text())["dev"]
    assert main(["evaluate", f"--workdir={workdir}", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["dev"]["accuracy"] == results["metrics"]["accuracy"]
    assert printed["baseline"]["accuracy"] == results["baseline"]["accuracy"]
    with pytest.raises(UserError, match=r"config.fold=200/200: .*train.tsv has only 160 examples"):
        finetune(dataclasses.replace(folds[0], fold="200/200"), tmp_path / "other")


@pytest.mark.parametrize(
    ("fold", "dev", "message"),
    [
        ("0/5", "", "config.fold='0/5': must be K/N, such as 1/5, from 1 to N"),
        ("6/5", "", "config.fold='6/5': must be"),
        ("1/1", "", "config.fold='1/1': must be"),
        ("first", "", "config.fold='first': must be"),
        ("1/5", "dev.tsv", "config.fold=1/5 makes the dev set: set config.task.dev= (empty)"),
        ("", "", "config.task.dev is empty: .* with config.fold=1/5"),
    ],
)
def test_bad_folds_are_named(fold, dev, message, model, tmp_path):
    config = recipe("classification", model, tmp_path)
    task = dataclasses.replace(config.task, dev=dev)
    message = message if ".*" in message else re.escape(message)
    with pytest.raises(UserError, match=message):
        dataclasses.replace(config, task=task, fold=fold).check("config")


def test_patience_counts_evaluations_that_are_not_better(tmp_path):
    patience = Patience("f1", 2, epath.Path(tmp_path), done=0)
    ended = []
    for score in (0.1, 0.1, 0.3, 0.2, 0.3):
        assert not patience.ended()
        patience(None, {"f1": score})
        ended.append(patience.ended())
    assert ended == [False, False, False, False, True]
    lines = [{"step": n, "split": "heldout", "f1": 1 - n / 10} for n in (1, 2, 3)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    ends = [Patience("f1", 2, epath.Path(tmp_path), done=done).ended() for done in (2, 3)]
    assert ends == [False, True]


@pytest.fixture(scope="module")
def modern_model(tmp_path_factory):
    """An encoder like ModernBERT, whose byte-level pieces hold the spaces before words."""
    texts = [" ".join(words) for words in sentences(200, 9)]
    tokenizer = train_tokenizer("bpe", texts, vocab_size=300)
    architecture, numerics = make_config(
        len(tokenizer.vocab),
        hidden_size=32,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.1,
        num_layers=3,
        type_vocab_size=0,
        norm_position="pre",
        first_norm=False,
        norm_bias=False,
        attention_bias=False,
        feed_forward_bias=False,
        feed_forward="glu",
        position_embedding={"name": "rope"},
        global_every=3,
        local_window=8,
        pooler="transform",
    )
    model = build_model(architecture, numerics, parts=("masked_lm",))
    params = jax.device_get(model.init(jax.random.key(0)))
    path = epath.Path(tmp_path_factory.mktemp("modern"))
    write_workdir(path, Portable(architecture, numerics, tokenizer, params))
    return path


@pytest.mark.parametrize("task", ["tagging", "answering"])
def test_a_task_is_learned_with_another_tokenizer(task, modern_model, tmp_path):
    """Tags and answers are at the right characters, also of plain texts."""
    config = recipe(task, modern_model, tmp_path, train=480, epochs=4.0)
    workdir = epath.Path(tmp_path / "run")
    assert finetune(config, workdir)
    metric, least = LEARNED[task]
    assert json.loads((workdir / "results.json").read_text())["test"]["metrics"][metric] > least
    again = tmp_path / "again"
    source = f"--data={tmp_path}/test.{SUFFIX[task]}"
    assert main(["evaluate", f"--workdir={workdir}", source, f"--predictions={again}"]) == 0
    written = again / "predictions.json" if again.is_dir() else again
    assert SAID[task](workdir / "best", tmp_path) == written.read_text()


def test_a_regression_is_learned(model, tmp_path, monkeypatch):
    def scores(path, count, seed):
        """The share of early words."""
        rows = [
            (sum(WORDS.index(word) < 20 for word in words) / len(words), " ".join(words))
            for words in sentences(count, seed)
        ]
        path.write_text("".join(f"{score:.3f}\t{text}\n" for score, text in rows))

    monkeypatch.setitem(WRITE, "classification", scores)
    config = recipe("classification", model, tmp_path, train=480, epochs=4.0)
    options = {
        "text_a": "2",
        "label": "1",
        "regression": True,
        "metric_names": ("pearson", "spearman"),
    }
    config = dataclasses.replace(config, task=dataclasses.replace(config.task, **options))
    assert finetune(config, epath.Path(tmp_path / "run"))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["test"]["metrics"]["pearson"] > 0.5


def test_a_task_from_elsewhere_is_learned(model, tmp_path, capsys):
    config = recipe("classification", model, tmp_path)
    data = {name: getattr(config.task, name) for name in ("train", "dev", "test")}
    task = build(Task, {"name": "test_tasks:WordCount", "max_seq_length": 32, "most": 8, **data})
    workdir = epath.Path(tmp_path / "run")
    assert finetune(dataclasses.replace(config, task=task), workdir)
    results = json.loads((workdir / "results.json").read_text())["test"]
    assert set(results) == {"metrics", "baseline"}
    first, *_, last = [x["closeness"] for x in read_metrics(workdir) if x["split"] == "heldout"]
    assert first < last
    lines = (workdir / "test_predictions.txt").read_text().splitlines()
    assert len(lines) == len((tmp_path / "test.tsv").read_text().splitlines())
    capsys.readouterr()
    assert main(["evaluate", f"--workdir={workdir}", "--data=test", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["test"] == pytest.approx(results["metrics"], abs=1e-6)


def make_features(kind, seed=0):
    random = np.random.default_rng(seed)
    lengths = random.integers(4, 20, 24)
    ids = [random.integers(5, 40, length).astype(np.int32) for length in lengths]
    b_start = (lengths // 2).astype(np.int32)
    labels = {
        "sequence_classifier": random.integers(0, 3, 24).astype(np.int32),
        "regression": random.normal(size=24).astype(np.float32),
        "token_classifier": [random.integers(-1, 3, n).astype(np.int32) for n in lengths],
        "answer_span": np.stack([lengths // 3, lengths // 2], axis=1).astype(np.int32),
    }[kind]
    return Features(ids, b_start, labels)


KINDS = {
    "sequence_classifier": SEQUENCE_CLASSIFIER,
    "regression": SEQUENCE_REGRESSION,
    "token_classifier": TOKEN_CLASSIFIER,
    "answer_span": ANSWER_SPAN,
}


@pytest.mark.core
@pytest.mark.parametrize("kind", KINDS)
def test_packing_changes_nothing(kind):
    head = KINDS[kind]
    graphdef, init, _ = make_model(
        parts=head.parts(Architecture()), outputs=head.outputs or 3, initializer_range=0.2
    )
    params = init(jax.random.key(0))
    objective = FineTuning(graphdef, head)
    results = []
    for packing in (True, False):
        features = make_features(kind)
        batches = ExampleBatches(features, head, pad_id=0, batch_size=24, seed=3, packing=packing)
        batch = batches.batch(0)
        assert sorted(batches.packed(0).examples) == list(range(24))

        def loss(params, batch=batch):
            sums = objective.sums(params, batch)
            return sums["task_loss"] / sums["task_count"], sums

        (_, sums), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        results.append((sums, gradients, len(batch["input_ids"])))
    (packed, *_, few), (unpacked, *_, many) = results
    assert few < many == 24
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), packed, unpacked)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6),
        results[0][1],
        results[1][1],
    )


def test_batches_are_a_function_of_seed_and_step():
    features = make_features("sequence_classifier")
    options = {"head": SEQUENCE_CLASSIFIER, "pad_id": 0, "batch_size": 7}
    batches = ExampleBatches(features, seed=1, **options)
    assert batches.steps_per_epoch == 3
    epochs = [
        np.concatenate([batches.packed(step).examples for step in range(e, e + 3)]) for e in (0, 3)
    ]
    for seen in epochs:
        assert len(seen) == len(set(seen.tolist())) == 21
    assert sorted(epochs[0]) != sorted(epochs[1]) or (epochs[0] != epochs[1]).any()
    again = ExampleBatches(features, seed=1, **options).batch(4)
    jax.tree.map(np.testing.assert_array_equal, again, batches.batch(4))
    # Two hosts with half of the rows each.
    halves = [
        ExampleBatches(
            features,
            seed=1,
            row_multiple=2,
            host_rows=lambda n, part=part: np.arange(n)[part * n // 2 : (part + 1) * n // 2],
            **options,
        ).batch(4)
        for part in (0, 1)
    ]
    whole = ExampleBatches(features, seed=1, row_multiple=2, **options).batch(4)
    jax.tree.map(
        lambda a, b, c: np.testing.assert_array_equal(np.concatenate([a, b]), c), *halves, whole
    )
    in_order = ExampleBatches(features, seed=None, **options)
    seen = np.concatenate([in_order.packed(s).examples for s in range(4)])
    assert sorted(seen.tolist()) == list(range(24))


def finetune_twice(config, folder, monkeypatch):
    """Runs once in one go and once interrupted, which end the same; the directory of a run."""
    once, twice = epath.Path(folder / "once"), epath.Path(folder / "twice")
    assert finetune(config, once)

    class Killed(Exception):
        pass

    class Clock(trainer.StopSignal):
        def reached(self, step):
            if step == 13:
                raise Killed
            return False

    monkeypatch.setattr(trainer, "StopSignal", Clock)
    with pytest.raises(Killed):
        finetune(config, twice)
    monkeypatch.undo()
    assert finetune(config, twice)
    for name in ("results.json", "test_predictions.tsv"):
        assert (once / name).read_text() == (twice / name).read_text()
    jax.tree.map(
        np.testing.assert_array_equal, read_workdir(once).params, read_workdir(twice).params
    )
    return twice


def test_an_interrupted_run_ends_as_if_it_had_not_been(model, tmp_path, monkeypatch):
    finetune_twice(recipe("classification", model, tmp_path), tmp_path, monkeypatch)


def test_int8_scores_what_training_with_it_saw(model, tmp_path, monkeypatch):
    changes = {"numerics.fake_int8": True, "numerics.compute_dtype": "bfloat16"}
    config = recipe("classification", model, tmp_path, **changes, epochs=2.0)
    run, rounded = finetune_twice(config, tmp_path, monkeypatch), tmp_path / "int8"
    bert_jax.convert(run / "best", rounded, to="bert_jax", quantize="int8")
    expected = json.loads((run / "results.json").read_text())["dev"]["metrics"]
    for workdir in (run / "best", rounded):
        found = bert_jax.evaluate(workdir, data=config.task.dev).scores
        assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-5)


def test_a_teacher_is_learned_from(model, tmp_path):
    """One that is the model itself has nothing to teach, in whatever order its classes are."""
    source, teacher = read_workdir(model), epath.Path(tmp_path / "teacher")
    kernel = np.random.default_rng(0).normal(size=(32, 2)).astype(np.float32)
    head = {"kernel": kernel, "bias": np.array([0.5, -0.5], np.float32)}
    params = {"bert": source.params["bert"], "sequence_classifier": head}
    source = source._replace(params=params, labels=("late", "early"))
    write_workdir(teacher, source)
    changes = {"numerics.hidden_dropout": 0.0, "numerics.attention_dropout": 0.0, "epochs": 0.1}
    changes |= {"optimizer.learning_rate": 1e-30, "log_every": 1, "teacher": teacher}
    config = recipe("classification", teacher, tmp_path, **changes, teacher_weight=0.25)
    run = epath.Path(tmp_path / "run")
    assert finetune(config, run)
    line = next(line for line in read_metrics(run) if line["split"] == "train")
    assert line["soft_loss"] == pytest.approx(0, abs=1e-6)
    assert line["loss"] == pytest.approx(0.75 * line["task_loss"], abs=1e-6)
    assert {*read_workdir(run).params} == {"bert", "sequence_classifier"}
    with pytest.raises(UserError, match=r"finetune\.teacher: '.*teacher' -> ''"):
        finetune(dataclasses.replace(config, teacher=""), run)
    for name, changed, message in (
        (
            "moved",
            source._replace(
                params=params
                | {"sequence_classifier": {"kernel": kernel + 1, "bias": head["bias"]}}
            ),
            "teacher_weights: '[0-9a-f]{64}' -> '",
        ),
        (
            "other",
            source._replace(labels=("up", "down")),
            "no model of the classes early, late .* of up, down: fine-tune",
        ),
    ):
        write_workdir(tmp_path / name, changed)
        with pytest.raises(UserError, match=message):
            finetune(dataclasses.replace(config, teacher=str(tmp_path / name)), run)


def test_a_frozen_encoder_stays(model, tmp_path):
    config = recipe("classification", model, tmp_path, freeze=True, epochs=1.0)
    workdir = epath.Path(tmp_path / "run")
    assert finetune(config, workdir)
    before, after = read_workdir(model).params["bert"], read_workdir(workdir).params["bert"]
    for part in ("embeddings", "encoder"):
        jax.tree.map(np.testing.assert_array_equal, before[part], after[part])
    assert np.any(before["pooler"]["kernel"] != after["pooler"]["kernel"])


def test_top_layers_start_anew(model, tmp_path):
    changes = {"reinit_layers": 1, "epochs": 0.05, "optimizer.learning_rate": 1e-30, "seed": 1}
    config = recipe("classification", model, tmp_path, **changes)
    assert finetune(config, epath.Path(tmp_path / "run"))
    before, after = (read_workdir(path).params["bert"] for path in (model, tmp_path / "run"))
    kernels = [
        tree["encoder"]["layers"]["attention"]["query"]["kernel"] for tree in (before, after)
    ]
    np.testing.assert_array_equal(kernels[0][0], kernels[1][0])
    assert np.all(kernels[0][1] != kernels[1][1])
    assert np.any(before["pooler"]["kernel"] != after["pooler"]["kernel"])


def test_layers_below_learn_more_slowly():
    _, init, _ = make_model(parts=("pooler", "sequence_classifier"), outputs=2)
    ones = jax.tree.map(lambda x: np.ones(x.shape), jax.eval_shape(init, jax.random.key(0)))
    scaled, _ = scale_by_depth(2, 0.5, freeze=False).update(ones, None, ones)
    layers = scaled["bert"]["encoder"]["layers"]["attention"]["query"]["kernel"]
    assert np.unique(layers[0]) == 0.25
    assert np.unique(layers[1]) == 0.5
    assert np.unique(scaled["bert"]["embeddings"]["word"]["embedding"]) == 0.125
    assert np.unique(scaled["bert"]["pooler"]["kernel"]) == 1
    assert np.unique(scaled["sequence_classifier"]["kernel"]) == 1


def test_seeds_are_summarized(model, tmp_path, capsys):
    config = recipe("classification", model, tmp_path, seeds=3, epochs=1.0)
    # A seed may have been trained by itself, on another device say.
    alone = dataclasses.replace(config, seed=1, seeds=1)
    assert finetune(alone, epath.Path(tmp_path / "run" / "seed1"))
    metrics = (tmp_path / "run" / "seed1" / "metrics.jsonl").read_text()
    assert finetune(config, epath.Path(tmp_path / "run"))
    assert (tmp_path / "run" / "seed1" / "metrics.jsonl").read_text() == metrics
    summary = json.loads((tmp_path / "run" / "results.json").read_text())["dev"]["accuracy"]
    each = [
        json.loads((tmp_path / "run" / f"seed{seed}" / "results.json").read_text())
        for seed in range(3)
    ]
    assert summary["values"] == [run["dev"]["metrics"]["accuracy"] for run in each]
    assert summary["median"] == sorted(summary["values"])[1]
    assert "dev accuracy, 3 seeds: median" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_from": "nowhere"}, "nowhere: no model there"),
        ({"task.name": "tagging "}, r"config\.task\.name='tagging ': use one of"),
        ({"task.max_seq_length": 128}, r"max_seq_length=128, but .* has 64 positions"),
        ({"task.train": "gone.tsv"}, r"gone\.tsv: no such file"),
        ({"batch_size": 512}, r"config\.batch_size=512, but .* has only 160 examples"),
        ({"layer_decay": 1.5}, r"config\.layer_decay must be in \(0, 1\], not 1\.5"),
        ({"task.dev": ""}, r"config\.task\.dev is empty"),
        ({"epochs": 0.0}, r"config\.epochs must be positive"),
        ({"init_from": ""}, r"config\.init_from is empty"),
        ({"task.label": "lable"}, r"no column 'lable'; there are \[text, label\]"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message, model, tmp_path):
    with pytest.raises(UserError, match=message):
        finetune(recipe("classification", model, tmp_path, **changes), epath.Path(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_another_run_is_not_gone_on_with(model, tmp_path):
    config = recipe("classification", model, tmp_path, epochs=0.1)
    workdir = epath.Path(tmp_path / "run")
    assert finetune(config, workdir)
    with pytest.raises(UserError, match=r"run of another model.*finetune\.epochs: 0\.1 -> 2\.0"):
        finetune(dataclasses.replace(config, epochs=2.0), workdir)


def test_another_run_can_be_read_where_one_is_damaged(model, tmp_path, capsys):
    """The advice about best/ is a command for `evaluate` and for `finetune` itself."""
    run = tmp_path / "run"
    assert finetune(recipe("classification", model, tmp_path), run)
    best = max((run / "best" / "checkpoints").iterdir(), key=lambda path: int(path.name))
    results, step = (run / "results.json").read_text(), int(best.name)
    (run / "best" / "checkpoints" / str(step)).rename(tmp_path / "kept")
    with Checkpoints(run / "best", keep=2) as written:
        params, _ = Checkpoints(run, read_only=True).read_params(10)
        written.save(step - 1, {"params": params}, {})
    (tmp_path / "kept").rename(best)
    for data in (best / "state").rglob("d/*"):
        data.write_bytes(bytes(len(data.read_bytes())))
    capsys.readouterr()
    assert main(["evaluate", f"--workdir={run}"]) == 2
    error = capsys.readouterr().err
    flags = re.search(r"another with (--workdir=.*/best) (--step=\d+)$", error.strip()).groups()
    assert flags[1] == f"--step={step - 1}"
    assert main(["evaluate", *flags]) == 0
    config = recipe("classification", model, tmp_path)
    with pytest.raises(
        UserError, match=r"train it again with --config\.resume_from=\d+$"
    ) as caught:
        finetune(config, run)
    back = int(str(caught.value).rpartition("=")[2])
    assert back < step
    assert finetune(dataclasses.replace(config, resume_from=back), run)
    assert (run / "results.json").read_text() == results


def test_the_model_of_a_run_may_move_but_not_change(model, tmp_path):
    run, moved, other = tmp_path / "run", tmp_path / "moved", epath.Path(tmp_path / "other")
    config = recipe("classification", model, tmp_path, epochs=1.0)
    assert finetune(config, run)
    shutil.copytree(model, moved)
    assert finetune(dataclasses.replace(config, init_from=str(moved)), run)
    source = read_workdir(model)
    write_workdir(other, source._replace(params=jax.tree.map(lambda x: x + 1, source.params)))
    with pytest.raises(UserError, match=r"init_from: .* -> .*other'; initial_weights: '"):
        finetune(dataclasses.replace(config, init_from=str(other)), run)


def test_unknown_option(model, tmp_path):
    with pytest.raises(UserError, match=r"task\.text: .*did you mean config\.task\.text_"):
        recipe("classification", model, tmp_path, **{"task.text": "x"})
