"""Metrics of SQuAD's official scripts, as shares in [0, 1], and a baseline guess.

SQuAD 1.1: Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250; 2.0, where questions may have no
answer: Rajpurkar et al. 2018, https://arxiv.org/abs/1806.03822. Chinese is scored by character as
in the official script of CMRC 2018 (Cui et al. 2019, https://arxiv.org/abs/1810.07366), which is
used for DRCD too.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher

import numpy as np

from bert_jax.data.sentences import split_sentences
from bert_jax.tasks.answering.decoding import Prediction, candidate
from bert_jax.tasks.answering.example import Question

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_UNITS = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]|[^\s\u3400-\u4dbf\u4e00-\u9fff]+")
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def squad_metrics(
    predictions: Sequence[Prediction],
    examples: Sequence[Question],
    *,
    unanswerable: bool,
    by_character: bool,
) -> dict[str, float]:
    """The metrics of the official script: `f1` and `exact_match`.

    With `unanswerable`, as in SQuAD 2.0, also both over the questions with and without an answer,
    and the best value of each that any "no answer" threshold reaches on these examples, with that
    threshold.

    By character, ideographs and words of other scripts are units. Punctuation does not count, and
    `f1` is that of the longest run of units that both answers have.
    """
    golds = [[text for text, _ in example.answers] for example in examples]
    texts = [prediction.answer.text for prediction in predictions]
    scores = _scores(golds, texts, unanswerable, by_character)
    result = {name: float(np.mean(of_each)) for name, of_each in scores.items()}
    if not unanswerable:
        return result
    answerable = np.array([bool(gold) for gold in golds])
    for kind, chosen in (("answerable", answerable), ("impossible", ~answerable)):
        if chosen.any():
            result |= {f"{kind}_{name}": float(np.mean(scores[name][chosen])) for name in scores}
    texts = [prediction.best.text for prediction in predictions]
    null_odds = [prediction.null_odds for prediction in predictions]
    for name, of_each in _scores(golds, texts, True, by_character).items():
        best, threshold = _best_threshold(of_each, texts, null_odds, answerable)
        result |= {f"best_{name}": best, f"best_{name}_threshold": threshold}
    return result


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


def _units(text: str) -> list[str]:
    """Ideographs, and words of other scripts, in lower case, without punctuation."""
    kept = "".join(" " if _is_punctuation(character) else character for character in text.lower())
    return _UNITS.findall(kept)


def _is_punctuation(character: str) -> bool:
    return unicodedata.category(character)[0] in "PS"


def _scores(
    golds: Sequence[Sequence[str]], texts: Sequence[str], unanswerable: bool, by_character: bool
) -> dict[str, np.ndarray]:
    """`f1` and `exact_match`, float64 [n], against the gold answer that fits best.

    In SQuAD 2.0 gold answers without a word are ignored, and "" is the gold answer if none is left.
    """
    split = _units if by_character else _words
    same = _longest_run if by_character else _in_common
    if unanswerable:
        golds = [[text for text in gold if split(text)] or [""] for gold in golds]
    pairs = [
        [(split(text), split(answer)) for text in gold]
        for gold, answer in zip(golds, texts, strict=True)
    ]
    exact_match = [max(gold == answer for gold, answer in some) for some in pairs]
    f1 = [max(_f1(gold, answer, same, unanswerable) for gold, answer in some) for some in pairs]
    return {"f1": np.array(f1), "exact_match": np.array(exact_match, float)}


def _words(text: str) -> list[str]:
    return _normalize(text).split()


def _in_common(gold: Sequence[str], answer: Sequence[str]) -> int:
    return (Counter(gold) & Counter(answer)).total()


def _longest_run(gold: Sequence[str], answer: Sequence[str]) -> int:
    blocks = SequenceMatcher(None, gold, answer, autojunk=False)
    return blocks.find_longest_match().size


def _f1(
    gold: Sequence[str],
    answer: Sequence[str],
    same: Callable[[Sequence[str], Sequence[str]], int],
    unanswerable: bool,
) -> float:
    """F1 of units in common; if both answers are empty, 1 in SQuAD 2.0 and 0 in 1.1."""
    if not gold and not answer:
        return float(unanswerable)
    return 2 * same(gold, answer) / (len(gold) + len(answer))


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
