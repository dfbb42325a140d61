"""Tagging of words: named entities, semantic roles and whatever else BIO or BIOES tags can say.

A word's tag is predicted at its first piece (Devlin et al. 2019, https://arxiv.org/abs/1810.04805,
section 5.3). A long sentence is cut into windows that overlap by half, and each word counts in the
one window where it has most context, in training as in evaluation.

Entities are scored by seqeval. Of BIO tags it counts as the script conlleval of the CoNLL tasks
does (Tjong Kim Sang and De Meulder 2003, https://aclanthology.org/W03-0419): an I- that continues
nothing begins an entity. Of BIOES tags it is strict: what is not begun by B- or S- and ended by E-
or S- is no entity.
"""

import itertools
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from scipy import special
from seqeval.metrics import classification_report, f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOBES

from bert_jax.data.documents import dataset_and_split
from bert_jax.data.wordpiece import WordPiece
from bert_jax.errors import UserError
from bert_jax.tasks.features import Features
from bert_jax.tasks.tables import read_lines, read_rows
from bert_jax.tasks.windows import make_windows, widest_context


class Sentence(NamedTuple):
    """Words and their tags.

    Attributes:
      words: As in the source.
      tags: One a word; None = not known.
      place: Where it comes from, for messages.
      predicate: Indices of the words whose roles the tags are.
      num_repaired: How many tags were not what they should be.
    """

    words: Sequence[str]
    tags: Sequence[str] | None
    place: str
    predicate: Sequence[int] = ()
    num_repaired: int = 0


class Prediction(NamedTuple):
    """Tags of the words of a sentence, and the probability of each, float32 [words]."""

    tags: list[str]
    probabilities: np.ndarray


class Entity(NamedTuple):
    """`text`, which is `whole_text[start:end]`; `score` is its words' mean probability."""

    type: str
    text: str
    start: int
    end: int
    score: float


@dataclass(frozen=True, kw_only=True)
class TaggingFeatures(Features):
    """Windows of sentences, `[CLS] words [SEP]` or `[CLS] words [SEP] predicate [SEP]`.

    Attributes:
      example: int32 [n]: index of the sentence.
      words: n arrays like `input_ids`, int32: index of the word whose tag is predicted at the
        token, -1 = none.
    """

    example: np.ndarray
    words: list[np.ndarray]


