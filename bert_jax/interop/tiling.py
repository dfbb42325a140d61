"""Makes the first weights of a model from those of a smaller one.

As ModernBERT-large began with ModernBERT-base (Warner et al. 2024,
https://arxiv.org/abs/2412.13663, appendix A; https://github.com/AnswerDotAI/ModernBERT,
src/bert_layers/initialization.py): the smaller weights are in the middle of the larger, which go on
with them from the other end, and layers are repeated evenly. Attention heads stay whole.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from bert_jax.errors import UserError
from bert_jax.model.architecture import Architecture, Numerics
from bert_jax.model.heads import parts_of
from bert_jax.model.model import build_model
from bert_jax.model.parameters import Params, path_of

SIZES = ("num_layers", "hidden_size", "num_heads", "intermediate_size")  # those that may grow


def check_tiles(name: str, source: Architecture, target: Architecture) -> None:
    """Raises UserError, naming the model, if it has no smaller weights for `target`."""
    for size in SIZES:
        small, large = getattr(source, size), getattr(target, size)
        if small > large:
            raise UserError(
                f"{name} has {size}={small}, which cannot be tiled to config.model.{size}={large}: "
                "only larger models are made of smaller ones"
            )
    small, large = (each.hidden_size // each.num_heads for each in (source, target))
    if small != large:
        raise UserError(
            f"{name} has attention heads of {small} features, and config.model of {large}: "
            f"set config.model.num_heads={target.hidden_size // small}"
        )
    if target.layer_mixing and source.num_layers != target.num_layers:
        raise UserError(
            f"{name} mixes {source.num_layers} layers, and config.model.num_layers="
            f"{target.num_layers}: with config.model.layer_mixing only the width is tiled"
        )


def tiled(params: Params, source: Architecture, target: Architecture) -> Params:
    """The parameters of the larger model.

    Args:
      params: nested dict of numpy arrays, of the smaller model.
      source: architecture of the smaller model.
      target: that of the larger one; see `check_tiles`.
    """
    size = source.hidden_size // source.num_heads
    width = middle(source.hidden_size, target.hidden_size)
    heads = middle(source.num_heads, target.num_heads)
    taken: Mapping[str, np.ndarray] = {
        "layer": spread(source.num_layers, target.num_layers),
        "embed": width,
        "hidden": width,
        "heads": (heads[:, None] * size + np.arange(size)).reshape(-1),
        "mlp": middle(source.intermediate_size, target.intermediate_size),
    }

    model = build_model(target, Numerics(), parts=parts_of(params))
    shapes = jax.eval_shape(model.init, jax.random.key(0))

    def tile(keys: tuple[object, ...], array: np.ndarray, larger: jax.ShapeDtypeStruct) -> Any:
        for axis, name in enumerate(model.axes[path_of(keys)]):
            if array.shape[axis] != larger.shape[axis]:  # embeddings may keep their own size
                array = np.take(array, taken[name], axis)
        return array

    grown: Params = jax.tree_util.tree_map_with_path(tile, params, shapes)
    return grown


def middle(small: int, large: int) -> np.ndarray:
    """For each of `large` places the one of `small` to take: 2 0 1 2 0 for 3 and 5."""
    return (np.arange(large) - (large - small) // 2) % small


def spread(small: int, large: int) -> np.ndarray:
    """For each of `large` layers the one of `small` to take."""
    return np.array([min(round(n * small / large), small - 1) for n in range(large)])
