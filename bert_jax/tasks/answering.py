"""Extractive question answering: SQuAD 1.1 and 2.0.

The question and a window of the context are one sequence, `[CLS] question [SEP] context [SEP]`, and
two logits a token say where the answer begins and where it ends (Devlin et al. 2019,
https://arxiv.org/abs/1810.04805, sections 4.2 and 4.3). An answer is always a part of the original
text: tokens know their characters. Scores are those of the official scripts of SQuAD 1.1
(Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250) and 2.0 (Rajpurkar et al. 2018,
https://arxiv.org/abs/1806.03822), as shares in [0, 1].
"""

import functools
import itertools
import json
import math
import re
import string
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from bert_jax.data.documents import dataset_and_split, decoded_lines
from bert_jax.data.sentences import split_sentences
from bert_jax.data.wordpiece import WordPiece
from bert_jax.errors import UserError
from bert_jax.tasks.features import Features
from bert_jax.tasks.tables import read_rows
from bert_jax.tasks.windows import make_windows, widest_context


class Question(NamedTuple):
    """A question on a text.

    Attributes:
      id: Its key in files of predictions.
      question: A text.
      context: The text that holds the answer.
      answers: Text of every gold answer, and the character of the context where it begins.
        None at all: the context holds no answer (SQuAD 2.0), or it is not known.
      num_repaired: How many answers were not at their stated place.
    """

    id: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...] = ()
    num_repaired: int = 0


class Answer(NamedTuple):
    """A candidate: `text` is `context[start:end]`; all three are empty for "no answer"."""

    text: str
    start: int | None
    end: int | None
    start_logit: float
    end_logit: float
    probability: float  # among the candidates of its question

    @property
    def score(self) -> float:
        return self.start_logit + self.end_logit


class Prediction(NamedTuple):
    """What a model says to a question.

    Attributes:
      answer: The one it gives.
      best: The best that is not "no answer".
      n_best: Candidates, best first; "no answer" is one of them if the task knows it.
      null_odds: Score of "no answer" less that of `best`; 0 if the task does not know it.
    """

    answer: Answer
    best: Answer
    n_best: tuple[Answer, ...]
    null_odds: float


@dataclass(frozen=True, kw_only=True)
class AnsweringFeatures(Features):
    """Windows of questions, `[CLS] question [SEP] context [SEP]`.

    Attributes:
      labels: int32 [n, 2]: first and last token of the first gold answer; 0, 0, which is [CLS],
        where the window does not hold all of it.
      example: int32 [n]: index of the question.
      offsets: n arrays, int32 [context tokens, 2]: characters of each token from `b_start` on.
      is_widest: n arrays, bool [context tokens]: no other window has more context for the token,
        so that an answer that begins there is judged here.
    """

    example: np.ndarray
    offsets: list[np.ndarray]
    is_widest: list[np.ndarray]


