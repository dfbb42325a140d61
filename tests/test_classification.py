"""Classification and regression: what is read, what the model gets, what comes out."""

import json
import logging
import math
import random
from dataclasses import replace

import numpy as np
import pytest

from bert_jax.data.wordpiece import SPECIAL_TOKENS, WordPiece
from bert_jax.errors import UserError
from bert_jax.tasks import ClassificationTask, GlueTask, Task
from bert_jax.tasks.classification.decoding import likeliest_classes, scores
from bert_jax.tasks.classification.example import Example
from bert_jax.tasks.features import pair_ids

pytestmark = pytest.mark.core

WORDPIECE = WordPiece((*SPECIAL_TOKENS, *"abcdefghij"), lowercase=True)
CLS, SEP = WORDPIECE.cls_id, WORDPIECE.sep_id
SENTIMENT = ClassificationTask(labels=(("negative", "0"), ("positive", "1")))
SIMILARITY = ClassificationTask(
    text_b="other", regression=True, metric_names=("pearson", "spearman")
)
GLUE = {
    name.removeprefix("glue/"): kind()
    for name, kind in Task.kinds().items()
    if issubclass(kind, GlueTask)
}


def write(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    return str(tmp_path / name)


def example(text_a, text_b=None, label=None, index="0"):
    return Example(text_a, text_b, label, index, "a.tsv, line 2")


def labelled(task, labels):
    """Examples with these classes or scores; None = not known."""
    names = task.label_names or None
    return [
        example("a", label=label if names is None or label is None else names[label])
        for label in labels
    ]


def ids(text):
    return [WORDPIECE.vocab.index(token) for token in text.split()]


def test_labels_are_found_in_training_and_hold_for_the_rest(tmp_path):
    task = ClassificationTask(format="label_first", label="coarse_label")
    train = task.read(write(tmp_path, "train", "NUM:date a b\nABBR:exp c\nNUM:dist d\n"))
    task = task.with_labels_of(train)
    assert (task.label_names, task.num_labels) == (("ABBR", "NUM"), 2)
    assert task.features(train, WORDPIECE, 8).labels.tolist() == [1, 0, 1]
    assert task.with_labels_of(train[1:2]) is task
    dev = write(tmp_path, "dev", "NUM:date a\nLOC:city b\n")
    with pytest.raises(UserError, match=r"dev, line 2: label 'LOC' is none of ABBR, NUM, "):
        task.read(dev)
    assert [e.label for e in task.read(dev, labelled=False)] == [None, None]


def test_a_class_has_spellings(tmp_path):
    rows = '{"text": "a", "label": 1}\n{"text": "b", "label": "negative"}\n'
    examples = SENTIMENT.read(write(tmp_path, "a.jsonl", rows))
    assert SENTIMENT.features(examples, WORDPIECE, 8).labels.tolist() == [1, 0]
    SENTIMENT.write_predictions(tmp_path / "p.tsv", examples, np.array([0, 1]))
    assert (tmp_path / "p.tsv").read_text() == "index\tprediction\n0\t0\n1\t1\n"
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl", "p.tsv"}


def test_unknown_labels_stay_but_do_not_count(tmp_path):
    source = write(tmp_path, "sts.tsv", "3.5\ta\tb\n\tc\td\n0\te\tf\n5\tg\th\n")
    task = replace(SIMILARITY, text_a="2", text_b="3", label="1")
    features = task.features(task.read(source), WORDPIECE, 8)
    np.testing.assert_array_equal(features.labels, np.float32([3.5, np.nan, 0, 5]))
    assert features.counts["unlabelled"] == 1
    assert task.metrics(np.float32([7, 0, 0, 10]), task.read(source))["pearson"] == pytest.approx(1)
    examples = [example("a", label="1"), example("b")]
    assert SENTIMENT.features(examples, WORDPIECE, 8).labels.tolist() == [1, -1]
    assert SENTIMENT.metrics(np.array([1, 1]), examples) == {"accuracy": 1.0}


def test_features_of_texts_and_pairs():
    single = SENTIMENT.features([example("A b"), example("\u200b")], WORDPIECE, 8)
    assert [row.tolist() for row in single.input_ids] == [[CLS, *ids("a b"), SEP], [CLS, SEP]]
    assert single.b_start.tolist() == [4, 2]
    assert single.counts["empty_texts"] == 1

    pairs = [example("a b c d e", "f g", 1.0), example("a", "")]
    features = SIMILARITY.features(pairs, WORDPIECE, 8)
    assert features.input_ids[0].tolist() == [CLS, *ids("a b c"), SEP, *ids("f g"), SEP]
    assert features.input_ids[1].tolist() == [CLS, *ids("a"), SEP, SEP]
    assert features.b_start.tolist() == [5, 3]
    assert {row.dtype for row in features.input_ids} == {np.dtype(np.int32)}
    assert features.counts == {
        "examples": 2,
        "unlabelled": 1,
        "truncated": 1,
        "tokens_cut": 2,
        "empty_texts": 1,
    }


def test_truncation_takes_the_longer_text_token_by_token():
    draw = random.Random(0)
    for _ in range(1000):
        a = [draw.randrange(5, 15) for _ in range(draw.randrange(12))]
        b = [draw.randrange(5, 15) for _ in range(draw.randrange(12))]
        max_seq_length = draw.randrange(4, 28)
        found, b_start, cut = pair_ids(WORDPIECE, a, b, max_seq_length)
        before = len(a) + len(b)
        while len(a) + len(b) > max_seq_length - 3:
            (a if len(a) > len(b) else b).pop()
        assert found.tolist() == [CLS, *a, SEP, *b, SEP]
        assert (b_start, cut) == (len(a) + 2, before - len(a) - len(b))


def ranks(values):
    """Ranks from 1, the mean of them where values are equal."""
    return np.array([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])


def by_hand(labels, predictions):
    """The metrics of two classes from their definitions; 0 for 0 / 0."""
    tp, fp, fn, tn = (
        float(np.sum((labels == label) & (predictions == prediction)))
        for label, prediction in ((1, 1), (0, 1), (1, 0), (0, 0))
    )
    root = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return {
        "accuracy": (tp + tn) / len(labels),
        "f1": 2 * tp / (2 * tp + fp + fn) if tp else 0.0,
        "matthews": (tp * tn - fp * fn) / root if root else 0.0,
    }


@pytest.mark.filterwarnings("error")
def test_class_metrics_are_those_of_their_definitions():
    task = replace(SENTIMENT, metric_names=("accuracy", "f1", "matthews"))
    random = np.random.default_rng(0)
    cases = [random.integers(2, size=(2, n)) for n in (1, 2, 3, 7, 20, 500)]
    cases += [np.array([[0, 0, 0], [i, j, j]]) for i in (0, 1) for j in (0, 1)]
    cases += [np.array([[1, 1, 1], [i, j, j]]) for i in (0, 1) for j in (0, 1)]
    cases += [np.array([[0, 1, 1], [i, i, i]]) for i in (0, 1)]
    for labels, predictions in cases:
        found = task.metrics(predictions, labelled(task, labels))
        assert found == pytest.approx(by_hand(labels, predictions)), (labels, predictions)
        assert all(type(value) is float for value in found.values())


@pytest.mark.filterwarnings("error")
def test_correlations_are_those_of_their_definitions():
    random = np.random.default_rng(0)
    for n in (2, 3, 10, 1000):
        labels = random.integers(0, 6, n).astype(np.float32)
        labels[:2] = 0, 5
        predictions = (labels + random.normal(size=n)).astype(np.float32)
        assert SIMILARITY.metrics(predictions, labelled(SIMILARITY, labels)) == pytest.approx(
            {
                "pearson": np.corrcoef(labels, predictions)[0, 1],
                "spearman": np.corrcoef(ranks(labels), ranks(predictions))[0, 1],
            }
        )
    for labels, predictions in (([1, 2, 3], [2, 2, 2]), ([2, 2], [1, 3]), ([1], [1])):
        found = SIMILARITY.metrics(np.float32(predictions), labelled(SIMILARITY, labels))
        assert found == {"pearson": 0, "spearman": 0}


def test_confusion_and_classes():
    task = ClassificationTask(labels=("x", "y", "z"), metric_names=("accuracy", "macro_f1"))
    examples, predictions = labelled(task, [0, 0, 1, 0, None]), np.array([0, 1, 1, 0, 1])
    matrix = task.confusion_matrix(predictions, examples)
    assert matrix.tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    x, y, z = task.per_class(predictions, examples)
    assert x == {
        "label": "x",
        "precision": 1.0,
        "recall": pytest.approx(2 / 3),
        "f1": pytest.approx(0.8),
        "support": 3,
    }
    assert (y["precision"], y["recall"], y["support"]) == (0.5, 1.0, 1)
    assert z == {"label": "z", "precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
    found = task.metrics(predictions, examples)
    assert found == pytest.approx({"accuracy": 0.75, "macro_f1": (0.8 + 2 / 3) / 2})


def test_baselines_and_predictions():
    train, dev = labelled(SENTIMENT, [1, 1, 0, None]), labelled(SENTIMENT, [0, 1, 0, 0, 0])
    assert SENTIMENT.baseline(train, dev) == {"accuracy": 0.2}
    train, dev = labelled(SIMILARITY, [1, None, 4]), labelled(SIMILARITY, [0, 1, 2])
    assert SIMILARITY.baseline(train, dev) == {"pearson": 0, "spearman": 0}
    assert likeliest_classes(np.float32([[1, 2], [3, 0]])).tolist() == [1, 0]
    assert scores(np.float32([[1.5], [-2]])).tolist() == [1.5, -2]


def test_negative_scores_are_known():
    examples = labelled(SIMILARITY, [-1, -3, None])
    assert SIMILARITY.metrics(np.float32([-2, -6, 9]), examples)["pearson"] == pytest.approx(1)


def test_a_regression_has_no_classes():
    examples, predictions = labelled(SIMILARITY, [1, 2]), np.float32([1, 2])
    assert SIMILARITY.per_class(predictions, examples) == []
    assert SIMILARITY.confusion_matrix(predictions, examples) is None
    assert SIMILARITY.with_labels(("a", "b")) is SIMILARITY


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"metric_names": ("pearson",)}, "metric_names: pearson; a classification has accuracy"),
        (
            {"regression": True, "metric_names": ("accuracy",)},
            "metric_names: accuracy; a regression has pearson, spearman",
        ),
        ({"regression": True, "labels": ("a", "b")}, "labels: a regression has none"),
        ({"labels": ("a", ("b", "a"))}, "labels: two are spelled alike in a, b"),
        ({"labels": ("a", "b", "c"), "metric_names": ("f1",)}, "there are 3; take macro_f1"),
    ],
)
def test_contradictory_tasks(fields, message):
    with pytest.raises(UserError, match=message):
        ClassificationTask(**fields)


