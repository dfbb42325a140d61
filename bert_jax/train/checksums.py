"""Checksums of arrays, the same however the arrays are split over devices and processes.

A checksum is the sum, modulo 2**32, of a hash of each element's bits and place. Every change of one
element changes it; any other change goes unnoticed with a probability of 2**-32. Since the sum may
be taken in any order, each device adds up its own shards, at the speed of its memory.
"""

import functools
import json
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bert_jax.parallel import hosts

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
    leaves = named_leaves(tree)
    # All devices start before the first result is awaited.
    parts = {
        name: _on_devices(leaf, leaf.sharding.mesh, leaf.sharding.spec)
        if _is_on_mesh(leaf)
        else _on_host(np.asarray(leaf))
        for name, leaf in leaves.items()
    }
    mine = {name: _of_this_process(leaves[name], *part) for name, part in parts.items()}
    of_all = [mine]
    if any(map(_is_on_mesh, leaves.values())):
        of_all = list(map(json.loads, hosts.gather(json.dumps(mine))))
    return {
        name: Summary(
            sum(each[name][0] for each in of_all) % 2**32, all(each[name][1] for each in of_all)
        )
        for name in leaves
    }


def _is_on_mesh(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and isinstance(leaf.sharding, NamedSharding)


def _of_this_process(leaf: Any, checksums: Any, finite: Any) -> tuple[int, bool]:
    """Joins the parts of devices; of those that hold the same, only one counts."""
    if not _is_on_mesh(leaf):
        return checksums, finite
    counts = {shard.device: shard.replica_id == 0 for shard in leaf.addressable_shards}
    checksum = sum(
        int(np.asarray(x.data).item()) for x in checksums.addressable_shards if counts[x.device]
    )
    return checksum, all(bool(np.asarray(x.data).item()) for x in finite.addressable_shards)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _on_devices(array: jax.Array, mesh: Mesh, spec: PartitionSpec) -> tuple[jax.Array, jax.Array]:
    """Checksum and finiteness of each device's shard: two arrays of the mesh's shape."""
    axes_of = [(axes,) if isinstance(axes, str) else axes or () for axes in spec]
    strides = [math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim)]

    def of_shard(shard: jax.Array) -> tuple[jax.Array, jax.Array]:
        places = jnp.zeros(shard.shape, jnp.uint32)
        for axis, stride in enumerate(strides):
            place = jax.lax.broadcasted_iota(jnp.uint32, shard.shape, axis)
            if axis < len(axes_of) and axes_of[axis]:
                index = jax.lax.axis_index(axes_of[axis]).astype(jnp.uint32)
                place += index * np.uint32(shard.shape[axis])
            places += place * np.uint32(stride % 2**32)
        bits = shard if shard.dtype == jnp.bool_ else shard.view(_UNSIGNED[shard.dtype.itemsize])
        checksum = jnp.sum(_hash(bits.astype(jnp.uint32), places), dtype=jnp.uint32)
        finite = jnp.all(jnp.isfinite(shard))
        ones = [1] * len(mesh.axis_names)
        return checksum.reshape(ones), finite.reshape(ones)

    every = PartitionSpec(*mesh.axis_names)
    return jax.shard_map(
        of_shard, mesh=mesh, in_specs=spec, out_specs=(every, every), check_vma=False
    )(array)


def _on_host(array: np.ndarray) -> tuple[int, bool]:
    flat = np.ascontiguousarray(array).reshape(-1)
    checksum, finite = 0, True
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK]
        places = np.arange(len(part), dtype=np.uint32) + np.uint32(start % 2**32)
        bits = part.view(_UNSIGNED[part.dtype.itemsize]).astype(np.uint32)
        checksum += int(np.sum(_hash(bits, places), dtype=np.uint64))
        finite = finite and bool(np.isfinite(part).all())
    return checksum % 2**32, finite


def _hash(bits: Any, places: Any) -> Any:
    """uint32 arrays to one: the finalizer of MurmurHash3, which maps no two values to the same."""
    mixed = bits ^ (places * np.uint32(0x9E3779B9))
    mixed = (mixed ^ (mixed >> 16)) * np.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 13)) * np.uint32(0xC2B2AE35)
    return mixed ^ (mixed >> 16)
