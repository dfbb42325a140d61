"""Perturbations: what they change, and labels that follow; drops of a metric with intervals."""

import json

import numpy as np
import pytest
from matplotlib import image
from others import write_model

import bert_jax
from bert_jax.__main__ import main
from bert_jax.data.words import is_punctuation
from bert_jax.errors import UserError
from bert_jax.evaluation.robustness import Comparison, perturb
from bert_jax.report.robustness import drops_table
from bert_jax.tasks import AnsweringTask, ClassificationTask, MultipleChoiceTask, TaggingTask, Task
from bert_jax.tasks.answering.decoding import Prediction, candidate
from bert_jax.tasks.answering.example import Question
from bert_jax.tasks.classification.example import Example
from bert_jax.tasks.edits import Edit, edited, edited_words, followed
from bert_jax.tasks.perturbations import (
    PERTURBATIONS,
    edits_of,
    names,
    perturbations,
    read_names,
)
from bert_jax.tasks.tagging.decoding import Prediction as Tags
from bert_jax.tasks.tagging.example import Sentence

pytestmark = pytest.mark.core

TEXT = "The U.S. president, Mr. Smith, didn't go to New York yesterday; he stayed at home."
CHANGED = {
    "typos": "The U.S. president, Mr. Smith, didn't go ti New York yesterday; he stayed at home.",
    "case": "THE U.S. PRESIDENT, MR. SMITH, DIDN'T GO TO NEW YORK YESTERDAY; HE STAYED AT HOME.",
    "punctuation": "The U.S. president Mr Smith didnt go to New York yesterday; he stayed at home",
    "whitespace": "The U.S. president, Mr. Smith,  didn't go to New York yesterday; he stayed at "
    "home.",
    "dropped_words": "The U.S. president, Mr. Smith, go to New York yesterday; he stayed at home.",
}


def changed(kind, text=TEXT, seed=0):
    return edited(text, edits_of(kind, PERTURBATIONS[kind], text, seed))


@pytest.mark.parametrize("kind", PERTURBATIONS)
def test_a_perturbation_follows_from_text_and_seed(kind):
    texts = {changed(kind, seed=seed) for seed in range(20)}
    assert TEXT not in texts
    assert len(texts) > 1
    assert changed(kind, seed=3) == changed(kind, seed=3)
    for text in ("", " ", "a", ".", "\U0001f600", "peace\n"):
        for seed in range(5):
            assert isinstance(changed(kind, text, seed), str)


def test_a_perturbation_never_changes():
    """Published drops depend on these texts: other ones need another seed or name."""
    assert {kind: changed(kind) for kind in PERTURBATIONS} == CHANGED


@pytest.mark.parametrize("seed", range(20))
def test_what_changes(seed):
    words = TEXT.split()
    typo = changed("typos", seed=seed).split()
    assert len(typo) == len(words)
    different = [(a, b) for a, b in zip(words, typo) if a != b]
    assert 1 <= len(different) <= 7
    assert all(a[0] == b[0] and abs(len(a) - len(b)) <= 1 for a, b in different)
    assert changed("case", seed=seed).lower() == TEXT.lower()
    bare = "".join(c for c in TEXT if not is_punctuation(c))
    found = changed("punctuation", seed=seed)
    assert "".join(c for c in found if not is_punctuation(c)) == bare
    assert found.endswith("home")
    assert "".join(changed("whitespace", seed=seed).split()) == "".join(words)
    kept = iter(words)
    fewer = changed("dropped_words", seed=seed).split()
    assert all(word in kept for word in fewer)  # in their order
    assert 0 < len(fewer) < len(words)


