"""Classification of texts and pairs of texts that may have several classes, or none."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from etils import epath

from bert_jax.errors import UserError
from bert_jax.fields import Plain, field
from bert_jax.model.heads import MULTI_LABEL_CLASSIFIER, Head
from bert_jax.tasks.classification.decoding import Verdict
from bert_jax.tasks.classification.example import Example, Label
from bert_jax.tasks.classification.labels import is_known
from bert_jax.tasks.classification.metrics import Metric, scores_of_classes
from bert_jax.tasks.classification.names import Names, either
from bert_jax.tasks.classification.text_task import TextTask
from bert_jax.tasks.classification.thresholds import (
    THRESHOLD,
    best_threshold,
    parse_numbers,
    written,
)
from bert_jax.tasks.classification.writer import write_tsv
from bert_jax.tasks.features import Features
from bert_jax.tasks.multi_label.labels import (
    check_known,
    found_classes,
    multi_hot,
    read_classes,
)
from bert_jax.tasks.multi_label.metrics import METRICS, best_constant
from bert_jax.tasks.multi_label.writer import verdict_fields
from bert_jax.tasks.protocol import ClassScores


@dataclass(frozen=True)
class MultiLabelTask(TextTask, name="multi_label"):
    """Any number of classes for each text or pair of texts, each decided by itself.

    Predictions are int32 [n, classes], 1 for the classes that an example has, else 0.

    Raises:
      UserError: fields contradict each other.
    """

    label: Names = field(
        "label",
        "column of the labels, a list of names or a text with `separator` between them; an empty "
        "one has none of the classes, null means not known",
    )
    separator: str = field(",", "what stands between the names of classes in a text")
    thresholds: tuple[str, ...] = field(
        (),
        "probabilities from which classes are predicted: a number for all of them, or NAME=NUMBER "
        "each, others 0.5; none = for each class that with its best F1 on dev",
    )
    class_weights: tuple[str, ...] = field(
        (),
        "weights of the examples that have a class, in the loss of this class, NAME=NUMBER each, "
        "others 1; balanced: examples without the class / examples with it",
    )
    metric_names: tuple[str, ...] = field(
        (),
        f"metrics: {', '.join(METRICS)} (all classes of an example right); the first one picks the "
        "best model; none = micro_f1, macro_f1, accuracy",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.separator:
            raise UserError("separator is empty: say what stands between the names of classes")
        self._check_classes(self._given_thresholds, "thresholds")

    @property
    def head(self) -> Head:
        """A logit of the sigmoid for each class of each example."""
        return replace(MULTI_LABEL_CLASSIFIER, class_weights=self._weights)

    @property
    def _kind(self) -> str:
        return "classification with several labels"

    @property
    def _metrics(self) -> Mapping[str, Metric]:
        return METRICS

    @property
    def _usual_metrics(self) -> tuple[str, ...]:
        return "micro_f1", "macro_f1", "accuracy"

    def with_labels_of(self, examples: Sequence[Example]) -> Self:
        """The same task with the labels found in `examples`, sorted; itself if it has labels.

        Raises:
          UserError: there is none.
        """
        if self.labels:
            return self._with_balanced(examples)
        if not (found := found_classes(examples)):
            raise UserError(f"{either(self.label)}: no training example has a class")
        return self.with_labels(found)._with_balanced(examples)

    def _balanced(self, labels: np.ndarray) -> np.ndarray:
        having = labels.sum(axis=0)
        both = (having > 0) & (having < len(labels))
        return np.where(both, (len(labels) - having) / np.maximum(having, 1), 1.0)

    def _read_label(self, label: Any, place: str) -> Label | None:
        names = read_classes(label, place, self.separator)
        if self.labels:
            check_known(names, self._classes, place)
        return names

    def _labels(self, examples: Sequence[Example]) -> np.ndarray:
        return multi_hot(examples, self._classes)

    @property
    def _given_thresholds(self) -> dict[str, float]:
        """Those given by name; {} for one number."""
        if len(self.thresholds) == 1 and "=" not in self.thresholds[0]:
            parse_numbers([f"all={self.thresholds[0]}"], "thresholds", THRESHOLD)
            return {}
        return parse_numbers(self.thresholds, "thresholds", THRESHOLD)

    @property
    def _threshold_of(self) -> dict[str, float]:
        """The threshold of each class."""
        given, others = self._given_thresholds, 0.5
        if self.thresholds and not given:
            others = float(self.thresholds[0])
        return {name: given.get(name, others) for name in self.label_names}

    def fitted(
        self, logits: Sequence[np.ndarray], features: Features, examples: Sequence[Example]
    ) -> Self:
        """The same task with the thresholds of the best F1 of each class on `examples`."""
        del features
        if self.thresholds:
            return self
        labels = self._labels(examples)
        known = is_known(labels)
        verdicts = [self._probabilities(each) for each in logits]
        best = {
            name: best_threshold(
                labels[known, class_] == 1, np.array([found[name] for found in verdicts])[known]
            )
            for class_, name in enumerate(self.label_names)
        }
        return replace(self, thresholds=written(best))

    def predictions(
        self, logits: Sequence[np.ndarray], features: Features, examples: Sequence[Example]
    ) -> np.ndarray:
        """int32 [n, classes]: 1 for the predicted classes of each example, else 0."""
        del features, examples
        thresholds = self._threshold_of
        verdicts = [self._probabilities(each) for each in logits]
        decided = [[v[name] >= thresholds[name] for name in self.label_names] for v in verdicts]
        return np.array(decided, np.int32).reshape(len(verdicts), len(self.label_names))

    def _probabilities(self, logits: np.ndarray) -> dict[str, float]:
        found = self._verdict(logits)
        assert isinstance(found, dict)
        return found

    def said(self, found: Verdict) -> Plain:
        """See `writer.verdict_fields`."""
        assert isinstance(found, dict)
        return verdict_fields(found, self._threshold_of)

    def baseline(
        self, train_examples: Sequence[Example], examples: Sequence[Example]
    ) -> dict[str, float]:
        """The metrics of always predicting `metrics.best_constant` of training."""
        labels = self._labels(train_examples)
        guess = best_constant(labels[is_known(labels)])
        return self.metrics(np.tile(guess, (len(examples), 1)), examples)

    def per_class(self, predictions: np.ndarray, examples: Sequence[Example]) -> list[ClassScores]:
        return scores_of_classes(*self._known(predictions, examples), self.label_names)

    def write_predictions(
        self, path: epath.PathLike, examples: Sequence[Example], predictions: np.ndarray
    ) -> None:
        """Writes `index` and `prediction`, the names with `separator` between them, as TSV."""
        names = np.array(self._classes.written)
        said = [self.separator.join(names[row == 1].tolist()) for row in predictions]
        write_tsv(path, examples, said)
