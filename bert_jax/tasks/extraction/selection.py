"""Which sentences make a summary."""

import re
from collections.abc import Iterable, Sequence

_WORD = re.compile(r"\w+")


def oracle(sentences: Sequence[str], summary: str, most: int) -> list[int]:
    """The sentences that a model learns to choose, found greedily, in their order.

    The one that raises ROUGE-1 + ROUGE-2 (F1 of sets of words and of pairs of words) most is added,
    until none raises it or there are enough. Reference: Nallapati et al. 2017,
    https://arxiv.org/abs/1611.04230, section 2.3; scores as in BertSum,
    https://github.com/nlpyang/PreSumm, src/prepro/data_builder.py.

    Args:
      sentences: sentences of a document.
      summary: summary that a person wrote.
      most: most sentences to choose.
    """
    words = [_words(sentence) for sentence in sentences]
    wanted = [_ngrams(_words(summary), size) for size in (1, 2)]
    found = [[_ngrams(some, size) for size in (1, 2)] for some in words]
    chosen: list[int] = []
    best = 0.0
    while len(chosen) < most:
        scores = {
            index: sum(
                _f1(set().union(*(found[i][size] for i in (*chosen, index))), wanted[size])
                for size in range(2)
            )
            for index in range(len(sentences))
            if index not in chosen
        }
        index = max(scores, key=scores.__getitem__, default=-1)
        if index < 0 or scores[index] <= best:
            break
        best = scores[index]
        chosen.append(index)
    return sorted(chosen)


def choose(
    sentences: Sequence[str], scores: Iterable[float], most: int, *, blocking: bool
) -> list[int]:
    """The sentences with the highest scores, in their order.

    With `blocking` none that shares three words in a row with those chosen before it (Paulus et
    al. 2018, https://arxiv.org/abs/1705.04304, section 2.5).

    Args:
      sentences: sentences of a document.
      scores: score of each, or of the first ones.
      most: most sentences to choose.
      blocking: whether to leave out sentences that repeat others.
    """
    scores = list(scores)
    chosen: list[int] = []
    said: set[tuple[str, ...]] = set()
    for index in sorted(range(len(scores)), key=lambda index: -scores[index]):
        if len(chosen) == most:
            break
        trigrams = _ngrams(_words(sentences[index]), 3)
        if blocking and trigrams & said:
            continue
        said |= trigrams
        chosen.append(index)
    return sorted(chosen)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _ngrams(words: Sequence[str], size: int) -> set[tuple[str, ...]]:
    return set(zip(*(words[start:] for start in range(size))))


def _f1(found: set[tuple[str, ...]], wanted: set[tuple[str, ...]]) -> float:
    return 2 * len(found & wanted) / max(len(found) + len(wanted), 1)
