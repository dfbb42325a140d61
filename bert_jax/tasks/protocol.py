"""The interface of a fine-tuning task.

To add a task, derive a frozen dataclass from `Task`, or from one of the tasks of this package, in
any module that Python can import. A recipe names it `MODULE:CLASS` and sets its fields.
"""

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Self, TypedDict, TypeVar

import numpy as np
from etils import epath

from bert_jax.data.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.fields import POSITIVE, Choice, Plain, field
from bert_jax.model.architecture import Architecture
from bert_jax.model.heads import Head
from bert_jax.model.search import Search
from bert_jax.tasks.edits import Edits
from bert_jax.tasks.features import Features

# Share of the tokens of targets that a model finds likeliest, of tasks whose texts are written.
TOKEN_ACCURACY = "token_accuracy"

Example = TypeVar("Example")
SomeFeatures = TypeVar("SomeFeatures", bound=Features)
Predictions = TypeVar("Predictions", bound=Sequence[Any] | np.ndarray)  # one for each example


class ClassScores(TypedDict):
    """Scores of one class.

    Attributes:
      label: name of the class.
      precision, recall, f1: shares in [0, 1].
      support: number of occurrences of the class.
    """

    label: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Task(Choice, abc.ABC, Generic[Example, SomeFeatures, Predictions]):
    """What to learn from which examples, and how to score it.

    A run reads `train`, `dev` and `test`, takes the labels of `train` (`with_labels_of`), makes
    `features`, trains a model with `num_labels` outputs, and passes its logits to `predictions` and
    the results to `metrics` and `write_predictions`. When a trained model is evaluated,
    `with_labels` gives the task the model's labels.

    The type parameters are an example, the features of examples, and the predictions for examples,
    in their order.

    Attributes:
      predictions_suffix: suffix of the file that `write_predictions` writes; empty for a directory.
    """

    # Their examples are compared on a resume, so files may move.
    train: str = field(
        "", "training examples: a file, `tfds:NAME:SPLIT` or `hf:OWNER/NAME:SPLIT`", resume=True
    )
    dev: str = field(
        "",
        "examples to choose the best model by: a file, `tfds:NAME:SPLIT` or `hf:OWNER/NAME:SPLIT`",
        resume=True,
    )
    test: str = field(
        "",
        "final test examples: a file, `tfds:NAME:SPLIT` or `hf:OWNER/NAME:SPLIT`; empty for none",
        resume=True,
    )
    test_labelled: bool = field(
        True, "whether the labels of `test` are known, so that its predictions are scored too"
    )
    max_seq_length: int = field(
        128,
        "tokens per sequence; longer examples are truncated, or windowed if all tokens matter",
        bounds=POSITIVE,
    )
    data_dir: str = field("", "where TFDS keeps its datasets; empty for its default")

    predictions_suffix: ClassVar[str]

    @property
    @abc.abstractmethod
    def head(self) -> Head:
        """The output layer that is trained on the labels."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """Class names in order of their numbers; empty if there are none or none yet."""
        return ()

    @property
    def num_labels(self) -> int:
        """Outputs of the head per sequence or per token."""
        return len(self.label_names)

    @property
    def search(self) -> Search | None:
        """How the model writes its predictions; None if they follow from outputs of the head.

        `predictions` then gets the tokens of texts, and `TOKEN_ACCURACY` is known without them.
        """
        return None

    @property
    def best_by(self) -> str | None:
        """The metric that picks the best checkpoint; None for the first one of `baseline`."""
        return None

    def check_model(self, path: str, architecture: Architecture) -> None:
        """Raises UserError if a model cannot learn the task, or cannot be scored on it.

        Args:
          path: what fields of the task begin with.
          architecture: architecture of the model.
        """
        del path, architecture

    def with_labels(self, labels: Sequence[str]) -> Self:
        """The same task with the classes of a trained model.

        Itself if it has labels already, or if its predictions are not classes.
        """
        del labels
        return self

    def with_labels_of(self, examples: Sequence[Example]) -> Self:
        """The same task with the classes found in training examples.

        Itself if it has labels already, or if its predictions are not classes.

        Raises:
          UserError: the examples have too few classes to learn from.
        """
        del examples
        return self

    @abc.abstractmethod
    def read(self, source: str, *, labelled: bool = True) -> list[Example]:
        """The examples of a source, in order; at least one.

        Args:
          source: a file, `tfds:NAME:SPLIT` or `hf:OWNER/NAME:SPLIT`.
          labelled: whether labels are read; False ignores any.

        Raises:
          UserError: there is no such source, or it is not in the task's format; the message names
            the line.
        """

    @abc.abstractmethod
    def features(
        self, examples: Sequence[Example], tokenizer: Tokenizer, max_seq_length: int
    ) -> SomeFeatures:
        """Token sequences with labels, one or more for each example, in the order of `examples`.

        Args:
          examples: as from `read`.
          tokenizer: vocabulary of the model.
          max_seq_length: maximum tokens of a sequence.

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
        """The model's prediction for each example.

        Args:
          logits: float [num_labels] for each sequence of `features`, or [length, num_labels] if the
            head has outputs per token.
          features: the sequences.
          examples: the examples that `features` was made from.
        """

    def fitted(
        self,
        logits: Sequence[np.ndarray],
        features: SomeFeatures,
        examples: Sequence[Example],
    ) -> Self:
        """The same task with what it takes from a trained model's outputs for dev examples.

        Such as the probabilities from which classes are predicted. Itself if it takes nothing.

        Args:
          logits: as for `predictions`.
          features: the sequences.
          examples: the examples that `features` was made from.
        """
        del logits, features, examples
        return self

    @abc.abstractmethod
    def metrics(self, predictions: Predictions, examples: Sequence[Example]) -> dict[str, float]:
        """The official metrics of the task by name; the first, or `best_by`, picks the best model.

        Higher is better for that one. Examples whose labels are not known are ignored.
        """

    def resampled(
        self, predictions: Predictions, examples: Sequence[Example], samples: np.ndarray
    ) -> np.ndarray:
        """The first metric on samples of the examples, float64 [b].

        Args:
          predictions: as from `predictions`.
          examples: the examples predicted.
          samples: int [b, n], indices of examples.
        """
        found = []
        for sample in samples:
            some = predictions[sample] if isinstance(predictions, np.ndarray) else None
            chosen: Any = [predictions[i] for i in sample] if some is None else some
            metrics = self.metrics(chosen, [examples[i] for i in sample])
            found.append(next(iter(metrics.values())))
        return np.array(found)

    def perturbed(self, example: Example, edits: Callable[[str], Edits]) -> Example | None:
        """An example after edits of its texts, with the label that it has then.

        Args:
          example: as from `read`.
          edits: text -> its edits.

        Returns:
          None if the label cannot follow the edits.

        Raises:
          UserError: the task does not say how labels follow edits.
        """
        raise UserError(f"{self.called()}: its examples cannot be perturbed")

    @abc.abstractmethod
    def baseline(
        self, train_examples: Sequence[Example], examples: Sequence[Example]
    ) -> dict[str, float]:
        """The metrics of a guess without a model, and any other numbers about the guess.

        They are in the order of `metrics`.

        Args:
          train_examples: examples that the guess may learn from.
          examples: examples to score it on.
        """

    def per_class(self, predictions: Predictions, examples: Sequence[Example]) -> list[ClassScores]:
        """Scores of each class; none if predictions are not classes."""
        del predictions, examples
        return []

    def confusion_matrix(
        self, predictions: Predictions, examples: Sequence[Example]
    ) -> np.ndarray | None:
        """int64 [num_labels, num_labels]: number of examples by true and predicted class.

        None if an example does not have one class of `label_names`.
        """
        del predictions, examples
        return None

    def true_classes(self, examples: Sequence[Example]) -> np.ndarray | None:
        """int32 [n]: the class of each example, -1 where it is not known.

        None if the likeliest output for an example is not its predicted class.
        """
        del examples
        return None

    @abc.abstractmethod
    def write_predictions(
        self, path: epath.PathLike, examples: Sequence[Example], predictions: Predictions
    ) -> None:
        """Writes predictions in the format of the task's benchmark.

        Args:
          path: the file, or the directory if `predictions_suffix` is empty.
          examples: the examples predicted.
          predictions: as from `predictions`.
        """

    def records(
        self,
        logits: Sequence[np.ndarray],
        features: SomeFeatures,
        examples: Sequence[Example],
    ) -> list[Plain]:
        """The prediction for each example with its probabilities, as values of a JSON object.

        Args:
          logits: as for `predictions`.
          features: the sequences.
          examples: the examples that `features` was made from.
        """
        predictions = self.predictions(logits, features, examples)
        return [{"prediction": np.asarray(each).tolist()} for each in predictions]

    def submission_name(self, source: str) -> str | None:
        """The benchmark's name for the predictions on a source; None if it has none."""
        del source
        return None


AnyTask = Task[Any, Any, Any]  # with any type parameters


def settings(fields: Plain) -> Plain:
    """The plain values of a `Task` without those about its data: what predictions depend on."""
    data = {"train", "dev", "test", "test_labelled", "data_dir"}
    return {name: value for name, value in fields.items() if name not in data}
