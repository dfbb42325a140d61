"""Where every array lives: the one place that connects names of axes to axes of the mesh.

`PARAMETER_AXES` names the axes of each parameter, `RULES` maps names to mesh axes. Parameter and
activation shardings both come from them, so a layout is a matter of sizes in `config.mesh`.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

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
    (r"bert/embeddings/(position|token_type)/embedding", (None, "embed")),
    (r"bert/encoder/layers/attention/(query|key|value)/kernel", ("layer", "embed", "heads", None)),
    (r"bert/encoder/layers/attention/(query|key|value)/bias", ("layer", "heads", None)),
    (r"bert/encoder/layers/attention/output/kernel", ("layer", "heads", None, "embed")),
    (r"bert/encoder/layers/feed_forward/intermediate/kernel", ("layer", "embed", "mlp")),
    (r"bert/encoder/layers/feed_forward/intermediate/bias", ("layer", "mlp")),
    (r"bert/encoder/layers/feed_forward/output/kernel", ("layer", "mlp", "embed")),
    (r"bert/encoder/layers/(attention|feed_forward)/output/bias", ("layer", None)),
    (r"bert/encoder/layers/(attention|feed_forward)_norm/(scale|bias)", ("layer", None)),
    (r"bert/embeddings/norm/(scale|bias)", (None,)),
    (r"bert/pooler/kernel", ("embed", None)),
    (r"masked_lm/dense/kernel", ("embed", None)),
    (r"next_sentence/kernel", ("embed", None)),
    (r"masked_lm/bias", ("vocab",)),
    (r"(bert/pooler|masked_lm/dense|next_sentence)/bias", (None,)),
    (r"masked_lm/norm/(scale|bias)", (None,)),
)


def spec(names: tuple[str | None, ...]) -> P:
    """The PartitionSpec of an array whose axes bear these names."""
    return P(*(RULES.get(name) for name in names))


def parameter_axes(path: str) -> tuple[str | None, ...]:
    """Names of the axes of the parameter at `path` ("bert/pooler/kernel").

    Raises:
      ValueError: not exactly one pattern of the table matches.
    """
    found = [names for pattern, names in PARAMETER_AXES if re.fullmatch(pattern, path)]
    if len(found) != 1:
        raise ValueError(f"{len(found)} rules match parameter {path!r}; there must be exactly one")
    return found[0]


def state_shardings(mesh: Mesh, state: Any) -> Any:
    """A NamedSharding for every leaf of a training state, from its shapes.

    Optimizer moments lie under the same path as their parameter and are laid out like it; scalars
    are replicated.
    """

    def sharding(path, leaf):
        if leaf.ndim == 0:
            return NamedSharding(mesh, P())
        # Moments mirror the tree of parameters: the dict keys of a path name the parameter.
        keys = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        return NamedSharding(mesh, spec(parameter_axes("/".join(keys))))

    return jax.tree_util.tree_map_with_path(sharding, state)


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
