"""Extractive question answering: SQuAD 1.1 and 2.0."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from etils import epath

from bert_jax.data.tokenizer import Tokenizer
from bert_jax.fields import POSITIVE, Plain, field
from bert_jax.model.heads import ANSWER_SPAN, Head
from bert_jax.tasks.answering.decoding import Decoder, Prediction
from bert_jax.tasks.answering.example import Question
from bert_jax.tasks.answering.features import AnsweringFeatures, make_features
from bert_jax.tasks.answering.metrics import f1_by_question, guess, squad_metrics
from bert_jax.tasks.answering.reader import read_questions
from bert_jax.tasks.answering.writer import answer_fields, write_answers
from bert_jax.tasks.edits import Edit, Edits, drops_word, edited, followed
from bert_jax.tasks.protocol import Task


@dataclass(frozen=True)
class AnsweringTask(Task[Question, AnsweringFeatures, Sequence[Prediction]], name="answering"):
    """Extractive question answering: answers are parts of a text."""

    max_seq_length: int = 384
    unanswerable: bool = field(
        False,
        'some questions have no answer in their context, as in SQuAD 2.0: "no answer" is an '
        "answer, and the metrics are those of 2.0",
    )
    null_threshold: float = field(
        0.0, '"no answer" is given if its score exceeds the best answer\'s by more than this'
    )
    doc_stride: int = field(128, "tokens between the beginnings of windows", bounds=POSITIVE)
    max_query_length: int = field(
        64, "maximum tokens of a question; the rest is cut off", bounds=POSITIVE
    )
    max_answer_length: int = field(30, "maximum tokens of an answer", bounds=POSITIVE)
    n_best_size: int = field(20, "maximum candidates of a question", bounds=POSITIVE)
    repair: bool = field(
        False,
        "accept an answer that is not at its stated position but occurs exactly once in the "
        "context; otherwise that is an error",
    )

    predictions_suffix: ClassVar[str] = ""

    @property
    def head(self) -> Head:
        """Scores the two ends of an answer."""
        return ANSWER_SPAN

    @property
    def num_labels(self) -> int:
        """2 per token: that the answer begins, and ends, there."""
        return 2

    def read(self, source: str, *, labelled: bool = True) -> list[Question]:
        """The questions of a file or of `tfds:squad/v1.1[:SPLIT]`, in order.

        Args:
          source: SQuAD's JSON, rows as in the library `datasets`, or a dataset; see
            `bert_jax.tasks.answering.reader.read_questions`.
          labelled: as in `Task.read`.

        Raises:
          UserError: the source is not of that format, or an id occurs twice; if `labelled`, a
            question without an answer, an answer that is not at its stated position, or impossible
            questions without `unanswerable`.
        """
        return read_questions(
            source,
            labelled=labelled,
            unanswerable=self.unanswerable,
            repair=self.repair,
            data_dir=self.data_dir,
        )

    def features(
        self, examples: Sequence[Question], tokenizer: Tokenizer, max_seq_length: int
    ) -> AnsweringFeatures:
        """The windows of each question; see `make_features`."""
        return make_features(
            examples,
            tokenizer,
            max_seq_length,
            doc_stride=self.doc_stride,
            max_query_length=self.max_query_length,
        )

    def predictions(
        self,
        logits: Sequence[np.ndarray],
        features: AnsweringFeatures,
        examples: Sequence[Question],
    ) -> list[Prediction]:
        """The best answer to each question, with its best candidates."""
        decoder = Decoder(
            unanswerable=self.unanswerable,
            null_threshold=self.null_threshold,
            max_answer_length=self.max_answer_length,
            n_best_size=self.n_best_size,
        )
        return decoder(logits, features, examples)

    def records(
        self,
        logits: Sequence[np.ndarray],
        features: AnsweringFeatures,
        examples: Sequence[Question],
    ) -> list[Plain]:
        """`id` of each question, then the fields of `writer.answer_fields`."""
        predictions = self.predictions(logits, features, examples)
        return [
            {"id": example.id} | answer_fields(prediction)
            for example, prediction in zip(examples, predictions, strict=True)
        ]

    def metrics(
        self, predictions: Sequence[Prediction], examples: Sequence[Question]
    ) -> dict[str, float]:
        """The metrics of the official script, as shares in [0, 1]: `f1` and `exact_match`.

        With `unanswerable` also both over the questions with and without an answer, and the best
        value of each that any `null_threshold` reaches on these examples, with that threshold.
        """
        return squad_metrics(predictions, examples, unanswerable=self.unanswerable)

    def resampled(
        self, predictions: Sequence[Prediction], examples: Sequence[Question], samples: np.ndarray
    ) -> np.ndarray:
        f1 = f1_by_question(predictions, examples, unanswerable=self.unanswerable)
        means: np.ndarray = f1[samples].mean(axis=1)
        return means

    def perturbed(self, example: Question, edits: Callable[[str], Edits]) -> Question | None:
        """The edited question and context, in which the answers are followed.

        None if an edit crosses the bounds of an answer or takes a word of it.
        """
        changes = edits(example.context)
        context, answers = edited(example.context, changes), []
        for text, start in example.answers:
            end = start + len(text)
            inside = [Edit(e.start - start, e.end - start, e.text) for e in changes]
            inside = [e for e in inside if e.start >= 0 and e.end <= len(text)]
            place = followed(start, end, changes)
            if place is None or drops_word(text, inside):
                return None
            answers.append((context[slice(*place)], place[0]))
        question = edited(example.question, edits(example.question))
        return example._replace(question=question, context=context, answers=tuple(answers))

    def baseline(
        self, train_examples: Sequence[Question], examples: Sequence[Question]
    ) -> dict[str, float]:
        """The metrics of an answer that uses neither a model nor training examples.

        With `unanswerable` it is "no answer", otherwise the sentence of the context that shares the
        most words with the question, the first of equals.
        """
        del train_examples
        guesses = [
            guess(example, unanswerable=self.unanswerable, null_threshold=self.null_threshold)
            for example in examples
        ]
        return self.metrics(guesses, examples)

    def write_predictions(
        self,
        path: epath.PathLike,
        examples: Sequence[Question],
        predictions: Sequence[Prediction],
    ) -> None:
        """Writes a directory with the files of BERT's run_squad.py, by id of the question."""
        write_answers(path, examples, predictions, unanswerable=self.unanswerable)