def test_names(tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("Anna\nBob\nMary Ann\n\n  \nParis\nNew York\n")
    assert read_names(file) == [["Anna", "Bob", "Mary Ann"], ["Paris", "New York"]]
    swap = perturbations(["names"], str(file))["names"]
    seen = set()
    for seed in range(30):
        text = "Annapolis: Mary Ann met Bob in Paris, not paris."
        found = edited(text, edits_of("names", swap, text, seed))
        assert found.startswith("Annapolis: ")
        assert found.endswith(" in New York, not paris.")
        seen.add(found)
    assert len(seen) == 4
    for content, message in {
        "": "no names",
        "Anna\n\nParis\nRome\n": "line 1: 'Anna' is alone in its group of names",
        "Anna\nBob\n\nRome\nAnna\n": "line 5: 'Anna' is on line 1, too",
    }.items():
        file.write_text(content)
        with pytest.raises(UserError, match=message):
            read_names(file)


def test_what_is_refused(tmp_path):
    for kinds, file, message in (
        (["typo"], None, "perturb: no 'typo'; use some of typos, case"),
        (["names"], None, "names needs a file of names"),
        (["case"], "names.txt", "nothing else takes one"),
        (["names"], str(tmp_path / "none.txt"), "none.txt: no such file"),
    ):
        with pytest.raises(UserError, match=message):
            perturbations(kinds, file)
    with pytest.raises(UserError, match="multiple_choice: its examples cannot be perturbed"):
        perturb(MultipleChoiceTask(), [None], "case", PERTURBATIONS["case"], 0)


def test_places_follow():
    text = "one two three four"
    edits = [Edit(0, 4, ""), Edit(5, 6, "ww"), Edit(14, 18, "IV")]
    assert edited(text, edits) == "twwo three IV"
    assert followed(4, 7, edits) == (0, 4)
    assert followed(8, 13, edits) == (5, 10)
    assert followed(14, 18, edits) == (11, 13)
    assert followed(2, 7, edits) is None
    assert followed(8, 16, edits) is None
    assert followed(8, 13, [Edit(8, 8, "x"), Edit(13, 13, "y")]) == (9, 14)


def test_words_follow():
    words = ["Mr.", "New", "York", "sat", "."]
    edits = [Edit(2, 3, ""), Edit(4, 12, "Los Angeles now"), Edit(17, 18, "")]
    assert edited_words(words, edits) == [["Mr"], ["Los", "Angeles", "now"], [], ["sat"], []]
    assert edited_words(words, [Edit(3, 4, "  ")]) == [[word] for word in words]
    assert edited_words(words, [Edit(1, 6, "x")]) == [["Mx"], ["w"], ["York"], ["sat"], ["."]]


def sentence(words, tags, **fields):
    return Sentence(words.split(), tags.split(), "a file", **fields)


LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def test_tags_follow():
    task, given = TaggingTask(labels=LABELS), sentence("Mr. Al Bo in New York .", TAGS)
    swap = names([["Al Bo", "Cy"], ["New York", "Rome", "San Jose del"]])
    found = task.perturbed(given, lambda text: swap(text, np.random.default_rng(1)))
    assert found.words[:3] == ["Mr.", "Cy", "in"]
    assert found.tags[:3] == ["O", "B-PER", "O"]
    town = found.tags[3:-1]
    assert town == ["B-LOC", *["I-LOC"] * (len(town) - 1)]
    assert len(found.words) == len(found.tags)
    # What is left of an entity is the entity; one without words is none.
    found = task.perturbed(given, lambda text: [Edit(4, 7, ""), Edit(13, 22, "")])
    assert found == given._replace(words=["Mr.", "Bo", "in", "."], tags=["O", "B-PER", "O", "O"])
    assert task.perturbed(given, lambda text: [Edit(0, len(text), "")]) is None
    # White space between words is not theirs.
    assert task.perturbed(given, lambda text: PERTURBATIONS["whitespace"](text, RANDOM)) == given


TAGS = "O B-PER I-PER O B-LOC I-LOC O"
RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("labels", "tags", "left"),
    [
        (("O", "B-PER", "I-PER", "E-PER", "S-PER"), "B-PER I-PER E-PER O", "B-PER E-PER O"),
        (("O", "PER"), "PER PER PER O", "PER PER O"),
        (("NOUN", "VERB"), "NOUN NOUN NOUN VERB", "NOUN NOUN VERB"),
    ],
)
def test_tags_of_other_schemes_follow(labels, tags, left):
    task = TaggingTask(labels=labels)
    found = task.perturbed(sentence("a b c d", tags), lambda text: [Edit(0, 2, "")])
    assert found.tags == left.split()
    roles = sentence("a b c d", tags, predicate=(1,))
    assert task.perturbed(roles, lambda text: [Edit(0, 2, "")]).predicate == (0,)
    assert task.perturbed(roles, lambda text: [Edit(2, 4, "")]) is None


