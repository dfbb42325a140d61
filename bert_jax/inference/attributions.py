"""Why a model predicts what it does: how much each token of a text contributes to its logits.

- Integrated gradients (Sundararajan et al. 2017, https://arxiv.org/abs/1703.01365) on the
  embeddings, which the first layer reads, from those of a baseline. They add up to the difference
  that the text makes to the logits (completeness), up to the error of the integral.
- Input times gradient, on the same embeddings.
- Attention rollout (Abnar and Zuidema 2020, https://arxiv.org/abs/2005.00928): through which
  tokens attention reaches what the head reads. It has no sign and does not know what is explained.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from bert_jax.data.packing import Batch, Example, fill_rows
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.inference.batching import row_lengths
from bert_jax.inference.choices import BASELINES
from bert_jax.model.architecture import Architecture
from bert_jax.model.heads import Head
from bert_jax.tasks import MultiLabelTask, TaggingTask, TextTask
from bert_jax.tasks.answering.decoding import Prediction as AnswerPrediction
from bert_jax.tasks.answering.features import AnsweringFeatures
from bert_jax.tasks.classification.decoding import verdict
from bert_jax.tasks.protocol import AnyTask
from bert_jax.tasks.tagging.decoding import Prediction as TagPrediction
from bert_jax.tasks.tagging.features import TaggingFeatures

SHORTEST_ROW = 32  # shorter than usual, since texts do not share rows
FAR = 0.05  # from this completeness error on, more steps are advised
TINY = 1e-9  # what a difference of logits counts for at least


class Target(NamedTuple):
    """What is explained: a sum of logits of one sequence.

    Attributes:
      name: a class, a type of entity, "score" of a regression, or "answer".
      logits: (token, output) of each logit; the token of a pooled head is 0.
      text: the entity or answer; None for the whole text.
      start, end: its characters; None for the whole text and for no answer.
    """

    name: str
    logits: tuple[tuple[int, int], ...]
    text: str | None = None
    start: int | None = None
    end: int | None = None


class Explained(NamedTuple):
    """A sequence of tokens, `[CLS] A [SEP]` or `[CLS] A [SEP] B [SEP]`, and what to explain."""

    ids: np.ndarray
    b_start: int
    target: Target


class Attribution(NamedTuple):
    """What each token contributes to a sum of logits.

    Attributes:
      target: what is explained.
      score: its logits, summed.
      baseline_score: the same of the baseline.
      tokens: tokens of the sequence, [CLS] and [SEP] included.
      b_start: where the tokens of a second text begin; their number if there is none.
      integrated_gradients: fp32 [tokens], which add up to `score` - `baseline_score`.
      input_x_gradient: fp32 [tokens].
      rollout: fp32 [tokens], which add up to 1: how much of what the head reads comes from each.
    """

    target: Target
    score: float
    baseline_score: float
    tokens: list[str]
    b_start: int
    integrated_gradients: np.ndarray
    input_x_gradient: np.ndarray
    rollout: np.ndarray

    @property
    def completeness_error(self) -> float:
        """By how much the integrated gradients miss the difference, relative to it."""
        difference = self.score - self.baseline_score
        missed = abs(float(self.integrated_gradients.sum(dtype=np.float64)) - difference)
        return missed / max(abs(difference), TINY)

    def to_plain(self) -> dict[str, Any]:
        """Values of a JSON object, numbers with 6 decimals.

        `target_tokens` are the places of the tokens whose logits are explained, of an entity or
        answer, which also has `text`, `start` and `end`.
        """
        name, logits, *place = self.target
        whole = self.target.text is None
        arrays = ("integrated_gradients", "input_x_gradient", "rollout")
        return {
            "target": name,
            **({} if whole else dict(zip(("text", "start", "end"), place))),
            "score": round(self.score, 6),
            "baseline_score": round(self.baseline_score, 6),
            "completeness_error": round(self.completeness_error, 6),
            "tokens": self.tokens,
            "b_start": self.b_start,
            "target_tokens": [] if whole else sorted({token for token, _ in logits}),
            **{array: [round(float(x), 6) for x in getattr(self, array)] for array in arrays},
        }


def check_target(task: AnyTask, wanted: str | None) -> None:
    """Raises UserError if a task's predictions have no such class or type of entities."""
    if wanted is None:
        return
    names: Sequence[str] = task.label_names
    if isinstance(task, TaggingTask):
        names = task.entity_types
    if not names:
        raise UserError(f"target={wanted!r}: the model has no classes, leave it out")
    if wanted not in names:
        raise UserError(f"target={wanted!r}: use one of {', '.join(names)}")


