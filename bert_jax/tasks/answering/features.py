"""Windows of contexts, each after its question.

The question and a window of the context are one sequence, `[CLS] question [SEP] context [SEP]`
(Devlin et al. 2019, https://arxiv.org/abs/1810.04805, section 4.2), with the characters of each
context token.
"""

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bert_jax.data.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.tasks.answering.example import Question
from bert_jax.tasks.features import Features
from bert_jax.tasks.windows import make_windows, widest_context


@dataclass(frozen=True, kw_only=True)
class AnsweringFeatures(Features):
    """Windows of questions, `[CLS] question [SEP] context [SEP]`.

    Attributes:
      labels: int32 [n, 2]: first and last token of the first gold answer; 0, 0, which is [CLS],
        if the window does not hold all of it.
      example: int32 [n]: index of the question.
      offsets: n arrays, int32 [context tokens, 2]: characters of each token from `b_start` on.
      is_widest: n arrays, bool [context tokens]: whether this window gives the token the most
        context, so that an answer that begins there is scored here.
    """

    example: np.ndarray
    offsets: list[np.ndarray]
    is_widest: list[np.ndarray]


def make_features(
    examples: Sequence[Question],
    tokenizer: Tokenizer,
    max_seq_length: int,
    *,
    doc_stride: int,
    max_query_length: int,
) -> AnsweringFeatures:
    """Windows of at most `max_seq_length` tokens, those of a question one after the other.

    `counts` has `examples`, `windowed` ones, `questions_cut`, `answers_repaired` by the reader, and
    `answers_without_token` (control characters), whose windows are labelled as having no answer.

    Args:
      examples: the questions.
      tokenizer: vocabulary of the model.
      max_seq_length: maximum tokens of a window with its question.
      doc_stride: tokens between the beginnings of windows.
      max_query_length: maximum tokens of a question; the rest is cut off.

    Raises:
      UserError: `max_seq_length` leaves no room beside the question.
    """
    separators = [tokenizer.sep_id] * tokenizer.separators
    num_special = 2 + len(separators)
    if max_seq_length <= max_query_length + num_special:
        raise UserError(
            f"max_seq_length: {max_seq_length} leaves no room for context beside the question "
            f"(max_query_length={max_query_length} tokens) and {num_special} special tokens"
        )
    encode = functools.cache(tokenizer.encode_with_offsets)  # a context has several questions
    input_ids: list[np.ndarray] = []
    offsets_of_windows: list[np.ndarray] = []
    is_widest: list[np.ndarray] = []
    labels: list[tuple[int, int]] = []
    b_start: list[int] = []
    example_of: list[int] = []
    counts = Counter(
        examples=len(examples),
        windowed=0,
        questions_cut=0,
        answers_repaired=0,
        answers_without_token=0,
    )
    queries = tokenizer.encode([example.question for example in examples])
    for index, (example, query) in enumerate(zip(examples, queries)):
        counts["questions_cut"] += len(query) > max_query_length
        counts["answers_repaired"] += example.num_repaired
        prefix = [tokenizer.cls_id, *query[:max_query_length], *separators]
        ids, offsets = encode(example.context)
        windows = make_windows(len(ids), max_seq_length - len(prefix) - 1, doc_stride)
        widest = widest_context(windows)
        counts["windowed"] += len(windows) > 1
        span = _token_span(example, offsets)
        counts["answers_without_token"] += bool(example.answers) and span is None
        for number, (start, end) in enumerate(windows):
            if span is not None and start <= span[0] and span[1] < end:
                moved = len(prefix) - start
                labels.append((moved + span[0], moved + span[1]))
            else:
                labels.append((0, 0))
            input_ids.append(np.array([*prefix, *ids[start:end], tokenizer.sep_id], np.int32))
            b_start.append(len(prefix))
            example_of.append(index)
            offsets_of_windows.append(offsets[start:end])
            is_widest.append(widest[start:end] == number)
    return AnsweringFeatures(
        input_ids=input_ids,
        b_start=np.array(b_start, np.int32),
        labels=np.array(labels, np.int32),
        counts=counts,
        example=np.array(example_of, np.int32),
        offsets=offsets_of_windows,
        is_widest=is_widest,
    )


def _token_span(example: Question, offsets: np.ndarray) -> tuple[int, int] | None:
    """First and last token that overlap the first gold answer; None if none does."""
    if not example.answers:
        return None
    text, start = example.answers[0]
    touched = (offsets[:, 1] > start) & (offsets[:, 0] < start + len(text))
    tokens = np.flatnonzero(touched)
    return (int(tokens[0]), int(tokens[-1])) if len(tokens) else None