@dataclass(frozen=True)
class TaggingTask:
    """One tag for each word.

    Columns are counted from 1, or from the end: -1 is the last.

    Attributes:
      labels: The tags; () = those of the types that the training examples have, see
        `with_labels_of`.
      scheme: "BIO", also known as IOB2, or "BIOES".
      word_column, tag_column: Of CoNLL files.
      predicate_column: Of files for semantic role labelling, which have a sentence once for each of
        its predicates: the words that have not `-`, `_`, `O` or `0` there follow the sentence as
        segment B (Shi and Lin 2019, https://arxiv.org/abs/1904.05255). Roles are tags like others.
      repair: Tags that break the scheme are read as conlleval reads them, otherwise they are an
        error. In particular this reads IOB1, where B- is left to entities that follow one another.
      encoding: Of CoNLL files.
      data_dir: Where TFDS keeps its datasets; None for its default.

    Raises:
      UserError: Another scheme, or a column 0.
    """

    labels: Sequence[str] = ()
    scheme: str = "BIO"
    word_column: int = 1
    tag_column: int = -1
    predicate_column: int | None = None
    repair: bool = False
    encoding: str = "utf-8"
    data_dir: str | None = None

    head = "token_classifier"
    predictions_suffix = ".conll"

    def __post_init__(self):
        if 0 in (self.word_column, self.tag_column, self.predicate_column):
            raise UserError("word_column, tag_column, predicate_column: columns count from 1")
        if self.scheme not in ("BIO", "BIOES"):
            raise UserError(
                f"scheme: {self.scheme!r} is neither BIO nor BIOES; IOB1 is read as BIO with repair"
            )

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(self.labels)

    @property
    def num_labels(self) -> int:
        """Outputs of the model at each token."""
        return len(self.labels)

    def read(self, source: str, *, labelled: bool = True) -> list[Sentence]:
        """The sentences of a CoNLL file, or of `tfds:conll2003[:SPLIT]`.

        A file has a word a line, with columns separated by tabs or else by spaces, and a blank line
        between sentences. Lines that begin with -DOCSTART- are skipped, and so are comments: lines
        that begin with # and do not end in a tag.

        Args:
          source: A file, local or gs://, plain or compressed (.gz, .xz, .bz2, .zst), or a dataset
            with the features `tokens` and `ner`; its split is `train` by default.
          labelled: False: tags are not looked at, if there are any.

        Raises:
          UserError: No such source, another encoding or number of columns, a tag that is not of the
            scheme or of `labels`. The message has the line.
        """
        if dataset_and_split(source):
            sentences = list(self._tfds_sentences(source, labelled))
        else:
            sentences = list(self._conll_sentences(source, labelled))
        if not sentences:
            raise UserError(f"{source}: no sentence there")
        return sentences

    def _conll_sentences(self, source: str, labelled: bool) -> Iterator[Sentence]:
        path = epath.Path(source).expanduser()
        rows = self._rows(path, read_lines(path, self.encoding), labelled)
        for between, group in itertools.groupby(rows, key=lambda row: row is None):
            if between:
                continue
            numbers, records = zip(*group)
            predicate = ()
            if self.predicate_column is not None:
                marks = _column(records, self.predicate_column)
                predicate = tuple(i for i, mark in enumerate(marks) if mark not in _NO_PREDICATE)
            yield self._sentence(
                _column(records, self.word_column),
                _column(records, self.tag_column) if labelled else None,
                [f"{path}, line {number}" for number in numbers],
                predicate,
            )

    def _rows(
        self, path: epath.Path, lines: Iterator[tuple[int, str]], labelled: bool
    ) -> Iterator[tuple[int, list[str]] | None]:
        """Number and fields of each line with a word, None for a line between sentences."""
        columns = [self.word_column, *([self.tag_column] if labelled else [])]
        if self.predicate_column is not None:
            columns.append(self.predicate_column)
        needed = max(len(columns), *map(abs, columns))
        width = None
        for number, line in lines:
            line = line.strip(" \r\n")
            if not line.strip("\t") or line.startswith("-DOCSTART-"):
                yield None
                continue
            fields = line.split("\t") if "\t" in line else re.split(" +", line)
            fits = len(fields) >= needed and len(fields) == (width or len(fields))
            if line.startswith("#"):  # a word or a comment
                is_word = fits and (
                    _TAG.fullmatch(*_column([fields], self.tag_column)) if labelled else width
                )
                if not is_word:
                    continue
            if not fits:
                raise UserError(
                    f"{path}, line {number}: {len(fields)} columns, "
                    + (f"and {width} in the lines before" if width else f"of {needed} or more")
                    + "; columns are separated by tabs, or else by spaces"
                )
            if not all(_column([fields], self.word_column)):
                raise UserError(f"{path}, line {number}: the word is empty")
            width = len(fields)
            yield number, fields

    def _tfds_sentences(self, source: str, labelled: bool) -> Iterator[Sentence]:
        for row in read_rows(source, (), data_dir=self.data_dir):
            words, tags = row.get("tokens"), row.get("ner") if labelled else None
            if words:
                places = [f"{row.place}, word {index}" for index in range(len(words))]
                yield self._sentence(words, tags, places, ())

    def _sentence(
        self,
        words: Sequence[str],
        tags: Sequence[str] | None,
        places: Sequence[str],
        predicate: Sequence[int],
    ) -> Sentence:
        """Checks the tags, with the place of each word."""
        if tags is None:
            return Sentence(words, None, places[0], predicate)
        for tag, place in zip(tags, places, strict=True):
            if not _TAG.fullmatch(tag) or tag[0] not in self.scheme:
                raise UserError(
                    f"{place}: {tag!r} is no tag of {self.scheme}; check scheme and tag_column"
                )
        fixed = _tags(get_entities(list(tags)), len(tags), self.scheme)
        broken = [index for index, tag in enumerate(tags) if tag != fixed[index]]
        if broken and not self.repair:
            index = broken[0]
            raise UserError(
                f"{places[index]}: tag {tags[index]!r} does not fit its neighbours; "
                f"{self.scheme} has {fixed[index]!r} there, which is what repair=True reads"
            )
        for tag, place in zip(fixed, places):
            if self.labels and tag not in self.labels:
                raise _unknown(tag, place, self.labels)
        return Sentence(words, fixed, places[0], predicate, len(broken))

    def with_labels_of(self, examples: Sequence[Sentence]) -> "TaggingTask":
        """The same task with all tags of the types that `examples` have; itself if it has labels.

        Raises:
          UserError: They have no entity.
        """
        if self.labels:
            return self
        types = {tag[2:] for example in examples for tag in example.tags or () if tag != "O"}
        if not types:
            raise UserError("tag_column: the training examples have no tag but O")
        prefixes = [prefix for prefix in self.scheme if prefix != "O"]
        tags = [f"{prefix}-{type_}" for type_ in sorted(types) for prefix in prefixes]
        return replace(self, labels=("O", *tags))

    def features(
        self, examples: Sequence[Sentence], wordpiece: WordPiece, max_seq_length: int
    ) -> TaggingFeatures:
        """Windows of at most `max_seq_length` tokens, those of a sentence one after the other.

        `labels` has the class of a word at its first piece and -1 elsewhere. A word without a piece
        (control characters) keeps its place as [UNK]. `counts` has `examples`, `windowed` ones, the
        `tags_repaired` by `read`, and `unknown_words`, those without a piece.

        Raises:
          UserError: A tag that is not one of `labels`; a predicate that leaves no room.
        """
        columns = defaultdict(list)
        counts = Counter(examples=len(examples))
        for index, example in enumerate(examples):
            pieces = wordpiece.encode(example.words)
            counts["unknown_words"] += pieces.count([])
            counts["tags_repaired"] += example.num_repaired
            pieces = [word or [wordpiece.unk_id] for word in pieces]
            ids = np.array(list(itertools.chain.from_iterable(pieces)), np.int32)
            word_at = np.full(len(ids), -1, np.int32)
            word_at[np.cumsum([0, *map(len, pieces[:-1])])] = np.arange(len(pieces))
            tail = [wordpiece.sep_id]
            if example.predicate:
                tail += [id_ for word in example.predicate for id_ in pieces[word]]
                tail += [wordpiece.sep_id]
            size = max_seq_length - 1 - len(tail)
            if size < 2:
                raise UserError(
                    f"max_seq_length: {max_seq_length} leaves no room for words beside the special "
                    f"tokens and the predicate, at {example.place}"
                )
            windows = make_windows(len(ids), size, size // 2)
            widest = widest_context(windows)
            counts["windowed"] += len(windows) > 1
            classes = self._classes(example)
            for number, (start, end) in enumerate(windows):
                counted = np.where(widest == number, word_at, -1)[start:end]
                words = np.array([-1, *counted, *[-1] * len(tail)], np.int32)
                columns["input_ids"].append(
                    np.array([wordpiece.cls_id, *ids[start:end], *tail], np.int32)
                )
                columns["b_start"].append(end - start + 2)
                columns["labels"].append(np.where(words < 0, -1, classes[words]))
                columns["example"].append(index)
                columns["words"].append(words)
        for name in ("b_start", "example"):
            columns[name] = np.array(columns[name], np.int32)
        return TaggingFeatures(**columns, counts=counts)

    def _classes(self, example: Sentence) -> np.ndarray:
        """int32 [words]; -1 = not known."""
        if example.tags is None:
            return np.full(len(example.words), -1, np.int32)
        classes = {label: class_ for class_, label in enumerate(self.labels)}
        for tag in example.tags:
            if tag not in classes:
                raise _unknown(tag, example.place, self.labels)
        return np.array([classes[tag] for tag in example.tags], np.int32)

    def predictions(
        self,
        logits: Sequence[np.ndarray],
        features: TaggingFeatures,
        examples: Sequence[Sentence],
    ) -> list[Prediction]:
        """The likeliest tag of each word, which need not fit its neighbours.

        Args:
          logits: Of each window, [length, num_labels].
          features: Those windows.
          examples: Those of which `features` are.
        """
        predictions = [
            Prediction([""] * len(e.words), np.zeros(len(e.words), np.float32)) for e in examples
        ]
        for window, index in enumerate(features.example):
            words = features.words[window]
            counted = np.flatnonzero(words >= 0)
            of_words = logits[window][counted]
            best = of_words.argmax(axis=-1)
            probabilities = special.softmax(of_words, axis=-1).max(axis=-1)
            for word, class_, probability in zip(words[counted], best, probabilities):
                predictions[index].tags[word] = self.labels[class_]
                predictions[index].probabilities[word] = probability
        return predictions

    def metrics(
        self, predictions: Sequence[Prediction], examples: Sequence[Sentence]
    ) -> dict[str, float]:
        """`f1`, `precision` and `recall` of entities over all types, `accuracy` of words.

        An entity is right if its type and its words are. A share of nothing is 0.
        """
        gold, predicted = _known(predictions, examples)
        words = zip(itertools.chain.from_iterable(gold), itertools.chain.from_iterable(predicted))
        return {
            "f1": float(f1_score(gold, predicted, **self._scoring)),
            "precision": float(precision_score(gold, predicted, **self._scoring)),
            "recall": float(recall_score(gold, predicted, **self._scoring)),
            "accuracy": float(np.mean([tag == guess for tag, guess in words])),
        }

    def per_class(
        self, predictions: Sequence[Prediction], examples: Sequence[Sentence]
    ) -> list[dict[str, str | float]]:
        """`label`, `precision`, `recall`, `f1` and `support` (entities) of each type of entity."""
        with warnings.catch_warnings():  # of averages over no type, which are not used
            warnings.simplefilter("ignore", RuntimeWarning)
            report = classification_report(
                *_known(predictions, examples), output_dict=True, **self._scoring
            )
        return [
            {
                "label": type_,
                "precision": float(row["precision"]),
                "recall": float(row["recall"]),
                "f1": float(row["f1-score"]),
                "support": int(row["support"]),
            }
            for type_, row in report.items()
            if not type_.endswith(" avg")
        ]

    @property
    def _scoring(self) -> dict[str, Any]:
        """Options of seqeval's functions."""
        strict = {"mode": "strict", "scheme": IOBES} if self.scheme == "BIOES" else {}
        return {"zero_division": 0, **strict}

    def baseline(
        self, train_examples: Sequence[Sentence], examples: Sequence[Sentence]
    ) -> dict[str, float]:
        """The metrics of each word's commonest tag in training, O for a word that is not there.

        `share_of_o` is the accuracy of O everywhere.
        """
        counts = defaultdict(Counter)
        for example in train_examples:
            for word, tag in zip(example.words, example.tags):
                counts[word][tag] += 1
        commonest = {word: tags.most_common(1)[0][0] for word, tags in counts.items()}
        guesses = [
            Prediction([commonest.get(word, "O") for word in e.words], np.ones(len(e.words)))
            for e in examples
        ]
        gold = Counter(itertools.chain.from_iterable(e.tags for e in examples))
        return self.metrics(guesses, examples) | {"share_of_o": gold["O"] / gold.total()}

    def write_predictions(
        self,
        path: epath.PathLike,
        examples: Sequence[Sentence],
        predictions: Sequence[Prediction],
    ) -> None:
        """Writes a CoNLL file: word, tag if it is known, predicted tag, separated by tabs.

        conlleval takes it with `-d '\\t'`.
        """
        blocks = []
        for example, prediction in zip(examples, predictions, strict=True):
            known = [example.tags] if example.tags is not None else []
            rows = zip(example.words, *known, prediction.tags, strict=True)
            blocks.append("".join("\t".join(row) + "\n" for row in rows))
        path = epath.Path(path)
        unfinished = path.with_name(f"{path.name}.tmp")
        unfinished.write_text("\n".join(blocks), encoding="utf-8")
        unfinished.replace(path)


def split_words(wordpiece: WordPiece, text: str) -> list[tuple[int, int]]:
    """(start, end) of the words of a plain text: what white space and punctuation separate.

    The cuts are BERT's own, before it looks for pieces. `Sentence` takes `text[start:end]` of each.
    """
    ids, offsets = wordpiece.encode_with_offsets(text)
    firsts = np.flatnonzero(~wordpiece.is_continuation[ids])
    bounds = itertools.pairwise([*firsts, len(ids)])
    return [(int(offsets[first, 0]), int(offsets[last - 1, 1])) for first, last in bounds]


def find_entities(
    text: str, words: Sequence[tuple[int, int]], prediction: Prediction
) -> list[Entity]:
    """The entities that the tags of a text's words spell, in order.

    Args:
      text: Plain text.
      words: (start, end) of each word, as from `split_words`.
      prediction: Of those words. Tags that do not fit are read as conlleval reads them.
    """
    entities = []
    for type_, first, last in get_entities(prediction.tags):
        start, end = words[first][0], words[last][1]
        score = float(prediction.probabilities[first : last + 1].mean())
        entities.append(Entity(type_, text[start:end], start, end, score))
    return entities


_TAG = re.compile("O|[BIES]-.+")
_NO_PREDICATE = ("-", "_", "O", "0", "")


def _column(records: Sequence[Sequence[str]], column: int) -> list[str]:
    return [fields[column - 1 if column > 0 else column] for fields in records]


def _tags(entities: Sequence[tuple[str, int, int]], length: int, scheme: str) -> list[str]:
    """Tags of `length` words, given type, first and last word of each entity."""
    tags = ["O"] * length
    for type_, first, last in entities:
        tags[first : last + 1] = [f"I-{type_}"] * (last + 1 - first)
        tags[first] = f"B-{type_}"
        if scheme == "BIOES":
            tags[last] = f"E-{type_}" if last > first else f"S-{type_}"
    return tags


def _unknown(tag: str, place: str, labels: Sequence[str]) -> UserError:
    return UserError(
        f"{place}: tag {tag!r} is none of {', '.join(labels)}, the labels given or those of the "
        "training examples"
    )


def _known(
    predictions: Sequence[Prediction], examples: Sequence[Sentence]
) -> tuple[list[list[str]], list[list[str]]]:
    """Gold and predicted tags of the sentences whose tags are known."""
    known = [
        (list(e.tags), list(p.tags))
        for e, p in zip(examples, predictions, strict=True)
        if e.tags is not None
    ]
    return [gold for gold, _ in known], [predicted for _, predicted in known]
