"""Classification with several labels: what is read, learned, decided and exchanged."""

import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from others import write_model

from bert_jax import load
from bert_jax.__main__ import main
from bert_jax.data.wordpiece import SPECIAL_TOKENS, WordPiece
from bert_jax.errors import UserError
from bert_jax.model.heads import MULTI_LABEL_CLASSIFIER, SEQUENCE_CLASSIFIER
from bert_jax.tasks import ClassificationTask, MultiLabelTask
from bert_jax.tasks.classification.example import Example
from bert_jax.tasks.classification.thresholds import best_threshold

WORDPIECE = WordPiece((*SPECIAL_TOKENS, *"abcdefghij"), lowercase=True)
TEXT = "the cat sat on the mat"
LABELS = ("toxic", "insult", "threat")
TASK = MultiLabelTask(labels=LABELS)


def write(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    return str(tmp_path / name)


def examples_of(rows):
    """Examples whose classes are those of a matrix; None for one whose classes are not known."""
    labels = [None if r is None else tuple(n for n, x in zip(LABELS, r) if x) for r in rows]
    return [Example("a", None, each, str(i), "place") for i, each in enumerate(labels)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "a.jsonl",
            '{"text": "a", "label": ["toxic", " threat"]}\n{"text": "b", "label": []}\n'
            '{"text": "c", "label": null}\n{"text": "d", "label": "insult, toxic,insult"}\n',
        ),
        (
            "a.json",
            '[{"text": "a", "label": "toxic,threat"}, {"text": "b", "label": " "}, '
            '{"text": "c", "label": null}, {"text": "d", "label": ["insult", "toxic"]}]',
        ),
    ],
)
def test_labels_are_lists_or_text(tmp_path, name, text):
    task = MultiLabelTask()
    examples = task.read(write(tmp_path, name, text))
    task = task.with_labels_of(examples)
    assert task.label_names == ("insult", "threat", "toxic")
    features = task.features(examples, WORDPIECE, 8)
    assert features.labels.tolist() == [[0, 1, 1], [0, 0, 0], [-1, -1, -1], [1, 0, 1]]
    assert features.counts["unlabelled"] == 1


def test_a_table_separates_labels(tmp_path):
    task = MultiLabelTask(separator="|", labels=(("toxic", "0"), ("insult", "1")))
    source = write(tmp_path, "a.csv", "text,label\na,0|insult\nb,\nc,1\n")
    examples = task.read(source)
    assert task.features(examples, WORDPIECE, 8).labels.tolist() == [[1, 1], [0, 0], [0, 1]]
    task.write_predictions(tmp_path / "p.tsv", examples, np.array([[1, 1], [0, 0], [0, 1]]))
    assert (tmp_path / "p.tsv").read_text() == "index\tprediction\n0\t0|1\n1\t\n2\t1\n"
    numbers = MultiLabelTask().read(write(tmp_path, "a.jsonl", '{"text": "a", "label": [3, 2.0]}'))
    assert numbers[0].label == ("3", "2")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"metric_names": ("f1",)}, "metric_names: f1; a classification with several labels has"),
        ({"thresholds": ("1.5",)}, r"thresholds: .*must be NAME=NUMBER, .*in \(0, 1\)"),
        ({"thresholds": ("toxic=0.5", "0.3")}, r"thresholds: '0.3' must be NAME=NUMBER"),
        ({"thresholds": ("toxic=0.5", "toxic=0.3")}, "thresholds: 'toxic' stands there twice"),
        ({"thresholds": ("rude=0.5",)}, "thresholds: 'rude' is none of the classes toxic, insult"),
        ({"class_weights": ("rude=2",)}, "class_weights: 'rude' is none of the classes toxic"),
        ({"class_weights": ("toxic=0",)}, r"class_weights: 'toxic=0' must be .* in \(0, inf\)"),
        ({"class_weights": ("toxic=nan",)}, "class_weights: 'toxic=nan' must be NAME=NUMBER"),
        ({"separator": ""}, "separator is empty"),
    ],
)
def test_contradictory_tasks(fields, message):
    with pytest.raises(UserError, match=message):
        replace(TASK, **fields)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('["rude"]', r"a.jsonl, line 1: label 'rude' is none of toxic, insult, threat"),
        ('["toxic", "-"]', r"a.jsonl, line 1: label '-' is none of toxic, insult, threat"),
        ("-1", r"a.jsonl, line 1: label '-1' is none of toxic, insult, threat"),
        ('[["toxic"]]', r"a.jsonl, line 1: label \['toxic'\] is list, neither text nor a number"),
        ('"toxic,,insult"', r"line 1: label 'toxic,,insult' has an empty name between two ','"),
        ('{"toxic": 1}', r"a.jsonl, line 1: label .* is dict, neither text nor a number"),
    ],
)
def test_bad_labels_are_named(tmp_path, row, message):
    with pytest.raises(UserError, match=message):
        TASK.read(write(tmp_path, "a.jsonl", f'{{"text": "a", "label": {row}}}\n'))