@dataclass(frozen=True)
class AnsweringTask:
    """Extractive question answering.

    Attributes:
      unanswerable: Some questions have no answer in their context, as in SQuAD 2.0: "no answer" is
        an answer, and the metrics are those of 2.0.
      null_threshold: "No answer" is given if its score exceeds the best answer's by more than this.
      doc_stride: Tokens between the beginnings of windows.
      max_query_length: Tokens of a question; the rest is cut off.
      max_answer_length: Tokens of an answer.
      n_best_size: Candidates a question.
      repair: An answer that is not at its stated place, but elsewhere in the context exactly once,
        is taken from there; otherwise that is an error.
      data_dir: Where TFDS keeps its datasets; None for its default.

    Raises:
      UserError: A length or size that is not positive.
    """

    unanswerable: bool = False
    null_threshold: float = 0.0
    doc_stride: int = 128
    max_query_length: int = 64
    max_answer_length: int = 30
    n_best_size: int = 20
    repair: bool = False
    data_dir: str | None = None

    head = "answer_span"
    num_labels = 2  # outputs at each token: that the answer begins, and ends, there
    label_names = ()
    predictions_suffix = ""  # a directory

    def __post_init__(self):
        for name in ("doc_stride", "max_query_length", "max_answer_length", "n_best_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: {getattr(self, name)} must be at least 1")

    def with_labels_of(self, examples: Sequence[Question]) -> "AnsweringTask":
        """Itself: answers are not classes."""
        del examples
        return self

    def read(self, source: str, *, labelled: bool = True) -> list[Question]:
        """The questions of a JSON file of SQuAD's format, or of `tfds:squad/v1.1[:SPLIT]`.

        Args:
          source: A file, local or gs://, plain or compressed (.gz, .xz, .bz2, .zst), or a dataset;
            its split is `train` by default.
          labelled: False: answers are not looked at, if there are any.

        Raises:
          UserError: The source is not of that format, or an id is there twice; if `labelled`, a
            question without an answer, an answer that is not where it should be, or impossible
            questions without `unanswerable`.
        """
        is_dataset = dataset_and_split(source) is not None
        records = _tfds_records(source, self.data_dir) if is_dataset else _json_records(source)
        questions = {}
        for place, record in records:
            question = self._question(place, record, labelled)
            if question.id in questions:
                raise UserError(f"{place}: the id is there twice; predictions are written by id")
            questions[question.id] = question
        if not questions:
            raise UserError(f"{source}: no question there")
        return list(questions.values())

    def _question(self, place: str, record: Mapping[str, Any], labelled: bool) -> Question:
        question = Question(*(_text(record, key, place) for key in ("id", "question", "context")))
        if not labelled:
            return question
        is_impossible, answers = record.get("is_impossible", False), record.get("answers", [])
        if is_impossible and not self.unanswerable:
            raise UserError(f"{place}: is_impossible is true; set unanswerable=True for SQuAD 2.0")
        if not isinstance(answers, list) or not all(isinstance(a, Mapping) for a in answers):
            raise UserError(
                f"{place}: answers: a list of objects with text and answer_start is due"
            )
        if bool(is_impossible) == bool(answers):
            kind = "impossible" if is_impossible else "possible"
            raise UserError(f"{place}: the question is {kind} and has {len(answers)} answers")
        moved = [self._found(place, question.context, answer) for answer in answers]
        return question._replace(
            answers=tuple((answer["text"], at) for answer, at in zip(answers, moved)),
            num_repaired=sum(at != answer["answer_start"] for answer, at in zip(answers, moved)),
        )

    def _found(self, place: str, context: str, answer: Mapping[str, Any]) -> int:
        """The character of the context where the answer begins."""
        text, start = _text(answer, "text", place), answer.get("answer_start")
        if not isinstance(start, int) or start < 0:
            raise UserError(f"{place}: answer_start is {start!r}; the answer's first character")
        if context.startswith(text, start):
            return start
        times = sum(context.startswith(text, at) for at in range(len(context)))
        if self.repair and times == 1:
            return context.index(text)
        there = context[start : start + len(text)]
        raise UserError(
            f"{place}: the answer {text!r} is not at character {start} of the context, where "
            f"{there!r} is; the context has it {times} times"
            + ("; repair=True takes that place" if times == 1 else "")
        )

    def features(
        self, examples: Sequence[Question], wordpiece: WordPiece, max_seq_length: int
    ) -> AnsweringFeatures:
        """Windows of at most `max_seq_length` tokens, those of a question one after the other.

        `counts` has `examples`, `windowed` ones, `questions_cut`, `answers_repaired` by `read`, and
        `answers_without_token` (control characters), whose windows are labelled as without answer.

        Raises:
          UserError: `max_seq_length` leaves no room beside the question.
        """
        if max_seq_length <= self.max_query_length + 3:
            raise UserError(
                f"max_seq_length: {max_seq_length} leaves no room for context beside the question "
                f"(max_query_length={self.max_query_length} tokens) and 3 special tokens"
            )
        encode = functools.cache(wordpiece.encode_with_offsets)  # contexts have several questions
        columns = defaultdict(list)
        counts = Counter(examples=len(examples))
        queries = wordpiece.encode([example.question for example in examples])
        for index, (example, query) in enumerate(zip(examples, queries)):
            counts["questions_cut"] += len(query) > self.max_query_length
            counts["answers_repaired"] += example.num_repaired
            prefix = [wordpiece.cls_id, *query[: self.max_query_length], wordpiece.sep_id]
            ids, offsets = encode(example.context)
            windows = make_windows(len(ids), max_seq_length - len(prefix) - 1, self.doc_stride)
            widest = widest_context(windows)
            counts["windowed"] += len(windows) > 1
            span = _token_span(example, offsets)
            counts["answers_without_token"] += bool(example.answers) and span is None
            for number, (start, end) in enumerate(windows):
                whole = span is not None and start <= span[0] and span[1] < end
                columns["labels"].append(
                    [len(prefix) - start + i for i in span] if whole else [0, 0]
                )
                columns["input_ids"].append(
                    np.array([*prefix, *ids[start:end], wordpiece.sep_id], np.int32)
                )
                columns["b_start"].append(len(prefix))
                columns["example"].append(index)
                columns["offsets"].append(offsets[start:end])
                columns["is_widest"].append(widest[start:end] == number)
        for name in ("labels", "b_start", "example"):
            columns[name] = np.array(columns[name], np.int32)
        return AnsweringFeatures(**columns, counts=counts)

    def predictions(
        self,
        logits: Sequence[np.ndarray],
        features: AnsweringFeatures,
        examples: Sequence[Question],
    ) -> list[Prediction]:
        """What the logits say to each question.

        An answer has at most `max_answer_length` tokens of one window, and the window is the one
        with most context for the first of them. Among all such spans the best sums are taken.

        Args:
          logits: Of each window, [length, 2]: that the answer begins, and ends, at the token.
          features: Those windows.
          examples: Those of which `features` are.
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
            nulls.append(_answer("", None, None, start_logits[0], end_logits[0]))
            start_logits = start_logits[begin : begin + len(offsets)]
            end_logits = end_logits[begin : begin + len(offsets)]
            allowed = np.where(features.is_widest[window], start_logits, -np.inf)
            for first, last in self._best_spans(allowed, end_logits):
                start, end = int(offsets[first, 0]), int(offsets[last, 1])
                logit_pair = start_logits[first], end_logits[last]
                answers.append(_answer(context[start:end], start, end, *logit_pair))
        best_of_text = {}
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

    def metrics(
        self, predictions: Sequence[Prediction], examples: Sequence[Question]
    ) -> dict[str, float]:
        """What the official script prints, as shares in [0, 1]: `f1` and `exact_match`.

        With `unanswerable` also both over the questions with and without an answer, and the best
        that another `null_threshold` reaches on these examples, with that threshold.
        """
        golds = [[text for text, _ in example.answers] for example in examples]
        texts = [prediction.answer.text for prediction in predictions]
        scores = _scores(golds, texts, self.unanswerable)
        result = {name: float(np.mean(of_each)) for name, of_each in scores.items()}
        if not self.unanswerable:
            return result
        answerable = np.array([bool(gold) for gold in golds])
        for kind, chosen in (("answerable", answerable), ("impossible", ~answerable)):
            if chosen.any():
                result |= {
                    f"{kind}_{name}": float(np.mean(scores[name][chosen])) for name in scores
                }
        texts = [prediction.best.text for prediction in predictions]
        null_odds = [prediction.null_odds for prediction in predictions]
        for name, of_each in _scores(golds, texts, unanswerable=True).items():
            best, threshold = _best_threshold(of_each, texts, null_odds, answerable)
            result |= {f"best_{name}": best, f"best_{name}_threshold": threshold}
        return result

    def baseline(
        self, train_examples: Sequence[Question], examples: Sequence[Question]
    ) -> dict[str, float]:
        """The metrics of an answer without a model, which learns nothing from training.

        With `unanswerable` that is "no answer", and otherwise the first of those sentences of the
        context that share most words with the question.
        """
        return self.metrics([self._baseline(example) for example in examples], examples)

    def _baseline(self, example: Question) -> Prediction:
        words = {*_normalize(example.question).split()}
        sentence = max(
            split_sentences(example.context),
            key=lambda sentence: len(words.intersection(_normalize(sentence).split())),
        )
        start = example.context.index(sentence)
        best = _answer(sentence, start, start + len(sentence), 0.0, 0.0)
        if not self.unanswerable:
            return Prediction(best, best, (best,), 0.0)
        null = _answer("", None, None, 0.0, 0.0)
        return Prediction(null, best, (null,), self.null_threshold + 1)

    def write_predictions(
        self,
        directory: epath.PathLike,
        examples: Sequence[Question],
        predictions: Sequence[Prediction],
    ) -> None:
        """Writes the files of BERT's run_squad.py, by id of the question.

        predictions.json, which the official scripts take, nbest_predictions.json and, with
        `unanswerable`, null_odds.json for `evaluate-v2.0.py --na-prob-file`.
        """
        by_id = {example.id: p for example, p in zip(examples, predictions, strict=True)}
        files = {
            "predictions.json": {id_: p.answer.text for id_, p in by_id.items()},
            "nbest_predictions.json": {
                id_: [answer._asdict() for answer in p.n_best] for id_, p in by_id.items()
            },
        }
        if self.unanswerable:
            files["null_odds.json"] = {id_: p.null_odds for id_, p in by_id.items()}
        directory = epath.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            unfinished = directory / f"{name}.tmp"
            text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            unfinished.write_text(text, encoding="utf-8")
            unfinished.replace(directory / name)


def _answer(
    text: str, start: int | None, end: int | None, start_logit: float, end_logit: float
) -> Answer:
    return Answer(text, start, end, float(start_logit), float(end_logit), 0.0)


def _falling_score(answer: Answer) -> float:
    return -answer.score


def _with_probabilities(answers: Sequence[Answer]) -> list[Answer]:
    """Softmax of the scores of `answers`, which are sorted."""
    odds = [math.exp(answer.score - answers[0].score) for answer in answers]
    return [answer._replace(probability=odd / sum(odds)) for answer, odd in zip(answers, odds)]


def _token_span(example: Question, offsets: np.ndarray) -> tuple[int, int] | None:
    """First and last token that the first gold answer has a character of."""
    if not example.answers:
        return None
    text, start = example.answers[0]
    touched = (offsets[:, 1] > start) & (offsets[:, 0] < start + len(text))
    tokens = np.flatnonzero(touched)
    return (int(tokens[0]), int(tokens[-1])) if len(tokens) else None


def _normalize(text: str) -> str:
    """Lower case, no ASCII punctuation, no English articles, single spaces."""
    text = text.lower().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def _scores(
    golds: Sequence[Sequence[str]], texts: Sequence[str], unanswerable: bool
) -> dict[str, np.ndarray]:
    """`f1` and `exact_match`, float64 [n], against the gold answer that fits best.

    In SQuAD 2.0 gold answers without a word do not count, and "" is the gold answer where none is
    left.
    """
    if unanswerable:
        golds = [[text for text in gold if _normalize(text)] or [""] for gold in golds]
    pairs = [
        [(_normalize(text), _normalize(answer)) for text in gold]
        for gold, answer in zip(golds, texts, strict=True)
    ]
    exact_match = [max(gold == answer for gold, answer in some) for some in pairs]
    f1 = [
        max(_f1(gold.split(), answer.split(), unanswerable) for gold, answer in some)
        for some in pairs
    ]
    return {"f1": np.array(f1), "exact_match": np.array(exact_match, float)}


def _f1(gold: Sequence[str], answer: Sequence[str], unanswerable: bool) -> float:
    """Of the multisets of words. If neither has one, it is 1 in SQuAD 2.0 and 0 in 1.1."""
    if not gold and not answer:
        return float(unanswerable)
    return 2 * (Counter(gold) & Counter(answer)).total() / (len(gold) + len(answer))


def _best_threshold(
    scores: np.ndarray, texts: Sequence[str], null_odds: Sequence[float], answerable: np.ndarray
) -> tuple[float, float]:
    """(best mean score, threshold), given the scores of the answers `texts`.

    As in the official script, from the threshold at which no question is answered to that at which
    all are, one question at a time; 0 if none is better than to answer nothing.
    """
    score = best = float(np.sum(~answerable))
    threshold = 0.0
    for index in sorted(range(len(texts)), key=null_odds.__getitem__):
        score += scores[index] if answerable[index] else -float(bool(texts[index]))
        if score > best:
            best, threshold = float(score), null_odds[index]
    return best / len(texts), threshold


def _text(record: Mapping[str, Any], field: str, place: str) -> str:
    """A field that must be there, be text and not be blank."""
    text = record.get(field)
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{place}: {field} is {text!r}; text is due")
    return text


def _tfds_records(source: str, data_dir: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, record) of each question, as in a file of SQuAD's format."""
    for row in read_rows(source, (), data_dir=data_dir):
        answers = row.get("answers")
        pairs = zip(answers["text"], answers["answer_start"])
        answers = [{"text": text, "answer_start": int(start)} for text, start in pairs]
        yield row.place, {**row.values, "answers": answers}


def _json_records(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, record) of each question of a file of SQuAD's format."""
    path = epath.Path(source).expanduser()
    if not path.exists():
        raise UserError(f"{source}: no such file")
    with path.open("rb") as file:
        text = "".join(line for _, line in decoded_lines(path, file))
    try:
        articles = json.loads(text)["data"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'{source}: not a JSON object with "data", as SQuAD has it') from error
    for a, article in enumerate(articles, 1):
        place = f"{source}, article {a}"
        try:
            for p, paragraph in enumerate(article["paragraphs"], 1):
                place = f"{source}, article {a}, paragraph {p}"
                for q, record in enumerate(paragraph["qas"], 1):
                    name = f"{place}, question {q} ({record.get('id')})"
                    yield name, {**record, "context": paragraph.get("context")}
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{place}: not as in SQuAD: {error}") from error
