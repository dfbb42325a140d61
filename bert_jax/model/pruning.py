"""Pruning: what each head and each layer adds to the states can be scaled, and layers left out.

Reference: Michel et al. 2019, https://arxiv.org/abs/1905.10650.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from bert_jax.errors import UserError
from bert_jax.model.architecture import Architecture
from bert_jax.model.parameters import LAYERS, Params


def scaled(params: Params, heads: jax.Array, layers: jax.Array) -> Params:
    """The parameters of a model whose heads and layers add that many times as much.

    Args:
      params: parameters of a `BertWithHeads`.
      heads: [layers, heads]; 0 for a head that adds nothing.
      layers: [layers].
    """
    found = flatten_dict(params, sep="/")
    for part in ("attention", "feed_forward"):
        for name in ("kernel", "bias"):
            path = f"{LAYERS}/{part}/output/{name}"
            if path not in found:
                continue
            values = found[path]
            values = values * layers.reshape(-1, *[1] * (values.ndim - 1))
            if (part, name) == ("attention", "kernel"):
                by_head = values.reshape(*heads.shape, -1, values.shape[-1])
                values = (by_head * heads[:, :, None, None]).reshape(values.shape)
            found[path] = values
    return unflatten_dict(found, sep="/")


def check_layers(architecture: Architecture) -> None:
    """Raises UserError if a layer that is left out would change what the others are."""
    kinds = {
        "global_every": architecture.global_every != 1,
        "first_norm": not architecture.first_norm,
        "layer_mixing": architecture.layer_mixing,
    }
    if wrong := [name for name, differs in kinds.items() if differs]:
        raise UserError(
            f"--layers: layers of this model are of several kinds (model.{wrong[0]}), so none can "
            "be left out; prune its heads"
        )


def kept_layers(params: Params, keep: Sequence[int]) -> Params:
    """The parameters of a model that has only these layers, in this order."""
    found = flatten_dict(params, sep="/")
    chosen = jnp.asarray(keep)
    return unflatten_dict(
        {
            path: values[chosen] if "layers" in path.split("/") else values
            for path, values in found.items()
        },
        sep="/",
    )
