"""Metrics of tags, with entities counted by seqeval, and a baseline guess.

For BIO and IO tags seqeval counts like conlleval, the script of the CoNLL tasks (Tjong Kim Sang and
De Meulder 2003, https://aclanthology.org/W03-0419): an I- that continues nothing begins an entity.
For BIOES, BILOU and BMES tags it is strict: an entity must have its beginning and its end.

seqeval is imported when a metric is computed, because it imports scikit-learn, which takes a
second. Tags are one list per sentence, all of them known.
"""

import itertools
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from operator import eq
from typing import Any

import numpy as np

from bert_jax.tasks.classification.metrics import macro_f1, scores_of_classes
from bert_jax.tasks.protocol import ClassScores
from bert_jax.tasks.tagging.example import Sentence
from bert_jax.tasks.tagging.schemes import as_bioes


def scores(gold: list[list[str]], predicted: list[list[str]], scheme: str) -> dict[str, float]:
    """`f1`, `precision` and `recall` of entities over all types, `accuracy` of words.

    An entity is right if its type and its words are. 0 / 0 counts as 0. Without a scheme:
    `accuracy`, and `macro_f1`, the mean F1 of the tags that occur.
    """
    words = zip(itertools.chain.from_iterable(gold), itertools.chain.from_iterable(predicted))
    share_right = float(np.mean([tag == guess for tag, guess in words]))
    if scheme == "none":
        numbers, guesses, _ = _numbered(gold, predicted)
        return {"accuracy": share_right, "macro_f1": macro_f1(numbers, guesses)}
    from seqeval.metrics import f1_score, precision_score, recall_score

    options = _options(scheme)
    gold, predicted = ([as_bioes(tags, scheme) for tags in each] for each in (gold, predicted))
    return {
        "f1": float(f1_score(gold, predicted, **options)),
        "precision": float(precision_score(gold, predicted, **options)),
        "recall": float(recall_score(gold, predicted, **options)),
        "accuracy": share_right,
    }


def counts_by_sentence(
    gold: list[list[str]], predicted: list[list[str]], scheme: str
) -> np.ndarray:
    """int64 [sentences, 3]: entities that are right, in gold and predicted; words without a scheme.

    Their sums give the first of `scores`, 2 right / (gold + predicted).
    """
    if scheme == "none":
        right = [sum(map(eq, *tags)) for tags in zip(gold, predicted)]
        return np.array([(count, len(g), len(g)) for count, g in zip(right, gold)]).reshape(-1, 3)
    from seqeval.metrics.sequence_labeling import get_entities
    from seqeval.scheme import IOBES, Entities

    def entities(tags: list[str]) -> set[Any]:
        as_given = as_bioes(tags, scheme)
        if scheme in ("BIO", "IO"):
            return {*get_entities(as_given)}
        return {each.to_tuple() for each in Entities([as_given], IOBES).entities[0]}

    pairs = [(entities(g), entities(p)) for g, p in zip(gold, predicted)]
    return np.array([(len(g & p), len(g), len(p)) for g, p in pairs]).reshape(-1, 3)


def scores_of_types(
    gold: list[list[str]], predicted: list[list[str]], scheme: str
) -> list[ClassScores]:
    """Scores of each type of entity, or of each tag without a scheme.

    `support` counts entities, or words.
    """
    if scheme == "none":
        return scores_of_classes(*_numbered(gold, predicted))
    gold, predicted = ([as_bioes(tags, scheme) for tags in each] for each in (gold, predicted))
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

    strict = {} if scheme in ("BIO", "IO") else {"mode": "strict", "scheme": IOBES}
    return {"zero_division": 0, **strict}


def _numbered(
    gold: list[list[str]], predicted: list[list[str]]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Gold and predicted tags of all words as int32 [words], and the names of these numbers."""
    flat = [[*itertools.chain.from_iterable(each)] for each in (gold, predicted)]
    names = sorted({*flat[0], *flat[1]})
    numbers = {name: number for number, name in enumerate(names)}
    gold_numbers, guesses = (np.array([numbers[t] for t in each], np.int32) for each in flat)
    return gold_numbers, guesses, names


def commonest_tags(
    train_examples: Sequence[Sentence], examples: Sequence[Sentence]
) -> list[list[str]]:
    """Each word's most frequent tag in training.

    Unseen words get O, or the most frequent tag if there is no O.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for example in train_examples:
        for word, tag in zip(example.words, example.tags or ()):
            counts[word][tag] += 1
    commonest = {word: tags.most_common(1)[0][0] for word, tags in counts.items()}
    total = sum(counts.values(), Counter[str]())
    unseen = "O" if "O" in total or not total else total.most_common(1)[0][0]
    return [[commonest.get(word, unseen) for word in example.words] for example in examples]


def share_of_o(gold: list[list[str]]) -> float:
    """The accuracy of tagging every word as O."""
    counts = Counter(itertools.chain.from_iterable(gold))
    return counts["O"] / counts.total()
