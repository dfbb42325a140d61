"""Layers and word embeddings in int8, and training that rounds as they do.

Each output of a matrix and each row of the word embeddings has a scale of its own, its largest
magnitude / 127. What a matrix is multiplied by is rounded to int8 as well, with a scale for each
token that is found while the model runs. Products are summed in int32. Reference: Wu et al. 2020,
https://arxiv.org/abs/2004.09602, sections 3 and 4; of training, Jacob et al. 2018,
https://arxiv.org/abs/1712.05877, section 3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from bert_jax.model.parameters import LAYERS, WORD_EMBEDDINGS, Params

if TYPE_CHECKING:
    from bert_jax.model.bert import Bert

# Products with reciprocals, which XLA may make of divisions, so that numpy and XLA round the same
# to the last bit. A value on the other side of a tie changes others after it.
STEP = np.float32(1 / 127)
# Layers whose outputs are all 0 have a scale, too; times a gradient it is still above 0.
SMALLEST = np.float32(1e-20)


def in_integers(values: jax.Array, axis: int = -1) -> tuple[jax.Array, jax.Array]:
    """Integers in [-127, 127] as fp32, and their scale; the product of both is near `values`.

    Rounding has the gradient 1, and scales are constants (straight-through).

    Args:
      values: array of floats.
      axis: axis that shares a scale; in the scales its size is 1.
    """
    values = values.astype(jnp.float32)
    largest = jnp.max(jnp.abs(values), axis=axis, keepdims=True)
    scale = jax.lax.stop_gradient(jnp.maximum(largest * STEP, SMALLEST))
    exact = values * (1 / scale)
    return exact + jax.lax.stop_gradient(jnp.round(exact) - exact), scale


def rounded_rows(rows: jax.Array) -> jax.Array:
    """Rows [..., features] of word embeddings in fp32, as a model in int8 reads them."""
    integers, scale = in_integers(rows)
    return integers * scale


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
        integers, scale = in_integers(x)
        product = jax.lax.dot_general(
            integers.astype(jnp.int8),
            self.kernel[...],
            (((x.ndim - 1,), (0,)), ((), ())),
            preferred_element_type=jnp.int32,
        )
        found = product.astype(jnp.float32) * scale * self.scale[...]
        return (found if self.bias is None else found + self.bias[...]).astype(x.dtype)


class FakeInt8Linear(nnx.Module):
    """A dense layer in the place of another, with its parameters: `Int8Linear` in floats.

    Integers up to 127 are exact in bf16, and sums of their products below 2**24 in fp32, so it
    computes what `Int8Linear` does with the kernel rounded, and has gradients.
    """

    def __init__(self, dense: nnx.Linear):
        self.kernel, self.bias, self.dtype = dense.kernel, dense.bias, dense.dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out] in the dtype of `x`."""
        integers, scale = in_integers(x)
        kernel, scale_of_outputs = in_integers(self.kernel[...], axis=-2)
        product = jax.lax.dot_general(
            integers.astype(self.dtype),
            kernel.astype(self.dtype),
            (((x.ndim - 1,), (0,)), ((), ())),
            preferred_element_type=jnp.float32,
        )
        found = product * scale * scale_of_outputs.squeeze(-2)
        return (found if self.bias is None else found + self.bias[...]).astype(x.dtype)


class Int8Table(nnx.Module):
    """A table of embeddings in the place of another: int8 [rows, features] and fp32 [rows]."""

    def __init__(self, table: nnx.Embed):
        shape, axes = table.embedding.shape, table.embedding.get_metadata()["axes"]
        self.embedding = nnx.Param(jnp.zeros(shape, jnp.int8), axes=axes)
        self.scale = nnx.Param(jnp.zeros(shape[:1], jnp.float32), axes=axes[:1])


def use_int8(bert: Bert) -> None:
    """Replaces the dense layers of an encoder and its word embeddings; values are not kept."""
    bert.encoder.replace_dense(lambda _, dense: Int8Linear(dense))
    embeddings: Any = bert.embeddings
    embeddings.word = Int8Table(embeddings.word)


def use_fake_int8(bert: Bert) -> None:
    """Replaces the dense layers of an encoder, to train them; parameters stay as they are."""
    bert.encoder.replace_dense(lambda _, dense: FakeInt8Linear(dense))


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
        scale = np.maximum(largest * STEP, SMALLEST)
        found[path] = np.round(values * (1 / scale)).astype(np.int8)
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
