"""Classification and regression of texts and pairs of texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
from etils import epath

from bert_jax.errors import UserError
from bert_jax.fields import Plain, field
from bert_jax.model.heads import SEQUENCE_CLASSIFIER, SEQUENCE_REGRESSION, Head
from bert_jax.tasks.classification.decoding import Verdict, likeliest_classes, scores
from bert_jax.tasks.classification.example import Example, Label
from bert_jax.tasks.classification.labels import (
    class_labels,
    found_classes,
    is_blank,
    is_known,
    read_class,
    read_score,
    score_labels,
)
from bert_jax.tasks.classification.metrics import (
    CLASS_METRICS,
    SCORE_METRICS,
    Metric,
    best_constant,
    count_confusions,
    scores_of_classes,
)
from bert_jax.tasks.classification.names import either
from bert_jax.tasks.classification.text_task import TextTask
from bert_jax.tasks.classification.thresholds import (
    THRESHOLD,
    best_threshold,
    parse_numbers,
    written,
)
from bert_jax.tasks.classification.writer import verdict_fields, write_tsv
from bert_jax.tasks.features import Features
from bert_jax.tasks.protocol import ClassScores


@dataclass(frozen=True)
class ClassificationTask(TextTask, name="classification"):
    """One class, or one score, for each text or pair of texts.

    Predictions are int32 [n] classes, or float32 [n] scores.

    Raises:
      UserError: fields contradict each other.
    """

    regression: bool = field(False, "labels are numbers")
    thresholds: tuple[str, ...] = field(
        (),
        "NAME=NUMBER: this class is predicted from this probability on, else the likeliest of the "
        "others; NAME: from the probability with the best F1 of this class on dev; none = the "
        "likeliest class",
    )
    class_weights: tuple[str, ...] = field(
        (),
        "weights of the examples of a class in the loss, NAME=NUMBER each, others 1; balanced: "
        "examples / (classes * examples of the class)",
    )
    metric_names: tuple[str, ...] = field(
        (),
        f"metrics: for classes {', '.join(CLASS_METRICS)}; for regression "
        f"{', '.join(SCORE_METRICS)}; the first one picks the best model; none = accuracy, or both "
        "for regression",
    )

    _has_numbers: ClassVar[bool] = False  # whether files may have the numbers of the classes

    def __post_init__(self) -> None:
        for name in ("labels", "thresholds", "class_weights"):
            if self.regression and getattr(self, name):
                raise UserError(f"{name}: a regression has none; drop them or set regression=False")
        super().__post_init__()
        num_classes = len(self._classes.names)
        if "f1" in self.metric_names and num_classes not in (0, 2):
            raise UserError(
                f"metric_names: f1 needs two classes, but there are {num_classes}; take macro_f1"
            )
        if len(self.thresholds) > 1:
            raise UserError("thresholds: one class can have one; multi_label takes several")
        self._check_classes(self._threshold or self.thresholds, "thresholds")

    @property
    def head(self) -> Head:
        """A class or a score for each example."""
        if self.regression:
            return SEQUENCE_REGRESSION
        return replace(SEQUENCE_CLASSIFIER, class_weights=self._weights)

    @property
    def _kind(self) -> str:
        return "regression" if self.regression else "classification"

    @property
    def _metrics(self) -> Mapping[str, Metric]:
        return SCORE_METRICS if self.regression else CLASS_METRICS

    @property
    def _usual_metrics(self) -> tuple[str, ...]:
        return tuple(SCORE_METRICS) if self.regression else ("accuracy",)

    @property
    def num_labels(self) -> int:
        """Number of classes, or 1 for regression."""
        return 1 if self.regression else len(self.labels)

    def with_labels(self, labels: Sequence[str]) -> Self:
        return self if self.regression else super().with_labels(labels)

    def with_labels_of(self, examples: Sequence[Example]) -> Self:
        """The same task with the labels found in `examples`, sorted; itself if it has labels.

        Raises:
          UserError: there is only one.
        """
        if self.regression:
            return self
        if self.labels:
            return self._with_balanced(examples)
        found = found_classes(examples)
        if len(found) < 2:
            raise UserError(f"{either(self.label)}: all training examples have {found[0]!r}")
        return self.with_labels(found)._with_balanced(examples)

    def _balanced(self, labels: np.ndarray) -> np.ndarray:
        counts = np.bincount(labels, minlength=self.num_labels)
        return np.where(counts > 0, len(labels) / (len(counts) * np.maximum(counts, 1)), 1.0)

    def _read_label(self, label: Any, place: str) -> Label | None:
        if is_blank(label):
            return None
        return read_score(label, place) if self.regression else self._read_class(label, place)

    def _read_class(self, label: Any, place: str) -> str | None:
        name = read_class(label, place)
        if not self.labels:
            return name
        if self._has_numbers and not self._classes.has(name) and name.isdecimal():
            name = dict(enumerate(self._classes.names)).get(int(name), name)
        return name if self._classes.number(name, place) >= 0 else None

    def _labels(self, examples: Sequence[Example]) -> np.ndarray:
        return score_labels(examples) if self.regression else class_labels(examples, self._classes)

    @property
    def _threshold(self) -> dict[str, float]:
        """The class with a threshold, and this; empty without, or before it is fitted."""
        given = [text for text in self.thresholds if "=" in text]
        return parse_numbers(given, "thresholds", THRESHOLD)

    def fitted(
        self, logits: Sequence[np.ndarray], features: Features, examples: Sequence[Example]
    ) -> Self:
        """The same task with the threshold that has the best F1 on `examples`."""
        del features
        if not self.thresholds or self._threshold:
            return self
        (name,) = self.thresholds
        labels = self._labels(examples)
        found = np.array([self._verdict(each)[name] for each in logits])  # type: ignore[index]
        known, class_ = is_known(labels), self.label_names.index(name)
        best = best_threshold(labels[known] == class_, found[known])
        return replace(self, thresholds=written({name: best}))

    def predictions(
        self, logits: Sequence[np.ndarray], features: Features, examples: Sequence[Example]
    ) -> np.ndarray:
        """The predicted class of each example, int32 [n], or its score, float32 [n]."""
        del features, examples
        if self.regression:
            return scores(logits)
        if not self._threshold:
            return likeliest_classes(logits)
        names = [self.said(self._verdict(each))["label"] for each in logits]
        return np.array([self.label_names.index(name) for name in names], np.int32)

    def said(self, found: Verdict) -> Plain:
        """See `writer.verdict_fields`."""
        return verdict_fields(found, self._threshold)

    def baseline(
        self, train_examples: Sequence[Example], examples: Sequence[Example]
    ) -> dict[str, float]:
        """The metrics of always predicting the most frequent class, or mean score, of training."""
        labels = self._labels(train_examples)
        guess = best_constant(labels[is_known(labels)])
        return self.metrics(np.full(len(examples), guess, labels.dtype), examples)

    def per_class(self, predictions: np.ndarray, examples: Sequence[Example]) -> list[ClassScores]:
        if self.regression:
            return []
        return scores_of_classes(*self._known(predictions, examples), self.label_names)

    def confusion_matrix(
        self, predictions: np.ndarray, examples: Sequence[Example]
    ) -> np.ndarray | None:
        if self.regression:
            return None
        return count_confusions(*self._known(predictions, examples), self.num_labels)

    def true_classes(self, examples: Sequence[Example]) -> np.ndarray | None:
        return None if self.regression else self._labels(examples)

    def write_predictions(
        self, path: epath.PathLike, examples: Sequence[Example], predictions: np.ndarray
    ) -> None:
        """Writes `index` and `prediction` as TSV with a header, the format of GLUE's server."""
        if self.regression:
            said = [f"{score:.4f}" for score in predictions]
        else:
            said = [self._classes.written[class_] for class_ in predictions]
        write_tsv(path, examples, said)
