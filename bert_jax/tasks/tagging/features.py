"""Windows of sentences with a class at each word's first piece.

A word's tag is predicted at its first piece (Devlin et al. 2019, https://arxiv.org/abs/1810.04805,
section 5.3). A long sentence is cut into windows that overlap by half, and each word counts only
in the window that gives it the most context, in training and in evaluation.
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bert_jax.data.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.tasks.features import Features
from bert_jax.tasks.tagging.example import Sentence
from bert_jax.tasks.tagging.schemes import check_known
from bert_jax.tasks.windows import make_windows, widest_context


@dataclass(frozen=True, kw_only=True)
class TaggingFeatures(Features):
    """Windows of sentences, `[CLS] words [SEP]` or `[CLS] words [SEP] predicate [SEP]`.

    Each word is encoded as after a space.

    Attributes:
      example: int32 [n]: index of the sentence.
      words: n arrays like `input_ids`, int32: index of the word whose tag is predicted at the
        token, -1 = none. It is the first with a character of the word: not a space alone.
    """

    example: np.ndarray
    words: list[np.ndarray]


def make_features(
    examples: Sequence[Sentence],
    labels: Sequence[str],
    tokenizer: Tokenizer,
    max_seq_length: int,
) -> TaggingFeatures:
    """Windows of at most `max_seq_length` tokens, those of a sentence one after the other.

    `labels` of the features has the class of a word at its first piece and -1 elsewhere. A word
    without a piece (control characters) becomes [UNK]. `counts` has `examples`,
    `windowed` ones, the `tags_repaired` by the reader, and `unknown_words`, those without a piece.

    Raises:
      UserError: a tag is not one of `labels`, or a predicate leaves no room.
    """
    input_ids: list[np.ndarray] = []
    labels_of_tokens: list[np.ndarray] = []
    words_of_tokens: list[np.ndarray] = []
    b_start: list[int] = []
    example_of: list[int] = []
    counts = Counter(examples=len(examples), windowed=0, tags_repaired=0, unknown_words=0)
    for index, example in enumerate(examples):
        words = tokenizer.encode_words(example.words)
        pieces = [word.ids or [tokenizer.unk_id] for word in words]
        counts["unknown_words"] += sum(not word.ids for word in words)
        counts["tags_repaired"] += example.num_repaired
        ids = np.array(list(itertools.chain.from_iterable(pieces)), np.int32)
        word_at = np.full(len(ids), -1, np.int32)
        begins = np.cumsum([0, *map(len, pieces)])[:-1]
        word_at[begins + np.array([word.first for word in words], int)] = np.arange(len(words))
        tail = [tokenizer.sep_id]
        if example.predicate:
            tail *= tokenizer.separators
            tail += [id_ for word in example.predicate for id_ in pieces[word]]
            tail += [tokenizer.sep_id]
        size = max_seq_length - 1 - len(tail)
        if size < 2:
            raise UserError(
                f"max_seq_length: {max_seq_length} leaves no room for words beside the special "
                f"tokens and the predicate, at {example.place}"
            )
        windows = make_windows(len(ids), size, size // 2)
        widest = widest_context(windows)
        counts["windowed"] += len(windows) > 1
        classes = _classes(example, labels)
        for number, (start, end) in enumerate(windows):
            counted = np.where(widest == number, word_at, -1)[start:end]
            word_of = np.array([-1, *counted, *[-1] * len(tail)], np.int32)
            input_ids.append(np.array([tokenizer.cls_id, *ids[start:end], *tail], np.int32))
            b_start.append(1 + end - start + (tokenizer.separators if example.predicate else 1))
            labels_of_tokens.append(classes[word_of])
            example_of.append(index)
            words_of_tokens.append(word_of)
    return TaggingFeatures(
        input_ids=input_ids,
        b_start=np.array(b_start, np.int32),
        labels=labels_of_tokens,
        counts=counts,
        example=np.array(example_of, np.int32),
        words=words_of_tokens,
    )


def _classes(example: Sentence, labels: Sequence[str]) -> np.ndarray:
    """int32 [words + 1]: the class of each word; -1 = not known, and of the word -1."""
    if example.tags is None:
        return np.full(len(example.words) + 1, -1, np.int32)
    numbers = {label: class_ for class_, label in enumerate(labels)}
    for tag in example.tags:
        check_known(tag, example.place, numbers)
    return np.array([*(numbers[tag] for tag in example.tags), -1], np.int32)
