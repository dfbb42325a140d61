"""Extraction: the sentences of a document that are its summary, as in BertSum.

Reference: Liu and Lapata 2019, https://arxiv.org/abs/1908.08345, section 3.2. There sentences have
alternating token types; here all have the first one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from etils import epath

from bert_jax.data.sentences import split_sentences
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.fields import POSITIVE, Plain, field
from bert_jax.model.heads import TOKEN_CLASSIFIER, Head
from bert_jax.storage import write_text
from bert_jax.tasks.classification.example import Example
from bert_jax.tasks.classification.names import Names
from bert_jax.tasks.classification.reader import Columns, read_examples, text_label
from bert_jax.tasks.extraction.features import IN, OUT, ExtractionFeatures, make_features
from bert_jax.tasks.extraction.selection import choose, oracle
from bert_jax.tasks.generation.metrics import metrics_of_known
from bert_jax.tasks.protocol import Task

ROUGE = ("rouge1", "rouge2", "rougeL")


class Extract(NamedTuple):
    """A summary of a document.

    Attributes:
      text: its sentences with a space between them.
      sentences: their numbers in the document, from 0.
    """

    text: str
    sentences: list[int]


@dataclass(frozen=True)
class ExtractionTask(Task[Example, ExtractionFeatures, list[Extract]], name="extraction"):
    """A few sentences for each document; the summary that they imitate is the label of an example.

    Raises:
      UserError: a metric does not exist.
    """

    document: Names = field(("document", "article", "text"), "column of the text to read")
    summary: Names = field(
        ("summary", "highlights"), "column of a summary, whose words decide which sentences to take"
    )
    num_sentences: int = field(3, "most sentences of a summary", bounds=POSITIVE)
    trigram_blocking: bool = field(
        True, "leave out sentences that share three words in a row with better ones"
    )
    metric_names: tuple[str, ...] = field(
        ROUGE, f"metrics, {', '.join(ROUGE)}; the first one picks the best model"
    )
    index: Names = field(
        ("idx", "index", "id"),
        "column of an example's name in prediction files; without it examples count from 0",
    )
    format: str = field(
        "", "tsv, quoted_tsv, csv, jsonl, json or parquet; empty to go by the file's suffix"
    )
    encoding: str = field("utf-8", "encoding of files, by its Python name")

    predictions_suffix: ClassVar[str] = ".txt"

    def __post_init__(self) -> None:
        if not self.metric_names or not {*self.metric_names} <= {*ROUGE}:
            raise UserError(f"metric_names: {self.metric_names!r} must be some of {ROUGE}")

    @property
    def head(self) -> Head:
        """A class for each [CLS], the one before each sentence."""
        return TOKEN_CLASSIFIER

    @property
    def label_names(self) -> tuple[str, ...]:
        """What a sentence is."""
        return ("left out", "in the summary")

    def read(self, source: str, *, labelled: bool = True) -> list[Example]:
        """The documents of a file or of `tfds:NAME[:SPLIT]`; see `reader.read_examples`."""
        return read_examples(
            source,
            Columns(self.document, "", self.summary, self.index),
            text_label("summary"),
            labelled=labelled,
            skip_incomplete=False,
            format=self.format,
            encoding=self.encoding,
            data_dir=self.data_dir,
        )

    def features(
        self, examples: Sequence[Example], tokenizer: Tokenizer, max_seq_length: int
    ) -> ExtractionFeatures:
        """A sequence for each document; see `make_features`."""
        return make_features(examples, tokenizer, max_seq_length, self.num_sentences)

    def predictions(
        self,
        logits: Sequence[np.ndarray],
        features: ExtractionFeatures,
        examples: Sequence[Example],
    ) -> list[Extract]:
        """The likeliest sentences of each document, of those that fit into `max_seq_length`."""
        del examples
        return [
            self._extract(sentences, (outputs[:, IN] - outputs[:, OUT])[starts].tolist())
            for outputs, sentences, starts in zip(logits, features.sentences, features.starts)
        ]

    def _extract(self, sentences: Sequence[str], scores: Sequence[float]) -> Extract:
        chosen = choose(sentences, scores, self.num_sentences, blocking=self.trigram_blocking)
        return _joined(sentences, chosen)

    def metrics(self, predictions: list[Extract], examples: Sequence[Example]) -> dict[str, float]:
        """ROUGE of the summaries, mean F1 over the examples that have one."""
        texts = [extract.text for extract in predictions]
        return metrics_of_known(self.metric_names, texts, examples, lowercase=True)

    def baseline(
        self, train_examples: Sequence[Example], examples: Sequence[Example]
    ) -> dict[str, float]:
        """The metrics of the first sentences, and as `oracle_...` those of the best choice."""
        del train_examples
        split = [split_sentences(example.text_a) for example in examples]
        first = [_joined(some, range(min(len(some), self.num_sentences))) for some in split]
        best = [
            _joined(some, oracle(some, str(example.label or ""), self.num_sentences))
            for some, example in zip(split, examples)
        ]
        reached = {f"oracle_{name}": x for name, x in self.metrics(best, examples).items()}
        return self.metrics(first, examples) | reached

    def write_predictions(
        self, path: epath.PathLike, examples: Sequence[Example], predictions: list[Extract]
    ) -> None:
        """Writes a summary per line, in the order of the examples."""
        del examples
        write_text(path, "".join(f"{extract.text}\n" for extract in predictions))

    def records(
        self,
        logits: Sequence[np.ndarray],
        features: ExtractionFeatures,
        examples: Sequence[Example],
    ) -> list[Plain]:
        """`index` of each document, its `summary`, and the numbers of its `sentences`."""
        found = self.predictions(logits, features, examples)
        return [
            {"index": example.index, "summary": extract.text, "sentences": extract.sentences}
            for example, extract in zip(examples, found, strict=True)
        ]


def _joined(sentences: Sequence[str], chosen: Sequence[int]) -> Extract:
    return Extract(" ".join(sentences[index] for index in chosen), list(chosen))