def test_training_needs_a_class(tmp_path):
    task = MultiLabelTask()
    examples = task.read(write(tmp_path, "a.jsonl", '{"text": "a", "label": []}\n'))
    with pytest.raises(UserError, match="'label': no training example has a class"):
        task.with_labels_of(examples)


@pytest.mark.filterwarnings("error")
def test_metrics_are_those_of_scikit_learn():
    from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

    random = np.random.default_rng(0)
    names = ("micro_f1", "macro_f1", "samples_f1", "accuracy")
    task = replace(TASK, metric_names=names)
    for count in (1, 3, 50):
        labels, predictions = random.integers(2, size=(2, count, 3))
        found = task.metrics(np.vstack([predictions, [1, 1, 1]]), examples_of([*labels, None]))
        expected = {
            name: f1_score(
                labels, predictions, average=name[:-3], zero_division=1.0 * (name == "samples_f1")
            )
            for name in names[:3]
        }
        assert found == pytest.approx(expected | {"accuracy": accuracy_score(labels, predictions)})
        assert list(found) == list(names)
        columns = precision_recall_fscore_support(labels, predictions, zero_division=0)
        per_class = task.per_class(predictions, examples_of(labels))
        for row, *numbers in zip(per_class, *columns, strict=True):
            assert list(row.values())[1:] == pytest.approx(numbers)
        assert [row["label"] for row in per_class] == list(LABELS)
    assert task.confusion_matrix(predictions, examples_of(labels)) is None


def test_the_guess_has_the_frequent_classes():
    train = examples_of([[1, 0, 1], [1, 0, 0], [1, 1, 1], None])
    dev = examples_of([[1, 0, 1], [0, 0, 1]])
    assert TASK.baseline(train, dev)["micro_f1"] == pytest.approx(6 / 7)
    rare = examples_of([[0, 1, 0], [0, 0, 0], [0, 0, 0]])
    assert TASK.baseline(rare, examples_of([[0, 1, 0]])) == {
        "micro_f1": 1.0,
        "macro_f1": pytest.approx(1 / 3),
        "accuracy": 1.0,
    }


def test_no_threshold_has_a_better_f1():
    from sklearn.metrics import f1_score, precision_recall_curve

    random = np.random.default_rng(0)
    for count in (1, 2, 5, 40):
        for _ in range(20):
            is_class = random.random(count) < 0.3
            probabilities = np.float32(random.integers(1, 11, count) / 10)  # with ties
            found = best_threshold(is_class, probabilities)
            if not is_class.any():
                assert found == 0.5
                continue
            assert 0 < found < 1
            precision, recall, _ = precision_recall_curve(is_class, probabilities)
            best = np.max(2 * precision * recall / np.maximum(precision + recall, 1e-9))
            assert f1_score(is_class, probabilities >= found) == pytest.approx(best)
    assert best_threshold(np.array([True]), np.float32([0])) == 0.5


def test_thresholds_are_fitted_to_known_examples_and_decide():
    logits = np.float32([[2, -1, 0], [1, -2, 0], [-1, -3, 0], [9, 9, 9]])
    examples = examples_of([[1, 1, 0], [0, 1, 0], [0, 0, 0], None])
    task = TASK.fitted(logits, None, examples)
    chances = 1 / (1 + np.exp(-logits.astype(float)))
    expected = [chances[:2, 0].mean(), chances[1:3, 1].mean(), 0.5]
    names, numbers = zip(*(text.split("=") for text in task.thresholds))
    assert names == LABELS
    np.testing.assert_allclose([*map(float, numbers)], expected, rtol=1e-6)
    found = task.predictions(logits, None, examples)
    assert found.tolist() == [[1, 1, 1], [0, 1, 1], [0, 0, 1], [1, 1, 1]]
    assert task.fitted(-logits, None, examples) is task
    (record, *_) = replace(TASK, thresholds=("0.6",)).records(logits, None, examples)
    assert record["labels"] == ["toxic"]
    assert record["probabilities"] == pytest.approx(dict(zip(LABELS, chances[0])), abs=1e-6)
    by_name = replace(TASK, thresholds=("insult=0.2", "toxic=0.9"))
    assert by_name.predictions(logits[:1], None, examples[:1]).tolist() == [[0, 1, 1]]


def test_a_class_is_predicted_from_its_threshold_on():
    task = ClassificationTask(labels=("ham", "spam", "other"), thresholds=("spam",))
    logits = np.log(np.float32([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6], [0.1, 0.8, 0.1]]))
    examples = [Example("a", None, label, "0", "") for label in ("spam", "ham", "spam")]
    assert task.predictions(logits, None, examples).tolist() == [0, 2, 1]
    fitted = task.fitted(logits, None, examples)
    name, number = fitted.thresholds[0].split("=")
    assert (name, float(number)) == ("spam", pytest.approx(0.25))
    assert fitted.predictions(logits, None, examples).tolist() == [1, 2, 1]
    high = replace(task, thresholds=("spam=0.9",))
    assert high.predictions(logits, None, examples).tolist() == [0, 2, 0]
    record = high.records(logits, None, examples)[2]
    assert (record["label"], record["probability"]) == ("ham", pytest.approx(0.1))
    for thresholds, message in (
        (("rude=0.5",), "thresholds: 'rude' is none of the classes ham, spam, other"),
        (("rude",), "thresholds: 'rude' is none of the classes"),
        (("spam=0.5", "ham=0.5"), "thresholds: one class can have one; multi_label takes several"),
        (("spam=1",), r"thresholds: 'spam=1' must be NAME=NUMBER, .* in \(0, 1\)"),
    ):
        with pytest.raises(UserError, match=message):
            replace(task, thresholds=thresholds)
    with pytest.raises(UserError, match="thresholds: a regression has none"):
        ClassificationTask(regression=True, thresholds=("a=0.5",))