def test_metrics_follow_the_task():
    assert ClassificationTask().metric_names == ("accuracy",)
    assert ClassificationTask(regression=True).metric_names == ("pearson", "spearman")
    assert GLUE["stsb"].metric_names == ("pearson", "spearman")


@pytest.mark.parametrize("name", ["snli_1.0_dev.jsonl", "dev.tsv"])
def test_a_dash_is_no_label(tmp_path, name):
    """As in SNLI's and MultiNLI's own files; it counts neither in training nor in a score."""
    rows = [("a", "b", "entailment"), ("c", "d", "-"), ("e", "f", "neutral")]
    if name.endswith("jsonl"):
        columns = ("sentence1", "sentence2", "gold_label")
        text = "".join(json.dumps(dict(zip(columns, row))) + "\n" for row in rows)
    else:
        text = "sentence1\tsentence2\tgold_label\n" + "".join("\t".join(r) + "\n" for r in rows)
    examples = GLUE["mnli"].read(write(tmp_path, name, text))
    assert [e.label for e in examples] == ["entailment", None, "neutral"]
    features = GLUE["mnli"].features(examples, WORDPIECE, 8)
    assert features.labels.tolist() == [0, -1, 1]
    assert features.counts["unlabelled"] == 1
    assert GLUE["mnli"].metrics(np.array([0, 0, 0]), examples) == {"accuracy": 0.5}


