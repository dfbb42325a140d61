"""What all tasks on texts and pairs of texts share: their columns and their classes."""

import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np

from bert_jax.data.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.fields import Plain, field
from bert_jax.tasks.classification.decoding import Verdict, verdict
from bert_jax.tasks.classification.example import Example, Label
from bert_jax.tasks.classification.features import make_features
from bert_jax.tasks.classification.labels import Classes, is_known
from bert_jax.tasks.classification.metrics import Metric
from bert_jax.tasks.classification.names import Names
from bert_jax.tasks.classification.reader import Columns, read_examples
from bert_jax.tasks.classification.thresholds import WEIGHT, parse_numbers, written
from bert_jax.tasks.edits import Edits, edited
from bert_jax.tasks.features import Features
from bert_jax.tasks.protocol import Task

BALANCED = ("balanced",)


@dataclass(frozen=True)
class TextTask(Task[Example, Features, np.ndarray], abc.ABC):
    """A label for each text or pair of texts.

    A column may have several names: the first that a row has is used. Columns of files without a
    header are "1", "2", ...; see `bert_jax.data.tables.read_rows`.
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
    thresholds: tuple[str, ...] = field(
        (), "probabilities from which classes are predicted, NAME=NUMBER each"
    )
    class_weights: tuple[str, ...] = field((), "weights of the classes in the loss")
    metric_names: tuple[str, ...] = field((), "metrics; the first one picks the best model")
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

    def __post_init__(self) -> None:
        if not self.metric_names:  # so that they are saved and compared
            object.__setattr__(self, "metric_names", self._usual_metrics)
        if unknown := [name for name in self.metric_names if name not in self._metrics]:
            raise UserError(
                f"metric_names: {', '.join(unknown)}; a {self._kind} has {', '.join(self._metrics)}"
            )
        weights = parse_numbers(self._weighted, "class_weights", WEIGHT)
        self._check_classes(weights, "class_weights")

    @property
    @abc.abstractmethod
    def _kind(self) -> str:
        """What the task is, for messages."""

    def _check_classes(self, names: Iterable[str], field: str) -> None:
        """Raises UserError if a field names a class that there is not."""
        known = self.label_names
        if known and (strange := [name for name in names if name not in known]):
            raise UserError(f"{field}: {strange[0]!r} is none of the classes {', '.join(known)}")

    @property
    def _weighted(self) -> tuple[str, ...]:
        """`class_weights`, NAME=NUMBER each; none while they wait for the training examples."""
        return () if self.class_weights == BALANCED else self.class_weights

    @property
    def _weights(self) -> tuple[float, ...]:
        """The weight of each class; empty if all have the same, or are not known yet."""
        given = parse_numbers(self._weighted, "class_weights", WEIGHT)
        return tuple(given.get(name, 1.0) for name in self.label_names) if given else ()

    @abc.abstractmethod
    def _balanced(self, labels: np.ndarray) -> np.ndarray:
        """[classes]: the weights that make up for how often each class occurs in labels."""

    def _with_balanced(self, examples: Sequence[Example]) -> Self:
        """The same task with "balanced" weights as numbers, by training examples."""
        if self.class_weights != BALANCED:
            return self
        labels = self._labels(examples)
        numbers = np.round(self._balanced(labels[is_known(labels)]), 6).tolist()
        weights = written(dict(zip(self.label_names, numbers, strict=True)))
        return replace(self, class_weights=weights)

    @cached_property
    def _classes(self) -> Classes:
        return Classes(self.labels)

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the classes; none for regression."""
        return self._classes.names

    def with_labels(self, labels: Sequence[str]) -> Self:
        return self if self.labels else replace(self, labels=tuple(labels))

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
            self._read_label,
            labelled=labelled,
            skip_incomplete=self.skip_incomplete,
            format=self.format or self._format_of(source),
            encoding=self.encoding,
            data_dir=self.data_dir,
        )

    @abc.abstractmethod
    def _read_label(self, label: Any, place: str) -> Label | None:
        """The label that a value of a file stands for; None for no label."""

    def _format_of(self, source: str) -> str:
        """The format of a file if `format` does not say; empty to go by its suffix."""
        del source
        return ""

    def features(
        self, examples: Sequence[Example], tokenizer: Tokenizer, max_seq_length: int
    ) -> Features:
        """One sequence per example, with its label; see `make_features`."""
        return make_features(examples, self._labels(examples), tokenizer, max_seq_length)

    @abc.abstractmethod
    def _labels(self, examples: Sequence[Example]) -> np.ndarray:
        """The labels of examples, as `Features` has them."""

    @property
    @abc.abstractmethod
    def _metrics(self) -> Mapping[str, Metric]:
        """The metrics that the task can have, by name."""

    @property
    @abc.abstractmethod
    def _usual_metrics(self) -> tuple[str, ...]:
        """The metrics that it has unless it is told otherwise."""

    def metrics(self, predictions: np.ndarray, examples: Sequence[Example]) -> dict[str, float]:
        """Each of `metric_names`, over the examples whose label is known."""
        labels, predictions = self._known(predictions, examples)
        return {name: self._metrics[name](labels, predictions) for name in self.metric_names}

    def resampled(
        self, predictions: np.ndarray, examples: Sequence[Example], samples: np.ndarray
    ) -> np.ndarray:
        labels, metric = self._labels(examples), self._metrics[self.metric_names[0]]
        found = []
        for sample in samples:
            known = sample[is_known(labels[sample])]
            found.append(metric(labels[known], predictions[known]))
        return np.array(found)

    def perturbed(self, example: Example, edits: Callable[[str], Edits]) -> Example:
        """The example with edited texts; the label stays."""
        text_a, text_b = example.text_a, example.text_b
        return replace(
            example,
            text_a=edited(text_a, edits(text_a)),
            text_b=None if text_b is None else edited(text_b, edits(text_b)),
        )

    @abc.abstractmethod
    def said(self, found: Verdict) -> Plain:
        """What the model says of a text, as values of a JSON object."""

    def records(
        self, logits: Sequence[np.ndarray], features: Features, examples: Sequence[Example]
    ) -> list[Plain]:
        """`index` of each example, then the fields of `said`."""
        del features
        return [
            {"index": example.index} | self.said(self._verdict(each))
            for example, each in zip(examples, logits, strict=True)
        ]

    def _verdict(self, logits: np.ndarray) -> Verdict:
        return verdict(logits, self.label_names, self.head.problem_type)

    def _known(
        self, predictions: np.ndarray, examples: Sequence[Example]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Labels and predictions of the examples with a label."""
        labels = self._labels(examples)
        known = is_known(labels)
        return labels[known], predictions[known]