def test_answers_follow():
    context = "Al was born in New York City in 1900."
    given = Question("1", "Where was Al born?", context, (("New York City", 15), ("York", 19)))
    task = AnsweringTask()

    def moved(*edits):
        return task.perturbed(given, lambda text: edits if text == context else [])

    found = moved(Edit(0, 2, "Bob"), Edit(20, 21, "oo"))
    assert found.answers == (("New Yoork City", 16), ("Yoork", 20))
    assert all(found.context[start:].startswith(text) for text, start in found.answers)
    assert moved(Edit(15, 19, "")) is None  # a word of the first answer
    assert moved(Edit(12, 17, "x")) is None  # across its beginning
    assert moved(Edit(12, 15, "")).answers == (("New York City", 12), ("York", 16))
    none = given._replace(answers=())
    assert task.perturbed(none, lambda text: [Edit(0, 3, "")]).context == context[3:]


def classified(count, accuracy, seed):
    """Labelled texts, and predictions that are right with a probability."""
    random = np.random.default_rng(seed)
    labels = random.integers(2, size=count)
    examples = [Example(f"w{i} a", None, "ab"[label], str(i), "") for i, label in enumerate(labels)]
    right = random.random(count) < accuracy
    return examples, np.where(right, labels, 1 - labels).astype(np.int32)


def test_drops_with_intervals(monkeypatch):
    """The interval is about that of the normal distribution, and pairs make it narrow."""
    monkeypatch.setattr("bert_jax.evaluation.robustness.RESAMPLES", 500)
    task = ClassificationTask(labels=("a", "b"))
    examples, before = classified(1000, 0.9, 0)
    found = perturb(task, examples, "case", lambda text, _: [Edit(0, 1, "W")], 0)
    assert (found.changed, found.kept) == (1000, 0)
    none = perturb(task, examples, "none", lambda text, _: [], 0)
    assert (none.changed, none.kept) == (0, 0)
    comparison = Comparison(examples, {"case": found, "none": none}, 0)
    assert len(comparison.examples) == 2000
    after = before.copy()
    after[:100] = 1 - after[:100]
    result = comparison.robustness(task, np.concatenate([before, after]))
    labels = np.array(["ab".index(example.label) for example in examples])
    accuracies = [(predictions == labels).mean() for predictions in (before, after)]
    assert result.metric == "accuracy"
    drop = result.by_perturbation["case"]
    assert (result.score, drop.score) == pytest.approx(accuracies)
    assert drop.drop == pytest.approx(accuracies[0] - accuracies[1])
    differences = (before == labels).astype(float) - (after == labels)
    error = 1.96 * differences.std() / np.sqrt(1000)
    assert drop.low == pytest.approx(drop.drop - error, abs=0.25 * error)
    assert drop.high == pytest.approx(drop.drop + error, abs=0.25 * error)
    same = result.by_perturbation["none"]
    assert (same.drop, same.low, same.high) == (0, 0, 0)
    lines = list(drops_table(result.to_dict()))
    assert max(map(len, lines)) <= 80
    assert lines[-1] == "1,000 examples, seed 0"


