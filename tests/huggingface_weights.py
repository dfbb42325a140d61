"""Parameters of `BertForPreTraining`: from a state dict of the transformers library and back."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

MODULES = {  # ours -> theirs
    "bert/embeddings/word": "bert.embeddings.word_embeddings",
    "bert/embeddings/position": "bert.embeddings.position_embeddings",
    "bert/embeddings/token_type": "bert.embeddings.token_type_embeddings",
    "bert/embeddings/norm": "bert.embeddings.LayerNorm",
    "bert/encoder/layers/attention/query": "bert.encoder.layer.{}.attention.self.query",
    "bert/encoder/layers/attention/key": "bert.encoder.layer.{}.attention.self.key",
    "bert/encoder/layers/attention/value": "bert.encoder.layer.{}.attention.self.value",
    "bert/encoder/layers/attention/output": "bert.encoder.layer.{}.attention.output.dense",
    "bert/encoder/layers/attention_norm": "bert.encoder.layer.{}.attention.output.LayerNorm",
    "bert/encoder/layers/feed_forward/intermediate": "bert.encoder.layer.{}.intermediate.dense",
    "bert/encoder/layers/feed_forward/output": "bert.encoder.layer.{}.output.dense",
    "bert/encoder/layers/feed_forward_norm": "bert.encoder.layer.{}.output.LayerNorm",
    "bert/pooler": "bert.pooler.dense",
    "masked_lm/dense": "cls.predictions.transform.dense",
    "masked_lm/norm": "cls.predictions.transform.LayerNorm",
    "masked_lm": "cls.predictions",
    "next_sentence": "cls.seq_relationship",
}


def from_huggingface(weights: Mapping[str, np.ndarray], shapes: Any) -> Any:
    """Their weights by name -> our nested dict.

    Args:
      weights: fp32 arrays; the kernel of a dense layer is [out, in].
      shapes: our parameters or their shapes. Rows that pad our vocabulary become 0.
    """

    def parameter(path, like):
        name, is_kernel, stacked = _theirs(path)
        layers = []
        for layer in range(like.shape[0] if stacked else 1):
            weight = weights[name.format(layer)]
            flat = np.ravel(weight.T if is_kernel else weight)
            shape = like.shape[1:] if stacked else like.shape
            layers.append(np.pad(flat, (0, math.prod(shape) - flat.size)).reshape(shape))
        return np.stack(layers) if stacked else layers[0]

    return jax.tree_util.tree_map_with_path(parameter, shapes)


def to_huggingface(params: Any, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our parameters, or anything of their shapes -> arrays by their names.

    Args:
      params: nested dict.
      weights: arrays by their names, which give the shapes.
    """
    result = {}
    for path, parameter in jax.tree_util.tree_leaves_with_path(params):
        name, is_kernel, stacked = _theirs(path)
        for layer, values in enumerate(parameter if stacked else [parameter]):
            shape = weights[name.format(layer)].shape
            flat = np.ravel(values)[: math.prod(shape)]
            array = flat.reshape(shape[::-1]).T if is_kernel else flat.reshape(shape)
            result[name.format(layer)] = array
    return result


def _theirs(path) -> tuple[str, bool, bool]:
    """Their name of our parameter, whether it is a dense kernel, whether layers are stacked."""
    *module, leaf = (key.key for key in path)
    name = MODULES["/".join(module)] + (".bias" if leaf == "bias" else ".weight")
    return name, leaf == "kernel", "{}" in name
