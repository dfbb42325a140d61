"""Multiple choice: a question and several choices, of which one is right."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from etils import epath

from bert_jax.data.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.fields import Plain, field
from bert_jax.model.heads import MULTIPLE_CHOICE, Head
from bert_jax.tasks.classification.names import Names
from bert_jax.tasks.features import Features
from bert_jax.tasks.multiple_choice.decoding import probabilities
from bert_jax.tasks.multiple_choice.example import Question
from bert_jax.tasks.multiple_choice.features import make_features
from bert_jax.tasks.multiple_choice.metrics import accuracy, guess
from bert_jax.tasks.multiple_choice.reader import Columns, read_questions
from bert_jax.tasks.multiple_choice.writer import choice_fields, write_tsv
from bert_jax.tasks.protocol import Task


@dataclass(frozen=True)
class MultipleChoiceTask(Task[Question, Features, np.ndarray], name="multiple_choice"):
    """One of several choices for each question.

    Predictions are int32 [n], numbers of choices from 0. Questions may have different numbers of
    choices.

    Raises:
      UserError: no column has choices.
    """

    context: Names = field(
        "", "column of a text before the question, such as `article` of RACE; empty for none"
    )
    question: Names = field(
        "question", "column of the question, or of what each choice ends, such as `sent2` of SWAG"
    )
    choices: tuple[str, ...] = field(
        ("choices",),
        "column of a list of choices, such as `options` of RACE, or a column for each, such as "
        "ending0,ending1,ending2,ending3 of SWAG",
    )
    answer: Names = field(
        ("answer", "label"),
        "column of the right choice: its number from 0, its letter from A, or its name if the "
        "choices have names; an empty one, null or -1 is not known",
    )
    index: Names = field(
        ("idx", "index", "id"),
        "column of a question's name in prediction files; without it questions count from 0",
    )
    format: str = field(
        "", "tsv, quoted_tsv, csv, jsonl, json or parquet; empty to go by the file's suffix"
    )
    encoding: str = field("utf-8", "encoding of files, by its Python name")

    predictions_suffix: ClassVar[str] = ".tsv"

    def __post_init__(self) -> None:
        if not self.choices:
            raise UserError("choices is empty: name the column, or the columns, of the choices")

    @property
    def head(self) -> Head:
        """A score for each choice."""
        return MULTIPLE_CHOICE

    @property
    def num_labels(self) -> int:
        """1: the score of a choice."""
        return 1

    def read(self, source: str, *, labelled: bool = True) -> list[Question]:
        """The questions of a file or of `tfds:NAME[:SPLIT]`; see `reader.read_questions`."""
        return read_questions(
            source,
            Columns(self.context, self.question, self.choices, self.answer, self.index),
            labelled=labelled,
            format=self.format,
            encoding=self.encoding,
            data_dir=self.data_dir,
        )

    def features(
        self, examples: Sequence[Question], tokenizer: Tokenizer, max_seq_length: int
    ) -> Features:
        """One sequence per choice; see `make_features`."""
        return make_features(examples, tokenizer, max_seq_length)

    def predictions(
        self, logits: Sequence[np.ndarray], features: Features, examples: Sequence[Question]
    ) -> np.ndarray:
        """The likeliest choice of each question, int32 [n]."""
        found = self._probabilities(logits, features)
        return np.array([each.argmax() for each in found], np.int32)

    def records(
        self, logits: Sequence[np.ndarray], features: Features, examples: Sequence[Question]
    ) -> list[Plain]:
        """`index` of each question, then the fields of `writer.choice_fields`."""
        found = self._probabilities(logits, features)
        return [
            {"index": example.index} | choice_fields(example, each)
            for example, each in zip(examples, found, strict=True)
        ]

    def _probabilities(self, logits: Sequence[np.ndarray], features: Features) -> list[np.ndarray]:
        assert features.group is not None
        return probabilities(logits, features.group)

    def metrics(self, predictions: np.ndarray, examples: Sequence[Question]) -> dict[str, float]:
        """`accuracy`, over the questions whose answer is known."""
        return {"accuracy": accuracy(predictions, examples)}

    def baseline(
        self, train_examples: Sequence[Question], examples: Sequence[Question]
    ) -> dict[str, float]:
        """The metrics of always choosing the place where most answers of training stand."""
        return self.metrics(guess(train_examples, examples), examples)

    def write_predictions(
        self, path: epath.PathLike, examples: Sequence[Question], predictions: np.ndarray
    ) -> None:
        """Writes `index` and `prediction` as TSV with a header."""
        write_tsv(path, examples, predictions)