def test_resamples_are_those_of_the_metric():
    """What tasks compute faster equals the metric of each sample."""
    random = np.random.default_rng(0)
    samples = random.integers(8, size=(5, 8))
    bioes = ("O", "B-X", "I-X", "E-X", "S-X")
    cases = []
    for labels in (LABELS, bioes, ("O", "X", "Y"), ("NOUN", "VERB", "ADJ")):
        task = TaggingTask(labels=labels)
        tags = [[labels[i] for i in random.integers(len(labels), size=6)] for _ in range(16)]
        sentences = [Sentence(["w"] * 6, some, "") for some in tags[:8]]
        sentences[3] = sentences[3]._replace(tags=None)
        cases.append((task, [Tags(some, np.ones(6)) for some in tags[8:]], sentences))
    answers = [
        candidate(text, 0, 1, 0.0, 0.0) for text in ["a b", "b", "", "c d", "a", "", "d", ""]
    ]
    texts = ["a b", "a b", "b", "c", "", "", "d", "a"]
    questions = [Question(str(i), "", "", ((x, 0),) if x else ()) for i, x in enumerate(texts)]
    predicted = [Prediction(a, a, (a,), 0.0) for a in answers]
    cases.append((AnsweringTask(unanswerable=True), predicted, questions))
    examples, predictions = classified(8, 0.7, 1)
    cases.append(
        (ClassificationTask(labels=("a", "b"), metric_names=("f1",)), predictions, examples)
    )
    for task, predicted, examples in cases:
        found = task.resampled(predicted, examples, samples)
        expected = Task.resampled(task, predicted, examples, samples)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_command(tmp_path, capsys):
    labels = ("bad", "good")
    model = write_model(tmp_path / "model", "sequence", labels=labels)
    data = tmp_path / "dev.csv"
    rows = [f"the cat sat on mat number {i},{labels[i % 2]}\n" for i in range(30)]
    data.write_text("".join(["text,label\n", *rows]))
    output = tmp_path / "robust"
    arguments = ["evaluate", f"--workdir={model}", f"--data={data}", "--perturb=all"]
    assert main([*arguments, f"--output={output}", "--json", "--seed=5"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((output / "robustness.json").read_text())
    assert list(result["by_perturbation"]) == list(PERTURBATIONS)
    assert (result["metric"], result["examples"], result["seed"]) == ("accuracy", 30, 5)
    lines = [json.loads(line) for line in (output / "examples.jsonl").read_text().splitlines()]
    for kind, drop in result["by_perturbation"].items():
        some = [line for line in lines if line["perturbation"] == kind]
        assert len(some) == drop["changed"]
        for line in some:
            before, after = (line[when]["text_a"] for when in ("before", "after"))
            assert after == changed(kind, before, 5)
            assert line["before"]["label"] == line["after"]["label"]
    assert result["by_perturbation"]["case"]["drop"] == 0  # the model is uncased
    assert image.imread(output / "robustness.png").ndim == 3
    assert bert_jax.evaluate(model, data=str(data)).scores["accuracy"] == result["score"]

    for flags, message in (
        (["--perturb=typo"], "--perturb: no 'typo'"),
        (["--perturb=names"], "--perturb: names needs a file of names"),
    ):
        assert main(["evaluate", f"--workdir={model}", f"--data={data}", *flags]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--perturb=case", "--suite=blimp:x"], "--perturb does not go with --suite"),
        (["--perturb=case", "--predictions=x.csv"], "--predictions does not go with --perturb"),
        (["--names=x"], "--names and --seed are for --perturb"),
        (["--output=x"], "--output is for a --suite, --perturb or --checklist"),
        (["--checklist=x.jsonl", "--seed=1"], "--seed does not go with --checklist"),
    ],
)
def test_flags_that_do_not_go_together(flags, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", "--workdir=model", *flags])
    assert message in capsys.readouterr().err
