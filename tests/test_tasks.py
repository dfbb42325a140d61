"""The protocol of tasks: fields that recipes set, and tasks from other modules."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from bert_jax.data.wordpiece import SPECIAL_TOKENS, WordPiece
from bert_jax.errors import UserError
from bert_jax.fields import build, field, fields_of, to_plain
from bert_jax.model.heads import SEQUENCE_REGRESSION
from bert_jax.storage import write_text
from bert_jax.tasks import AnsweringTask, ClassificationTask, TaggingTask, Task
from bert_jax.tasks.features import Features, pair_ids

pytestmark = pytest.mark.core

OUTSIDE = f"{__name__}:WordCount"
LETTERS = WordPiece((*SPECIAL_TOKENS, *"abcdefghij"), lowercase=True)


@dataclasses.dataclass(frozen=True)
class WordCount(Task[str, Features, list[float]]):
    """How many words a line has, with no more than what the protocol asks for."""

    most: int = field(9, "more words count as so many", bounds="[1, inf)")

    head = SEQUENCE_REGRESSION
    predictions_suffix = ".txt"

    @property
    def num_labels(self) -> int:
        return 1

    def _counts(self, examples: Sequence[str]) -> np.ndarray:
        return np.array([min(len(text.split()), self.most) for text in examples], np.float32)

    def read(self, source: str, *, labelled: bool = True) -> list[str]:
        with open(source, encoding="utf-8") as file:
            return file.read().splitlines()

    def features(self, examples, wordpiece, max_seq_length) -> Features:
        rows = [
            pair_ids(wordpiece, ids, None, max_seq_length) for ids in wordpiece.encode(examples)
        ]
        b_start = np.array([start for _, start, _ in rows], np.int32)
        return Features([ids for ids, _, _ in rows], b_start, self._counts(examples))

    def predictions(self, logits, features, examples) -> list[float]:
        return [float(logit[0]) for logit in logits]

    def metrics(self, predictions, examples) -> dict[str, float]:
        return {"closeness": -float(np.abs(self._counts(examples) - predictions).mean())}

    def baseline(self, train_examples, examples) -> dict[str, float]:
        return self.metrics([self._counts(train_examples).mean()] * len(examples), examples)

    def write_predictions(self, path, examples, predictions) -> None:
        write_text(path, "".join(f"{count:.1f}\n" for count in predictions))


NAMES = (*Task.kinds(), OUTSIDE)


@pytest.mark.parametrize("name", NAMES)
def test_a_task_is_its_name_and_plain_values(name):
    task = build(Task, name, "config.task")
    assert task.called() == name
    plain = to_plain(task)
    assert plain["name"] == name
    assert build(Task, plain, "config.task") == task
    assert all(declared.metadata["doc"] for declared in fields_of(type(task)).values())
    with pytest.raises(UserError, match=r"config.task.max_seq_length must be positive, not 0"):
        build(Task, {"name": name, "max_seq_length": 0}, "config.task")
    assert task.max_seq_length == (384 if name == "answering" else 128)


def test_recipes_set_every_option():
    def built(name, **options):
        return build(Task, {"name": name, **options}, "config.task")

    labels = [["no", "0"], ["yes", "1"]]
    options = {"text_a": ["a", "1"], "index": "id", "skip_incomplete": True, "data_dir": "/data"}
    assert built("classification", labels=labels, **options) == ClassificationTask(
        labels=(("no", "0"), ("yes", "1")),
        text_a=("a", "1"),
        index="id",
        skip_incomplete=True,
        data_dir="/data",
    )
    assert built("tagging", predicate_column=-2, labels=["O"]) == TaggingTask(
        predicate_column=-2, labels=("O",)
    )
    assert built("answering", null_threshold=1) == AnsweringTask(null_threshold=1.0)
    assert built("glue/sst2", train="mine.tsv").dev == "tfds:glue/sst2:validation"
    with pytest.raises(UserError, match=r"config.task.text_a must be .*, not 3 "):
        built("classification", text_a=3)
    with pytest.raises(UserError, match=r"no such field; did you mean config\.task\.doc_stride"):
        built("answering", doc_strid=3)
    with pytest.raises(UserError, match=r"config.task.most must be in .* not 0"):
        built(OUTSIDE, most=0)


def test_what_is_no_task_is_refused():
    with pytest.raises(UserError, match=r"config.task.name='glue': use one of .*, or MODULE:CLASS"):
        build(Task, "glue", "config.task")
    with pytest.raises(UserError, match="must be a class derived from Task"):
        build(Task, "collections:Counter", "config.task")


def test_a_task_from_elsewhere_needs_only_the_protocol(tmp_path):
    task = build(Task, {"name": OUTSIDE, "most": 3}, "config.task")
    path = tmp_path / "lines.txt"
    path.write_text("a b\na b c d\n")
    examples = task.read(str(path))
    assert task.with_labels(("x",)) is task.with_labels_of(examples) is task
    features = task.features(examples, LETTERS, 8)
    assert features.labels.tolist() == [2, 3]
    predictions = task.predictions([np.array([2.0]), np.array([4.0])], features, examples)
    assert task.metrics(predictions, examples) == {"closeness": -0.5}
    assert (task.label_names, task.per_class(predictions, examples)) == ((), [])
    assert task.confusion_matrix(predictions, examples) is None
    assert task.submission_name("tfds:glue/sst2:test") is None


def test_a_kind_keeps_what_its_base_declares():
    doc = fields_of(ClassificationTask)["text_a"].metadata["doc"]
    sst2 = Task.kinds()["glue/sst2"]
    assert fields_of(sst2)["text_a"].metadata["doc"] == doc
    assert fields_of(sst2)["text_a"].default == "sentence"
    assert ClassificationTask().text_a == "text"


def test_a_task_without_a_member_of_the_protocol_is_none():
    @dataclasses.dataclass(frozen=True)
    class Half(Task):
        head = SEQUENCE_REGRESSION

    with pytest.raises(TypeError, match="abstract"):
        Half()
