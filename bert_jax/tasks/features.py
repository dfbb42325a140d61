"""Features: a task's examples as ragged token sequences for the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from bert_jax.data.tokenizer import Tokenizer
from bert_jax.errors import UserError


@dataclass(frozen=True)
class Features:
    """Token sequences of examples, `[CLS] A [SEP]` or `[CLS] A [SEP] B [SEP]`.

    Between A and B there are as many [SEP] as the tokenizer puts there, in RoBERTa two.

    Attributes:
      input_ids: n arrays, int32, including special tokens.
      b_start: int32 [n]: where token type 1 begins; the length if there is no B.
      labels: targets of the loss: a class per sequence, int32 [n], -1 = ignored; whether each class
        applies to a sequence, int32 [n, classes], 1 or 0, -1 = ignored; a score per sequence,
        float32 [n], NaN = ignored; a class per token, n arrays like `input_ids`, -1 =
        ignored; the first and last token of an answer per sequence, int32 [n, 2]; or of a choice,
        int32 [n, 2], its question and whether it is right, 1 or 0, -1 = ignored.
      group: int32 [n], not falling: sequences with the same number are in the same row of a batch;
        None = each sequence is by itself.
      counts: how often each kind of truncation or repair happened, for the log.
    """

    input_ids: list[np.ndarray]
    b_start: np.ndarray
    labels: np.ndarray | list[np.ndarray]
    counts: Mapping[str, int] = field(default_factory=dict)
    group: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def units(self) -> list[list[int]]:
        """The sequences that are drawn together: those of each group, or each by itself."""
        indices = np.arange(len(self))
        group = indices if self.group is None else self.group
        starts = np.flatnonzero(np.diff(group)) + 1
        return [each.tolist() for each in np.split(indices, starts)]


# The error for pairs of texts; the second text of a pair has type 1.
ONE_TYPE = "a pair of texts needs 2 token types, and the model has 1 (type_vocab_size): give texts"


def check_token_types(features: Features, type_vocab_size: int, tokenizer: Tokenizer) -> None:
    """Raises UserError if there are pairs of texts for a model that has too few token types."""
    if lacks_types(type_vocab_size, tokenizer) and any(
        map(lambda ids, b: b < len(ids), features.input_ids, features.b_start)
    ):
        raise UserError(ONE_TYPE)


def lacks_types(type_vocab_size: int, tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer gives the second text of a pair a type that the model has not."""
    return type_vocab_size == 1 and tokenizer.has_pair_types


def pair_ids(
    tokenizer: Tokenizer, a_ids: Sequence[int], b_ids: Sequence[int] | None, max_seq_length: int
) -> tuple[np.ndarray, int, int]:
    """`[CLS] A [SEP]`, followed by `B [SEP]` unless `b_ids` is None.

    A sequence that is too long loses its last tokens, one at a time from the longer of A and B
    (from B if they are equally long), as in BERT (Devlin et al. 2019).

    Returns:
      The ids, int32, at most `max_seq_length`; where token type 1 begins (the length without B);
      how many tokens were cut.

    Raises:
      UserError: `max_seq_length` leaves no room beside the special tokens.
    """
    num_a, num_b = len(a_ids), len(b_ids or ())
    separators = 1 if b_ids is None else tokenizer.separators
    room = max_seq_length - (2 if b_ids is None else 2 + separators)
    if room < 0:
        raise UserError(f"max_seq_length: {max_seq_length} leaves no room for the special tokens")
    b_kept = min(num_b, max(room // 2, room - num_a))
    a_kept = min(num_a, room - b_kept)
    ids = [tokenizer.cls_id, *a_ids[:a_kept], *[tokenizer.sep_id] * separators]
    b_start = len(ids)
    if b_ids is not None:
        ids += [*b_ids[:b_kept], tokenizer.sep_id]
    return np.array(ids, np.int32), b_start, num_a + num_b - a_kept - b_kept
