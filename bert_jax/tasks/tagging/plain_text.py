"""Words of a plain text, and the entities that their tags mark.

Words of tagging files were split by people or programs, each in its way: `Coca-Cola` is one word,
a comma is one, `U.N.` keeps its point and `London.` does not. A `WordRule` holds how the training
examples did it.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Self

import numpy as np

from bert_jax.data.tokenizer import Tokenizer
from bert_jax.data.words import IDEOGRAPH, is_punctuation
from bert_jax.tasks.tagging.decoding import Prediction
from bert_jax.tasks.tagging.schemes import as_bioes, find_spans

_BY_IDEOGRAPHS = re.compile(rf"{IDEOGRAPH}|(?:(?!{IDEOGRAPH})\S)+")
_INITIALS = re.compile(r"(?:[^\W\d_]\.)+")  # U.N., J.
_ENDING = re.compile(r"['’][a-z]{1,2}")  # 's, 're
_ENDINGS = ("'s", "’s")


class Entity(NamedTuple):
    """An entity: `text` is `whole_text[start:end]`, `score` its words' mean probability."""

    type: str
    text: str
    start: int
    end: int
    score: float


class WordRule(NamedTuple):
    """How a plain text is split into words: at white space, and what is split off there.

    Attributes:
      split_off: punctuation that is split off the edges of a word, and endings such as 's; none =
        any punctuation, and 's.
      keep_whole: words that keep such punctuation or endings.
      ideographs_joined: whether words may have several ideographs; otherwise each is a word.
    """

    split_off: tuple[str, ...] = ()
    keep_whole: frozenset[str] = frozenset()
    ideographs_joined: bool = False

    @classmethod
    def learn(cls, words: Iterable[str]) -> Self:
        """The rule that splits the words of training examples, if spaces part them, as they are.

        Punctuation is split off if it is a word of its own not much less often than a part of one.
        """
        counts = Counter(words)
        alone, touching = Counter[str](), Counter[str]()
        for word, count in counts.items():
            if all(map(is_punctuation, word)):
                alone.update(dict.fromkeys(word, count))
            else:
                touching.update(dict.fromkeys(filter(is_punctuation, (word[0], word[-1])), count))
        marks = [mark for mark, count in alone.items() if 10 * count > touching[mark]]
        endings = filter(_ENDING.fullmatch, counts)
        split_off = tuple(sorted((*marks, *endings)))
        joined = re.compile(IDEOGRAPH * 2)
        rule = cls(split_off or ("",), frozenset(), any(map(joined.search, counts)))
        cut = (word for word in counts if [*rule._cut(word)] != [(0, len(word))])
        return rule._replace(keep_whole=frozenset(cut))

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """(start, end) of the words of a text.

        If it has points or commas between spaces it is split already, at spaces.
        """
        chunks = [found.span() for found in re.finditer(r"\S+", text)]
        is_split = any(text[start:end] in (".", ",") for start, end in chunks)
        pattern = re.compile(r"\S+") if self.ideographs_joined else _BY_IDEOGRAPHS
        for chunk in chunks:
            if text[slice(*chunk)] in self.keep_whole:
                yield chunk
                continue
            for found in pattern.finditer(text, *chunk):
                start, end = found.span()
                if is_split:
                    yield start, end
                else:
                    yield from ((start + i, start + j) for i, j in self._cut(text[start:end]))

    def _cut(self, word: str) -> Iterator[tuple[int, int]]:
        """(start, end) of the parts of what stands between spaces."""
        start, end = 0, len(word)
        after: list[tuple[int, int]] = []
        while start < end:
            rest = word[start:end]
            initials = _INITIALS.fullmatch(rest)
            if rest in self.keep_whole or initials or (start, end) == (0, 1):
                break
            if self._is_mark(rest[0]):
                size = self._run(rest)
                yield start, start + size
                start += size
            elif self._is_mark(rest[-1]):
                size = self._run(rest[::-1])
                after.append((end - size, end))
                end -= size
            elif size := max((len(e) for e in self._endings() if rest.endswith(e)), default=0):
                if size == len(rest):
                    break
                after.append((end - size, end))
                end -= size
            else:
                break
        if start < end:
            yield start, end
        yield from reversed(after)

    def _is_mark(self, character: str) -> bool:
        return character in self.split_off if self.split_off else is_punctuation(character)

    def _endings(self) -> Iterable[str]:
        endings = self.split_off or _ENDINGS
        return (each for each in endings if len(each) > 1)

    def _run(self, text: str) -> int:
        """Characters of the mark that begins a text: its repetitions too, if training has them."""
        same = len(text) - len(text.lstrip(text[0]))
        return same if text[:same] in self.keep_whole else 1


ANY_PUNCTUATION = WordRule()


def split_words(
    tokenizer: Tokenizer, text: str, rule: WordRule = ANY_PUNCTUATION
) -> list[tuple[int, int]]:
    """(start, end) of the words of a plain text that have a token.

    `Sentence` takes `text[start:end]` of each.
    """
    _, offsets = tokenizer.encode_with_offsets(text)
    words = []
    for start, end in rule.spans(text):
        first, after = np.searchsorted(offsets[:, 0], (start, end))
        if first < after:
            words.append((int(offsets[first, 0]), int(offsets[after - 1, 1])))
    return words


def join_words(words: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """The words as a text with a space between them, and (start, end) of each."""
    ends = itertools.accumulate(len(word) + 1 for word in words)
    return " ".join(words), [(end - 1 - len(word), end - 1) for word, end in zip(words, ends)]


def find_entities(
    text: str, words: Sequence[tuple[int, int]], prediction: Prediction, scheme: str = "BIO"
) -> list[Entity]:
    """The entities that the tags of a text's words mark, in order.

    Without a scheme each word is one, and its tag the type.

    Args:
      text: plain text.
      words: (start, end) of each word, as from `split_words`.
      prediction: tags of those words; those that break the scheme are read as by conlleval.
      scheme: one of `bert_jax.tasks.tagging.schemes.SCHEMES`, but not "auto".
    """
    if scheme == "none":
        spans = [(tag, index, index) for index, tag in enumerate(prediction.tags)]
    else:
        spans = [*find_spans(as_bioes(prediction.tags, scheme))]
    entities = []
    for type_, first, last in spans:
        start, end = words[first][0], words[last][1]
        score = float(prediction.probabilities[first : last + 1].mean())
        entities.append(Entity(type_, text[start:end], start, end, score))
    return entities
