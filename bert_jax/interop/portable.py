"""A model as it travels: plain values, away from devices and training."""

from typing import Any, NamedTuple

from bert_jax.config import ModelConfig
from bert_jax.data.wordpiece import WordPiece


class Portable(NamedTuple):
    """What every format is read into and written from.

    Attributes:
      config: of the model; its numerics (`compute_dtype` and on) are those of a reader's choice.
      wordpiece: vocabulary and casing.
      params: nested dict of fp32 numpy arrays, those of `BertWithHeads` with the parts that
        `bert_jax.model.heads.parts_of` finds; the vocabulary is padded.
      labels: names of the classes of a classifier.
    """

    config: ModelConfig
    wordpiece: WordPiece
    params: dict[str, Any]
    labels: tuple[str, ...] = ()