def class_targets(task: TextTask, logits: np.ndarray, wanted: str | None) -> list[Target]:
    """The predicted classes of a text (the likeliest, if there is none), or the wanted one.

    Args:
      task: what the model was fine-tuned on.
      logits: [outputs].
      wanted: name of a class; None for those that are predicted.
    """
    names = task.label_names
    if not names:
        return [Target("score", ((0, 0),))]
    if wanted is not None:
        chosen = [wanted]
    else:
        said = task.said(verdict(logits, names, task.head.problem_type))
        chosen = said["labels"] if isinstance(task, MultiLabelTask) else [said["label"]]
    return [
        Target(name, ((0, names.index(name)),)) for name in chosen or [names[int(logits.argmax())]]
    ]


def entity_targets(
    task: TaggingTask,
    text: str,
    words: Sequence[tuple[int, int]],
    prediction: TagPrediction,
    features: TaggingFeatures,
    windows: Sequence[int],
    wanted: str | None,
) -> Iterator[tuple[int, Target]]:
    """Each entity of a text, and the window in which its first word counts.

    Its logits are those of the predicted tags of its words, as far as they count in this window.

    Args:
      task: what the model was fine-tuned on.
      text: the text.
      words: (start, end) of its words.
      prediction: their tags.
      features: windows of all texts.
      windows: those of this text.
      wanted: type of the entities; None for all.
    """
    begins = {start: word for word, (start, _) in enumerate(words)}
    ends = {end: word for word, (_, end) in enumerate(words)}
    places = {  # of the words that count in each window, their tokens
        window: {int(features.words[window][token]): int(token) for token in counted}
        for window in windows
        if len(counted := np.flatnonzero(features.words[window] >= 0))
    }
    for entity in task.find_entities(text, words, prediction):
        if wanted not in (None, entity.type):
            continue
        first, last = begins[entity.start], ends[entity.end]
        window = next(window for window, place in places.items() if first in place)
        logits = tuple(
            (places[window][word], task.labels.index(prediction.tags[word]))
            for word in range(first, last + 1)
            if word in places[window]
        )
        yield window, Target(entity.type, logits, entity.text, entity.start, entity.end)


def answer_target(
    prediction: AnswerPrediction,
    features: AnsweringFeatures,
    windows: Sequence[int],
    logits: Sequence[np.ndarray],
) -> tuple[int, Target]:
    """The two ends of the answer to a question, and the window in which it was found.

    Args:
      prediction: the answer.
      features: windows of all questions.
      windows: those of this question.
      logits: [tokens, 2] of each window.
    """
    text, start, end = prediction.answer[:3]
    if start is None:
        window = min(windows, key=lambda window: logits[window][0].sum())
        first = last = 0
    else:
        window = next(w for w in windows if _begins(features, w, start).any())
        begin = int(features.b_start[window])
        first = begin + int(_begins(features, window, start).argmax())
        last = begin + int((features.offsets[window][:, 1] == end).argmax())
    return window, Target("answer", ((first, 0), (last, 1)), text, start, end)


def _begins(features: AnsweringFeatures, window: int, start: int) -> np.ndarray:
    """bool [context tokens]: where an answer begins that this window scores."""
    begins: np.ndarray = (features.offsets[window][:, 0] == start) & features.is_widest[window]
    return begins


