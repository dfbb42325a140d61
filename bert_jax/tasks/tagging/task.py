"""Tagging of words in BIO or BIOES: named entities, semantic roles and the like."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
from etils import epath

from bert_jax.data.tfds import dataset_and_split
from bert_jax.data.wordpiece import WordPiece
from bert_jax.errors import UserError
from bert_jax.fields import Plain, field
from bert_jax.model.heads import TOKEN_CLASSIFIER, Head
from bert_jax.tasks.protocol import ClassScores, Task
from bert_jax.tasks.tagging.decoding import Prediction, likeliest_tags
from bert_jax.tasks.tagging.example import Sentence
from bert_jax.tasks.tagging.features import TaggingFeatures, make_features
from bert_jax.tasks.tagging.metrics import commonest_tags, scores, scores_of_types, share_of_o
from bert_jax.tasks.tagging.reader import Columns, Tagged, read_conll, read_tfds
from bert_jax.tasks.tagging.schemes import SCHEMES, check_known, checked, tags_of
from bert_jax.tasks.tagging.writer import tag_fields, write_conll


@dataclass(frozen=True)
class TaggingTask(Task[Sentence, TaggingFeatures, Sequence[Prediction]], name="tagging"):
    """One tag for each word.

    Columns are counted from 1, or from the end: -1 is the last.

    Raises:
      UserError: a column of words or tags is 0.
    """

    labels: tuple[str, ...] = field(
        (), "the tags; none = all tags of the entity types in the training examples"
    )
    scheme: str = field(
        "BIO",
        "BIO is also known as IOB2; IOB1 is read as BIO with `repair`",
        choices=SCHEMES,
    )
    word_column: int = field(1, "column of the words, in CoNLL files")
    tag_column: int = field(-1, "column of the tags, in CoNLL files")
    predicate_column: int = field(
        0,
        "column that marks the predicate, in files for semantic role labelling, which repeat a "
        "sentence for each of its predicates: words not marked `-`, `_`, `O` or `0` follow the "
        "sentence as segment B (Shi and Lin 2019, https://arxiv.org/abs/1904.05255), and roles are "
        "tagged like entities; 0 = none",
    )
    repair: bool = field(
        False,
        "read tags that break the scheme as conlleval does; otherwise they are an error. IOB1, "
        "which uses B- only where one entity follows another, needs this",
    )
    encoding: str = field("utf-8", "encoding of CoNLL files, by its Python name")

    @property
    def head(self) -> Head:
        """A class for each token."""
        return TOKEN_CLASSIFIER

    predictions_suffix: ClassVar[str] = ".conll"

    def __post_init__(self) -> None:
        if 0 in (self.word_column, self.tag_column):
            raise UserError("word_column, tag_column: columns count from 1")

    @property
    def label_names(self) -> tuple[str, ...]:
        return self.labels

    def with_labels(self, labels: Sequence[str]) -> Self:
        return self if self.labels else replace(self, labels=tuple(labels))

    def with_labels_of(self, examples: Sequence[Sentence]) -> Self:
        """The same task with all tags of the entity types in `examples`; itself if it has tags.

        Raises:
          UserError: the examples have no entity.
        """
        if self.labels:
            return self
        types = {tag[2:] for example in examples for tag in example.tags or () if tag != "O"}
        if not types:
            raise UserError("tag_column: the training examples have no tag but O")
        return self.with_labels(tags_of(sorted(types), self.scheme))

    def read(self, source: str, *, labelled: bool = True) -> list[Sentence]:
        """The sentences of a CoNLL file, or of `tfds:conll2003[:SPLIT]`.

        A file has one word per line, with columns separated by tabs or else by spaces, and blank
        lines between sentences. Lines that begin with -DOCSTART- are skipped, and so are comments:
        lines that begin with # and do not end in a tag.

        Args:
          source: a file, local or gs://, plain or compressed (.gz, .xz, .bz2, .zst), or a dataset
            with the features `tokens` and `ner`; its split is `train` by default.
          labelled: as in `Task.read`.

        Raises:
          UserError: no such source, another encoding or number of columns, a tag that is not of the
            scheme or of `labels`. The message names the line.
        """
        if dataset_and_split(source):
            found = read_tfds(source, labelled=labelled, data_dir=self.data_dir)
        else:
            tag_column = self.tag_column if labelled else 0
            columns = Columns(self.word_column, tag_column, self.predicate_column)
            found = read_conll(source, columns, self.encoding)
        sentences = [self._sentence(each) for each in found]
        if not sentences:
            raise UserError(f"{source}: no sentences found")
        return sentences

    def _sentence(self, found: Tagged) -> Sentence:
        """A sentence with checked tags."""
        words, tags, places, predicate = found
        if tags is None:
            return Sentence(words, None, places[0], predicate)
        fixed = checked(tags, places, self.scheme, self.repair)
        for tag, place in zip(fixed, places) if self.labels else ():
            check_known(tag, place, self.labels)
        num_repaired = sum(tag != there for tag, there in zip(fixed, tags))
        return Sentence(words, fixed, places[0], predicate, num_repaired)

    def features(
        self, examples: Sequence[Sentence], wordpiece: WordPiece, max_seq_length: int
    ) -> TaggingFeatures:
        """The windows of each sentence; see `make_features`."""
        return make_features(examples, self.labels, wordpiece, max_seq_length)

    def predictions(
        self,
        logits: Sequence[np.ndarray],
        features: TaggingFeatures,
        examples: Sequence[Sentence],
    ) -> list[Prediction]:
        """The most likely tag of each word, which need not fit its neighbours."""
        return likeliest_tags(logits, features, examples, self.labels)

    def records(
        self,
        logits: Sequence[np.ndarray],
        features: TaggingFeatures,
        examples: Sequence[Sentence],
    ) -> list[Plain]:
        """The fields of `writer.tag_fields` for each sentence."""
        predictions = self.predictions(logits, features, examples)
        return [*map(tag_fields, examples, predictions)]

    def metrics(
        self, predictions: Sequence[Prediction], examples: Sequence[Sentence]
    ) -> dict[str, float]:
        """`f1`, `precision` and `recall` of entities over all types, `accuracy` of words."""
        return scores(*_known([p.tags for p in predictions], examples), self.scheme)

    def baseline(
        self, train_examples: Sequence[Sentence], examples: Sequence[Sentence]
    ) -> dict[str, float]:
        """The metrics of each word's most frequent tag in training, O for unseen words.

        `share_of_o` is the accuracy of tagging every word as O.
        """
        gold, guesses = _known(commonest_tags(train_examples, examples), examples)
        return scores(gold, guesses, self.scheme) | {"share_of_o": share_of_o(gold)}

    def per_class(
        self, predictions: Sequence[Prediction], examples: Sequence[Sentence]
    ) -> list[ClassScores]:
        """Scores of each type of entity; `support` counts entities."""
        return scores_of_types(*_known([p.tags for p in predictions], examples), self.scheme)

    def write_predictions(
        self,
        path: epath.PathLike,
        examples: Sequence[Sentence],
        predictions: Sequence[Prediction],
    ) -> None:
        """Writes a CoNLL file: word, tag if it is known, predicted tag, separated by tabs."""
        write_conll(path, examples, predictions)


def _known(
    predicted: Sequence[list[str]], examples: Sequence[Sentence]
) -> tuple[list[list[str]], list[list[str]]]:
    """Gold and predicted tags of the sentences whose tags are known."""
    pairs = [
        (list(example.tags), tags)
        for example, tags in zip(examples, predicted, strict=True)
        if example.tags is not None
    ]
    return [gold for gold, _ in pairs], [tags for _, tags in pairs]
