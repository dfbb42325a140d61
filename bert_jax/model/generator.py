"""A model with a generator: a smaller encoder that writes the words that the model reads.

Reference: Clark et al. 2020, https://arxiv.org/abs/2003.10555. Decoupled embeddings: He et al.
2021, https://arxiv.org/abs/2111.09543, there called gradient-disentangled embedding sharing.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bert_jax.model.architecture import Architecture, Numerics, Parallel
from bert_jax.model.heads import MASKED_LM
from bert_jax.model.model import BertWithHeads
from bert_jax.model.parameters import Params

GENERATOR = "generator"  # its name in the parameters
DECOUPLED = ("word", "position")
SHARED = (*DECOUPLED, "token_type", "norm")  # of the embeddings, where a model has them


def generator_of(model: Architecture, size: float) -> Architecture:
    """The generator of a model: `size` of its width and heads, its layers and its embeddings."""
    hidden = round(model.hidden_size * size)
    return dataclasses.replace(
        model,
        hidden_size=hidden,
        num_heads=max(1, round(model.num_heads * size)),
        intermediate_size=round(model.intermediate_size * size),
        embedding_size=None if model.embedding_features == hidden else model.embedding_features,
    )


class BertWithGenerator(BertWithHeads):
    """A model, and the generator beside it.

    Args of the constructor, besides those of `BertWithHeads`:
      generator: architecture of the generator; its embeddings have the size of the model's.
      decoupled: the generator has embeddings of its own. The model's tables of words and positions
        are then differences from the generator's, 0 at first; `decoupled_embeddings` adds them up.
    """

    def __init__(
        self,
        architecture: Architecture,
        numerics: Numerics,
        parallel: Parallel,
        rngs: nnx.Rngs,
        *,
        parts: Sequence[str],
        generator: Architecture,
        decoupled: bool,
    ):
        super().__init__(architecture, numerics, parallel, rngs, parts=parts)
        self.generator = BertWithHeads(generator, numerics, parallel, rngs, parts=(MASKED_LM.part,))
        ours, theirs = self.bert.embeddings, self.generator.bert.embeddings
        for name in SHARED:
            if not hasattr(ours, name):
                continue
            own, other = (nnx.to_pure_dict(nnx.state(getattr(x, name))) for x in (ours, theirs))
            if decoupled and name in DECOUPLED:
                table = getattr(ours, name).embedding
                table[...] = jnp.zeros_like(table[...])
            elif not decoupled and _fit(own, other):
                setattr(theirs, name, getattr(ours, name))


def _fit(ours: Any, theirs: Any) -> bool:
    """Whether two can be one; relative positions have vectors of the size of the layers."""
    ours, theirs = ([x.shape for x in jax.tree.leaves(params)] for params in (ours, theirs))
    return bool(ours == theirs)


def decoupled_embeddings(params: Params) -> Params:
    """The parameters with the model's tables as sums; no gradient goes to the generator's.

    Unchanged if the embeddings are shared.
    """
    theirs = params[GENERATOR]["bert"]["embeddings"]
    if "word" not in theirs:
        return params
    ours = params["bert"]["embeddings"]
    sums = {
        name: {"embedding": jax.lax.stop_gradient(theirs[name]["embedding"]) + table["embedding"]}
        for name, table in ours.items()
        if name in DECOUPLED
    }
    return params | {"bert": params["bert"] | {"embeddings": ours | sums}}


def split_generator(params: Mapping[str, Any]) -> tuple[Params, Params]:
    """The parameters of the model and of its generator, each complete, as numpy arrays."""
    generator = params[GENERATOR]
    whole = jax.device_get(decoupled_embeddings(dict(params)))
    del whole[GENERATOR]
    embeddings = whole["bert"]["embeddings"]
    shared = {name: embeddings[name] for name in SHARED if name in embeddings}
    bert = generator["bert"]
    return whole, generator | {"bert": bert | {"embeddings": shared | bert["embeddings"]}}


def join_generator(params: Params, generator: Params | None, *, decoupled: bool) -> Params:
    """The opposite of `split_generator`.

    Without a generator, only its embeddings are given: those of the model.
    """
    embeddings = params["bert"]["embeddings"]
    tables = {name: embeddings[name] for name in SHARED if name in embeddings}
    generator = generator or {"bert": {"embeddings": tables}}
    theirs = generator["bert"]["embeddings"]
    if decoupled:
        differences = {
            name: {"embedding": table["embedding"] - theirs[name]["embedding"]}
            for name, table in embeddings.items()
            if name in DECOUPLED
        }
        embeddings = embeddings | differences
    else:
        shared = [name for name in SHARED if _fit(embeddings.get(name), theirs.get(name))]
        theirs = {name: value for name, value in theirs.items() if name not in shared}
    bert = params["bert"] | {"embeddings": embeddings}
    return params | {
        "bert": bert,
        GENERATOR: generator | {"bert": generator["bert"] | {"embeddings": theirs}},
    }
