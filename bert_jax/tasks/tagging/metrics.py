"""Metrics of tags, with entities counted by seqeval, and a baseline guess.

For BIO tags seqeval counts like conlleval, the script of the CoNLL tasks (Tjong Kim Sang and De
Meulder 2003, https://aclanthology.org/W03-0419): an I- that continues nothing begins an entity. For
BIOES tags it is strict: an entity must begin with B- or S- and end with E- or S-.

seqeval is imported when a metric is computed, because it imports scikit-learn, which takes a
second. Tags are one list per sentence, all of them known.
"""

import itertools
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from bert_jax.tasks.protocol import ClassScores
from bert_jax.tasks.tagging.example import Sentence


def scores(gold: list[list[str]], predicted: list[list[str]], scheme: str) -> dict[str, float]:
    """`f1`, `precision` and `recall` of entities over all types, `accuracy` of words.

    An entity is right if its type and its words are. 0 / 0 counts as 0.
    """
    from seqeval.metrics import f1_score, precision_score, recall_score

    options = _options(scheme)
    words = zip(itertools.chain.from_iterable(gold), itertools.chain.from_iterable(predicted))
    return {
        "f1": float(f1_score(gold, predicted, **options)),
        "precision": float(precision_score(gold, predicted, **options)),
        "recall": float(recall_score(gold, predicted, **options)),
        "accuracy": float(np.mean([tag == guess for tag, guess in words])),
    }


def scores_of_types(
    gold: list[list[str]], predicted: list[list[str]], scheme: str
) -> list[ClassScores]:
    """Scores of each type of entity; `support` counts entities."""
    from seqeval.metrics import classification_report

    with warnings.catch_warnings():  # about averages over no type, which are not used
        warnings.simplefilter("ignore", RuntimeWarning)
        report = classification_report(gold, predicted, output_dict=True, **_options(scheme))
    return [
        ClassScores(
            label=type_,
            precision=float(row["precision"]),
            recall=float(row["recall"]),
            f1=float(row["f1-score"]),
            support=int(row["support"]),
        )
        for type_, row in report.items()
        if not type_.endswith(" avg")
    ]


def _options(scheme: str) -> dict[str, Any]:
    """Options of seqeval's functions."""
    from seqeval.scheme import IOBES

    strict = {"mode": "strict", "scheme": IOBES} if scheme == "BIOES" else {}
    return {"zero_division": 0, **strict}


def commonest_tags(
    train_examples: Sequence[Sentence], examples: Sequence[Sentence]
) -> list[list[str]]:
    """Each word's most frequent tag in training, O for unseen words."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for example in train_examples:
        for word, tag in zip(example.words, example.tags or ()):
            counts[word][tag] += 1
    commonest = {word: tags.most_common(1)[0][0] for word, tags in counts.items()}
    return [[commonest.get(word, "O") for word in example.words] for example in examples]


def share_of_o(gold: list[list[str]]) -> float:
    """The accuracy of tagging every word as O."""
    counts = Counter(itertools.chain.from_iterable(gold))
    return counts["O"] / counts.total()
