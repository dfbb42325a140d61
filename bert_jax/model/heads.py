"""Heads: the output layers on top of the encoder, with their labels and losses.

A `Head` defines its module, the module's input, the layout of labels in rows, its loss, and how
outputs map back to examples. `HEADS` lists those that our checkpoints can hold.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from bert_jax.model.architecture import Architecture, Numerics
from bert_jax.model.bert import Bert, Transform, gather_positions
from bert_jax.model.dropout import dropout
from bert_jax.model.feed_forward import ACTIVATIONS
from bert_jax.model.int8 import rounded_rows
from bert_jax.model.losses import cross_entropy, divergence
from bert_jax.model.parameters import linear, table

IMPOSSIBLE = -1e9  # a logit with probability 0, finite so that its gradient is 0 and not NaN
Batch = Mapping[str, jax.Array]
Sums = dict[str, jax.Array]


class Rows(Protocol):
    """Examples in rows, as `bert_jax.data.packing.Batch` holds them."""

    @property
    def rows(self) -> dict[str, np.ndarray]: ...
    @property
    def examples(self) -> np.ndarray: ...
    @property
    def row(self) -> np.ndarray: ...
    @property
    def slot(self) -> np.ndarray: ...
    @property
    def start(self) -> np.ndarray: ...
    @property
    def stop(self) -> np.ndarray: ...


@dataclass(frozen=True)
class Head:
    """One dense layer in fp32 on every token or on every example; the base of all heads.

    Attributes:
      part: name of its parameters in a model.
      outputs: number of outputs; 0 if the task determines it.
    """

    part: str
    outputs: int = 0

    # Whether it reads the pooled vector of each example; if not, it reads every token.
    pooled = False
    # Whether it reads tokens through the pooler where that is a transform, as in ModernBERT.
    transformed = False
    # Whether fine-tuning applies dropout to its input.
    dropout = True
    # Whether its outputs are named classes.
    has_labels = False
    # What they mean in the words of transformers, where it is not what their number says.
    problem_type: ClassVar[str | None] = None

    def uses_pooler(self, architecture: Architecture) -> bool:
        """Whether the pooler is between the encoder and its module."""
        return self.pooled or (self.transformed and architecture.pooler == "transform")

    def parts(self, architecture: Architecture) -> tuple[str, ...]:
        """The parts of a model that it uses, besides the encoder."""
        return ("pooler", self.part) if self.uses_pooler(architecture) else (self.part,)

    def make_module(
        self, architecture: Architecture, numerics: Numerics, outputs: int, rngs: nnx.Rngs
    ) -> nnx.Module:
        """Its module, with `outputs` outputs if the head does not fix their number."""
        del numerics
        sizes = (architecture.hidden_size, self.outputs or outputs)
        return linear(("embed", "output"), sizes, architecture, rngs)

    def read(self, bert: Bert, hidden: jax.Array, batch: Batch) -> jax.Array:
        """The input of the module.

        Args:
          bert: the encoder.
          hidden: [rows, length, hidden], the encoder's states.
          batch: the batch of these rows.

        Returns:
          [rows, examples, hidden] for a pooled head, else [rows, length, hidden].
        """
        if self.pooled and bert.architecture.pooling == "mean":
            hidden = mean_of_examples(hidden, batch)
        elif self.pooled:
            hidden = gather_positions(hidden, batch["cls_positions"])
        return bert.pool(hidden) if self.uses_pooler(bert.architecture) else hidden

    def apply(self, model: Any, inputs: jax.Array) -> jax.Array:
        """fp32 logits [..., outputs] for the result of `read`; `model` is a `BertWithHeads`."""
        return getattr(model, self.part)(inputs.astype(jnp.float32))

    def logits(
        self,
        model: Any,
        hidden: jax.Array,
        batch: Batch,
        dropout_rate: float = 0.0,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """fp32 outputs for the labels of a batch, as `sums` takes them.

        Args:
          model: a `BertWithHeads`.
          hidden: [rows, length, hidden], the encoder's states.
          batch: the batch of these rows.
          dropout_rate: dropout rate of the input, if the head has dropout.
          dropout_key: a typed PRNG key; None turns dropout off.
        """
        inputs = self.read(model.bert, hidden, batch)
        if self.dropout:
            inputs = dropout(inputs, dropout_rate, dropout_key)
        return self.apply(model, inputs)

    def for_scores(self) -> "Head":
        """The head that scores a model, without what only guides training."""
        return self

    def weights(self, labels: jax.Array) -> jax.Array:
        """fp32, 1 where there is a label, else 0."""
        return (labels >= 0).astype(jnp.float32)

    def soft_weights(self, labels: jax.Array, batch: Batch) -> jax.Array:
        """As `weights`, of the labels that a teacher gives."""
        del batch
        return self.weights(labels)

    def sums(self, logits: jax.Array, labels: jax.Array, weights: jax.Array, batch: Batch) -> Sums:
        """fp32 sums over all labels: "loss", "count" and, where accuracy is defined, "correct".

        Args:
          logits: from `apply`.
          labels: as `labels_in_rows` lays them out.
          weights: fp32 weight of each label.
          batch: the batch of these rows.
        """
        del batch
        return cross_entropy(logits, labels, weights)

    def choices(self, logits: jax.Array, labels: jax.Array, batch: Batch) -> tuple[jax.Array, ...]:
        """The logits of each choice that is made for a label, [..., options]; see `sums`."""
        del labels, batch
        return (logits,)

    def soft_sums(
        self,
        logits: jax.Array,
        targets: jax.Array,
        labels: jax.Array,
        weights: jax.Array,
        batch: Batch,
        temperature: float,
    ) -> Sums:
        """As `sums`, with a teacher's outputs as labels.

        The loss is the divergence from the teacher's probabilities, all logits divided by
        `temperature`, times its square, so that gradients keep their size (Hinton et al. 2015,
        https://arxiv.org/abs/1503.02531); the mean over the choices of a label.

        Args:
          logits: from `apply`.
          targets: those of the teacher.
          labels: only say where there are any.
          weights: fp32 weight of each label.
          batch: the batch of these rows.
          temperature: above 0.
        """
        ours, theirs = (self.choices(each, labels, batch) for each in (logits, targets))
        nats = [divergence(a / temperature, b / temperature) for a, b in zip(ours, theirs)]
        losses = temperature**2 / len(nats) * sum(nats)
        return {"loss": jnp.sum(losses * weights), "count": jnp.sum(weights)}

    def labels_in_rows(self, labels: Any, rows: Rows) -> np.ndarray:
        """The labels of a batch, as `sums` takes them.

        Args:
          labels: labels of all examples, as `bert_jax.tasks.features.Features` has them.
          rows: where each example is.
        """
        raise NotImplementedError(f"{self.part} has no labels of examples")

    def label_lengths(self, labels: Any) -> tuple[np.ndarray, int] | None:
        """The tokens that the labels of each example take in rows of their own, [n], and the length
        of these rows; None if they have no such rows.

        Args:
          labels: labels of all examples.
        """
        del labels
        return None

    def by_example(self, outputs: np.ndarray, rows: Rows) -> list[np.ndarray]:
        """The outputs of each of `rows.examples`: [outputs] if pooled, else [length, outputs]."""
        if self.pooled:
            return list(outputs[rows.row, rows.slot])
        return [outputs[r, i:j] for r, i, j in zip(rows.row, rows.start, rows.stop)]


def _in_slots(labels: np.ndarray, rows: Rows, empty: float, dtype: DTypeLike) -> np.ndarray:
    """[rows, examples, ...]: the labels [n, ...] of examples in their slots, `empty` elsewhere."""
    found = np.full((*rows.rows["cls_positions"].shape, *labels.shape[1:]), empty, dtype)
    found[rows.row, rows.slot] = labels[rows.examples]
    return found


def is_example(batch: Batch) -> jax.Array:
    """[rows, examples] bool: which slots of the rows are used."""
    slots = jnp.arange(batch["cls_positions"].shape[1])
    return slots < jnp.max(batch["segment_ids"], axis=1, keepdims=True)


def mean_of_examples(hidden: jax.Array, batch: Batch) -> jax.Array:
    """[rows, examples, hidden] fp32: the mean of the states [rows, length, hidden] of each one."""
    examples = jnp.arange(batch["cls_positions"].shape[1]) + 1
    own = (batch["segment_ids"][:, None, :] == examples[:, None]).astype(jnp.float32)
    share = own / jnp.maximum(own.sum(axis=-1, keepdims=True), 1)
    return jnp.einsum("ret,rth->reh", share, hidden.astype(jnp.float32), precision="highest")


@dataclass(frozen=True)
class MaskedLm(Head):
    """Scores every word at chosen positions, with the encoder's word embeddings."""

    dropout = False

    def make_module(
        self, architecture: Architecture, numerics: Numerics, outputs: int, rngs: nnx.Rngs
    ) -> nnx.Module:
        del outputs
        return MaskedLmModule(architecture, numerics, rngs)

    def read(self, bert: Bert, hidden: jax.Array, batch: Batch) -> jax.Array:
        """[rows, predictions, hidden] at `masked_lm_positions`."""
        del bert
        return gather_positions(hidden, batch["masked_lm_positions"])

    def apply(self, model: Any, inputs: jax.Array) -> jax.Array:
        word = model.bert.embeddings.word
        table = word.embedding[...]
        if (scale := getattr(word, "scale", None)) is not None:  # of embeddings in int8
            table = table.astype(jnp.float32) * scale[...][:, None]
        elif model.bert.embeddings.numerics.fake_int8:
            table = rounded_rows(table)
        return model.masked_lm(inputs, table)


class MaskedLmModule(Transform):
    """Dense, activation and norm, then the decoder: the word embeddings or a table, and a bias."""

    def __init__(self, architecture: Architecture, numerics: Numerics, rngs: nnx.Rngs):
        if architecture.head_transform:
            super().__init__(architecture, numerics, rngs, architecture.embedding_features)
        rows = architecture.padded_vocab_size
        if architecture.decoder_bias:
            self.bias = nnx.Param(jnp.zeros((rows,), jnp.float32), axes=("vocab",))
        if not architecture.tied_decoder:
            self.decoder = table(("vocab", "embed"), rows, architecture, rngs)
        self.architecture = architecture
        self.dtype = jnp.dtype(numerics.compute_dtype)

    def __call__(self, hidden: jax.Array, word_embeddings: jax.Array) -> jax.Array:
        """Scores every word at every given position.

        Args:
          hidden: [..., hidden_size].
          word_embeddings: [padded_vocab, embedding_features], the encoder's table, or copies of it
            as in `lookup`.

        Returns:
          [..., padded_vocab] fp32 logits; those of padding rows are `IMPOSSIBLE`.
        """
        if self.architecture.head_transform:
            hidden = self.transform(hidden)
        hidden = hidden.astype(self.dtype)
        if not self.architecture.tied_decoder:
            word_embeddings = self.decoder.embedding[...]
        tables = word_embeddings.reshape(-1, *word_embeddings.shape[-2:]).astype(self.dtype)
        # Positions share one axis: a TPU would pad a second-last axis of, say, 20 to 24.
        logits = jnp.einsum(
            "cnd,cvd->cnv",
            hidden.reshape(len(tables), -1, hidden.shape[-1]),
            tables,
            preferred_element_type=jnp.float32,
        )
        in_vocabulary = jnp.arange(tables.shape[1]) < self.architecture.vocab_size
        # Adding a vector saves the pass over all logits and their gradient that a select costs.
        bias = self.bias[...] if self.architecture.decoder_bias else 0.0
        logits += jnp.where(in_vocabulary, bias, IMPOSSIBLE)
        return logits.reshape(*hidden.shape[:-1], -1)


@dataclass(frozen=True)
class SequenceClassifier(Head):
    """One class for each example: a label is an int32 class, -1 where there is none.

    Attributes:
      class_weights: weight of the examples of each class; empty = all have the same.
    """

    class_weights: tuple[float, ...] = ()

    pooled = True
    has_labels = True

    def weights(self, labels: jax.Array) -> jax.Array:
        """fp32, the weight of its class where there is a label, else 0."""
        if not self.class_weights:
            return super().weights(labels)
        of_class = jnp.asarray(self.class_weights, jnp.float32)
        return jnp.where(labels >= 0, of_class[jnp.maximum(labels, 0)], 0)

    def soft_weights(self, labels: jax.Array, batch: Batch) -> jax.Array:
        """As `weights`, but 1 for examples without a label: the teacher gives theirs, too."""
        weights = self.weights(labels)
        return jnp.where(weights > 0, weights, is_example(batch).astype(jnp.float32))

    def labels_in_rows(self, labels: np.ndarray, rows: Rows) -> np.ndarray:
        """[rows, examples, ...] int32."""
        return _in_slots(labels, rows, -1, np.int32)


@dataclass(frozen=True)
class MultiLabelClassifier(SequenceClassifier):
    """Any of the classes for each example: labels are int32 [classes], 1 for those that apply.

    Others are 0, and all are -1 where they are not known. An output is a logit of the sigmoid.

    Attributes:
      class_weights: weight of the examples to which a class applies, in the loss of that class;
        empty = that of the others, 1.
    """

    problem_type = "multi_label_classification"

    def weights(self, labels: jax.Array) -> jax.Array:
        """fp32, 1 where there are labels, else 0."""
        return (labels[..., 0] >= 0).astype(jnp.float32)

    def sums(self, logits: jax.Array, labels: jax.Array, weights: jax.Array, batch: Batch) -> Sums:
        """The loss is the mean of the classes' binary cross-entropies, in nats."""
        del batch
        applies = labels == 1
        nats = -jax.nn.log_sigmoid(jnp.where(applies, logits, -logits))
        if self.class_weights:
            of_class = jnp.asarray(self.class_weights, jnp.float32)
            nats *= jnp.where(applies, of_class, 1)
        return {"loss": jnp.sum(nats.mean(axis=-1) * weights), "count": jnp.sum(weights)}

    def soft_sums(
        self,
        logits: jax.Array,
        targets: jax.Array,
        labels: jax.Array,
        weights: jax.Array,
        batch: Batch,
        temperature: float,
    ) -> Sums:
        """The mean over the classes, each with the choice whether it applies."""

        def applies_or_not(x: jax.Array) -> jax.Array:
            return jnp.stack([x, jnp.zeros_like(x)], axis=-1)

        of_class = jnp.broadcast_to(weights[..., None] / logits.shape[-1], logits.shape)
        pairs = applies_or_not(logits), applies_or_not(targets)
        sums = super().soft_sums(*pairs, labels, of_class, batch, temperature)
        return sums | {"count": jnp.sum(weights)}


@dataclass(frozen=True)
class NextSentence(SequenceClassifier):
    """Whether the second text of a pair follows the first (output 0) or is random (output 1)."""

    has_labels = False


@dataclass(frozen=True)
class SequenceRegression(SequenceClassifier):
    """One score for each example: a label is a fp32 number, NaN where there is none."""

    has_labels = False

    def weights(self, labels: jax.Array) -> jax.Array:
        return (~jnp.isnan(labels)).astype(jnp.float32)

    def sums(self, logits: jax.Array, labels: jax.Array, weights: jax.Array, batch: Batch) -> Sums:
        """The loss is the squared error."""
        del batch
        errors = jnp.where(weights > 0, logits[..., 0] - labels, 0)
        return {"loss": jnp.sum(errors**2), "count": jnp.sum(weights)}

    def soft_sums(
        self,
        logits: jax.Array,
        targets: jax.Array,
        labels: jax.Array,
        weights: jax.Array,
        batch: Batch,
        temperature: float,
    ) -> Sums:
        """The squared difference from the teacher's score; a score has no temperature."""
        del labels, temperature
        return self.sums(logits, targets[..., 0], weights, batch)

    def labels_in_rows(self, labels: np.ndarray, rows: Rows) -> np.ndarray:
        """[rows, examples] fp32."""
        return _in_slots(labels, rows, np.nan, np.float32)


@dataclass(frozen=True)
class TokenClassifier(Head):
    """One class for each token: labels are int32 classes, -1 where there is none."""

    has_labels = True
    transformed = True

    def labels_in_rows(self, labels: Sequence[np.ndarray], rows: Rows) -> np.ndarray:
        """[rows, length] int32."""
        found = np.full(rows.rows["input_ids"].shape, -1, np.int32)
        for example, row, start, stop in zip(rows.examples, rows.row, rows.start, rows.stop):
            found[row, start:stop] = labels[example]
        return found


@dataclass(frozen=True)
class ReplacedToken(TokenClassifier):
    """Whether each token is a replacement: labels are int32, 1 if so, 0 if not, -1 for none.

    The one output is a logit of the sigmoid. Reference: Clark et al. 2020,
    https://arxiv.org/abs/2003.10555.
    """

    dropout = has_labels = transformed = False

    def make_module(
        self, architecture: Architecture, numerics: Numerics, outputs: int, rngs: nnx.Rngs
    ) -> nnx.Module:
        del outputs
        return ReplacedTokenModule(architecture, numerics, rngs)

    def apply(self, model: Any, inputs: jax.Array) -> jax.Array:
        logits: jax.Array = model.replaced_token(inputs)
        return logits

    def sums(self, logits: jax.Array, labels: jax.Array, weights: jax.Array, batch: Batch) -> Sums:
        del batch
        score, replaced = logits[..., 0], labels == 1
        losses = -jax.nn.log_sigmoid(jnp.where(replaced, score, -score))
        return {
            "loss": jnp.sum(losses * weights),
            "correct": jnp.sum(((score > 0) == replaced) * weights),
            "count": jnp.sum(weights),
        }


class ReplacedTokenModule(nnx.Module):
    """Dense and activation, then one output in fp32."""

    def __init__(self, architecture: Architecture, numerics: Numerics, rngs: nnx.Rngs):
        hidden = architecture.hidden_size
        self.dense = linear(("embed", "hidden"), (hidden, hidden), architecture, rngs, numerics)
        self.output = linear(("embed", "output"), (hidden, 1), architecture, rngs)
        self.activation = ACTIVATIONS[architecture.hidden_act]

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """[..., hidden_size] -> [..., 1] fp32."""
        return self.output(self.activation(self.dense(hidden)).astype(jnp.float32))


@dataclass(frozen=True)
class AnswerSpan(Head):
    """The answer in each example: a label is an int32 pair, its first and last token.

    The two outputs score every token as the start and as the end of the answer. There is no
    dropout, as in BERT.
    """

    dropout = False
    transformed = True

    def weights(self, labels: jax.Array) -> jax.Array:
        return (labels[..., 0] >= 0).astype(jnp.float32)

    def sums(self, logits: jax.Array, labels: jax.Array, weights: jax.Array, batch: Batch) -> Sums:
        """Means over start and end, each with a softmax over the tokens of its example."""
        start, stop = (
            cross_entropy(scores, labels[..., index], weights)
            for index, scores in enumerate(self.choices(logits, labels, batch))
        )
        return jax.tree.map(lambda start, stop: (start + stop) / 2, start, stop)

    def choices(self, logits: jax.Array, labels: jax.Array, batch: Batch) -> tuple[jax.Array, ...]:
        """Of start and end, [rows, examples, length]."""
        examples = jnp.arange(labels.shape[1]) + 1
        own = batch["segment_ids"][:, None, :] == examples[:, None]
        ends = jnp.moveaxis(logits, -1, 0)
        return tuple(jnp.where(own, end[:, None, :], IMPOSSIBLE) for end in ends)

    def labels_in_rows(self, labels: np.ndarray, rows: Rows) -> np.ndarray:
        """[rows, examples, 2] int32, positions in the row; -1 where there is no example."""
        found = np.full((*rows.rows["cls_positions"].shape, 2), -1, np.int32)
        found[rows.row, rows.slot] = labels[rows.examples] + rows.start[:, None]
        return found


@dataclass(frozen=True)
class MultipleChoice(Head):
    """The right one of the choices of each question; every choice is an example of the row.

    The output is the score of a choice. A label is an int32 pair: the question, and 1 for the right
    choice, 0 for others, -1 where that is not known. All choices of a question are in one row.
    """

    pooled = True

    def weights(self, labels: jax.Array) -> jax.Array:
        """fp32, 1 for right choices: one for each question, else 0."""
        return (labels[..., 1] == 1).astype(jnp.float32)

    def sums(self, logits: jax.Array, labels: jax.Array, weights: jax.Array, batch: Batch) -> Sums:
        """Cross-entropies of softmaxes over the choices of each question, in nats."""
        (scores,) = self.choices(logits, labels, batch)
        places = jnp.broadcast_to(jnp.arange(labels.shape[1]), labels.shape[:2])
        return cross_entropy(scores, places, weights)

    def choices(self, logits: jax.Array, labels: jax.Array, batch: Batch) -> tuple[jax.Array, ...]:
        """[rows, examples, examples]: those of each one's question."""
        del batch
        question = labels[..., 0]
        own = question[:, :, None] == question[:, None, :]
        return (jnp.where(own, logits[..., 0][:, None, :], IMPOSSIBLE),)

    def labels_in_rows(self, labels: np.ndarray, rows: Rows) -> np.ndarray:
        """[rows, examples, 2] int32, -1 where there is no choice."""
        return _in_slots(labels, rows, -1, np.int32)


@dataclass(frozen=True)
class TextVector(Head):
    """The mean of each text's states, scaled to length 1; it has no parameters of its own.

    A product of two outputs is a cosine. A label is fp32 [3]: 0 for the first text of a pair and 1
    for the second, -1 where there is none; a key, the same for texts that belong together; and the
    pair's score in [0, 1], NaN where there is none.
    """

    pooled = True
    dropout = False

    def uses_pooler(self, architecture: Architecture) -> bool:
        """False: vectors are those of `encode`, which no pooler changes."""
        return False

    def parts(self, architecture: Architecture) -> tuple[str, ...]:
        """None, besides the encoder."""
        return ()

    def read(self, bert: Bert, hidden: jax.Array, batch: Batch) -> jax.Array:
        """[rows, examples, hidden] fp32."""
        del bert
        return mean_of_examples(hidden, batch)

    def apply(self, model: Any, inputs: jax.Array) -> jax.Array:
        """fp32 [rows, examples, hidden]; 0 where there is no example."""
        del model
        squares = jnp.sum(inputs**2, axis=-1, keepdims=True)
        return inputs * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))

    def labels_in_rows(self, labels: np.ndarray, rows: Rows) -> np.ndarray:
        """[rows, examples, 3] fp32."""
        return _in_slots(labels, rows, -1, np.float32)