def test_what_a_dash_means_where_classes_are_found(tmp_path, caplog):
    task = ClassificationTask()

    def labels(*found):
        text = "text\tlabel\n" + "".join(f"a\t{label}\n" for label in found)
        examples = task.read(write(tmp_path, "a.tsv", text))
        known = task.with_labels_of(examples)
        return known.label_names, known.features(examples, WORDPIECE, 8).labels.tolist()

    assert labels("yes", "-", "no") == (("no", "yes"), [1, -1, 0])
    assert "label '-': taken for no label in 1 examples; if it is a class, list" in caplog.text
    caplog.clear()
    assert labels("+", "-", "0") == (("+", "-", "0"), [0, 1, 2])
    assert labels("1", "-1", "0") == (("-1", "0", "1"), [2, 0, 1])
    assert not caplog.text
    assert labels("yes", "-") == (("-", "yes"), [1, 0])
    assert labels("2", "1", "-1", "0") == (("-1", "0", "1", "2"), [3, 2, 0, 1])
    assert "label '-1': taken for a class in 1 examples; if it is no label, list" in caplog.text
    source = write(tmp_path, "a.tsv", "text\tlabel\na\t-\nb\tx\nc\t-1\n")
    task = ClassificationTask(labels=("x", "-"))
    assert [e.label for e in task.read(source)] == ["-", "x", None]


