"""The mesh of all devices, with its three axes."""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from bert_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh over all devices, laid along the links between them.

    Where the devices form several slices, with a slow network in between, only the data axis spans
    slices.

    Args:
      data, fsdp, tensor: sizes; one of them may be -1 and takes what the others leave.
      devices: of a topology description, say; default: those of all processes.

    Raises:
      UserError: the sizes don't multiply to the number of devices, or don't fit slices or torus.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    wanted = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    known = math.prod(size for size in sizes.values() if size > 0)
    count = len(devices)
    shape = tuple(size if size > 0 else count // known for size in sizes.values())
    if math.prod(shape) != count:
        raise UserError(
            f"config.mesh ({wanted}) does not fit {count} devices: the sizes must multiply to "
            f"{count}; set one of them to -1 to take the rest"
        )
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if shape[0] % slices:
        raise UserError(
            f"config.mesh ({wanted}) gives data={shape[0]}, which must be a multiple of the "
            f"{slices} slices: fsdp and tensor fit into one slice of {count // slices} devices"
        )
    try:
        if slices == 1:
            grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        else:
            grid = mesh_utils.create_hybrid_device_mesh(
                (shape[0] // slices, *shape[1:]),
                (slices, 1, 1),
                devices,
                allow_split_physical_axes=True,
            )
    except (NotImplementedError, ValueError) as error:
        raise UserError(
            f"config.mesh ({wanted}) cannot be laid out on these devices: {error}"
        ) from error
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))
