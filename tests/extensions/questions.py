"""A task with a metric: tell questions from statements, their last mark taken away."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from etils import epath

from bert_jax.data.tokenizer import Tokenizer
from bert_jax.fields import field
from bert_jax.model.heads import SEQUENCE_CLASSIFIER
from bert_jax.storage import write_text
from bert_jax.tasks import Task
from bert_jax.tasks.features import Features, pair_ids


@dataclass(frozen=True)
class Questions(Task):
    """Examples are the lines of a text file; those that end in `mark` are questions."""

    mark: str = field("?", "character that ends a question")
    head = SEQUENCE_CLASSIFIER
    label_names = ("statement", "question")
    predictions_suffix = ".txt"

    def read(self, source: str, *, labelled: bool = True) -> list[str]:
        return epath.Path(source).read_text().splitlines()

    def features(
        self, examples: Sequence[str], tokenizer: Tokenizer, max_seq_length: int
    ) -> Features:
        encoded = tokenizer.encode([line.rstrip(".!?" + self.mark) for line in examples])
        rows = [pair_ids(tokenizer, ids, None, max_seq_length) for ids in encoded]
        b_start = np.array([start for _, start, _ in rows], np.int32)
        return Features([ids for ids, _, _ in rows], b_start, self._labels(examples))

    def predictions(self, logits, features, examples) -> np.ndarray:
        return np.argmax(np.stack(logits), axis=-1)

    def metrics(self, predictions: np.ndarray, examples: Sequence[str]) -> dict[str, float]:
        return {"share_right": float(np.mean(predictions == self._labels(examples)))}

    def baseline(self, train_examples, examples) -> dict[str, float]:
        commonest = np.bincount(self._labels(train_examples)).argmax()
        return self.metrics(np.full(len(examples), commonest), examples)

    def write_predictions(self, path, examples, predictions) -> None:
        write_text(path, "".join(f"{self.label_names[p]}\n" for p in predictions))

    def _labels(self, examples: Sequence[str]) -> np.ndarray:
        return np.array([line.endswith(self.mark) for line in examples], np.int32)