@dataclass(frozen=True)
class Layout:
    """How sequences and the points of their integrals are laid out for the devices.

    Attributes:
      head: head whose logits are explained.
      outputs: number of its outputs.
      architecture: architecture of the model.
      tokenizer: its vocabulary.
      steps: points of the integral.
      baseline: one of `BASELINES`.
      num_rows: rows of a batch, each of which holds one sequence.
      tokens_at_once: about how many tokens of a row's points are computed together.

    Raises:
      UserError: there are no steps, or no such baseline.
    """

    head: Head
    outputs: int
    architecture: Architecture
    tokenizer: Tokenizer
    steps: int
    baseline: str
    num_rows: int
    tokens_at_once: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"steps={self.steps}: must be at least 1")
        if self.baseline not in BASELINES:
            raise UserError(f"baseline={self.baseline!r}: use one of {', '.join(BASELINES)}")

    def pack(self, items: Sequence[Explained]) -> list[Batch]:
        """Batches of rows that hold one sequence each.

        Their rows also have `baseline_ids`, int32 [rows, length]; `target`, fp32 of the shape of
        the head's logits, by which these are multiplied; and `read`, fp32 [rows, length], the share
        of each position in what the head reads.
        """
        examples = [Example(item.ids, item.b_start) for item in items]
        batches = []
        for length, rows in self._by_length(items).items():
            for first in range(0, len(rows), self.num_rows):
                batch = fill_rows(
                    examples,
                    rows[first : first + self.num_rows],
                    num_rows=self.num_rows,
                    row_length=length,
                    pad_id=self.tokenizer.pad_id,
                )
                batches.append(self._with_targets(batch, items))
        return batches

    def _by_length(self, items: Sequence[Explained]) -> dict[int, list[list[int]]]:
        """Length of a row -> the rows, with the index of the one sequence of each."""
        found: dict[int, list[list[int]]] = {}
        lengths = row_lengths(self.architecture.max_position_embeddings, SHORTEST_ROW)
        for index, item in enumerate(items):
            length = next(length for length in lengths if length >= len(item.ids))
            found.setdefault(length, []).append([index])
        return found

    def _with_targets(self, batch: Batch, items: Sequence[Explained]) -> Batch:
        ids, slots = batch.rows["input_ids"], batch.rows["cls_positions"]
        substitute = self.tokenizer.mask_id if self.baseline == "mask" else self.tokenizer.pad_id
        kept = np.isin(ids, (self.tokenizer.cls_id, self.tokenizer.sep_id))
        places = slots if self.head.pooled else ids
        target = np.zeros((*places.shape, self.outputs), np.float32)
        read = np.zeros(ids.shape, np.float32)
        for index, row, stop in zip(batch.examples.tolist(), batch.row, batch.stop):
            logits = items[index].target.logits
            for token, output in logits:
                target[row, token, output] += 1
                read[row, token] += 1 / len(logits)
            if self.head.pooled and self.architecture.pooling == "mean":
                read[row] = (np.arange(ids.shape[1]) < stop) / stop
        more = {"baseline_ids": np.where(kept, ids, substitute), "target": target, "read": read}
        return batch._replace(rows=batch.rows | more)

    def points(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Points between the baseline, at 0, and the text, at 1, for rows of a length.

        The first is the text, the second the baseline; then come the points of the integral, of
        Gauss and Legendre. What fills up the last call has no share.

        Returns:
          Places, fp32 [calls, points], and shares in the integral and in the gradient at the text,
          fp32 [calls, points, 2].
        """
        count = 2 + self.steps
        calls = math.ceil(count * length / self.tokens_at_once)
        points = math.ceil(count / calls)
        found = np.zeros((calls * points, 3), np.float32)
        nodes, weights = np.polynomial.legendre.leggauss(self.steps)  # from -1 to 1
        found[0] = 1, 0, 1
        found[2:count, 0], found[2:count, 1] = (nodes + 1) / 2, weights / 2
        places, *shares = found.T.reshape(3, calls, points)
        return places, np.stack(shares, axis=-1)
