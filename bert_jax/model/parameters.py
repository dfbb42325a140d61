"""Parameters: their initialization and the names of their axes.

Axes are named where a parameter is made. Sharding, conversion and exports read these names:

  vocab       tokens of the vocabulary, padded
  position    positions of a row
  token_type  token types
  embed       features of a token or its embedding, on the axis of a matrix that may be split
  hidden      features of a token or its embedding, not split over fsdp or tensor
  heads       features of all attention heads
  mlp         features inside a feed-forward layer
  output      outputs of a head
  rank        columns and rows of the factors of a low-rank change
  state       what layer mixing can read: the embeddings and the results of all parts of layers
  layer       layers, where they are stacked
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

if TYPE_CHECKING:
    from bert_jax.model.architecture import Architecture, Numerics

Axes = Mapping[str, tuple[str, ...]]  # path of a parameter -> names of its axes
Params = dict[str, Any]  # nested dict of arrays

LAYERS = "bert/encoder/layers"
WORD_EMBEDDINGS = "bert/embeddings/word/embedding"  # used as lookup and as decoder


def initializer(stddev: float | jax.Array) -> nnx.Initializer:
    """Truncated normal, cut at two `stddev`; like Google's, its variance is not corrected."""
    return nnx.initializers.truncated_normal(stddev, lower=-2.0, upper=2.0)


def linear(
    axes: tuple[str, str],
    sizes: tuple[int, int],
    architecture: Architecture,
    rngs: nnx.Rngs,
    numerics: Numerics | None = None,
    *,
    bias: str = "",
    use_bias: bool = True,
    stddev: float | jax.Array | None = None,
) -> nnx.Linear:
    """A dense layer from the first of two axes to the second.

    Args:
      axes: names of the kernel's axes.
      sizes: their sizes.
      architecture: architecture of the model.
      rngs: for the kernel; the bias starts at 0.
      numerics: numerics of the model; None computes in fp32.
      bias: name of the bias axis; default: the kernel's second one.
      use_bias: whether it has a bias.
      stddev: standard deviation of the initial kernel; default: `initializer_range`.
    """
    return nnx.Linear(
        *sizes,
        use_bias=use_bias,
        kernel_init=initializer(architecture.initializer_range if stddev is None else stddev),
        dtype=jnp.dtype(numerics.compute_dtype) if numerics else None,
        kernel_metadata={"axes": axes},
        bias_metadata={"axes": (bias or axes[1],)},
        rngs=rngs,
    )


def output_projection(
    axis: str,
    architecture: Architecture,
    rngs: nnx.Rngs,
    numerics: Numerics,
    *,
    use_bias: bool,
    factor: float | jax.Array = 1.0,
) -> nnx.Linear:
    """The dense layer that ends a part of a layer: from an axis, "heads" or "mlp", to "embed".

    `factor` scales its initial kernel.
    """
    return linear(
        (axis, "embed"),
        (_size(axis, architecture), architecture.hidden_size),
        architecture,
        rngs,
        numerics,
        bias="hidden",
        use_bias=use_bias,
        stddev=architecture.output_stddev * factor,
    )


def _size(axis: str, architecture: Architecture) -> int:
    return architecture.intermediate_size if axis == "mlp" else architecture.hidden_size


def table(
    axes: tuple[str, str], rows: int, architecture: Architecture, rngs: nnx.Rngs
) -> nnx.Embed:
    """An embedding table with one row of `embedding_features` for each index."""
    return nnx.Embed(
        rows,
        architecture.embedding_features,
        embedding_init=initializer(architecture.initializer_range),
        embedding_metadata={"axes": axes},
        rngs=rngs,
    )


Norm = nnx.LayerNorm | nnx.RMSNorm


def make_norm(
    architecture: Architecture, rngs: nnx.Rngs, axis: str = "hidden", size: int | None = None
) -> Norm:
    """The norm of an architecture; it computes and returns fp32, whatever the compute dtype.

    LayerNorm takes the variance as E[x^2] - E[x]^2, so that one pass gives both moments, and
    another gives both sums of the gradient. Reference of RMSNorm: Zhang and Sennrich 2019,
    https://arxiv.org/abs/1910.07467.

    Args:
      architecture: architecture of the model.
      rngs: unused, as norms start at 1 and 0.
      axis: name of the axis to normalize.
      size: its size; None for that of a layer's activations.
    """
    size = size or _size(axis, architecture)
    epsilon, scale = architecture.layer_norm_eps, {"axes": (axis,)}
    if architecture.norm == "rms_norm":
        return nnx.RMSNorm(
            size,
            epsilon=epsilon,
            dtype=jnp.float32,
            use_scale=architecture.norm_scale,
            scale_metadata=scale,
            rngs=rngs,
        )
    return nnx.LayerNorm(
        size,
        epsilon=epsilon,
        dtype=jnp.float32,
        use_scale=architecture.norm_scale,
        use_bias=architecture.norm_bias,
        scale_metadata=scale,
        bias_metadata=scale,
        rngs=rngs,
    )


def stack_axes(layers: nnx.Module) -> None:
    """Names the leading axis of parameters that hold one value for each layer."""
    for _, variable in nnx.iter_graph(layers):
        if isinstance(variable, nnx.Param):
            variable.set_metadata(axes=("layer", *variable.get_metadata()["axes"]))


def axes_of(module: nnx.Module) -> dict[str, tuple[str, ...]]:
    """Maps the path of each parameter, such as "pooler/kernel", to the names of its axes."""
    return {
        "/".join(map(str, path)): variable.get_metadata()["axes"]
        for path, variable in nnx.to_flat_state(nnx.state(module, nnx.Param))
    }


def layer_axes(axes: Axes) -> dict[str, tuple[str, ...]]:
    """The axes of one layer's parameters, from those of all layers stacked."""
    return {path: names[1:] for path, names in axes.items()}


def joined(some: Mapping[str, Any], others: Mapping[str, Any]) -> Params:
    """The nested dict with the leaves of two that have none in common."""
    leaves: Params = unflatten_dict(flatten_dict(some) | flatten_dict(others))
    return leaves


def is_stacked(names: tuple[str, ...]) -> bool:
    """Whether a parameter with these axes holds one value for each layer."""
    return names[0] == "layer"


def path_of(keys: tuple[object, ...]) -> str:
    """The path of a parameter in a tree: the keys of its nested dicts.

    Optimizer moments mirror the tree of parameters, so a moment has the path of its parameter.
    """
    return "/".join(key.key for key in keys if isinstance(key, jax.tree_util.DictKey))
