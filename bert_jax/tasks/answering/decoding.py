"""Decodes the head's logits into answers.

Two logits per token score it as the beginning and the end of the answer (Devlin et al. 2019,
https://arxiv.org/abs/1810.04805, sections 4.2 and 4.3). An answer is always a part of the original
text.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bert_jax.tasks.answering.example import Question
from bert_jax.tasks.answering.features import AnsweringFeatures


class Answer(NamedTuple):
    """A candidate answer: `text` is `context[start:end]`; "no answer" is "", None, None.

    `probability` is relative to the other candidates of the question.
    """

    text: str
    start: int | None
    end: int | None
    start_logit: float
    end_logit: float
    probability: float

    @property
    def score(self) -> float:
        """Sum of the logits."""
        return self.start_logit + self.end_logit


class Prediction(NamedTuple):
    """A model's prediction for a question.

    Attributes:
      answer: the answer given.
      best: the best candidate other than "no answer".
      n_best: candidates, best first, including "no answer" if the task allows it.
      null_odds: score of "no answer" minus that of `best`; 0 if the task does not allow it.
    """

    answer: Answer
    best: Answer
    n_best: tuple[Answer, ...]
    null_odds: float


@dataclass(frozen=True)
class Decoder:
    """Finds the best answers.

    Attributes:
      unanswerable: whether "no answer" is an answer.
      null_threshold: "no answer" is given if its score exceeds the best answer's by more than this.
      max_answer_length: maximum tokens of an answer.
      n_best_size: maximum candidates of a question, without "no answer".
    """

    unanswerable: bool
    null_threshold: float
    max_answer_length: int
    n_best_size: int

    def __call__(
        self,
        logits: Sequence[np.ndarray],
        features: AnsweringFeatures,
        examples: Sequence[Question],
    ) -> list[Prediction]:
        """The prediction for each question.

        An answer has at most `max_answer_length` tokens, all in the window that gives the first of
        them the most context. Of all such spans, those with the highest sums are taken.

        Args:
          logits: [length, 2] for each window: that the answer begins, and ends, at the token.
          features: the windows.
          examples: the questions that `features` was made from.
        """
        windows = itertools.groupby(range(len(features)), key=features.example.__getitem__)
        return [
            self._prediction(logits, features, list(group), examples[index].context)
            for index, group in windows
        ]

    def _prediction(
        self,
        logits: Sequence[np.ndarray],
        features: AnsweringFeatures,
        windows: Sequence[int],
        context: str,
    ) -> Prediction:
        answers, nulls = [], []
        for window in windows:
            begin, offsets = features.b_start[window], features.offsets[window]
            start_logits, end_logits = np.asarray(logits[window], np.float64).T
            nulls.append(candidate("", None, None, start_logits[0], end_logits[0]))
            start_logits = start_logits[begin : begin + len(offsets)]
            end_logits = end_logits[begin : begin + len(offsets)]
            allowed = np.where(features.is_widest[window], start_logits, -np.inf)
            for first, last in self._best_spans(allowed, end_logits):
                start, end = int(offsets[first, 0]), int(offsets[last, 1])
                logit_pair = start_logits[first], end_logits[last]
                answers.append(candidate(context[start:end], start, end, *logit_pair))
        best_of_text: dict[str, Answer] = {}
        for answer in sorted(answers, key=_falling_score):
            best_of_text.setdefault(answer.text, answer)
        n_best = list(best_of_text.values())[: self.n_best_size]
        if self.unanswerable or not n_best:
            n_best.append(min(nulls, key=lambda null: null.score))
        n_best = _with_probabilities(sorted(n_best, key=_falling_score))
        best = next((answer for answer in n_best if answer.text), n_best[0])
        null = next((answer for answer in n_best if not answer.text), best)
        null_odds = null.score - best.score
        answer = null if null_odds > self.null_threshold else best
        return Prediction(answer, best, tuple(n_best), null_odds)

    def _best_spans(self, starts: np.ndarray, ends: np.ndarray) -> list[tuple[int, int]]:
        """(first, last) of the `n_best_size` best spans, best first."""
        ends = np.pad(ends, (0, self.max_answer_length), constant_values=-np.inf)
        ends = np.lib.stride_tricks.sliding_window_view(ends, self.max_answer_length)
        scores = starts[:, None] + ends[: len(starts)]  # [first token, length - 1]
        order = np.argsort(-scores, axis=None, kind="stable")[: self.n_best_size]
        first, more = np.unravel_index(order, scores.shape)
        return [(f, f + m) for f, m in zip(first, more) if np.isfinite(scores[f, m])]


def candidate(
    text: str, start: int | None, end: int | None, start_logit: float, end_logit: float
) -> Answer:
    """An answer whose probability is not computed yet."""
    return Answer(text, start, end, float(start_logit), float(end_logit), 0.0)


def _falling_score(answer: Answer) -> float:
    return -answer.score


def _with_probabilities(answers: Sequence[Answer]) -> list[Answer]:
    """`answers`, sorted best first, with the softmax of their scores as probabilities."""
    odds = [math.exp(answer.score - answers[0].score) for answer in answers]
    return [answer._replace(probability=odd / sum(odds)) for answer, odd in zip(answers, odds)]
