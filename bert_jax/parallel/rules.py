"""How every array is sharded: the one place that maps names of axes to axes of the mesh.

A parameter's axes are named where it is made (`bert_jax.model.parameters`); `RULES` maps names to
mesh axes. Parameter and activation shardings both follow from them, so the sizes in `config.mesh`
set the layout.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bert_jax.model.architecture import Constrain
from bert_jax.model.parameters import WORD_EMBEDDINGS, Axes, Params, is_stacked, path_of
from bert_jax.model.parts import PART, is_split
from bert_jax.parallel.mesh import AXES, row_devices

# Logical axis -> the mesh axes that it is split over; other axes are replicated.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("slice", "data", "fsdp"),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
}

LANES = 128


def spec(names: tuple[str | None, ...], keep: tuple[str, ...] = AXES) -> P:
    """The PartitionSpec of an array whose axes have these names, split over mesh axes in `keep`."""
    if is_split():  # what the batch is split over belongs to the axis of the parts
        keep = tuple(axis for axis in keep if axis not in RULES["batch"])
    kept = ([axis for axis in RULES.get(name or "", ()) if axis in keep] for name in names)
    return P(*(tuple(axes) or None for axes in kept))


def state_shardings(mesh: Mesh, state: Any, axes: Axes, *, zero1: bool) -> Any:
    """A NamedSharding for every leaf of a training state, from its shapes.

    Optimizer moments have the path of their parameter and are sharded like it; scalars and moments
    with fewer axes than their parameter (Adafactor's) are replicated.

    Args:
      mesh: mesh to shard over.
      state: tree of arrays or shapes.
      axes: names of the axes of each parameter.
      zero1: split every leaf over the data axis too, wherever one of its axes divides by it
        (Rajbhandari et al. 2020, https://arxiv.org/abs/1910.02054, with the fp32 parameters counted
        as optimizer state). Each slice has all of it, so that parameters are gathered within one.
    """

    def sharding(keys: Any, leaf: Any) -> NamedSharding:
        names = axes.get(path_of(keys), ())
        if leaf.size == 1 or leaf.ndim != len(names):  # a factored moment, which is small
            return NamedSharding(mesh, P())
        split = [RULES.get(name, ()) for name in names]
        if zero1:
            split = _split_over_data(mesh, leaf.shape, names, split)
        return NamedSharding(mesh, P(*(a or None for a in split)))

    return jax.tree_util.tree_map_with_path(sharding, state)


def _split_over_data(
    mesh: Mesh, shape: tuple[int, ...], names: tuple[str, ...], axes: list[tuple[str, ...]]
) -> list[tuple[str, ...]]:
    """Adds the data axis to the first axis of an array that can be split further by it.

    The layer axis is tried last: a layer's gradient is complete long before the others are. The
    last axis of a matrix is split only if whole TPU lanes remain; thin slices would be padded.
    """
    order = sorted(range(len(shape)), key=lambda index: names[index] == "layer")
    for index in order:
        shards = math.prod(mesh.shape[axis] for axis in (*axes[index], "data"))
        is_row_of_matrix = index == len(shape) - 1 and sum(name != "layer" for name in names) > 1
        if shape[index] % (shards * (LANES if is_row_of_matrix else 1)) == 0:
            return [*axes[:index], (*axes[index], "data"), *axes[index + 1 :]]
    return axes


def gather(mesh: Mesh, params: Params, axes: Axes, *, copies: bool = True) -> Params:
    """Gathers stored parameters for computation.

    Parameters are gathered over data and fsdp, except that `gather_layer` gathers each layer over
    fsdp where it is used. They stay split over tensor.

    The table of word embeddings gets a leading axis with a copy for every part of the batch. It is
    used twice, as lookup and as decoder: with one copy for both, each part sums its two gradients
    before they are reduced over the parts; without, each of the two is reduced separately. A step
    that runs `by_part` needs no `copies`: each part has its own gradient of every parameter.
    """

    def constrain(keys: Any, leaf: jax.Array) -> jax.Array:
        path = path_of(keys)
        if copies and path == WORD_EMBEDDINGS:
            tables = jnp.broadcast_to(leaf, (row_devices(mesh), *leaf.shape))
            return _pin_parts(mesh, tables, axes[path])
        keep = ("fsdp", "tensor") if is_stacked(axes[path]) else ("tensor",)
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, spec(axes[path], keep)))

    return jax.tree_util.tree_map_with_path(constrain, params)


def scatter(mesh: Mesh, gradients: Params, axes: Axes, shardings: Any) -> Params:
    """Reduces the gradients of gathered parameters to the shardings of the stored ones.

    A gradient with one axis more than its parameter has one for each part of the batch.
    """

    def constrain(keys: Any, leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
        names = axes[path_of(keys)]
        if leaf.ndim > len(names):
            leaf = jnp.sum(_pin_parts(mesh, leaf, names), axis=0)
        return jax.lax.with_sharding_constraint(leaf, sharding)

    return jax.tree_util.tree_map_with_path(constrain, gradients, shardings)


def _pin_parts(mesh: Mesh, arrays: jax.Array, names: tuple[str, ...]) -> jax.Array:
    """Keeps each of the arrays, on the first axis, with its part of the batch."""
    sharding = NamedSharding(mesh, P(RULES["batch"], *spec(names, ("tensor",))))
    return jax.lax.with_sharding_constraint(arrays, sharding)


def by_part(mesh: Mesh, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Builds the function that runs another on each part of a batch, the rows of one device.

    Args:
      mesh: mesh to run on, without fsdp.
      function: takes rows and gives a tree of arrays; see `bert_jax.model.parts`.

    Returns:
      A function of all rows; its arrays have a leading axis, the parts.
    """
    run = jax.vmap(function, axis_name=PART, spmd_axis_name=RULES["batch"])
    return lambda rows: run(
        jax.tree.map(lambda x: x.reshape(row_devices(mesh), -1, *x.shape[1:]), rows)
    )


def gather_layer(mesh: Mesh, axes: Axes) -> Callable[[Params], Params]:
    """Builds the function that gathers the parameters of one layer before the layer runs.

    The forward pass gathers over fsdp; the backward pass splits the gradient again, so that it is
    reduced and scattered at once.

    Args:
      mesh: mesh to run on.
      axes: names of the axes of one layer's parameters.
    """

    def constrain(params: Params, keep: tuple[str, ...]) -> Params:
        def pin(keys: Any, leaf: jax.Array) -> jax.Array:
            sharding = NamedSharding(mesh, spec(axes[path_of(keys)], keep))
            return jax.lax.with_sharding_constraint(leaf, sharding)

        return jax.tree_util.tree_map_with_path(pin, params)

    @jax.custom_vjp
    def gather(params: Params) -> Params:
        return constrain(params, ("tensor",))

    def forward(params: Params) -> tuple[Params, None]:
        return gather(params), None

    def backward(_: None, gradients: Params) -> tuple[Params]:
        return (constrain(gradients, ("fsdp", "tensor")),)

    gather.defvjp(forward, backward)
    return gather if mesh.shape["fsdp"] > 1 else lambda params: params


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows are split over slices and the data and fsdp axes."""
    return NamedSharding(mesh, spec(("batch",)))


def activation_constraint(mesh: Mesh) -> Constrain:
    """Builds the function that pins an activation's sharding, given the names of its axes."""

    def constrain(x: jax.Array, names: tuple[str | None, ...]) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec(names)))

    return constrain


def replicated(mesh: Mesh) -> NamedSharding:
    """The same whole value on every device."""
    return NamedSharding(mesh, P())


def put_params(params: Params, mesh: Mesh, axes: Axes, *, zero1: bool = False) -> Params:
    """Puts numpy arrays, the same on every host, on the mesh; see `state_shardings`."""

    def put(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
        return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)

    return jax.tree.map(put, params, state_shardings(mesh, params, axes, zero1=zero1))


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts the global batch on the mesh; every host gives its rows. See `hosts.local_rows`."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
