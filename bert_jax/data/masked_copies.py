"""Copies of a text in which one token after the other is masked, to score it.

The score of a text is its pseudo-log-likelihood: the sum over its tokens of the log probability of
each, read from a copy in which it is masked (Salazar et al. 2020, https://arxiv.org/abs/1910.14659).
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from bert_jax.data.packing import Batch, Example
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.data.words import continues


class Tokens(NamedTuple):
    """The tokens of a text between [CLS] and [SEP].

    Attributes:
      ids: int32 [length].
      continues: bool [length], whether a token continues the word of the one before it.
    """

    ids: np.ndarray
    continues: np.ndarray


class Copy(NamedTuple):
    """A text with masks, and the token to predict.

    Attributes:
      ids: int32 [length], `[CLS] text [SEP]`.
      position: index in `ids` from which the token is predicted: its own, where there is a mask, or
        the one before it.
      target: id of the token.
    """

    ids: np.ndarray
    position: int
    target: int


def tokens_of(tokenizer: Tokenizer, text: str) -> Tokens:
    """The tokens of a text; words are those of whole-word masking."""
    if tokenizer.pieces_tell_words:
        ids = np.array(tokenizer.encode([text])[0], np.int32)
        return Tokens(ids, tokenizer.is_continuation[ids])
    found, offsets = tokenizer.encode_with_offsets(text)
    return Tokens(np.array(found, np.int32), continues(text, offsets))


def masked_copies(
    tokenizer: Tokenizer,
    tokens: Tokens,
    *,
    within_word: bool = False,
    from_before: bool = False,
    causal: bool = False,
) -> Iterator[Copy]:
    """A copy for each token of a text, in their order.

    Args:
      tokenizer: gives the ids of [CLS], [SEP] and [MASK].
      tokens: the text.
      within_word: whether the later pieces of the word are masked, too: they would give it away
        (Kauf and Ivanova 2023, https://arxiv.org/abs/2305.10588).
      from_before: whether a masked token is predicted from the position before it, as models do
        that were trained to predict the next token (MNTP).
      causal: whether nothing is masked, since no position attends to later ones; `from_before`.
    """
    count = len(tokens.ids)
    index = np.arange(count)
    masked = np.eye(count, dtype=bool)
    if within_word:
        word = np.cumsum(~tokens.continues)
        masked = (word == word[:, None]) & (index >= index[:, None])
    if causal:
        masked = np.zeros_like(masked)
    copies = np.empty((count, count + 2), np.int32)
    copies[:, 0], copies[:, -1] = tokenizer.cls_id, tokenizer.sep_id
    copies[:, 1:-1] = np.where(masked, tokenizer.mask_id, tokens.ids)
    return map(
        Copy, copies, itertools.count(0 if from_before or causal else 1), tokens.ids.tolist()
    )


def pack_copies(
    copies: Sequence[Copy], pack: Callable[[Sequence[Example]], list[Batch]]
) -> list[Batch]:
    """Batches of copies, with what to predict in each slot.

    Args:
      copies: copies of any texts.
      pack: makes batches of examples.

    Returns:
      The batches; their rows also have `positions`, columns from which to predict, and `targets`,
      their ids, both int32 [rows, slots]; 0 in slots that hold no copy.
    """
    positions, targets = np.array([copy[1:] for copy in copies], np.int32).reshape(-1, 2).T
    batches = pack([Example(copy.ids, len(copy.ids)) for copy in copies])
    return [_with_targets(batch, positions, targets) for batch in batches]


def _with_targets(batch: Batch, positions: np.ndarray, targets: np.ndarray) -> Batch:
    # Rows of long copies have few; an even number gives few shapes.
    used = int(batch.slot.max(initial=0)) + 1
    slots = min(used + used % 2, batch.rows["cls_positions"].shape[1])
    shape = len(batch.rows["input_ids"]), slots
    more = {name: np.zeros(shape, np.int32) for name in ("positions", "targets")}
    more["positions"][batch.row, batch.slot] = batch.start + positions[batch.examples]
    more["targets"][batch.row, batch.slot] = targets[batch.examples]
    return batch._replace(rows=batch.rows | more)
