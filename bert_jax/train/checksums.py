"""Checksums of arrays, the same however the arrays are split over devices and processes.

A checksum is the sum, modulo 2**32, of a hash of each element's bits and place. Every change of one
element changes it; any other change goes unnoticed with a probability of 2**-32. Since the sum may
be taken in any order, each device adds up its own shards, at the speed of its memory.
"""

import functools
import hashlib
import json
import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32}  # by bytes of an element
_CHUNK = 2**16  # elements that the host hashes at a time: they fit into its cache


class Summary(NamedTuple):
    """What is known of an array.

    Attributes:
      checksum: from 0 to 2**32 - 1.
      finite: whether it holds neither NaN nor infinity.
    """

    checksum: int
    finite: bool


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by their paths, such as "params/bert/pooler/kernel"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def summarize(tree: Any) -> dict[str, Summary]:
    """Summaries of the leaves of a pytree by their paths.

    Args:
      tree: arrays of NumPy; or of JAX, and then all processes of their mesh must call it. Elements
        have 1, 2 or 4 bytes.
    """
    return start_summary(tree)()


def weights_fingerprint(tree: Any) -> str:
    """Identifies names, shapes and values of NumPy's arrays in a pytree, in 64 hex digits."""
    found = {
        name: [*leaf.shape, str(leaf.dtype), _on_host(leaf).checksum]
        for name, leaf in named_leaves(tree).items()
    }
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def start_summary(tree: Any) -> Callable[[], dict[str, Summary]]:
    """Starts `summarize` on the devices; the function that it returns waits for the result.

    The leaves may be donated as soon as this returns. Only this call must be made by all processes
    in the same order; waiting may happen in any thread.
    """
    leaves = named_leaves(tree)
    sharded = {
        name: leaf
        for name, leaf in leaves.items()
        if isinstance(leaf, jax.Array) and isinstance(leaf.sharding, NamedSharding)
    }
    pending: Any = ((), ())
    if sharded:
        shardings = [cast(NamedSharding, leaf.sharding) for leaf in sharded.values()]
        specs = tuple(sharding.spec for sharding in shardings)
        pending = _on_devices(tuple(sharded.values()), shardings[0].mesh, specs)
    on_host = {
        name: _on_host(np.asarray(leaf)) for name, leaf in leaves.items() if name not in sharded
    }

    def finish() -> dict[str, Summary]:
        checksums, finite = jax.device_get(pending)
        found = dict(zip(sharded, map(Summary, map(int, checksums), map(bool, finite))))
        return {name: found.get(name) or on_host[name] for name in leaves}

    return finish


@functools.partial(jax.jit, static_argnums=(1, 2))
def _on_devices(
    arrays: tuple[jax.Array, ...], mesh: Mesh, specs: tuple[PartitionSpec, ...]
) -> tuple[jax.Array, jax.Array]:
    """Checksums, uint32, and finiteness, bool, both [number of arrays] and on every device."""

    def of_shards(shards: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        parts = [
            _on_device(shard, array.shape, mesh, spec)
            for shard, array, spec in zip(shards, arrays, specs)
        ]
        checksums, infinite = (jnp.stack(each).astype(jnp.uint32) for each in zip(*parts))
        checksums, infinite = jax.lax.psum((checksums, infinite), mesh.axis_names)
        return checksums, infinite == 0

    whole = PartitionSpec()
    return jax.shard_map(
        of_shards, mesh=mesh, in_specs=(specs,), out_specs=(whole, whole), check_vma=False
    )(arrays)


# Arrays of one shape are traced once: the moments have those of the parameters.
@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _on_device(
    shard: jax.Array, shape: tuple[int, ...], mesh: Mesh, spec: PartitionSpec
) -> tuple[jax.Array, jax.Array]:
    """A shard's part of the checksum, and whether it holds what is not finite.

    Of the devices that hold the same, only the first has a part in the checksum.
    """
    axes_of = [(axes,) if isinstance(axes, str) else axes or () for axes in spec]
    axes_of += [()] * (len(shape) - len(axes_of))
    places = jnp.zeros(shard.shape, jnp.uint32)
    for axis, axes in enumerate(axes_of):
        place = jax.lax.broadcasted_iota(jnp.uint32, shard.shape, axis)
        if axes:
            index = jax.lax.axis_index(axes).astype(jnp.uint32)
            place += index * np.uint32(shard.shape[axis])
        places += place * np.uint32(math.prod(shape[axis + 1 :]) % 2**32)
    bits = shard if shard.dtype == jnp.bool_ else shard.view(_UNSIGNED[shard.dtype.itemsize])
    # One reduction of both, since each would read the shard from memory.
    checksum, infinite = jax.lax.reduce(
        (_hash(bits.astype(jnp.uint32), places), ~jnp.isfinite(shard)),
        (np.uint32(0), np.bool_(False)),
        lambda x, y: (x[0] + y[0], x[1] | y[1]),
        range(shard.ndim),
    )
    split = {name for axes in axes_of for name in axes}
    others = tuple(name for name in mesh.axis_names if name not in split)
    counts = jax.lax.axis_index(others) == 0 if others else True
    return jnp.where(counts, checksum, np.uint32(0)), infinite


def _on_host(array: np.ndarray) -> Summary:
    flat = np.ascontiguousarray(array).reshape(-1)
    checksum, finite = 0, True
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK]
        places = np.arange(len(part), dtype=np.uint32) + np.uint32(start % 2**32)
        bits = part.view(_UNSIGNED[part.dtype.itemsize]).astype(np.uint32)
        checksum += int(np.sum(_hash(bits, places), dtype=np.uint64))
        finite = finite and bool(np.isfinite(part).all())
    return Summary(checksum % 2**32, finite)


def _hash(bits: Any, places: Any) -> Any:
    """uint32 arrays to one: the finalizer of MurmurHash3, which maps no two values to the same."""
    mixed = bits ^ (places * np.uint32(0x9E3779B9))
    mixed = (mixed ^ (mixed >> 16)) * np.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 13)) * np.uint32(0xC2B2AE35)
    return mixed ^ (mixed >> 16)
