"""Distillation: a model learns the words, the states and the vectors of a trained one.

References: Hinton et al. 2015, https://arxiv.org/abs/1503.02531; DistilBERT, Sanh et al. 2019,
https://arxiv.org/abs/1910.01108; TinyBERT, Jiao et al. 2020, https://arxiv.org/abs/1909.10351;
MiniLMv2, Wang et al. 2021, https://arxiv.org/abs/2012.15828; vectors of texts: Reimers and Gurevych
2020, https://arxiv.org/abs/2004.09813.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bert_jax.errors import UserError
from bert_jax.fields import NOT_NEGATIVE, POSITIVE, field
from bert_jax.model.architecture import Architecture, Numerics, Parallel
from bert_jax.model.heads import IMPOSSIBLE, MASKED_LM, is_example, mean_of_examples
from bert_jax.model.losses import divergence
from bert_jax.model.model import BertWithHeads, Model, build_model
from bert_jax.model.teacher import PROJECTION, model_with_teacher
from bert_jax.objective.masking import BoundMasking, count_words, mask_tokens
from bert_jax.objective.protocol import Batch, Objective, Sums, Teacher

WORDS = ("mlm", "logits")  # losses that read the masked LM head


@dataclass(frozen=True, eq=False)
class Distilling:
    """`Distillation` for a model; see `BoundObjective`.

    A prepared batch is masked if words are predicted; both models read the same tokens.

    Attributes:
      graphdef: structure of a `BertWithTeacher`.
      masking: how to mask; None if the examples are already masked.
      seed: seed of the masks.
      fields: what to learn from the teacher.
    """

    graphdef: nnx.GraphDef[Any]
    masking: BoundMasking | None
    seed: int
    fields: "Distillation"

    @property
    def heads(self) -> tuple[str, ...]:
        return tuple(self.fields.factors)

    @property
    def word_heads(self) -> tuple[str, ...]:
        return tuple(head for head in ("mlm",) if head in self.heads)

    @property
    def factors(self) -> Mapping[str, float]:
        return self.fields.factors

    def prepare(self, batch: Batch, step: jax.Array | None = None) -> Batch:
        """Masks the rows of a global batch if words are predicted."""
        if self.masking is None or not self.fields.parts:
            return batch
        key = jax.random.key(self.seed, impl="threefry2x32")
        return mask_tokens(batch, self.masking, key, step)

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Per head, fp32: 1 for used slots, for tokens, or for examples."""
        tokens = (batch["segment_ids"] > 0).astype(jnp.float32)
        examples = is_example(batch).astype(jnp.float32)
        found = {"hidden": tokens, "relations": tokens, "vectors": examples}
        if self.fields.parts:
            found |= dict.fromkeys(WORDS, batch["masked_lm_weights"])
        return {head: found[head] for head in self.heads}

    def sums(self, params: Any, batch: Batch, dropout_key: jax.Array | None = None) -> Sums:
        """Runs model and teacher on a prepared batch.

        `params` has the teacher's as `TEACHER`. Gradients are those of the others alone, so none is
        computed through the teacher.

        Returns:
          fp32 scalars "<head>_loss" and "<head>_count", each a sum, "mlm_correct", and what
          `count_words` gives.
        """
        model = nnx.merge(self.graphdef, params)
        fields, weights = self.fields, self.weights(batch)
        ours = _states(model, batch, dropout_key, all_layers=fields.reads_layers)
        theirs = _states(model.teacher, batch, None, all_layers=fields.reads_layers)
        losses: dict[str, jax.Array] = {}
        sums: Sums = {}
        if fields.parts:
            words = MASKED_LM.apply(model, MASKED_LM.read(model.bert, ours[-1], batch))
            sums |= count_words(self.masking, batch, words, batch["masked_lm_weights"])
        if "mlm" in weights:
            found = MASKED_LM.sums(words, batch["masked_lm_ids"], weights["mlm"], batch)
            sums |= {f"mlm_{name}": value for name, value in found.items()}
        if "logits" in weights:
            teacher = model.teacher
            targets = MASKED_LM.apply(teacher, MASKED_LM.read(teacher.bert, theirs[-1], batch))
            labels, temperature = batch["masked_lm_ids"], fields.temperature
            soft = (labels, weights["logits"], batch, temperature)
            found = MASKED_LM.soft_sums(words, targets, *soft)
            sums |= {f"logits_{name}": value for name, value in found.items()}
        if "hidden" in weights:
            layers = fields.hidden_layers or (-1,)
            distance = DISTANCES[fields.hidden_loss]
            pairs = zip(ours[-len(layers) :], (theirs[layer] for layer in layers), strict=True)
            of_layers = [distance(_projected(model, x), y) for x, y in pairs]
            losses["hidden"] = functools.reduce(jnp.add, of_layers)
        if "relations" in weights:
            layer = fields.relation_layer or len(theirs) - 1
            losses["relations"] = relation_nats(
                model.bert.queries_keys_values(ours[-2], len(ours) - 2),
                model.teacher.bert.queries_keys_values(theirs[layer - 1], layer - 1),
                batch["segment_ids"],
                fields.relation_heads or model.teacher.bert.architecture.num_heads,
            )
        if "vectors" in weights:
            x, y = (mean_of_examples(each[-1], batch) for each in (ours, theirs))
            losses["vectors"] = cosine_distance(_projected(model, x), y)
        for head, loss in losses.items():
            sums[f"{head}_loss"] = jnp.sum(jnp.where(weights[head] > 0, loss, 0))
            sums[f"{head}_count"] = jnp.sum(weights[head])
        return sums


