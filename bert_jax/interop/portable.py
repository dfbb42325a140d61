"""The common form of a model, which every format is read into and written from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from bert_jax.data.tokenizer import Tokenizer
from bert_jax.fields import Plain
from bert_jax.model.architecture import Architecture, Numerics, Parallel
from bert_jax.model.heads import HEADS, parts_of
from bert_jax.model.int8 import is_int8
from bert_jax.model.model import Model, build_model
from bert_jax.model.parameters import Params

# How the logits of a sequence classifier are meant, in the words of transformers: a softmax over
# the classes, a sigmoid for each class, or scores as they are.
ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]


@dataclass(frozen=True)
class VectorSettings:
    """How a model's authors make the vector of a text.

    Attributes:
      max_seq_length: tokens to which texts are cut; None = the model's positions.
      pooling: one of `bert_jax.inference.choices.POOLINGS`, or another name if it is none of them.
      normalize: whether vectors are scaled to length 1.
    """

    max_seq_length: int | None = None
    pooling: str = "mean"
    normalize: bool = False


@dataclass(frozen=True)
class HeadFields:
    """Fields of a config.json, or of an export, that say how a model's outputs are used."""

    problem_type: ProblemType | None = None
    vectors: VectorSettings | None = None


class Portable(NamedTuple):
    """A model as plain values, independent of devices and training.

    Attributes:
      architecture: the model's architecture.
      numerics: how the model was computed in training; a reader may choose otherwise.
      tokenizer: vocabulary and casing.
      params: nested dict of fp32 numpy arrays, those of `BertWithHeads` with the parts that
        `bert_jax.model.heads.parts_of` finds; the vocabulary is padded. Those of
        `bert_jax.model.int8.in_int8` if the model is in int8.
      labels: names of the classes of a classifier.
      task: the task that it was fine-tuned on, as plain values without its data; None if that is
        not known. `bert_jax.fields.build(Task, task)` makes a `Task` of it.
      problem_type: what the outputs of a sequence classifier mean; None = classes of which a text
        has one, or a score if there are no labels.
      vectors: how its authors make vectors of texts; None if they do not say.
      generator: the generator that was trained beside it, a masked LM; None if there was none.
    """

    architecture: Architecture
    numerics: Numerics
    tokenizer: Tokenizer
    params: Params
    labels: tuple[str, ...] = ()
    task: Plain | None = None
    problem_type: ProblemType | None = None
    vectors: VectorSettings | None = None
    generator: "Portable | None" = None

    @property
    def outputs(self) -> int:
        """Number of outputs of the head whose size the task sets; 0 without such a head."""
        for part, head in HEADS.items():
            if head.has_labels and part in self.params:
                return len(self.params[part]["bias"])
        return 0


def structure_of(model: Portable, parallel: Parallel = Parallel()) -> Model:
    """The structure of a model, whose parameters are apart; see `build_model`."""
    return build_model(
        model.architecture,
        model.numerics,
        parallel,
        parts=parts_of(model.params),
        outputs=model.outputs,
        int8=is_int8(model.params),
    )


def report_left_out(model: Portable, report: Callable[[str], object]) -> None:
    """Reports what of a model has no place in the formats of others."""
    if model.vectors:
        report("left out: the length, pooling and normalisation of sentence-transformers")
    if model.task:
        length = model.task["max_seq_length"]
        report(f"left out: how the task was read (max_seq_length={length}, ...), no field for it")