@pytest.mark.parametrize(("label", "name"), [(1, "1"), (1.0, "1"), (" 1 ", "1"), (True, "True")])
def test_labels_of_json_are_named(tmp_path, label, name):
    row = json.dumps({"text": "a", "label": label})
    (found,) = ClassificationTask().read(write(tmp_path, "a.jsonl", row))
    assert found.label == name


def test_labels_of_json_may_be_missing_or_wrong(tmp_path):
    rows = '{"text": "a", "label": 1}\n{"text": "b", "label": NaN}\n{"text": "c", "label": null}\n'
    source = write(tmp_path, "a.jsonl", rows)
    assert [e.label for e in ClassificationTask().read(source)] == ["1", None, None]
    assert [e.label for e in ClassificationTask(regression=True).read(source)] == [1.0, None, None]
    for wrong in ("[1]", '{"a": 1}'):
        source = write(tmp_path, "b.jsonl", f'{{"text": "a", "label": {wrong}}}')
        with pytest.raises(UserError, match=r"b.jsonl, line 1: label .* neither text nor a number"):
            ClassificationTask().read(source)


@pytest.mark.parametrize(
    ("task", "rows", "message"),
    [
        (SENTIMENT, "text\tlabel\na\tsad\n", r"a.tsv, line 2: label 'sad' is none of negative, p"),
        (SENTIMENT, "text\tlabel\n", r"a.tsv: no rows"),
        (SENTIMENT, "text\tlabel\na\t \n", r"a.tsv: no row has a label in 'label'"),
        (SENTIMENT, "text\tgold\na\t1\n", r"a.tsv, line 2: no column 'label'; there are \[text, g"),
        (SENTIMENT, "text\tidx\tlabel\na\n", r"a.tsv, line 2: no column 'label'; there are \[tex"),
        (SIMILARITY, "text\tother\tlabel\na\tb\t4,5\n", r"line 2: label '4,5' is not a finite num"),
        (SIMILARITY, "text\tother\tlabel\na\tb\tnan\n", r"line 2: label 'nan' is not a finite num"),
    ],
)
def test_bad_rows_are_named(tmp_path, task, rows, message):
    with pytest.raises(UserError, match=message):
        task.read(write(tmp_path, "a.tsv", rows))