def _states(
    model: BertWithHeads, batch: Batch, dropout_key: jax.Array | None, *, all_layers: bool
) -> jax.Array:
    """[layers, rows, length, hidden]: of the embeddings and all layers, or of the last alone."""
    states = model.encode(batch, dropout_key, all_layers)
    return states if all_layers else states[None]


def _projected(model: Any, states: jax.Array) -> jax.Array:
    """States of the model, of the teacher's width."""
    return model.projection(states) if hasattr(model, PROJECTION) else states


def cosine_distance(x: jax.Array, y: jax.Array) -> jax.Array:
    """[...] fp32: 1 - the cosine of vectors [..., features]."""
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    squares = jnp.sum(x**2, axis=-1) * jnp.sum(y**2, axis=-1)
    return 1 - jnp.sum(x * y, axis=-1) * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))


def mean_squared_error(x: jax.Array, y: jax.Array) -> jax.Array:
    """[...] fp32: the mean over the features of vectors [..., features]."""
    return jnp.mean((x.astype(jnp.float32) - y.astype(jnp.float32)) ** 2, axis=-1)


DISTANCES = {"cosine": cosine_distance, "mse": mean_squared_error}


def relation_nats(
    ours: Sequence[jax.Array], theirs: Sequence[jax.Array], segment_ids: jax.Array, heads: int
) -> jax.Array:
    """[rows, length] fp32: how far the relations of each token are from the teacher's, in nats.

    A relation is a softmax over the tokens of the example, of the products of a token's query with
    their queries, divided by the root of the features of a relation head; the same of keys and of
    values. The result is the sum of the three divergences, each the mean over the relation heads.

    Args:
      ours, theirs: queries, keys and values, each [rows, length, features].
      segment_ids: [rows, length] int32.
      heads: number of relation heads, which divides the features of both.
    """
    own = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]

    def relations(x: jax.Array) -> jax.Array:
        x = x.reshape(*x.shape[:2], heads, -1)
        scores = jnp.einsum("bqhd,bkhd->bhqk", x, x, preferred_element_type=jnp.float32)
        return jnp.where(own, scores * x.shape[-1] ** -0.5, IMPOSSIBLE)

    nats = [divergence(relations(x), relations(y)).mean(axis=1) for x, y in zip(ours, theirs)]
    return nats[0] + nats[1] + nats[2]