def test_balanced_weights_are_those_of_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    labels = ["a"] * 7 + ["b"] * 2 + ["c"]
    examples = [Example("x", None, label, "0", "") for label in (*labels, None)]
    task = ClassificationTask(class_weights=("balanced",)).with_labels_of(examples)
    expected = compute_class_weight("balanced", classes=np.array(["a", "b", "c"]), y=labels)
    np.testing.assert_allclose(task.head.class_weights, expected, rtol=1e-5)
    assert [text.split("=")[0] for text in task.class_weights] == ["a", "b", "c"]
    given = ClassificationTask(labels=("a", "b"), class_weights=("b=3",))
    assert given.head.class_weights == (1.0, 3.0)
    several = replace(TASK, class_weights=("balanced",))
    several = several.with_labels_of(examples_of([[1, 0, 1], [1, 0, 0], [1, 1, 0], [1, 0, 1]]))
    assert several.head.class_weights == (1.0, 3.0, 1.0)


@pytest.mark.parametrize("weighted", [False, True])
def test_losses_are_those_of_pytorch(weighted):
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    logits = random.normal(size=(2, 3, 4)).astype(np.float32) * 3
    weights = (0.5, 2.0, 3.0, 1.0) if weighted else ()
    weight = torch.tensor(weights) if weighted else None

    classes = random.integers(4, size=(2, 3)).astype(np.int32)
    classes[1, 2] = -1
    head = replace(SEQUENCE_CLASSIFIER, class_weights=weights)
    sums = head.sums(jnp.asarray(logits), classes, head.weights(classes), {})
    loss = torch.nn.CrossEntropyLoss(weight, ignore_index=-1)
    expected = loss(torch.tensor(logits.reshape(6, 4)), torch.tensor(classes.reshape(6)).long())
    assert sums["loss"] / sums["count"] == pytest.approx(expected.item(), rel=1e-5)

    applies = random.integers(2, size=(2, 3, 4)).astype(np.int32)
    applies[1, 2] = -1
    several = replace(MULTI_LABEL_CLASSIFIER, class_weights=weights)
    sums = several.sums(jnp.asarray(logits), applies, several.weights(applies), {})
    loss = torch.nn.BCEWithLogitsLoss(pos_weight=weight)
    known = applies.reshape(6, 4)[:5]
    expected = loss(torch.tensor(logits.reshape(6, 4)[:5]), torch.tensor(known).float())
    assert sums["count"] == 5
    assert sums["loss"] / sums["count"] == pytest.approx(expected.item(), rel=1e-5)


def test_a_classifier_of_transformers_is_scored(tmp_path, capsys):
    """Its loss and its decisions at 0.5 are those of transformers."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    fields = {"problem_type": "multi_label_classification"}
    path = write_model(tmp_path / "model", "sequence", labels=LABELS, **fields)
    model = transformers.BertForSequenceClassification.from_pretrained(path)
    texts = [TEXT, "the cat", "the"]
    labels = [[1, 0, 1], [0, 0, 0], [0, 1, 1]]
    tokens = transformers.AutoTokenizer.from_pretrained(path)(
        texts, return_tensors="pt", padding=True
    )
    with torch.no_grad():
        theirs = model(**tokens, labels=torch.tensor(labels).float())
    rows = [
        {"text": text, "label": [name for name, x in zip(LABELS, row) if x]}
        for text, row in zip(texts, labels)
    ]
    data = write(tmp_path, "data.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert main(["evaluate", f"--workdir={path}", f"--data={data}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])[data]
    decided = (theirs.logits > 0).int().numpy()
    expected = TASK.metrics(decided, examples_of(labels))
    assert found == pytest.approx(expected | {"loss": theirs.loss.item()}, abs=1e-5)

    arguments = ["predict", "classify", f"--model={path}", "--thresholds=toxic=0.001,insult=0.999"]
    assert main([*arguments, TEXT]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    chances = theirs.logits[0].sigmoid().numpy()
    assert said["probabilities"] == pytest.approx(dict(zip(LABELS, chances)), abs=1e-5)
    assert set(said["labels"]) == {"toxic", *(["threat"] if chances[2] >= 0.5 else [])}
    assert load(path).text_task().thresholds == ()
    assert main([*arguments[:-1], "--thresholds=rude=0.5", TEXT]) == 2
    assert "thresholds: 'rude' is none of the classes toxic" in capsys.readouterr().err