def test_text_must_be_text_and_training_needs_two_classes(tmp_path):
    source = write(tmp_path, "a.jsonl", '{"text": 7, "label": "x"}\n')
    with pytest.raises(UserError, match=r"a.jsonl, line 1: 'text' is int, not text"):
        ClassificationTask().read(source)
    with pytest.raises(UserError, match=r"'label': all training examples have 'x'"):
        ClassificationTask().with_labels_of([example("a", label="x")])


# A line of each file as GLUE hands it out, and the file of predictions it takes. MNLI and STS-B
# have more columns than are shown here.
GLUE_FILES = {
    "cola": ("gj04\t0\t*\ta b\n", "index\tsentence\n0\ta b\n", "0\t0"),
    "sst2": ("sentence\tlabel\na b\t0\n", "index\tsentence\n0\ta b\n", "0\t0"),
    "mrpc": (
        "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t5\t6\ta\tb\n",
        "index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t5\t6\ta\tb\n",
        "0\t0",
    ),
    "stsb": (
        "index\tsentence1\tsentence2\tscore\n0\ta\tb\t0.000\n",
        "index\tsentence1\tsentence2\n0\ta\tb\n",
        "0\t0.0000",
    ),
    "qqp": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n9\t1\t2\ta\tb\t0\n",
        "id\tquestion1\tquestion2\n0\ta\tb\n",
        "0\t0",
    ),
    "mnli": (
        "index\tsentence1\tsentence2\tlabel1\tgold_label\n0\ta\tb\tneutral\tentailment\n",
        "index\tsentence1\tsentence2\n9815\ta\tb\n",
        "9815\tentailment",
    ),
    "ax": (
        "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n",
        "index\tsentence1\tsentence2\n0\ta\tb\n",
        "0\tentailment",
    ),
    "qnli": (
        "index\tquestion\tsentence\tlabel\n0\ta\tb\tentailment\n",
        "index\tquestion\tsentence\n0\ta\tb\n",
        "0\tentailment",
    ),
    "rte": (
        "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n",
        "index\tsentence1\tsentence2\n0\ta\tb\n",
        "0\tentailment",
    ),
    "wnli": (
        "index\tsentence1\tsentence2\tlabel\n0\ta\tb\t0\n",
        "index\tsentence1\tsentence2\n0\ta\tb\n",
        "0\t0",
    ),
}


@pytest.mark.parametrize("name", GLUE_FILES)
def test_glue_files(tmp_path, name):
    task = GLUE[name]
    train, test, row = GLUE_FILES[name]
    features = task.features(task.read(write(tmp_path, "train.tsv", train)), WORDPIECE, 8)
    assert features.labels.tolist() == [0]
    texts = "a b" if name in ("cola", "sst2") else "a [SEP] b"
    assert features.input_ids[0].tolist() == [CLS, *ids(texts), SEP]
    examples = task.read(write(tmp_path, "test.tsv", test), labelled=False)
    for file in task.submissions.values():
        task.write_predictions(tmp_path / file, examples, np.array([0]))
        assert (tmp_path / file).read_text() == f"index\tprediction\n{row}\n"


# Rows of the files of GLUE that the library `datasets` has, with the number of the last class.
DATASETS = {
    "cola": ({"sentence": "a b"}, 1),
    "sst2": ({"sentence": "a b"}, 1),
    "mrpc": ({"sentence1": "a", "sentence2": "b"}, 1),
    "stsb": ({"sentence1": "a", "sentence2": "b"}, 2.5),
    "qqp": ({"question1": "a", "question2": "b"}, 1),
    "mnli": ({"premise": "a", "hypothesis": "b"}, 2),
    "ax": ({"premise": "a", "hypothesis": "b"}, 2),
    "qnli": ({"question": "a", "sentence": "b"}, 1),
    "rte": ({"sentence1": "a", "sentence2": "b"}, 1),
    "wnli": ({"sentence1": "a", "sentence2": "b"}, 1),
}


