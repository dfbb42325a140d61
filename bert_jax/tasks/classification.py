"""Classification and regression of texts and pairs of texts, and GLUE's tasks.

GLUE: Wang et al. 2018, https://arxiv.org/abs/1804.07461.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
import sklearn.metrics
from etils import epath

from bert_jax.data.wordpiece import WordPiece
from bert_jax.errors import UserError
from bert_jax.tasks.features import Features, pair_ids
from bert_jax.tasks.tables import Row, read_rows

Names = str | Sequence[str]  # one name, or several that mean the same
Metric = Callable[[np.ndarray, np.ndarray], float]  # of labels and predictions


class Example(NamedTuple):
    """A text or a pair of texts.

    Attributes:
      text_a, text_b: `text_b` is None where the task has single texts.
      label: A class in any of its spellings, or a score; None = not known.
      index: What a file of predictions calls the example.
      place: Where it comes from, for messages.
    """

    text_a: str
    text_b: str | None
    label: str | float | None
    index: str
    place: str


@dataclass(frozen=True)
class ClassificationTask:
    """One class, or one score, for each text or pair of texts.

    A column may have several names: the first that a row has is taken. Columns of files without a
    header are "1", "2", ...; see `bert_jax.tasks.tables.read_rows`.

    Attributes:
      text_a, text_b: Columns of the texts; without `text_b`, single texts.
      label: Column of the label; an empty one, null, or class -1 of TFDS says that it is not known.
      index: Column of what a file of predictions calls an example; without it they count from 0.
      labels: The classes; none = those of the training examples, see `with_labels_of`. A class may
        have several spellings, as in `(("negative", "0"), ("positive", "1"))`: the first is its
        name, and the last is what goes into a file of predictions.
      regression: Labels are numbers.
      metric_names: Of `CLASS_METRICS`, or for a regression of `SCORE_METRICS`.
      format, encoding, data_dir: See `read_rows`.
      skip_incomplete: Rows that lack a column are skipped and counted in the log; otherwise they
        are an error.

    Raises:
      UserError: Fields that contradict each other.
    """

    text_a: Names = "text"
    text_b: Names = ()
    label: Names = "label"
    index: Names = ("idx", "index")
    labels: Sequence[Names] = ()
    regression: bool = False
    metric_names: Sequence[str] = ("accuracy",)
    format: str = ""
    encoding: str = "utf-8"
    data_dir: str | None = None
    skip_incomplete: bool = False

    head = "sequence_classifier"
    predictions_suffix = ".tsv"

    def __post_init__(self):
        if self.regression and self.labels:
            raise UserError("labels: a regression has none; drop them or set regression=False")
        if unknown := [name for name in self.metric_names if name not in self._metrics]:
            kind = "regression" if self.regression else "classification"
            raise UserError(
                f"metric_names: {', '.join(unknown)}; a {kind} has {', '.join(self._metrics)}"
            )
        if len(self._classes) < sum(len(_names(label)) for label in self.labels):
            raise UserError(f"labels: two are spelled alike in {', '.join(self.label_names)}")
        if "f1" in self.metric_names and len(self.labels) not in (0, 2):
            raise UserError(
                f"metric_names: f1 is that of the second of two classes, and there are "
                f"{len(self.labels)}; take macro_f1"
            )

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the classes; none of a regression."""
        return tuple(_names(label)[0] for label in self.labels)

    @property
    def num_labels(self) -> int:
        """Outputs of the model."""
        return 1 if self.regression else len(self.labels)

    @property
    def _metrics(self) -> Mapping[str, Metric]:
        return SCORE_METRICS if self.regression else CLASS_METRICS

    @cached_property
    def _classes(self) -> dict[str, int]:
        return {name: class_ for class_, label in enumerate(self.labels) for name in _names(label)}

    def read(self, source: str, *, labelled: bool = True) -> list[Example]:
        """The examples of a file or of `tfds:NAME[:SPLIT]`, in order.

        Args:
          source: See `read_rows`.
          labelled: False: labels are not looked at, if there are any.

        Raises:
          UserError: As `read_rows`; no rows; a column is missing or holds no text; if `labelled`,
            none has a label, one is not among `labels`, or a score is not a finite number. The
            message has the line.
        """
        needed = [_names(self.text_a), _names(self.text_b), _names(self.label) if labelled else ()]
        needed = [names for names in needed if names]
        rows = read_rows(
            source,
            [name for names in (*needed, _names(self.index)) for name in names],
            format=self.format,
            encoding=self.encoding,
            data_dir=self.data_dir,
        )
        examples, skipped = [], []
        for number, row in enumerate(rows):
            if self.skip_incomplete and not all(row.has(*names) for names in needed):
                skipped.append(row.place)
            else:
                examples.append(self._example(row, number, labelled))
        if skipped:
            _LOG.warning("%s: row skipped for lack of a column, 1 of %d", skipped[0], len(skipped))
        if not examples:
            raise UserError(f"{source}: no rows")
        if labelled and all(example.label is None for example in examples):
            raise UserError(f"{source}: no row has a label in {_either(self.label)}")
        return examples

    def _example(self, row: Row, number: int, labelled: bool) -> Example:
        label = row.get(*_names(self.label)) if labelled else None
        if label is None or not str(label).strip():
            label = None
        elif self.regression:
            label = _score(label, row.place)
        else:
            label = str(label).strip()
            if self.labels:
                self._class_of(label, row.place)
        index = _names(self.index)
        return Example(
            _text(row, self.text_a),
            _text(row, self.text_b) if self.text_b else None,
            label,
            str(row.get(*index)) if row.has(*index) else str(number),
            row.place,
        )

    def _class_of(self, label: str, place: str) -> int:
        if label not in self._classes:
            raise UserError(
                f"{place}: label {label!r} is none of {', '.join(self.label_names)}, the labels "
                "given or those of the training examples"
            )
        return self._classes[label]

    def with_labels_of(self, examples: Sequence[Example]) -> "ClassificationTask":
        """The same task with the labels that `examples` have, sorted; itself if it has labels.

        Raises:
          UserError: They have but one.
        """
        if self.regression or self.labels:
            return self
        found = {example.label for example in examples if example.label is not None}
        if len(found) < 2:
            raise UserError(f"{_either(self.label)}: all training examples have {found.pop()!r}")
        return replace(self, labels=tuple(sorted(found)))

    def features(
        self, examples: Sequence[Example], wordpiece: WordPiece, max_seq_length: int
    ) -> Features:
        """Token sequences, in the order of `examples`, with a class or score each.

        A text without any token stays, as `[CLS] [SEP]`. `counts` has `examples`, `unlabelled` of
        them, `truncated` ones with `tokens_cut` in all, and `empty_texts`.

        Raises:
          UserError: A label that the task does not have, with its line.
        """
        a_ids = wordpiece.encode([example.text_a for example in examples])
        b_ids = [None] * len(examples)
        if self.text_b:
            b_ids = wordpiece.encode([example.text_b for example in examples])
        sequences = [
            pair_ids(wordpiece, a, b, max_seq_length) for a, b in zip(a_ids, b_ids, strict=True)
        ]
        cut = [tokens_cut for _, _, tokens_cut in sequences]
        return Features(
            input_ids=[ids for ids, _, _ in sequences],
            b_start=np.array([b_start for _, b_start, _ in sequences], np.int32),
            labels=self._labels(examples),
            counts={
                "examples": len(examples),
                "unlabelled": sum(example.label is None for example in examples),
                "truncated": sum(n > 0 for n in cut),
                "tokens_cut": sum(cut),
                "empty_texts": a_ids.count([]) + b_ids.count([]),
            },
        )

    def _labels(self, examples: Sequence[Example]) -> np.ndarray:
        if self.regression:
            known = [math.nan if e.label is None else e.label for e in examples]
            return np.array(known, np.float32)
        known = [-1 if e.label is None else self._class_of(e.label, e.place) for e in examples]
        return np.array(known, np.int32)

    def predictions(
        self,
        logits: Sequence[np.ndarray],
        features: Features | None = None,
        examples: Sequence[Example] = (),
    ) -> np.ndarray:
        """The likeliest class of each example, int32 [n], or its score, float32 [n].

        Args:
          logits: Of each example, [num_labels].
          features, examples: Not needed, as they are by tasks that cut examples into windows.
        """
        del features, examples
        if self.regression:
            return np.stack(logits)[:, 0].astype(np.float32)
        return np.stack(logits).argmax(axis=-1).astype(np.int32)

    def metrics(self, predictions: np.ndarray, examples: Sequence[Example]) -> dict[str, float]:
        """Each of the task's metrics, over the examples whose label is known."""
        predictions, labels = self._known(predictions, examples)
        return {name: float(self._metrics[name](labels, predictions)) for name in self.metric_names}

    def baseline(
        self, train_examples: Sequence[Example], examples: Sequence[Example]
    ) -> dict[str, float]:
        """The metrics of always predicting the commonest class, or the mean score, of training."""
        _, known = self._known(np.zeros(len(train_examples)), train_examples)
        guess = known.mean() if self.regression else np.bincount(known).argmax()
        return self.metrics(np.full(len(examples), guess), examples)

    def confusion_matrix(self, predictions: np.ndarray, examples: Sequence[Example]) -> np.ndarray:
        """int64 [num_labels, num_labels]: examples by their class and the predicted one."""
        predictions, labels = self._known(predictions, examples)
        return sklearn.metrics.confusion_matrix(labels, predictions, labels=range(self.num_labels))

    def per_class(
        self, predictions: np.ndarray, examples: Sequence[Example]
    ) -> list[dict[str, Any]]:
        """`label`, `precision`, `recall`, `f1` and `support` (examples) of each class.

        A share of nothing is 0: the precision of a class never predicted, the recall of one without
        examples.
        """
        predictions, labels = self._known(predictions, examples)
        columns = sklearn.metrics.precision_recall_fscore_support(
            labels, predictions, labels=range(self.num_labels), zero_division=0
        )
        return [
            {"label": label, "precision": p, "recall": r, "f1": f1, "support": support}
            for label, p, r, f1, support in zip(
                self.label_names, *(column.tolist() for column in columns), strict=True
            )
        ]

    def _known(
        self, predictions: np.ndarray, examples: Sequence[Example]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Predictions and labels of the examples with a label."""
        labels = self._labels(examples)
        known = ~np.isnan(labels) if self.regression else labels >= 0
        return predictions[known], labels[known]

    def write_predictions(
        self, path: epath.PathLike, examples: Sequence[Example], predictions: np.ndarray
    ) -> None:
        """Writes `index` and `prediction` as TSV with a header, as GLUE's server takes it.

        Rows are sorted by index where all are numbers: TFDS has shuffled them.
        """
        if self.regression:
            texts = [f"{score:.4f}" for score in predictions]
        else:
            texts = [_names(self.labels[class_])[-1] for class_ in predictions]
        rows = [(e.index, text) for e, text in zip(examples, texts, strict=True)]
        if all(index.isdecimal() for index, _ in rows):
            rows.sort(key=lambda row: int(row[0]))
        path = epath.Path(path)
        unfinished = path.with_name(f"{path.name}.tmp")
        lines = ["index\tprediction", *(f"{index}\t{text}" for index, text in rows)]
        unfinished.write_text("\n".join(lines) + "\n", encoding="utf-8")
        unfinished.replace(path)


_LOG = logging.getLogger(__name__)


def _names(names: Names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) and names else tuple(names)


def _either(names: Names) -> str:
    return " or ".join(map(repr, _names(names)))


def _text(row: Row, names: Names) -> str:
    text = row.get(*_names(names))
    if not isinstance(text, str):
        raise UserError(f"{row.place}: {_either(names)} is {type(text).__name__}, not text")
    return text


def _score(label: Any, place: str) -> float:
    try:
        score = float(label)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise UserError(f"{place}: label {label!r} is not a finite number, as a regression needs")
    return score


def _correlation(correlate: Metric) -> Metric:
    """0 instead of 0 / 0 where the labels or the predictions are all alike."""

    def metric(labels: np.ndarray, predictions: np.ndarray) -> float:
        return correlate(labels, predictions) if np.ptp(labels) and np.ptp(predictions) else 0.0

    return metric


SCORE_METRICS: Mapping[str, Metric] = {
    "pearson": _correlation(lambda *pairs: scipy.stats.pearsonr(*pairs).statistic),
    "spearman": _correlation(lambda *pairs: scipy.stats.spearmanr(*pairs).statistic),
}
CLASS_METRICS: Mapping[str, Metric] = {
    "accuracy": sklearn.metrics.accuracy_score,
    "f1": partial(sklearn.metrics.f1_score, zero_division=0),  # of class 1
    "macro_f1": partial(sklearn.metrics.f1_score, average="macro", zero_division=0),
    "matthews": _correlation(sklearn.metrics.matthews_corrcoef),
}


class Glue(NamedTuple):
    """A task of GLUE.

    Attributes:
      task: Reads TFDS, and the files that GLUE hands out.
      dev: TFDS's names of the splits to evaluate on.
      submission: Name of the file of predictions for each test split, by TFDS's name of it.
    """

    task: ClassificationTask
    dev: tuple[str, ...]
    submission: Mapping[str, str]


def _glue(submission: str, **fields: Any) -> Glue:
    return Glue(ClassificationTask(**fields), ("validation",), {"test": submission})


_SENTENCES = {"text_a": ("sentence1", "#1 String"), "text_b": ("sentence2", "#2 String")}
_MNLI = ClassificationTask(
    text_a=("premise", "sentence1"),
    text_b=("hypothesis", "sentence2"),
    label=("label", "gold_label"),
    labels=("entailment", "neutral", "contradiction"),
)
_ENTAILED = ("entailment", "not_entailment")

# By the name in TFDS: `glue/cola` and so on. The classes are in TFDS's order.
GLUE: Mapping[str, Glue] = {
    "cola": _glue(
        "CoLA.tsv",
        text_a=("sentence", "4"),  # its training and development files have no header
        label=("label", "2"),
        labels=(("unacceptable", "0"), ("acceptable", "1")),
        metric_names=("matthews",),
    ),
    "sst2": _glue("SST-2.tsv", text_a="sentence", labels=(("negative", "0"), ("positive", "1"))),
    "mrpc": _glue(
        "MRPC.tsv",
        **_SENTENCES,
        label=("label", "Quality"),
        labels=(("not_equivalent", "0"), ("equivalent", "1")),
        metric_names=("accuracy", "f1"),
    ),
    "stsb": _glue(
        "STS-B.tsv",
        **_SENTENCES,
        label=("label", "score"),
        regression=True,
        metric_names=("pearson", "spearman"),
    ),
    "qqp": _glue(
        "QQP.tsv",
        text_a="question1",
        text_b="question2",
        label=("label", "is_duplicate"),
        index=("idx", "id"),
        labels=(("not_duplicate", "0"), ("duplicate", "1")),
        metric_names=("accuracy", "f1"),
        skip_incomplete=True,  # a few lines of its files are cut short
    ),
    "mnli": Glue(
        _MNLI,
        ("validation_matched", "validation_mismatched"),
        {"test_matched": "MNLI-m.tsv", "test_mismatched": "MNLI-mm.tsv"},
    ),
    "ax": Glue(_MNLI, (), {"test": "AX.tsv"}),  # for a model of mnli
    "qnli": _glue("QNLI.tsv", text_a="question", text_b="sentence", labels=_ENTAILED),
    "rte": _glue("RTE.tsv", **_SENTENCES, labels=_ENTAILED),
    "wnli": _glue("WNLI.tsv", **_SENTENCES, labels=(("not_entailment", "0"), ("entailment", "1"))),
}
