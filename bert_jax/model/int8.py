"""Layers and word embeddings in int8, for models that are trained already.

Each output of a matrix and each row of the word embeddings has a scale of its own, its largest
magnitude / 127. What a matrix is multiplied by is rounded to int8 as well, with a scale for each
token that is found while the model runs. Products are summed in int32. Reference: Wu et al. 2020,
https://arxiv.org/abs/2004.09602, sections 3 and 4.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from bert_jax.model.bert import Bert
from bert_jax.model.parameters import LAYERS, WORD_EMBEDDINGS, Params

LARGEST = 127
# Layers whose outputs are all 0 have a scale, too.
SMALLEST = np.float32(np.finfo(np.float32).tiny)


class Int8Linear(nnx.Module):
    """A dense layer in the place of another, whose parameters may be stacked.

    Its parameters are `kernel`, int8 [in, out], `scale`, fp32 [out], and perhaps `bias`.
    """

    def __init__(self, dense: nnx.Linear):
        shape, axes = dense.kernel.shape, dense.kernel.get_metadata()["axes"]
        self.kernel = nnx.Param(jnp.zeros(shape, jnp.int8), axes=axes)
        scale = jnp.zeros((*shape[:-2], shape[-1]), jnp.float32)
        self.scale = nnx.Param(scale, axes=(*axes[:-2], axes[-1]))
        self.bias = dense.bias

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out] in the dtype of `x`."""
        values = x.astype(jnp.float32)
        largest = jnp.max(jnp.abs(values), axis=-1, keepdims=True)
        scale = jnp.maximum(largest, SMALLEST * LARGEST) / LARGEST
        product = jax.lax.dot_general(
            jnp.round(values / scale).astype(jnp.int8),
            self.kernel[...],
            (((x.ndim - 1,), (0,)), ((), ())),
            preferred_element_type=jnp.int32,
        )
        found = product.astype(jnp.float32) * scale * self.scale[...]
        return (found if self.bias is None else found + self.bias[...]).astype(x.dtype)


class Int8Table(nnx.Module):
    """A table of embeddings in the place of another: int8 [rows, features] and fp32 [rows]."""

    def __init__(self, table: nnx.Embed):
        shape, axes = table.embedding.shape, table.embedding.get_metadata()["axes"]
        self.embedding = nnx.Param(jnp.zeros(shape, jnp.int8), axes=axes)
        self.scale = nnx.Param(jnp.zeros(shape[:1], jnp.float32), axes=axes[:1])


def use_int8(bert: Bert) -> None:
    """Replaces the dense layers of an encoder and its word embeddings; values are not kept."""
    modules = [part for _, part in nnx.iter_graph(bert.encoder) if isinstance(part, nnx.Module)]
    for module in modules:
        for name, part in vars(module).items():
            if isinstance(part, nnx.Linear):
                setattr(module, name, Int8Linear(part))
    embeddings: Any = bert.embeddings
    embeddings.word = Int8Table(embeddings.word)


def is_int8(params: Params) -> bool:
    """Whether these parameters of a `BertWithHeads` are those of a model in int8."""
    return any(values.dtype == np.int8 for values in jax.tree.leaves(params))


def in_int8(params: Params) -> Params:
    """Parameters of a `BertWithHeads` in fp32, as those of the same model in int8."""
    found = {}
    for path, values in flatten_dict(params, sep="/").items():
        is_kernel = path.startswith(f"{LAYERS}/") and path.endswith("/kernel")
        if not is_kernel and path != WORD_EMBEDDINGS:
            found[path] = values
            continue
        axis = -2 if is_kernel else -1
        largest = np.max(np.abs(values), axis=axis, keepdims=True)
        scale = np.maximum(largest, SMALLEST * LARGEST) / np.float32(LARGEST)
        found[path] = np.round(values / scale).astype(np.int8)
        found[f"{path.rpartition('/')[0]}/scale"] = scale.squeeze(axis)
    return unflatten_dict(found, sep="/")


def in_float32(params: Params) -> Params:
    """The parameters that `in_int8` rounded, in fp32; others as they are."""
    found = flatten_dict(params, sep="/")
    for path in [path for path, values in found.items() if values.dtype == np.int8]:
        axis = -1 if path == WORD_EMBEDDINGS else -2
        scale = found.pop(f"{path.rpartition('/')[0]}/scale")
        found[path] = found[path].astype(np.float32) * np.expand_dims(scale, axis)
    return unflatten_dict(found, sep="/")