@dataclass(frozen=True)
class CosineScore(TextVector):
    """The cosine of the two texts of a pair, which are in one row."""

    def weights(self, labels: jax.Array) -> jax.Array:
        """fp32, 1 for the first text of each pair with a score, else 0."""
        return ((labels[..., 0] == 0) & ~jnp.isnan(labels[..., 2])).astype(jnp.float32)

    def sums(self, logits: jax.Array, labels: jax.Array, weights: jax.Array, batch: Batch) -> Sums:
        """The loss is the squared difference of cosine and score."""
        del batch
        side, key, score = jnp.moveaxis(labels, -1, 0)
        cosines = jnp.einsum("rih,rjh->rij", logits, logits, precision="highest")
        own = (key[:, :, None] == key[:, None, :]) & (side[:, None, :] == 1)
        cosine = jnp.sum(jnp.where(own, cosines, 0), axis=-1)
        errors = jnp.where(weights > 0, cosine - score, 0)
        return {"loss": jnp.sum(errors**2), "count": jnp.sum(weights)}


@dataclass(frozen=True)
class InBatchNegatives(TextVector):
    """The second text of each pair, among the second texts of the batch.

    As in Henderson et al. 2017 (https://arxiv.org/abs/1705.00652): a softmax of the cosines over
    `temperature`. Second texts with the same key are one. With gradient accumulation the others are
    those of a microbatch on one device.
    """

    temperature: float = 0.05

    def weights(self, labels: jax.Array) -> jax.Array:
        """fp32, 1 for the first text of each pair, else 0."""
        return (labels[..., 0] == 0).astype(jnp.float32)

    def sums(self, logits: jax.Array, labels: jax.Array, weights: jax.Array, batch: Batch) -> Sums:
        """The loss is the cross-entropy in nats."""
        del batch
        vectors = logits.reshape(-1, logits.shape[-1])
        side, key = labels[..., 0].ravel(), labels[..., 1].ravel()
        scores = jnp.einsum("ih,jh->ij", vectors, vectors, precision="highest") / self.temperature
        # Copies of a text share its probability, so that they count once.
        same = (key[:, None] == key) & (side == 1)
        scores -= jnp.log(jnp.maximum(jnp.sum(same & (side == 1)[:, None], axis=0), 1))
        scores = jnp.where(side == 1, scores, IMPOSSIBLE)
        right = jax.nn.logsumexp(jnp.where(same, scores, IMPOSSIBLE), axis=-1)
        nats = jax.nn.logsumexp(scores, axis=-1) - right
        is_best = jnp.max(jnp.where(same, scores, IMPOSSIBLE), axis=-1) >= jnp.max(scores, axis=-1)
        weights = weights.ravel()
        sums = {"loss": nats, "correct": is_best, "count": jnp.ones_like(weights)}
        return {name: jnp.sum(jnp.where(weights > 0, x, 0)) for name, x in sums.items()}


