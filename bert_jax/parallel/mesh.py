"""The mesh of all devices, with its three axes."""

import jax
from jax.sharding import AxisType, Mesh

from bert_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """A mesh over all devices.

    Args:
      data, fsdp, tensor: sizes; one of them may be -1 and takes what the others leave.

    Raises:
      UserError: the sizes don't multiply to the number of devices.
    """
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    known = 1
    for size in sizes.values():
        known *= size if size > 0 else 1
    count = jax.device_count()
    shape = tuple(size if size > 0 else count // known for size in sizes.values())
    if shape[0] * shape[1] * shape[2] != count:
        wanted = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
        raise UserError(
            f"config.mesh ({wanted}) does not fit {count} devices: the sizes must multiply to "
            f"{count}; set one of them to -1 to take the rest"
        )
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES))
