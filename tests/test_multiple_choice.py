"""Multiple choice: what is read, what the model gets, what it learns, and the exchange."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from others import write_model
from tiny import make_model

from bert_jax.__main__ import main
from bert_jax.data.wordpiece import SPECIAL_TOKENS, WordPiece
from bert_jax.errors import UserError
from bert_jax.interop.formats import read
from bert_jax.model.architecture import Architecture
from bert_jax.model.heads import MULTIPLE_CHOICE
from bert_jax.objective.finetuning import FineTuning
from bert_jax.tasks import MultipleChoiceTask
from bert_jax.tasks.batches import ExampleBatches
from bert_jax.tasks.multiple_choice.example import Question

WORDPIECE = WordPiece((*SPECIAL_TOKENS, *"abcdefghij"), lowercase=True)
SWAG = MultipleChoiceTask(
    context="sent1", question="sent2", choices=("ending0", "ending1"), answer="label"
)
RACE = MultipleChoiceTask(context="article", choices=("options",))


def write(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    return str(tmp_path / name)


def ids(text):
    return [WORDPIECE.vocab.index(token) for token in text.split()]


def test_choices_are_columns_lists_or_named(tmp_path):
    swag = SWAG.read(write(tmp_path, "a.csv", "sent1,sent2,ending0,ending1,label\na,b,c,d,1\n"))
    assert swag == [Question("a", "b", ("c", "d"), 1, "0", swag[0].place)]
    row = {"article": "a", "question": "b", "options": ["c", "d", "e"], "answer": "C", "id": "x"}
    race = RACE.read(write(tmp_path, "a.jsonl", json.dumps(row)))
    assert race == [Question("a", "b", ("c", "d", "e"), 2, "x", race[0].place)]
    choices = {"label": ["X", "Y"], "text": ["c", "d"]}
    row = {"question": "b", "choices": choices, "answerKey": "Y"}
    task = MultipleChoiceTask(answer="answerKey")
    found = task.read(write(tmp_path, "b.jsonl", json.dumps(row)))
    assert found == [Question(None, "b", ("c", "d"), 1, "0", found[0].place)]


@pytest.mark.parametrize("answer", [None, "", -1, "-1"])
def test_an_answer_may_be_unknown(tmp_path, answer):
    row = {"article": "a", "question": "b", "options": ["c", "d"]}
    rows = [row | {"answer": 0.0}, row | {"answer": answer}]
    source = write(tmp_path, "a.json", json.dumps(rows))
    questions = RACE.read(source)
    assert [question.answer for question in questions] == [0, None]
    assert RACE.features(questions, WORDPIECE, 16).labels[:, 1].tolist() == [1, 0, -1, -1]
    assert RACE.metrics(np.array([0, 1]), questions) == {"accuracy": 1.0}
    assert [q.answer for q in RACE.read(source, labelled=False)] == [None, None]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": 2}, r"line 1: answer 2 is none of the choices, 0 to 1, A to B"),
        ({"answer": "E"}, r"line 1: answer 'E' is none of the choices"),
        ({"options": ["c"]}, r"line 1: options: a question needs two choices"),
        ({"options": "c, d"}, r"line 1: options: the choices must be a list of texts"),
        ({"options": ["c", 1]}, r"line 1: options: the choices must be a list of texts"),
        ({"question": 3}, r"line 1: 'question' is int, not text"),
        ({"answer": None}, r"a.jsonl: no row has an answer in 'answer' or 'label'"),
    ],
)
def test_bad_questions_are_named(tmp_path, changes, message):
    row = {"article": "a", "question": "b", "options": ["c", "d"], "answer": "A"} | changes
    with pytest.raises(UserError, match=message):
        RACE.read(write(tmp_path, "a.jsonl", json.dumps(row)))


def test_features_have_a_pair_for_each_choice(tmp_path):
    row = {"article": "a", "question": "b", "options": ["c", "d e"], "answer": "B"}
    questions = RACE.read(write(tmp_path, "a.jsonl", json.dumps(row)))
    features = RACE.features(questions, WORDPIECE, 16)
    cls, sep = WORDPIECE.cls_id, WORDPIECE.sep_id
    expected = [[cls, *ids("a"), sep, *ids(f"b {end}"), sep] for end in ("c", "d e")]
    assert [row.tolist() for row in features.input_ids] == expected
    assert features.labels.tolist() == [[0, 0], [0, 1]]
    assert features.units == [[0, 1]]


def questions_of(count, seed=0):
    """Questions with 2 to 4 choices of some tokens."""
    random = np.random.default_rng(seed)

    def text():
        return " ".join(random.choice([*"abcdefghij"], random.integers(1, 6)))

    rows = []
    for _ in range(count):
        choices = [text() for _ in range(random.integers(2, 5))]
        rows.append({"question": text(), "choices": choices, "answer": 1})
    return rows


@pytest.mark.parametrize("packing", [False, True])
def test_the_loss_is_that_of_a_softmax_over_the_choices(tmp_path, packing):
    text = "".join(json.dumps(row) + "\n" for row in questions_of(13))
    task = MultipleChoiceTask()
    questions = task.read(write(tmp_path, "a.jsonl", text))
    features = task.features(questions, WORDPIECE, 16)
    graphdef, init, _ = make_model(parts=MULTIPLE_CHOICE.parts(Architecture()), outputs=1)
    params = init(jax.random.key(0))
    objective = FineTuning(graphdef, MULTIPLE_CHOICE)
    batches = ExampleBatches(
        features, task.head, pad_id=0, batch_size=13, seed=None, packing=packing
    )
    packed = batches.packed(0)
    logits = objective.logits(params, packed.rows)
    scores = [None] * len(features)
    found = task.head.by_example(np.asarray(logits), packed)
    for index, score in zip(packed.examples.tolist(), found):
        scores[index] = score
    expected, start = [], 0
    for question in questions:
        own = np.concatenate(scores[start : start + len(question.choices)])
        expected.append(np.log(np.exp(own).sum()) - own[question.answer])
        start += len(question.choices)
    sums = objective.sums_of(logits, jax.tree.map(jnp.asarray, packed.rows))
    assert sums["task_count"] == 13
    assert sums["task_loss"] == pytest.approx(sum(expected), rel=1e-5)
    predictions = task.predictions(scores, features, questions)
    assert sums["task_correct"] == sum(p == q.answer for p, q in zip(predictions, questions))


def test_questions_stay_in_one_row_and_batches_count_them(tmp_path):
    text = "".join(json.dumps(row) + "\n" for row in questions_of(20))
    task = MultipleChoiceTask()
    features = task.features(task.read(write(tmp_path, "a.jsonl", text)), WORDPIECE, 16)
    batches = ExampleBatches(features, task.head, pad_id=0, batch_size=4, seed=0)
    assert batches.steps_per_epoch == 5
    seen = []
    for step in range(5):
        packed = batches.packed(step)
        rows = {}
        for index, row in zip(packed.examples.tolist(), packed.row.tolist()):
            rows.setdefault(int(features.group[index]), set()).add(row)
        assert len(rows) == 4
        assert all(len(each) == 1 for each in rows.values())
        seen += packed.examples.tolist()
    assert sorted(seen) == [*range(len(features))]


def test_a_model_of_transformers_is_scored_and_written_back(tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    path = write_model(tmp_path / "model", "choice")
    model = transformers.BertForMultipleChoice.from_pretrained(path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    row = {"question": "the cat", "choices": ["sat on the mat", "ran", "good film"], "answer": 2}
    data = write(tmp_path, "a.jsonl", json.dumps(row) + "\n")
    tokens = tokenizer([row["question"]] * 3, row["choices"], return_tensors="pt", padding=True)
    inputs = {name: values[None] for name, values in tokens.items()}
    with torch.no_grad():
        theirs = model(**inputs, labels=torch.tensor([2]))
    assert main(["evaluate", f"--workdir={path}", f"--data={data}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])[data]
    right = float(theirs.logits.argmax().item() == 2)
    assert found == pytest.approx({"accuracy": right, "loss": theirs.loss.item()}, abs=1e-5)

    output = tmp_path / "said.jsonl"
    command = ["evaluate", f"--workdir={path}", f"--data={data}", f"--predictions={output}"]
    assert main(command) == 0
    said = json.loads(output.read_text())
    chances = theirs.logits[0].softmax(-1).numpy()
    assert said["probabilities"] == pytest.approx(chances, abs=1e-5)
    assert said["text"] == row["choices"][int(chances.argmax())]

    again = tmp_path / "again"
    assert main(["convert", str(path), str(tmp_path / "ours"), "--to=bert_jax"]) == 0
    assert main(["convert", str(tmp_path / "ours"), str(again), "--to=huggingface"]) == 0
    model = transformers.BertForMultipleChoice.from_pretrained(again)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, theirs.logits)
    first, second = read(path).params, read(again).params
    jax.tree.map(np.testing.assert_array_equal, first, second)
