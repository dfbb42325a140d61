"""Metrics of tags, entities counted by seqeval, and those of a guess.

Of BIO tags seqeval counts as the script conlleval of the CoNLL tasks does (Tjong Kim Sang and De
Meulder 2003, https://aclanthology.org/W03-0419): an I- that continues nothing begins an entity. Of
BIOES tags it is strict: what is not begun by B- or S- and ended by E- or S- is no entity.

It is imported when a metric is computed, since it imports scikit-learn: that takes a second that
other uses need not wait. Tags are lists of one list a sentence, all of them known.
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

    An entity is right if its type and its words are. A share of nothing is 0.
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

    with warnings.catch_warnings():  # of averages over no type, which are not used
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
    """Each word's commonest tag in training, O for a word that is not there."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for example in train_examples:
        for word, tag in zip(example.words, example.tags or ()):
            counts[word][tag] += 1
    commonest = {word: tags.most_common(1)[0][0] for word, tags in counts.items()}
    return [[commonest.get(word, "O") for word in example.words] for example in examples]


def share_of_o(gold: list[list[str]]) -> float:
    """The accuracy of O everywhere."""
    counts = Counter(itertools.chain.from_iterable(gold))
    return counts["O"] / counts.total()
