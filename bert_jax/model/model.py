"""A model: the encoder with heads on top, as a structure and a nested dict of parameters."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
from flax import nnx

from bert_jax.model.architecture import Architecture, Numerics, Parallel
from bert_jax.model.bert import Bert
from bert_jax.model.decoder import CrossLayers
from bert_jax.model.heads import CROSS_ATTENTION, DECODER, HEADS, MASKED_LM, PRETRAINING, Batch
from bert_jax.model.int8 import use_fake_int8, use_int8
from bert_jax.model.parameters import Axes, Params, axes_of


class BertWithHeads(nnx.Module):
    """BERT with the pretraining heads, or any others.

    Args of the constructor:
      architecture, numerics, parallel: see their classes.
      rngs: for the initial parameters.
      parts: which of `bert_jax.model.heads.PARTS` and `WRITING` to build.
      outputs: number of outputs of heads that leave it to the task.
    """

    def __init__(
        self,
        architecture: Architecture,
        numerics: Numerics,
        parallel: Parallel,
        rngs: nnx.Rngs,
        *,
        parts: Sequence[str] = PRETRAINING,
        outputs: int = 0,
    ):
        with_pooler = "pooler" in parts
        self.bert = Bert(architecture, numerics, parallel, rngs, with_pooler=with_pooler)
        for part, head in HEADS.items():
            if part in parts:
                setattr(self, part, head.make_module(architecture, numerics, outputs, rngs))
        if CROSS_ATTENTION in parts:
            self.cross_attention = CrossLayers(architecture, numerics, parallel, rngs)
        if DECODER in parts:
            exact = replace(numerics, fake_int8=False)  # what is rounded is the encoder
            self.decoder = BertWithHeads(
                architecture, exact, parallel, rngs, parts=(MASKED_LM.part,)
            )
        if numerics.fake_int8:
            use_fake_int8(self.bert)

    def encode(
        self, batch: Batch, dropout_key: jax.Array | None = None, all_layers: bool = False
    ) -> jax.Array:
        """The hidden states [rows, length, hidden] of a batch; see `Bert` for its arrays.

        A batch may have `causal`.
        """
        return self.bert(
            batch["input_ids"],
            batch["token_type_ids"],
            batch["position_ids"],
            batch["segment_ids"],
            dropout_key,
            all_layers,
            causal=batch.get("causal"),
        )


class Model(NamedTuple):
    """A model's structure, without its parameters.

    Attributes:
      graphdef: `nnx.merge(graphdef, params)` gives the module.
      init: key -> parameters; a pure function to jit, or to trace for shapes.
      axes: names of the axes of each parameter; see `bert_jax.model.parameters`.
    """

    graphdef: nnx.GraphDef[BertWithHeads]
    init: Callable[[jax.Array], Params]
    axes: Axes


def build_model(
    architecture: Architecture,
    numerics: Numerics,
    parallel: Parallel = Parallel(),
    *,
    parts: Sequence[str] = PRETRAINING,
    outputs: int = 0,
    int8: bool = False,
) -> Model:
    """Builds a model from the arguments of `BertWithHeads`; computes nothing yet.

    The default `parallel` ties it to no devices: it runs on any, with XLA's attention, and
    layouts follow from its arguments. With `int8` it has the parameters of `int8.in_int8`.
    """

    if int8:
        numerics = replace(numerics, fake_int8=False)

    def make(rngs: nnx.Rngs) -> BertWithHeads:
        model = BertWithHeads(architecture, numerics, parallel, rngs, parts=parts, outputs=outputs)
        if int8:
            use_int8(model.bert)
        return model

    return model_of(make)


def model_of(make: Callable[[nnx.Rngs], BertWithHeads]) -> Model:
    """The `Model` of the module that a function makes; computes nothing yet."""

    def init(key: jax.Array) -> Params:
        return nnx.to_pure_dict(nnx.split(make(nnx.Rngs(params=key)))[1])

    abstract = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    return Model(nnx.split(abstract)[0], init, axes_of(abstract))