@dataclass(frozen=True)
class Distillation(Objective, name="distillation"):
    """What a trained model, the teacher, gives; its defaults are DistilBERT's."""

    teacher: str = field(
        "",
        "model to learn from, frozen: anything that `bert_jax.load` reads, with the vocabulary of "
        "the data",
    )
    mlm_weight: float = field(2.0, "weight of the loss of masked words", bounds=NOT_NEGATIVE)
    logits_weight: float = field(
        5.0,
        "weight of the divergence from the teacher's scores of masked words",
        bounds=NOT_NEGATIVE,
    )
    temperature: float = field(2.0, "what these scores of both are divided by", bounds=POSITIVE)
    hidden_weight: float = field(
        1.0,
        "weight of the distance of states from the teacher's, mean of the tokens",
        bounds=NOT_NEGATIVE,
    )
    hidden_loss: str = field(
        "cosine",
        'distance of states: "cosine", 1 - cosine; "mse", squared differences, mean of the '
        "features; where widths differ, of a learned projection of the model's states",
        choices=("cosine", "mse"),
    )
    hidden_layers: tuple[int, ...] = field(
        (),
        "layers of the teacher, in order, whose states the model's last ones follow, as many; 0 is "
        "the embeddings; () for the last of both",
    )
    relations_weight: float = field(
        0.0,
        "weight of the divergence of relations between queries, keys and values of the last layer "
        "from the teacher's (MiniLMv2)",
        bounds=NOT_NEGATIVE,
    )
    relation_layer: int = field(
        0,
        "layer of the teacher whose relations to learn, from 1; 0 for the last",
        bounds="[0, inf)",
    )
    relation_heads: int = field(
        0,
        "parts into which relations split the features; 0 for the teacher's heads",
        bounds="[0, inf)",
    )
    vectors_weight: float = field(
        0.0,
        "weight of 1 - the cosine of an example's mean state, the vector of a text, and the "
        "teacher's",
        bounds=NOT_NEGATIVE,
    )

    @property
    def factors(self) -> dict[str, float]:
        """The weight of each loss that has one."""
        weights = {
            "mlm": self.mlm_weight,
            "logits": self.logits_weight,
            "hidden": self.hidden_weight,
            "relations": self.relations_weight,
            "vectors": self.vectors_weight,
        }
        return {head: weight for head, weight in weights.items() if weight}

    @property
    def parts(self) -> tuple[str, ...]:
        return (MASKED_LM.part,) if any(head in self.factors for head in WORDS) else ()

    @property
    def teacher_parts(self) -> tuple[str, ...]:
        return (MASKED_LM.part,) if self.logits_weight else ()

    @property
    def reads_layers(self) -> bool:
        """Whether other states than the last are compared."""
        return bool(self.relations_weight or (self.hidden_weight and self.hidden_layers))

    def check_model(self, path: str, model: Architecture, numerics: Numerics) -> None:
        path = f"{path}.objective"
        if not self.teacher:
            raise UserError(f"{path}.teacher is empty: name the directory of a trained model")
        if not self.factors:
            raise UserError(
                f"{path}: all weights are 0, so there is nothing to learn: set one, such as "
                f"{path}.hidden_weight=1"
            )
        if len(self.hidden_layers) > model.num_layers + 1:
            raise UserError(
                f"{path}.hidden_layers={self.hidden_layers} has more layers than the model, whose "
                f"embeddings and layers are {model.num_layers + 1}"
            )

    def check_teacher(self, path: str, model: Architecture, teacher: Teacher) -> None:
        path, architecture = f"{path}.objective", teacher.architecture
        last = architecture.num_layers
        for part in self.teacher_parts:
            if part not in teacher.parts:
                raise UserError(
                    f"{path}.logits_weight={self.logits_weight}, but {path}.teacher="
                    f"{self.teacher} has no {part}: set it to 0"
                )
        if self.vectors_weight and teacher.pooling != "mean":
            raise UserError(
                f"{path}.vectors_weight={self.vectors_weight} learns means of states, but "
                f"{path}.teacher={self.teacher} makes vectors by {teacher.pooling}: set it to 0"
            )
        wrong = [layer for layer in self.hidden_layers if not 0 <= layer <= last]
        if wrong:
            raise UserError(
                f"{path}.hidden_layers={self.hidden_layers}: the teacher has no layer {wrong[0]}; "
                f"0 is its embeddings and {last} its last"
            )
        if self.relation_layer > last:
            raise UserError(
                f"{path}.relation_layer={self.relation_layer}: the teacher has {last} layers"
            )
        heads = self.relation_heads or architecture.num_heads
        for owner, size in (("model", model.hidden_size), ("teacher", architecture.hidden_size)):
            if self.relations_weight and size % heads:
                raise UserError(
                    f"{path}.relation_heads={heads} does not divide the {size} features of the "
                    f"{owner}"
                )

    def predicted(self, masked: float) -> float:
        return masked if self.parts else 0.0

    def model(
        self,
        architecture: Architecture,
        numerics: Numerics,
        parallel: Parallel,
        parts: Sequence[str],
        teacher: Architecture | None = None,
    ) -> Model:
        if teacher is None:
            return build_model(architecture, numerics, parallel, parts=parts)
        return model_with_teacher(
            architecture,
            numerics,
            parallel,
            parts=parts,
            teacher=teacher,
            teacher_parts=self.teacher_parts,
            projected=bool(self.hidden_weight or self.vectors_weight),
        )

    def bind(
        self, graphdef: nnx.GraphDef[Any], masking: BoundMasking | None, seed: int
    ) -> Distilling:
        return Distilling(graphdef, masking, seed, self)
