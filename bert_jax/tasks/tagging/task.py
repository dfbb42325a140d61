"""Tagging of words: named entities, semantic roles, parts of speech and the like."""

import itertools
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import ne
from typing import ClassVar, Self

import numpy as np
from etils import epath

from bert_jax.data.lines import suffixes
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.fields import Plain, field
from bert_jax.model.heads import TOKEN_CLASSIFIER, Head
from bert_jax.tasks.edits import Edits, edited_words
from bert_jax.tasks.protocol import ClassScores, Task
from bert_jax.tasks.tagging.decoding import Prediction, likeliest_tags
from bert_jax.tasks.tagging.example import Sentence
from bert_jax.tasks.tagging.features import TaggingFeatures, make_features
from bert_jax.tasks.tagging.metrics import (
    commonest_tags,
    counts_by_sentence,
    scores,
    scores_of_types,
    share_of_o,
)
from bert_jax.tasks.tagging.plain_text import (
    Entity,
    WordRule,
    find_entities,
    join_words,
    split_words,
)
from bert_jax.tasks.tagging.reader import (
    ROW_SUFFIXES,
    Columns,
    Tagged,
    read_conll,
    read_token_rows,
)
from bert_jax.tasks.tagging.schemes import (
    MOST_TAGS,
    SCHEMES,
    Span,
    as_bioes,
    check_known,
    checked,
    detect,
    find_spans,
    is_iob1,
    other_notation,
    spell,
    tags_of,
)
from bert_jax.tasks.tagging.writer import tag_fields, write_conll

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaggingTask(Task[Sentence, TaggingFeatures, Sequence[Prediction]], name="tagging"):
    """One tag for each word.

    Columns are counted from 1, or from the end: -1 is the last.

    Raises:
      UserError: a column of words or tags is 0.
    """

    labels: tuple[str, ...] = field(
        (),
        "the tags; none = those of the training examples, with all tags of their entity types",
    )
    scheme: str = field(
        "auto",
        "how tags mark entities: BIO, also known as IOB2; IOB1, which is read as BIO; BIOES, BILOU "
        "or BMES; IO, where the tags of an entity's words are its type; none, for tags that mark "
        "none, such as parts of speech; auto = as the tags say",
        choices=SCHEMES,
        resume=True,  # the labels are compared
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
        "read tags that break the scheme as conlleval does; otherwise they are an error",
    )
    split_off: tuple[str, ...] = field(
        (),
        "what is split off the words of a plain text in prediction: punctuation at their edges, "
        "and endings such as 's; none = what is a word of its own in the training examples, or any "
        "punctuation if they are not known",
    )
    keep_whole: tuple[str, ...] = field(
        (), "words of which nothing is split off; none = those of the training examples"
    )
    ideographs_joined: bool = field(
        False,
        "words of a plain text may have several ideographs, as those of such training examples; "
        "otherwise each is a word",
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
        """The same task with all tags of the types in `examples`, and the rule of their words.

        What it has already it keeps.

        Raises:
          UserError: the examples have one tag or none, or too many for tags.
        """
        task = self if self.split_off else self._with_words_of(examples)
        if self.labels:
            return task
        tags = {tag for example in examples for tag in example.tags or ()}
        if tags <= {"O"}:
            raise UserError("tag_column: the training examples have no tag but O")
        scheme = self.scheme if self.scheme not in ("auto", "IOB1") else detect(tags)
        labels = tags_of(tags, scheme)
        if len(labels) == 1:
            raise UserError(f"tag_column: the training examples have no tag but {labels[0]}")
        if len(labels) > MOST_TAGS:
            raise UserError(f"tag_column: {len(labels):,} different tags; is it that of the tags?")
        return task.with_labels(labels)

    def _with_words_of(self, examples: Sequence[Sentence]) -> Self:
        rule = WordRule.learn(word for example in examples for word in example.words)
        return replace(
            self,
            split_off=rule.split_off,
            keep_whole=self.keep_whole or tuple(sorted(rule.keep_whole)),
            ideographs_joined=self.ideographs_joined or rule.ideographs_joined,
        )

    @cached_property
    def entity_scheme(self) -> str:
        """The scheme of the labels."""
        if self.scheme == "IOB1":
            return "BIO"
        return detect(self.labels) if self.scheme == "auto" else self.scheme

    @property
    def entity_types(self) -> list[str]:
        """The types of entities that tags can mark, sorted; without a scheme, the tags."""
        if self.entity_scheme == "none":
            return sorted(self.labels)
        spans = (find_spans(as_bioes([tag], self.entity_scheme)) for tag in self.labels)
        return sorted({span.type for found in spans for span in found})

    @cached_property
    def _word_rule(self) -> WordRule:
        return WordRule(self.split_off, frozenset(self.keep_whole), self.ideographs_joined)

    def split_words(self, tokenizer: Tokenizer, text: str) -> list[tuple[int, int]]:
        """(start, end) of the words of a plain text, split as in the training examples."""
        return split_words(tokenizer, text, self._word_rule)

    def find_entities(
        self, text: str, words: Sequence[tuple[int, int]], prediction: Prediction
    ) -> list[Entity]:
        """The entities that the tags of a text's words mark; see `plain_text.find_entities`."""
        return find_entities(text, words, prediction, self.entity_scheme)

    def read(self, source: str, *, labelled: bool = True) -> list[Sentence]:
        """The sentences of a CoNLL file, of rows with lists, or of `tfds:conll2003[:SPLIT]`.

        A CoNLL file has one word per line, with columns separated by tabs or else by spaces, and
        blank lines between sentences. Lines that begin with -DOCSTART- are skipped, and so are
        comments: lines that begin with # and do not end in a tag that occurred before or has a
        prefix. A .jsonl, .json or .parquet file has a row per sentence, as the library `datasets`
        has them, with lists `tokens` (or `words`) and `ner_tags` (or `ner`, `tags`, `labels`).

        Args:
          source: a file, local or gs://, plain or compressed (.gz, .xz, .bz2, .zst), or a dataset
            with such rows; its split is `train` by default.
          labelled: as in `Task.read`.

        Raises:
          UserError: no such source, another encoding or number of columns, a tag that is not of the
            scheme or of `labels`. The message names the line.
        """
        if source.startswith(("tfds:", "hf:")) or suffixes(epath.Path(source))[0] in ROW_SUFFIXES:
            found = read_token_rows(
                source,
                self.labels,
                labelled=labelled,
                encoding=self.encoding,
                data_dir=self.data_dir,
            )
        else:
            tag_column = self.tag_column if labelled else 0
            columns = Columns(self.word_column, tag_column, self.predicate_column)
            found = read_conll(source, columns, self.encoding)
        sentences = [*found]
        if not sentences:
            raise UserError(f"{source}: no sentences found")
        tags = [each.tags for each in sentences if each.tags is not None]
        tags_there = set(itertools.chain.from_iterable(tags))
        known = {*self.labels, *tags_there}
        if self.scheme == "auto" and (pair := other_notation(tags_there)):
            raise UserError(
                f"{source}: {' and '.join(map(repr, pair))} are not written as B-TYPE and "
                "I-TYPE: convert them, or set scheme=none to take each for a tag of its own"
            )
        scheme = detect(known) if self.scheme == "auto" else self.scheme
        if self.scheme == "auto" and scheme == "BIO" and is_iob1(tags):
            _log.warning(f"{source}: its tags are IOB1; read as BIO")
            scheme = "IOB1"
        return [self._sentence(each, scheme, known) for each in sentences]

    def _sentence(self, found: Tagged, scheme: str, known: Collection[str]) -> Sentence:
        """A sentence with checked tags."""
        words, tags, places, predicate = found
        if tags is None:
            return Sentence(words, None, places[0], predicate)
        fixed = checked(tags, places, scheme, known, self.repair)
        for tag, place in zip(fixed, places) if self.labels else ():
            check_known(tag, place, self.labels)
        num_repaired = 0 if scheme == "IOB1" else sum(map(ne, fixed, tags))
        return Sentence(words, fixed, places[0], predicate, num_repaired)

    def features(
        self, examples: Sequence[Sentence], tokenizer: Tokenizer, max_seq_length: int
    ) -> TaggingFeatures:
        """The windows of each sentence; see `make_features`."""
        return make_features(examples, self.labels, tokenizer, max_seq_length)

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
        scheme = self.entity_scheme
        return [tag_fields(*each, scheme) for each in zip(examples, predictions, strict=True)]

    def metrics(
        self, predictions: Sequence[Prediction], examples: Sequence[Sentence]
    ) -> dict[str, float]:
        """`f1`, `precision` and `recall` of entities over all types, `accuracy` of words.

        Without a scheme `accuracy` and `macro_f1`, the mean F1 of the tags.
        """
        return scores(*_known([p.tags for p in predictions], examples), self.entity_scheme)

    def resampled(
        self, predictions: Sequence[Prediction], examples: Sequence[Sentence], samples: np.ndarray
    ) -> np.ndarray:
        known = [example.tags is not None for example in examples]
        counts = np.zeros((len(examples), 3), np.int64)
        gold_and_found = _known([p.tags for p in predictions], examples)
        counts[known] = counts_by_sentence(*gold_and_found, self.entity_scheme)
        right, of_gold, of_found = counts[samples].sum(axis=1).T
        return 2 * right / np.maximum(of_gold + of_found, 1)

    def perturbed(self, example: Sentence, edits: Callable[[str], Edits]) -> Sentence | None:
        """The edited words, whose tags follow them; an entity is what is left of its words."""
        text, _ = join_words(example.words)
        changed = edited_words(example.words, edits(text))
        words = [*itertools.chain.from_iterable(changed)]
        if words == list(example.words):
            return example
        new = np.split(np.arange(len(words)), np.cumsum([len(some) for some in changed])[:-1])
        predicate = [int(i) for word in example.predicate for i in new[word]]
        if not words or bool(predicate) != bool(example.predicate):
            return None
        tags = example.tags
        if tags is not None:
            tags = [tag for tag, some in zip(tags, changed) for _ in some]
            if self.entity_scheme not in ("IO", "none"):
                spans = find_spans(as_bioes(example.tags or (), self.entity_scheme))
                left = [(s.type, np.concatenate(new[s.first : s.last + 1])) for s in spans]
                kept = [Span(t, int(of[0]), int(of[-1])) for t, of in left if len(of)]
                tags = spell(kept, len(words), self.entity_scheme)
        return example._replace(words=words, tags=tags, predicate=tuple(predicate))

    def baseline(
        self, train_examples: Sequence[Sentence], examples: Sequence[Sentence]
    ) -> dict[str, float]:
        """The metrics of each word's most frequent tag in training.

        Unseen words get O, or the most frequent tag if there is no O. `share_of_o` is the accuracy
        of tagging every word as O.
        """
        gold, guesses = _known(commonest_tags(train_examples, examples), examples)
        found = scores(gold, guesses, self.entity_scheme)
        return found if self.entity_scheme == "none" else found | {"share_of_o": share_of_o(gold)}

    def per_class(
        self, predictions: Sequence[Prediction], examples: Sequence[Sentence]
    ) -> list[ClassScores]:
        """Scores of each type of entity, or of each tag without a scheme.

        `support` counts entities, or words.
        """
        known = _known([p.tags for p in predictions], examples)
        return scores_of_types(*known, self.entity_scheme)

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
