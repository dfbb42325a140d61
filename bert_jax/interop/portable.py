"""The common form of a model, which every format is read into and written from."""

from typing import NamedTuple

from bert_jax.data.wordpiece import WordPiece
from bert_jax.fields import Plain
from bert_jax.model.architecture import Architecture, Numerics
from bert_jax.model.heads import HEADS
from bert_jax.model.parameters import Params


class Portable(NamedTuple):
    """A model as plain values, independent of devices and training.

    Attributes:
      architecture: the model's architecture.
      numerics: how the model was computed in training; a reader may choose otherwise.
      wordpiece: vocabulary and casing.
      params: nested dict of fp32 numpy arrays, those of `BertWithHeads` with the parts that
        `bert_jax.model.heads.parts_of` finds; the vocabulary is padded.
      labels: names of the classes of a classifier.
      task: the task that it was fine-tuned on, as plain values without its data; None if that is
        not known. `bert_jax.fields.build(Task, task)` makes a `Task` of it.
    """

    architecture: Architecture
    numerics: Numerics
    wordpiece: WordPiece
    params: Params
    labels: tuple[str, ...] = ()
    task: Plain | None = None

    @property
    def outputs(self) -> int:
        """Number of outputs of the head whose size the task sets; 0 without such a head."""
        for part, head in HEADS.items():
            if head.has_labels and part in self.params:
                return len(self.params[part]["bias"])
        return 0
