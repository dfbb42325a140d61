"""Metrics of classification and regression, from scikit-learn and SciPy, and a baseline guess.

The libraries are imported when a metric is computed, because that takes a second. Labels and
predictions are int32 [n] classes, float32 [n] scores, or int32 [n, classes] of which several may
apply to an example (1, else 0); all of them known.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from bert_jax.tasks.protocol import ClassScores

Metric = Callable[[np.ndarray, np.ndarray], float]  # labels, predictions -> value


def accuracy(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Share of correct predictions."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, predictions))


def f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    """F1 of class 1 of two classes."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, zero_division=0))


def macro_f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Mean F1 of the classes."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, average="macro", zero_division=0))


def micro_f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    """F1 of all decisions together, for every class of every example."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, average="micro", zero_division=0))


def samples_f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Mean F1 of the examples; 1 for one without classes of which none is predicted."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, average="samples", zero_division=1))


def matthews(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Matthews' correlation of classes, in [-1, 1]; 0 for 0 / 0."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predictions)) if _vary(labels, predictions) else 0.0


def pearson(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Pearson's correlation of scores, in [-1, 1]; 0 for 0 / 0."""
    from scipy.stats import pearsonr

    return float(pearsonr(labels, predictions).statistic) if _vary(labels, predictions) else 0.0


def spearman(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Spearman's correlation of ranks, in [-1, 1]; 0 for 0 / 0."""
    from scipy.stats import spearmanr

    return float(spearmanr(labels, predictions).statistic) if _vary(labels, predictions) else 0.0


CLASS_METRICS: Mapping[str, Metric] = {
    "accuracy": accuracy,
    "f1": f1,
    "macro_f1": macro_f1,
    "matthews": matthews,
}
SCORE_METRICS: Mapping[str, Metric] = {"pearson": pearson, "spearman": spearman}


def count_confusions(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """int64 [num_classes, num_classes]: number of examples by true and predicted class."""
    from sklearn.metrics import confusion_matrix

    matrix: np.ndarray = confusion_matrix(labels, predictions, labels=range(num_classes))
    return matrix


def scores_of_classes(
    labels: np.ndarray, predictions: np.ndarray, names: Sequence[str]
) -> list[ClassScores]:
    """Scores of each class, by its name.

    0 / 0 counts as 0: the precision of a class never predicted, the recall of one without
    examples.
    """
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(
        labels, predictions, labels=range(len(names)), zero_division=0
    )
    return [
        ClassScores(label=name, precision=p, recall=r, f1=f, support=support)
        for name, p, r, f, support in zip(
            names, *(column.tolist() for column in columns), strict=True
        )
    ]


def best_constant(labels: np.ndarray) -> float:
    """The best constant prediction: the most frequent class, or the mean score."""
    return float(labels.mean() if labels.dtype.kind == "f" else np.bincount(labels).argmax())


def _vary(labels: np.ndarray, predictions: np.ndarray) -> bool:
    """Whether neither labels nor predictions are constant."""
    return bool(np.ptp(labels) and np.ptp(predictions))
