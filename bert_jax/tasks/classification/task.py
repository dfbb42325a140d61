"""Classification and regression of texts and pairs of texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
from etils import epath

from bert_jax.data.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.fields import Plain, field
from bert_jax.model.heads import SEQUENCE_CLASSIFIER, SEQUENCE_REGRESSION, Head
from bert_jax.tasks.classification.decoding import likeliest_classes, scores, verdict
from bert_jax.tasks.classification.example import Example
from bert_jax.tasks.classification.features import make_features
from bert_jax.tasks.classification.labels import (
    Classes,
    class_labels,
    found_classes,
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
from bert_jax.tasks.classification.names import Names, either
from bert_jax.tasks.classification.reader import Columns, read_examples
from bert_jax.tasks.classification.writer import verdict_fields, write_tsv
from bert_jax.tasks.features import Features
from bert_jax.tasks.protocol import ClassScores, Task


@dataclass(frozen=True)
class ClassificationTask(Task[Example, Features, np.ndarray], name="classification"):
    """One class, or one score, for each text or pair of texts.

    Predictions are int32 [n] classes, or float32 [n] scores. A column may have several names: the
    first that a row has is used. Columns of files without a header are "1", "2", ...; see
    `bert_jax.data.tables.read_rows`.

    Raises:
      UserError: fields contradict each other.
    """

    text_a: Names = field("text", "column of the text, or of the first of a pair")
    text_b: Names = field("", "column of the second text of a pair; empty for single texts")
    label: Names = field(
        "label",
        "column of the label; an empty label or null means not known, and so do `-` (SNLI) and -1 "
        "unless a class is called so",
    )
    index: Names = field(
        ("idx", "index"),
        "column of an example's name in prediction files; without it examples count from 0",
    )
    labels: tuple[Names, ...] = field(
        (),
        "the classes; none = those of the training examples. A class may have several spellings, "
        'as in (("negative", "0"), ("positive", "1")): the first is its name, the last is '
        "written to prediction files",
    )
    regression: bool = field(False, "labels are numbers")
    metric_names: tuple[str, ...] = field(
        (),
        f"metrics: for classes {', '.join(CLASS_METRICS)}; for regression "
        f"{', '.join(SCORE_METRICS)}; the first one picks the best model; none = accuracy, or both "
        "for regression",
    )
    format: str = field(
        "",
        "tsv, quoted_tsv, csv, jsonl, json, parquet or label_first; empty to go by the file's "
        "suffix, where a .tsv file is quoted if all of it is",
    )
    encoding: str = field("utf-8", "encoding of files, by its Python name")
    skip_incomplete: bool = field(
        False, "skip rows that lack a column and log their number; otherwise they are an error"
    )

    predictions_suffix: ClassVar[str] = ".tsv"
    _has_numbers: ClassVar[bool] = False  # whether files may have the numbers of the classes

    def __post_init__(self) -> None:
        if not self.metric_names:
            names = tuple(SCORE_METRICS) if self.regression else ("accuracy",)
            object.__setattr__(self, "metric_names", names)  # so that it is saved and compared
        if self.regression and self.labels:
            raise UserError("labels: a regression has none; drop them or set regression=False")
        if unknown := [name for name in self.metric_names if name not in self._metrics]:
            kind = "regression" if self.regression else "classification"
            raise UserError(
                f"metric_names: {', '.join(unknown)}; a {kind} has {', '.join(self._metrics)}"
            )
        num_classes = len(self._classes.names)
        if "f1" in self.metric_names and num_classes not in (0, 2):
            raise UserError(
                f"metric_names: f1 needs two classes, but there are {num_classes}; take macro_f1"
            )

    @property
    def head(self) -> Head:
        """A class or a score for each example."""
        return SEQUENCE_REGRESSION if self.regression else SEQUENCE_CLASSIFIER

    @property
    def _metrics(self) -> Mapping[str, Metric]:
        return SCORE_METRICS if self.regression else CLASS_METRICS

    @cached_property
    def _classes(self) -> Classes:
        return Classes(self.labels)

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the classes; none for regression."""
        return self._classes.names

    @property
    def num_labels(self) -> int:
        """Number of classes, or 1 for regression."""
        return 1 if self.regression else len(self.labels)

    def with_labels(self, labels: Sequence[str]) -> Self:
        return self if self.regression or self.labels else replace(self, labels=tuple(labels))

    def with_labels_of(self, examples: Sequence[Example]) -> Self:
        """The same task with the labels found in `examples`, sorted; itself if it has labels.

        Raises:
          UserError: there is only one.
        """
        if self.regression or self.labels:
            return self
        found = found_classes(examples)
        if len(found) < 2:
            raise UserError(f"{either(self.label)}: all training examples have {found[0]!r}")
        return self.with_labels(found)

    def read(self, source: str, *, labelled: bool = True) -> list[Example]:
        """The examples of a file or of `tfds:NAME[:SPLIT]`, in order.

        Args:
          source: as in `bert_jax.data.tables.read_rows`.
          labelled: as in `Task.read`.

        Raises:
          UserError: as `read_rows`; no rows; a column is missing or holds no text; if `labelled`,
            none has a label, one is not among `labels`, or a score is not a finite number. The
            message names the line.
        """
        return read_examples(
            source,
            Columns(self.text_a, self.text_b, self.label, self.index),
            read_score if self.regression else self._read_class,
            labelled=labelled,
            skip_incomplete=self.skip_incomplete,
            format=self.format or self._format_of(source),
            encoding=self.encoding,
            data_dir=self.data_dir,
        )

    def _format_of(self, source: str) -> str:
        """The format of a file if `format` does not say; empty to go by its suffix."""
        del source
        return ""

    def _read_class(self, label: Any, place: str) -> str | None:
        name = read_class(label, place)
        if not self.labels:
            return name
        if self._has_numbers and not self._classes.has(name) and name.isdecimal():
            name = dict(enumerate(self._classes.names)).get(int(name), name)
        return name if self._classes.number(name, place) >= 0 else None

    def features(
        self, examples: Sequence[Example], tokenizer: Tokenizer, max_seq_length: int
    ) -> Features:
        """One sequence per example, with its class or score; see `make_features`."""
        return make_features(examples, self._labels(examples), tokenizer, max_seq_length)

    def _labels(self, examples: Sequence[Example]) -> np.ndarray:
        return score_labels(examples) if self.regression else class_labels(examples, self._classes)

    def predictions(
        self, logits: Sequence[np.ndarray], features: Features, examples: Sequence[Example]
    ) -> np.ndarray:
        """The most likely class of each example, int32 [n], or its score, float32 [n]."""
        del features, examples
        return scores(logits) if self.regression else likeliest_classes(logits)

    def records(
        self, logits: Sequence[np.ndarray], features: Features, examples: Sequence[Example]
    ) -> list[Plain]:
        """`index` of each example, then the fields of `writer.verdict_fields`."""
        del features
        return [
            {"index": example.index} | verdict_fields(verdict(each, self.label_names))
            for example, each in zip(examples, logits, strict=True)
        ]

    def metrics(self, predictions: np.ndarray, examples: Sequence[Example]) -> dict[str, float]:
        """Each of `metric_names`, over the examples whose label is known."""
        labels, predictions = self._known(predictions, examples)
        return {name: self._metrics[name](labels, predictions) for name in self.metric_names}

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

    def _known(
        self, predictions: np.ndarray, examples: Sequence[Example]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Labels and predictions of the examples with a label."""
        labels = self._labels(examples)
        known = is_known(labels)
        return labels[known], predictions[known]

    def write_predictions(
        self, path: epath.PathLike, examples: Sequence[Example], predictions: np.ndarray
    ) -> None:
        """Writes `index` and `prediction` as TSV with a header, the format of GLUE's server."""
        if self.regression:
            said = [f"{score:.4f}" for score in predictions]
        else:
            said = [self._classes.written[class_] for class_ in predictions]
        write_tsv(path, examples, said)
