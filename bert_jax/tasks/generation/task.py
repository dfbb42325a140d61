"""Generation: reads a text and writes another one, such as its summary or its translation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from etils import epath

from bert_jax.data.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.fields import FRACTION, Plain, field
from bert_jax.model.architecture import Architecture
from bert_jax.model.decoder import Generation
from bert_jax.model.heads import CROSS_ATTENTION
from bert_jax.model.search import Search
from bert_jax.storage import write_text
from bert_jax.tasks.classification.example import Example
from bert_jax.tasks.classification.names import Names
from bert_jax.tasks.classification.reader import Columns, read_examples, text_label
from bert_jax.tasks.generation.features import GenerationFeatures, make_features, text_of
from bert_jax.tasks.generation.metrics import SCORES, metrics_of_known, text_metrics
from bert_jax.tasks.protocol import TOKEN_ACCURACY, Task


@dataclass(frozen=True)
class GenerationTask(Task[Example, GenerationFeatures, list[str]], name="generation"):
    """A target text for each source text; the target is the label of an example.

    Predictions are texts, which a decoder writes: see `bert_jax.model.decoder`.

    Raises:
      UserError: a metric does not exist.
    """

    source: Names = field("source", "column of the text to read")
    target: Names = field("target", "column of the text to write")
    shared_weights: bool = field(
        False, "encoder and decoder have the same weights, which both train"
    )
    label_smoothing: float = field(
        0.1, "share of the target probability that is spread over all words", bounds=FRACTION
    )
    search: Search = field(
        Search(),
        "how texts are written; search.max_length also is where targets are cut",
    )
    metric_names: tuple[str, ...] = field(
        (TOKEN_ACCURACY, "bleu", "chrf"),
        f"metrics: {TOKEN_ACCURACY}, of the next token of the target, {', '.join(SCORES)}; the "
        f"first one picks the best model, and if that is not {TOKEN_ACCURACY}, the texts of dev "
        "are written at each evaluation",
    )
    lowercase: bool = field(
        False, "bleu and chrf ignore case, for models that write in lower case only"
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
        known = (TOKEN_ACCURACY, *SCORES)
        if not self.metric_names:
            raise UserError(f"metric_names is empty: name some of {', '.join(known)}")
        if unknown := [name for name in self.metric_names if name not in known]:
            raise UserError(f"metric_names: no {unknown[0]!r}, only {', '.join(known)}")

    @property
    def head(self) -> Generation:
        """The decoder."""
        return Generation(
            CROSS_ATTENTION, shared=self.shared_weights, label_smoothing=self.label_smoothing
        )

    @property
    def best_by(self) -> str:
        """The first metric."""
        return self.metric_names[0]

    def check_model(self, path: str, architecture: Architecture) -> None:
        """As in `Task`; a library of the metrics may be missing, too."""
        text_metrics(self._text_metrics, ["a"], ["a"], lowercase=self.lowercase)
        self.check_positions(path, architecture)
        if architecture.layer_mixing:
            raise UserError(
                "the model mixes the results of all layers (model.layer_mixing), for which there "
                "is no decoder: take another model"
            )

    def check_positions(self, path: str, architecture: Architecture) -> None:
        """Raises UserError if a model has too few positions for the texts; see `check_model`."""
        positions = architecture.max_position_embeddings
        if self.search.max_length > positions:
            raise UserError(
                f"{path}.search.max_length={self.search.max_length}: the model has {positions} "
                "positions"
            )

    def read(self, source: str, *, labelled: bool = True) -> list[Example]:
        """The sources of a file or of `tfds:NAME[:SPLIT]`; see `reader.read_examples`."""
        return read_examples(
            source,
            Columns(self.source, "", self.target, self.index),
            text_label("target"),
            labelled=labelled,
            skip_incomplete=False,
            format=self.format,
            encoding=self.encoding,
            data_dir=self.data_dir,
        )

    def features(
        self, examples: Sequence[Example], tokenizer: Tokenizer, max_seq_length: int
    ) -> GenerationFeatures:
        """A sequence and a target for each example; see `make_features`."""
        return make_features(examples, tokenizer, max_seq_length, self.search.max_length)

    def predictions(
        self,
        logits: Sequence[np.ndarray],
        features: GenerationFeatures,
        examples: Sequence[Example],
    ) -> list[str]:
        """The texts; instead of logits, their tokens are given, int [length] each."""
        del examples
        return [text_of(ids.tolist(), features.tokenizer) for ids in logits]

    def metrics(self, predictions: list[str], examples: Sequence[Example]) -> dict[str, float]:
        """Those of `metric_names` that texts have, over the examples whose target is known."""
        return metrics_of_known(self._text_metrics, predictions, examples, lowercase=self.lowercase)

    @property
    def _text_metrics(self) -> list[str]:
        return [name for name in self.metric_names if name != TOKEN_ACCURACY]

    def baseline(
        self, train_examples: Sequence[Example], examples: Sequence[Example]
    ) -> dict[str, float]:
        """The metrics of the sources, as if they were the texts."""
        del train_examples
        return self.metrics([example.text_a for example in examples], examples)

    def write_predictions(
        self, path: epath.PathLike, examples: Sequence[Example], predictions: list[str]
    ) -> None:
        """Writes a text per line, in the order of the examples."""
        del examples
        write_text(path, "".join(f"{text}\n" for text in predictions))

    def records(
        self,
        logits: Sequence[np.ndarray],
        features: GenerationFeatures,
        examples: Sequence[Example],
    ) -> list[Plain]:
        """`index` of each example and the `text` that was written for it."""
        texts = self.predictions(logits, features, examples)
        return [
            {"index": example.index, "text": text}
            for example, text in zip(examples, texts, strict=True)
        ]