MASKED_LM = MaskedLm("masked_lm")
NEXT_SENTENCE = NextSentence("next_sentence", 2)
SEQUENCE_CLASSIFIER = SequenceClassifier("sequence_classifier")
MULTI_LABEL_CLASSIFIER = MultiLabelClassifier("sequence_classifier")
SEQUENCE_REGRESSION = SequenceRegression("sequence_classifier", 1)
TOKEN_CLASSIFIER = TokenClassifier("token_classifier")
ANSWER_SPAN = AnswerSpan("answer_span", 2)
REPLACED_TOKEN = ReplacedToken("replaced_token", 1)
MULTIPLE_CHOICE = MultipleChoice("multiple_choice", 1)

COSINE_SCORE = CosineScore("text_vector")
IN_BATCH_NEGATIVES = InBatchNegatives("text_vector")

# The head of each part that has parameters. A regression and a classifier of several labels have
# its module, too.
HEADS: dict[str, Head] = {
    head.part: head
    for head in (
        MASKED_LM,
        NEXT_SENTENCE,
        SEQUENCE_CLASSIFIER,
        TOKEN_CLASSIFIER,
        ANSWER_SPAN,
        REPLACED_TOKEN,
        MULTIPLE_CHOICE,
    )
}
# What a checkpoint can hold besides the encoder.
PARTS = ("pooler", *HEADS)
PRETRAINING = PARTS[:3]
# What a model that writes texts has besides; see `bert_jax.model.decoder`.
CROSS_ATTENTION, DECODER = "cross_attention", "decoder"
WRITING = (CROSS_ATTENTION, DECODER)


def parts_of(params: Mapping[str, Any]) -> tuple[str, ...]:
    """Which of `PARTS` and `WRITING` a nested dict of parameters has."""
    return tuple(part for part in (*PARTS, *WRITING) if part in params or part in params["bert"])


def part_of(path: Sequence[str]) -> str:
    """Which of `PARTS` and `WRITING` a parameter belongs to, or "encoder"."""
    if path[0] != "bert":
        return path[0]
    return "pooler" if path[1] == "pooler" else "encoder"