@pytest.mark.parametrize("suffix", ["parquet", "csv", "tsv", "jsonl"])
@pytest.mark.parametrize("name", DATASETS)
def test_glue_as_datasets_has_it(tmp_path, name, suffix):
    """Labels are numbers of classes, -1 where the server keeps them."""
    texts, label = DATASETS[name]
    rows = [texts | {"label": label, "idx": 7}, texts | {"label": -1 + 0 * label, "idx": 8}]
    source = tmp_path / f"test-00000-of-00001.{suffix}"
    if suffix == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(rows), source)
    elif suffix == "jsonl":
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        lines = [rows[0], *(row.values() for row in rows)]
        source.write_text(
            "".join(",\t"[suffix == "tsv"].join(map(str, line)) + "\n" for line in lines)
        )
    task = GLUE[name]
    examples = task.read(str(source))
    assert [e.index for e in examples] == ["7", "8"]
    labels = task.features(examples, WORDPIECE, 8).labels.tolist()
    assert labels == ([2.5, -1] if name == "stsb" else [label, -1])
    submission = task.submission_name(str(source))
    assert submission == task.submissions.get("test")


def test_glue_files_are_never_quoted(tmp_path):
    source = write(tmp_path, "train.tsv", 'sentence\tlabel\n"a ""b"" c"\t0\n')
    assert [e.text_a for e in GLUE["sst2"].read(source)] == ['"a ""b"" c"']
    task = ClassificationTask(text_a="sentence")
    assert [e.text_a for e in task.read(source)] == ['a "b" c']


def test_glue_has_data_and_submissions():
    assert GLUE.keys() == GLUE_FILES.keys()
    for name, task in GLUE.items():
        train, dev = f"tfds:glue/{name}:train", f"tfds:glue/{name}:validation"
        test, submission = f"tfds:glue/{name}:test", task.submission_name(task.test)
        if name == "mnli":
            dev, test = f"{dev}_matched", f"{test}_matched"
        if name == "ax":  # is for testing alone
            train = dev = ""
        assert (task.train, task.dev, task.test, task.test_labelled) == (train, dev, test, False)
        assert submission in task.submissions.values()
    assert GLUE["sst2"].submission_name("tfds:glue/sst2:test") == "SST-2.tsv"
    assert GLUE["mnli"].submission_name("tfds:glue/mnli:test_mismatched") == "MNLI-mm.tsv"
    assert GLUE["sst2"].submission_name("tfds:glue/sst2:validation") is None
    assert SENTIMENT.submission_name("tfds:glue/sst2:test") is None


def test_glue_is_what_tfds_says():
    """Columns, classes and their order. (To say so TFDS needs TensorFlow; to read, it does not.)"""
    pytest.importorskip("tensorflow", reason="TFDS's own code of GLUE imports it")
    from tensorflow_datasets.text.glue import Glue

    for name, task in GLUE.items():
        config = Glue.builder_configs[name]
        assert task.label_names == tuple(config.label_classes or ())
        assert task.regression == (config.label_classes is None)
        columns = {*config.text_features, "label", "idx"}
        for names in filter(None, (task.text_a, task.text_b, task.label, task.index)):
            assert columns & {*([names] if isinstance(names, str) else names)}, (name, names)


def test_glue_rows_cut_short_are_skipped_and_counted(tmp_path, caplog):
    rows = "id\tquestion1\tquestion2\tis_duplicate\n1\ta\tb\t1\n2\ta\n3\tc\td\t0\n4\n"
    with caplog.at_level(logging.WARNING):
        examples = GLUE["qqp"].read(write(tmp_path, "train.tsv", rows))
    assert [e.index for e in examples] == ["1", "3"]
    assert "train.tsv, line 3: row skipped for lack of a column, 1 of 2" in caplog.text


def test_predictions_are_sorted_where_tfds_has_shuffled(tmp_path):
    examples = [example("a", index=index) for index in ("10", "9", "0")]
    SENTIMENT.write_predictions(tmp_path / "p.tsv", examples, np.array([0, 1, 1]))
    assert (tmp_path / "p.tsv").read_text().split("\n")[1:-1] == ["0\t1", "9\t1", "10\t0"]
