"""Words of a plain text, and the entities that their tags mark."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bert_jax.data.wordpiece import WordPiece
from bert_jax.tasks.tagging.decoding import Prediction
from bert_jax.tasks.tagging.schemes import find_spans


class Entity(NamedTuple):
    """An entity: `text` is `whole_text[start:end]`, `score` its words' mean probability."""

    type: str
    text: str
    start: int
    end: int
    score: float


def split_words(wordpiece: WordPiece, text: str) -> list[tuple[int, int]]:
    """(start, end) of the words of a plain text, split at white space and punctuation.

    Words are those that BERT splits into pieces. `Sentence` takes `text[start:end]` of each.
    """
    ids, offsets = wordpiece.encode_with_offsets(text)
    firsts = np.flatnonzero(~wordpiece.is_continuation[ids])
    bounds = itertools.pairwise([*firsts, len(ids)])
    return [(int(offsets[first, 0]), int(offsets[last - 1, 1])) for first, last in bounds]


def join_words(words: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """The words as a text with a space between them, and (start, end) of each."""
    ends = itertools.accumulate(len(word) + 1 for word in words)
    return " ".join(words), [(end - 1 - len(word), end - 1) for word, end in zip(words, ends)]


def find_entities(
    text: str, words: Sequence[tuple[int, int]], prediction: Prediction
) -> list[Entity]:
    """The entities that the tags of a text's words mark, in order.

    Args:
      text: plain text.
      words: (start, end) of each word, as from `split_words`.
      prediction: tags of those words; those that break the scheme are read as by conlleval.
    """
    entities = []
    for type_, first, last in find_spans(prediction.tags):
        start, end = words[first][0], words[last][1]
        score = float(prediction.probabilities[first : last + 1].mean())
        entities.append(Entity(type_, text[start:end], start, end, score))
    return entities
