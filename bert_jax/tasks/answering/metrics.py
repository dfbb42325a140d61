"""Metrics of SQuAD's official scripts, as shares in [0, 1], and a baseline guess.

SQuAD 1.1: Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250; 2.0, where questions may have no
answer: Rajpurkar et al. 2018, https://arxiv.org/abs/1806.03822.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

from bert_jax.data.sentences import split_sentences
from bert_jax.tasks.answering.decoding import Prediction, candidate
from bert_jax.tasks.answering.example import Question

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def squad_metrics(
    predictions: Sequence[Prediction], examples: Sequence[Question], *, unanswerable: bool
) -> dict[str, float]:
    """The metrics of the official script: `f1` and `exact_match`.

    With `unanswerable`, as in SQuAD 2.0, also both over the questions with and without an answer,
    and the best value of each that any "no answer" threshold reaches on these examples, with that
    threshold.
    """
    golds = [[text for text, _ in example.answers] for example in examples]
    texts = [prediction.answer.text for prediction in predictions]
    scores = _scores(golds, texts, unanswerable)
    result = {name: float(np.mean(of_each)) for name, of_each in scores.items()}
    if not unanswerable:
        return result
    answerable = np.array([bool(gold) for gold in golds])
    for kind, chosen in (("answerable", answerable), ("impossible", ~answerable)):
        if chosen.any():
            result |= {f"{kind}_{name}": float(np.mean(scores[name][chosen])) for name in scores}
    texts = [prediction.best.text for prediction in predictions]
    null_odds = [prediction.null_odds for prediction in predictions]
    for name, of_each in _scores(golds, texts, unanswerable=True).items():
        best, threshold = _best_threshold(of_each, texts, null_odds, answerable)
        result |= {f"best_{name}": best, f"best_{name}_threshold": threshold}
    return result


def f1_by_question(
    predictions: Sequence[Prediction], examples: Sequence[Question], *, unanswerable: bool
) -> np.ndarray:
    """float64 [n]: the `f1` of each question, whose mean is that of `squad_metrics`."""
    golds = [[text for text, _ in example.answers] for example in examples]
    texts = [prediction.answer.text for prediction in predictions]
    return _scores(golds, texts, unanswerable)["f1"]


def guess(example: Question, *, unanswerable: bool, null_threshold: float) -> Prediction:
    """An answer without a model.

    With `unanswerable` it is "no answer", otherwise the sentence of the context that shares the
    most words with the question, the first of equals.
    """
    words = {*_normalize(example.question).split()}
    sentence = max(
        split_sentences(example.context),
        key=lambda sentence: len(words.intersection(_normalize(sentence).split())),
    )
    start = example.context.index(sentence)
    best = candidate(sentence, start, start + len(sentence), 0.0, 0.0)
    if not unanswerable:
        return Prediction(best, best, (best,), 0.0)
    null = candidate("", None, None, 0.0, 0.0)
    return Prediction(null, best, (null,), null_threshold + 1)


def _normalize(text: str) -> str:
    """Lower case, no ASCII punctuation, no English articles, single spaces."""
    text = text.lower().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def _scores(
    golds: Sequence[Sequence[str]], texts: Sequence[str], unanswerable: bool
) -> dict[str, np.ndarray]:
    """`f1` and `exact_match`, float64 [n], against the gold answer that fits best.

    In SQuAD 2.0 gold answers without a word are ignored, and "" is the gold answer if none is left.
    """
    if unanswerable:
        golds = [[text for text in gold if _normalize(text)] or [""] for gold in golds]
    pairs = [
        [(_normalize(text), _normalize(answer)) for text in gold]
        for gold, answer in zip(golds, texts, strict=True)
    ]
    exact_match = [max(gold == answer for gold, answer in some) for some in pairs]
    f1 = [
        max(_f1(gold.split(), answer.split(), unanswerable) for gold, answer in some)
        for some in pairs
    ]
    return {"f1": np.array(f1), "exact_match": np.array(exact_match, float)}


def _f1(gold: Sequence[str], answer: Sequence[str], unanswerable: bool) -> float:
    """F1 of the multisets of words; if both are empty, 1 in SQuAD 2.0 and 0 in 1.1."""
    if not gold and not answer:
        return float(unanswerable)
    return 2 * (Counter(gold) & Counter(answer)).total() / (len(gold) + len(answer))


def _best_threshold(
    scores: np.ndarray, texts: Sequence[str], null_odds: Sequence[float], answerable: np.ndarray
) -> tuple[float, float]:
    """(best mean score, threshold), given the scores of the answers `texts`.

    As in the official script, thresholds are tried from answering no question to answering all, one
    question at a time; 0 if none is better than answering nothing.
    """
    score = best = float(np.sum(~answerable))
    threshold = 0.0
    for index in sorted(range(len(texts)), key=null_odds.__getitem__):
        score += scores[index] if answerable[index] else -float(bool(texts[index]))
        if score > best:
            best, threshold = float(score), null_odds[index]
    return best / len(texts), threshold
