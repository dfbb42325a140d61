"""What a task is: all that the rest of the program knows of any task.

A task of your own is a frozen dataclass that derives from `Task`, or from one of the tasks of this
package, in any module that Python can import. A recipe names it `MODULE:CLASS`, and its fields are
the options that a recipe sets.
"""

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Self, TypedDict, TypeVar

import numpy as np
from etils import epath

from bert_jax.data.wordpiece import WordPiece
from bert_jax.fields import POSITIVE, Choice, field
from bert_jax.model.heads import Head
from bert_jax.tasks.features import Features

Example = TypeVar("Example")
SomeFeatures = TypeVar("SomeFeatures", bound=Features)
Predictions = TypeVar("Predictions", bound=Sequence[Any] | np.ndarray)  # one for each example


class ClassScores(TypedDict):
    """How well a class is recognised.

    Attributes:
      label: name of the class.
      precision, recall, f1: shares in [0, 1].
      support: how many there are of the class.
    """

    label: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Task(Choice, abc.ABC, Generic[Example, SomeFeatures, Predictions]):
    """What to learn from which examples, and how to judge it.

    The program reads `train`, `dev` and `test`, takes the labels of `train` (`with_labels_of`),
    makes `features`, trains a model with `num_labels` outputs, and gives its logits to
    `predictions`; `metrics` and `write_predictions` have the last word. When a trained model is
    evaluated, `with_labels` gives the task the model's labels.

    Its type parameters are an example, the features of examples, and the predictions for examples,
    in their order.

    Attributes:
      predictions_suffix: of the name of what `write_predictions` writes; empty for a directory.
    """

    train: str = field("", "training examples: a file or `tfds:NAME:SPLIT`")
    dev: str = field("", "examples that choose the best model: a file or `tfds:NAME:SPLIT`")
    test: str = field("", "examples for the end: a file or `tfds:NAME:SPLIT`; empty without")
    test_labelled: bool = field(
        True, "the labels of `test` are known, so that it is scored and not only predicted"
    )
    max_seq_length: int = field(
        128,
        "tokens of an example; longer ones are cut, or windowed where every token counts",
        bounds=POSITIVE,
    )
    data_dir: str = field("", "where TFDS keeps its datasets; empty for its default")

    predictions_suffix: ClassVar[str]

    @property
    @abc.abstractmethod
    def head(self) -> Head:
        """The head of the model that is trained on the labels."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the classes, by their number; empty where there are none or none yet."""
        return ()

    @property
    def num_labels(self) -> int:
        """Outputs of the head, for each example or for each token."""
        return len(self.label_names)

    def with_labels(self, labels: Sequence[str]) -> Self:
        """The same task with the classes of a trained model.

        Itself if it has labels already, or if its predictions are not classes.
        """
        del labels
        return self

    def with_labels_of(self, examples: Sequence[Example]) -> Self:
        """The same task with the classes that training examples have.

        Itself if it has labels already, or if its predictions are not classes.

        Raises:
          UserError: the examples have too few classes to learn anything.
        """
        del examples
        return self

    @abc.abstractmethod
    def read(self, source: str, *, labelled: bool = True) -> list[Example]:
        """The examples of a source, in order; at least one.

        Args:
          source: a file or `tfds:NAME:SPLIT`.
          labelled: False: labels are not looked at, if there are any.

        Raises:
          UserError: there is no such source, or it holds what the task does not take; the message
            has the line.
        """

    @abc.abstractmethod
    def features(
        self, examples: Sequence[Example], wordpiece: WordPiece, max_seq_length: int
    ) -> SomeFeatures:
        """Token sequences with labels, one or more for each example, in the order of `examples`.

        Args:
          examples: as from `read`.
          wordpiece: vocabulary of the model.
          max_seq_length: no sequence is longer.

        Raises:
          UserError: an example has a label that the task does not have, or `max_seq_length` is too
            small.
        """

    @abc.abstractmethod
    def predictions(
        self,
        logits: Sequence[np.ndarray],
        features: SomeFeatures,
        examples: Sequence[Example],
    ) -> Predictions:
        """What the model says, for each example.

        Args:
          logits: float [num_labels] of each sequence of `features`, or [length, num_labels] if the
            head is one of tokens.
          features: those sequences.
          examples: those of which `features` are.
        """

    @abc.abstractmethod
    def metrics(self, predictions: Predictions, examples: Sequence[Example]) -> dict[str, float]:
        """The official metrics of the task by name; the first one picks the best checkpoint.

        More is better of the first one. Examples whose labels are not known do not count.
        """

    @abc.abstractmethod
    def baseline(
        self, train_examples: Sequence[Example], examples: Sequence[Example]
    ) -> dict[str, float]:
        """The metrics on `examples` of a guess without a model, and what else tells of the guess.

        They are in the order of `metrics`.

        Args:
          train_examples: what the guess may learn from.
          examples: what it is judged on.
        """

    def per_class(self, predictions: Predictions, examples: Sequence[Example]) -> list[ClassScores]:
        """Scores of each class; none where predictions are not classes."""
        del predictions, examples
        return []

    def confusion_matrix(
        self, predictions: Predictions, examples: Sequence[Example]
    ) -> np.ndarray | None:
        """int64 [num_labels, num_labels]: examples by their class and the predicted one.

        None where an example does not have one class of `label_names`.
        """
        del predictions, examples
        return None

    @abc.abstractmethod
    def write_predictions(
        self, path: epath.PathLike, examples: Sequence[Example], predictions: Predictions
    ) -> None:
        """Writes predictions as the task's benchmark takes them.

        Args:
          path: of the file, or of the directory where `predictions_suffix` is empty.
          examples: what is predicted for.
          predictions: as from `predictions`.
        """

    def submission_name(self, source: str) -> str | None:
        """What the benchmark calls the predictions on a source; None where it does not name it."""
        del source
        return None


AnyTask = Task[Any, Any, Any]  # of whose types the program knows nothing
