"""Similarity: vectors of texts whose cosines say how much two texts have in common."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from etils import epath

from bert_jax.data.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.fields import POSITIVE, Plain, field
from bert_jax.model.heads import COSINE_SCORE, Head, InBatchNegatives
from bert_jax.tasks.classification.example import Example
from bert_jax.tasks.classification.labels import is_blank, read_score
from bert_jax.tasks.classification.metrics import pearson, spearman
from bert_jax.tasks.classification.names import Names
from bert_jax.tasks.classification.reader import Columns, read_examples
from bert_jax.tasks.classification.writer import write_tsv
from bert_jax.tasks.features import Features
from bert_jax.tasks.protocol import Task
from bert_jax.tasks.similarity.features import make_features, passages
from bert_jax.tasks.similarity.ranks import of_random_order, ranks, retrieval_metrics


@dataclass(frozen=True)
class SimilarityTask(Task[Example, Features, np.ndarray], name="similarity"):
    """Trains the vectors that `encode` gives, by pairs of texts with a score or without.

    With scores, such as those of STS, the cosine of a pair learns its score, and predictions are
    cosines, fp32 [n]. Without scores the two texts of a pair belong together, such as a question
    and its answer: each first text learns to find its second text among those of the batch, and
    predictions are ranks among all second texts of the split, int32 [n] from 1.
    """

    text_a: Names = field("text_a", "column of the first text of a pair, or of the query")
    text_b: Names = field("text_b", "column of the second text, or of what answers the query")
    score: Names = field("", "column of the score of a pair; empty if pairs have none")
    highest_score: float = field(5.0, "score of pairs that mean the same", bounds=POSITIVE)
    temperature: float = field(
        0.05, "what cosines are divided by in the softmax over the batch", bounds=POSITIVE
    )
    index: Names = field(
        ("idx", "index"),
        "column of a pair's name in prediction files; without it pairs count from 0",
    )
    format: str = field(
        "", "tsv, quoted_tsv, csv, jsonl, json or parquet; empty to go by the file's suffix"
    )
    encoding: str = field("utf-8", "encoding of files, by its Python name")

    predictions_suffix: ClassVar[str] = ".tsv"

    @property
    def head(self) -> Head:
        """A vector for each text; it has no parameters."""
        if self.score:
            return COSINE_SCORE
        return InBatchNegatives("text_vector", temperature=self.temperature)

    def read(self, source: str, *, labelled: bool = True) -> list[Example]:
        """The pairs of a file or of `tfds:NAME[:SPLIT]`; see `reader.read_examples`.

        Raises:
          UserError: as `read_examples`; a score is not a number from 0 to `highest_score`.
        """
        return read_examples(
            source,
            Columns(self.text_a, self.text_b, self.score, self.index),
            self._read_score,
            labelled=labelled and bool(self.score),
            skip_incomplete=False,
            format=self.format,
            encoding=self.encoding,
            data_dir=self.data_dir,
        )

    def _read_score(self, score: Any, place: str) -> float | None:
        if is_blank(score):
            return None
        found = read_score(score, place)
        if not 0 <= found <= self.highest_score:
            raise UserError(
                f"{place}: score {found:g} is not from 0 to highest_score={self.highest_score:g}"
            )
        return found

    def features(
        self, examples: Sequence[Example], tokenizer: Tokenizer, max_seq_length: int
    ) -> Features:
        """Two sequences per pair; see `make_features`."""
        return make_features(examples, self._scores(examples), tokenizer, max_seq_length)

    def _scores(self, examples: Sequence[Example]) -> np.ndarray:
        """fp32 [n] in [0, 1], NaN where there is none."""
        given = [np.nan if e.label is None else e.label for e in examples]
        return np.array(given, np.float32) / self.highest_score

    def predictions(
        self, logits: Sequence[np.ndarray], features: Features, examples: Sequence[Example]
    ) -> np.ndarray:
        """Cosines, or ranks of the second texts."""
        del features
        vectors = np.stack(list(logits)).reshape(len(examples), 2, -1)
        if self.score:
            return np.einsum("nh,nh->n", vectors[:, 0], vectors[:, 1])
        first, of_pair = passages(examples)
        return ranks(vectors[:, 0], vectors[first, 1], of_pair)

    def metrics(self, predictions: np.ndarray, examples: Sequence[Example]) -> dict[str, float]:
        """`spearman` and `pearson` of cosines, or `retrieval_metrics` of ranks."""
        if not self.score:
            return retrieval_metrics(predictions)
        scores = self._scores(examples)
        known = ~np.isnan(scores)
        scores, cosines = scores[known], predictions[known]
        return {"spearman": spearman(scores, cosines), "pearson": pearson(scores, cosines)}

    def baseline(
        self, train_examples: Sequence[Example], examples: Sequence[Example]
    ) -> dict[str, float]:
        """The metrics of equal cosines, or of a random order."""
        del train_examples
        if self.score:
            return self.metrics(np.zeros(len(examples), np.float32), examples)
        return dict(of_random_order(len(passages(examples)[0])))

    def write_predictions(
        self, path: epath.PathLike, examples: Sequence[Example], predictions: np.ndarray
    ) -> None:
        """Writes `index` and `prediction`, a cosine or a rank, as TSV with a header."""
        said = [f"{each:.4f}" if self.score else str(each) for each in predictions.tolist()]
        write_tsv(path, examples, said)

    def records(
        self, logits: Sequence[np.ndarray], features: Features, examples: Sequence[Example]
    ) -> list[Plain]:
        """`index` of each pair, and its `cosine` with 6 decimals or the `rank` of the second."""
        found = self.predictions(logits, features, examples).tolist()
        return [
            {"index": example.index}
            | ({"cosine": round(each, 6)} if self.score else {"rank": each})
            for example, each in zip(examples, found, strict=True)
        ]
