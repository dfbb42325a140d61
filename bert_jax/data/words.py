"""Words: what they are in every language and for every tokenizer.

A word is what BERT splits text into before WordPiece (Devlin et al. 2019): characters between
white space, where each mark of punctuation and each CJK ideograph is a word of its own. So
whole-word masks are alike for all tokenizers, however their pieces are spelled.
"""

import functools
import logging
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from bert_jax.errors import UserError
from bert_jax.fields import import_object

# Cuts a text into its words, from left to right; what is between them is white space.
Segmenter = Callable[[str], Iterable[str]]

IDEOGRAPH = "[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f]"
_IN_WORD, _SPACE, _PUNCTUATION, _IDEOGRAPH, _MARK, _NOT_SEEN = range(6)
_kind_of_character = np.full(sys.maxunicode + 1, _NOT_SEEN, np.uint8)


@functools.cache
def load_segmenter(name: str) -> Segmenter:
    """A segmenter of Chinese words by its name.

    Args:
      name: "jieba" (https://github.com/fxsjy/jieba), or MODULE:NAME for a `Segmenter` of your own.

    Raises:
      UserError: it cannot be imported.
    """
    if name != "jieba":
        found = import_object(name, "segmenter")
        if not callable(found):
            raise UserError(f"segmenter={name!r}: must be a function from a text to its words")
        segmenter: Segmenter = found
        return segmenter
    try:
        import jieba
    except ImportError as error:
        raise UserError("segmenter='jieba': pip install jieba") from error
    jieba.setLogLevel(logging.WARNING)
    cut: Segmenter = jieba.lcut
    return cut


def is_punctuation(character: str) -> bool:
    """As BERT splits text: punctuation, and all of ASCII that is no space, letter or digit."""
    ascii_mark = "!" <= character <= "~" and not character.isalnum()
    return ascii_mark or unicodedata.category(character).startswith("P")


def ideographs(text: str) -> int:
    """Number of CJK ideographs in a text."""
    return int(np.count_nonzero(_kinds(text) == _IDEOGRAPH))


def trimmed(text: str, offsets: Sequence[tuple[int, int]] | np.ndarray) -> np.ndarray:
    """Positions of tokens without white space, but with marks that normalisation dropped.

    Args:
      text: the text.
      offsets: start and end of each token in it, ascending.

    Returns:
      int32 [n, 2]. A token of white space alone is empty and stands where the next word begins.
    """
    kinds, size = _kinds(text), len(text)
    index = np.arange(size + 1)
    is_space, is_mark = (np.append(kinds == kind, False) for kind in (_SPACE, _MARK))
    # From each position on, the first that is no space, and the first that is no mark.
    word_at, mark_end = (
        np.minimum.accumulate(np.where(skipped, size, index)[::-1])[::-1]
        for skipped in (is_space, is_mark)
    )
    word_end = np.maximum.accumulate(np.where(np.roll(is_space, 1), 0, index))
    starts, ends = np.array(offsets, int).reshape(-1, 2).T
    limits = np.append(starts[1:], size)
    starts, ends = word_at[starts], word_end[ends]
    ends = np.maximum(ends, np.minimum(mark_end[ends], limits))
    return np.stack([starts, np.maximum(starts, ends)], axis=1).astype(np.int32)


def continues(text: str, offsets: np.ndarray, segment: Segmenter | None = None) -> np.ndarray:
    """bool [n]: whether each token of a text continues a word that the token before it is in.

    Args:
      text: the text.
      offsets: int [n, 2], positions of its tokens from `trimmed`.
      segment: decides where words of ideographs begin; None: each ideograph is a word.
    """
    if not len(offsets):
        return np.zeros(0, bool)
    kinds = _kinds(text)
    parts = (kinds == _SPACE) | (kinds == _PUNCTUATION)
    if segment is None:
        parts |= kinds == _IDEOGRAPH
    # Whether a word begins at a character: it or the one before it parts words.
    begins = np.append(parts | np.roll(parts, 1), True)
    begins[0] = True
    if segment is not None:
        begins[_starts(text, segment(text))] = True
    starts, ends = offsets[:, 0], offsets[:, 1]
    # Several tokens may make one character; white space belongs to the word after it.
    same = (starts[1:] < ends[:-1]) | (starts[1:] == starts[:-1])
    return np.append(False, same | ~begins[starts[1:]])


def _starts(text: str, words: Iterable[str]) -> list[int]:
    """Where the words begin in the text; a word that is not found there is left out."""
    starts, position = [], 0
    for word in words:
        if not isinstance(word, str):
            raise UserError(f"the segmenter gives {word!r}; it must give strings")
        found = text.find(word, position) if word else -1
        if found >= 0:
            starts.append(found)
            position = found + len(word)
    return starts


def _kinds(text: str) -> np.ndarray:
    """uint8 [characters]: what each is."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    kinds = _kind_of_character[codes]
    if (new := kinds == _NOT_SEEN).any():
        for code in np.unique(codes[new]).tolist():
            _kind_of_character[code] = _kind(chr(code))
        kinds = _kind_of_character[codes]
    return kinds


def _kind(character: str) -> int:
    if character.isspace():
        return _SPACE
    if is_punctuation(character):
        return _PUNCTUATION
    if re.match(IDEOGRAPH, character):
        return _IDEOGRAPH
    return _MARK if unicodedata.category(character) == "Mn" else _IN_WORD
