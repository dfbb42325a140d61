"""Where every array lives: the one place that connects names of axes to axes of the mesh.

`PARAMETER_AXES` names the axes of each parameter, `RULES` maps names to mesh axes. Parameter and
activation shardings both come from them, so a layout is a matter of sizes in `config.mesh`.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bert_jax.parallel.mesh import AXES

# Logical axis -> the mesh axes that it is split over; what is not named here is replicated.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
}

# Path of a parameter -> names of its axes. Exactly one pattern matches each parameter.
PARAMETER_AXES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"bert/embeddings/word/embedding", ("vocab", "embed")),
    (r"bert/embeddings/(position|token_type)/embedding", (None, None)),
    (r"bert/encoder/layers/attention/(query|key|value)/kernel", ("layer", "embed", "heads")),
    (r"bert/encoder/layers/attention/(query|key|value)/bias", ("layer", "heads")),
    (r"bert/encoder/layers/attention/output/kernel", ("layer", "heads", "embed")),
    (r"bert/encoder/layers/feed_forward/intermediate/kernel", ("layer", "embed", "mlp")),
    (r"bert/encoder/layers/feed_forward/intermediate/bias", ("layer", "mlp")),
    (r"bert/encoder/layers/feed_forward/output/kernel", ("layer", "mlp", "embed")),
    (r"bert/encoder/layers/(attention|feed_forward)/output/bias", ("layer", None)),
    (r"bert/encoder/layers/(attention|feed_forward)_norm/(scale|bias)", ("layer", None)),
    (r"bert/embeddings/norm/(scale|bias)", (None,)),
    (r"bert/pooler/kernel", ("embed", None)),
    (r"masked_lm/dense/kernel", ("embed", None)),
    (r"(next_sentence|sequence_classifier|token_classifier|answer_span)/kernel", ("embed", None)),
    (r"(next_sentence|sequence_classifier|token_classifier|answer_span)/bias", (None,)),
    (r"masked_lm/bias", ("vocab",)),
    (r"(bert/pooler|masked_lm/dense)/bias", (None,)),
    (r"masked_lm/norm/(scale|bias)", (None,)),
)

LANES = 128
LAYERS = "bert/encoder/layers/"
TIED = "bert/embeddings/word/embedding"


def spec(names: tuple[str | None, ...], keep: tuple[str, ...] = AXES) -> P:
    """The PartitionSpec of an array whose axes bear these names, split over mesh axes in `keep`."""
    kept = ([axis for axis in RULES.get(name, ()) if axis in keep] for name in names)
    return P(*(tuple(axes) or None for axes in kept))


def parameter_axes(path: str) -> tuple[str | None, ...]:
    """Names of the axes of the parameter at `path` ("bert/pooler/kernel").

    Raises:
      ValueError: not exactly one pattern of the table matches.
    """
    found = [names for pattern, names in PARAMETER_AXES if re.fullmatch(pattern, path)]
    if len(found) != 1:
        raise ValueError(f"{len(found)} rules match parameter {path!r}; there must be exactly one")
    return found[0]


def state_shardings(mesh: Mesh, state: Any, zero1: bool) -> Any:
    """A NamedSharding for every leaf of a training state, from its shapes.

    Optimizer moments lie under the same path as their parameter and are laid out like it; scalars
    and moments with fewer axes than their parameter (Adafactor's) are replicated.

    Args:
      mesh: of the run.
      state: tree of arrays or shapes.
      zero1: split every leaf over the data axis too, wherever one of its axes divides by it
        (Rajbhandari et al. 2020, https://arxiv.org/abs/1910.02054, with the fp32 parameters counted
        to the optimizer's state).
    """

    def sharding(path, leaf):
        if leaf.size == 1:
            return NamedSharding(mesh, P())
        names = parameter_axes(_parameter_path(path))
        if leaf.ndim != len(names):  # a factored moment, which is small
            return NamedSharding(mesh, P())
        axes = [RULES.get(name, ()) for name in names]
        if zero1:
            axes = _split_over_data(mesh, leaf.shape, names, axes)
        return NamedSharding(mesh, P(*(a or None for a in axes)))

    return jax.tree_util.tree_map_with_path(sharding, state)


def _parameter_path(path: Any) -> str:
    # Moments mirror the tree of parameters: the dict keys of a path name the parameter.
    return "/".join(key.key for key in path if isinstance(key, jax.tree_util.DictKey))


def _split_over_data(mesh, shape, names, axes):
    """Adds the data axis to the first axis of an array that can be split so much further.

    That of the layers comes last: a layer's gradient is complete long before the others are. The
    last axis of a matrix is split only where whole TPU lanes remain; thin slices would be padded.
    """
    order = sorted(range(len(shape)), key=lambda index: names[index] == "layer")
    for index in order:
        shards = math.prod(mesh.shape[axis] for axis in (*axes[index], "data"))
        is_row_of_matrix = index == len(shape) - 1 and sum(name != "layer" for name in names) > 1
        if shape[index] % (shards * (LANES if is_row_of_matrix else 1)) == 0:
            return [*axes[:index], (*axes[index], "data"), *axes[index + 1 :]]
    return axes


def gather(mesh: Mesh, params: Any) -> Any:
    """Brings stored parameters together for computing.

    What is split over data is gathered, and what is split over fsdp too, except for layers: each of
    them is gathered where it is used, by `gather_layer`. What is split over tensor stays so.

    The table of word embeddings gets a leading axis with a copy for every part of the batch. It is
    used twice, as lookup and as decoder: with one copy for both, each part adds up its two
    gradients before the parts are reduced; without, each of the two is reduced on its own.
    """

    def constrain(path, leaf):
        path = _parameter_path(path)
        keep = ("fsdp", "tensor") if path.startswith(LAYERS) else ("tensor",)
        if path == TIED:
            copies = math.prod(mesh.shape[axis] for axis in RULES["batch"])
            return _pin_copies(mesh, jnp.broadcast_to(leaf, (copies, *leaf.shape)))
        sharding = NamedSharding(mesh, spec(parameter_axes(path), keep))
        return jax.lax.with_sharding_constraint(leaf, sharding)

    return jax.tree_util.tree_map_with_path(constrain, params)


def scatter(mesh: Mesh, gradients: Any, shardings: Any) -> Any:
    """Reduces the gradients of gathered parameters into the places of the stored ones."""

    def constrain(path, leaf, sharding):
        if _parameter_path(path) == TIED:
            leaf = jnp.sum(_pin_copies(mesh, leaf), axis=0)
        return jax.lax.with_sharding_constraint(leaf, sharding)

    return jax.tree_util.tree_map_with_path(constrain, gradients, shardings)


def _pin_copies(mesh, table):
    """Keeps each copy of the word embeddings with its part of the batch."""
    sharding = NamedSharding(mesh, P(RULES["batch"], *spec(parameter_axes(TIED), ("tensor",))))
    return jax.lax.with_sharding_constraint(table, sharding)


def gather_layer(mesh: Mesh) -> Callable[[Any], Any]:
    """The function through which a model passes the parameters of one layer before it uses them.

    Forward it gathers what is split over fsdp; backward it splits the gradient again, so that it is
    reduced and scattered in one.
    """

    def constrain(path, leaf, keep):
        names = parameter_axes(LAYERS + _parameter_path(path))[1:]
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, spec(names, keep)))

    @jax.custom_vjp
    def gather(params):
        return jax.tree_util.tree_map_with_path(lambda p, x: constrain(p, x, ("tensor",)), params)

    def backward(_, gradients):
        split = ("fsdp", "tensor")
        return (jax.tree_util.tree_map_with_path(lambda p, x: constrain(p, x, split), gradients),)

    gather.defvjp(lambda params: (gather(params), None), backward)
    return gather if mesh.shape["fsdp"] > 1 else lambda params: params


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows are split over the data and fsdp axes."""
    return NamedSharding(mesh, spec(("batch",)))


def activation_constraint(mesh: Mesh) -> Callable[[jax.Array, tuple[str | None, ...]], jax.Array]:
    """The function through which a model pins an activation's sharding by names of its axes."""

    def constrain(x: jax.Array, names: tuple[str | None, ...]) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec(names)))

    return constrain


def replicated(mesh: Mesh) -> NamedSharding:
    """The same whole value on every device."""
    return NamedSharding(mesh, P())
