"""The mesh of all devices and its axes."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from bert_jax.errors import UserError
from bert_jax.fields import field
from bert_jax.model.architecture import Architecture

AXES = ("slice", "data", "fsdp", "tensor")
_SIZE = "; -1 takes the remaining devices"


@dataclass(frozen=True)
class Layout:
    """How a computation is laid out over devices; see `bert_jax.parallel.rules`."""

    data: int = field(-1, "devices that split the rows of a batch" + _SIZE, resume=True)
    fsdp: int = field(
        1, "devices that split rows, and each layer's parameters until it runs" + _SIZE, resume=True
    )
    tensor: int = field(
        1, "devices that split heads, feed-forward features and vocabulary" + _SIZE, resume=True
    )
    zero1: bool = field(
        True,
        "split optimizer state and fp32 parameters over the data axis of each slice, too",
        resume=True,
    )

    def check(self, path: str) -> None:
        """Raises UserError if a size is neither positive nor -1, or more than one is -1."""
        sizes = (self.data, self.fsdp, self.tensor)
        if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
            raise UserError(f"{path} sizes must be positive, at most one of them -1, not {sizes}")

    def mesh(self, devices: Sequence[jax.Device] | None = None) -> Mesh:
        """See `make_mesh`."""
        return make_mesh(self.data, self.fsdp, self.tensor, devices)


def row_devices(mesh: Mesh) -> int:
    """How many parts the rows of a batch are split into."""
    return mesh.shape["slice"] * mesh.shape["data"] * mesh.shape["fsdp"]


def layout_of(mesh: Mesh) -> dict[str, int]:
    """The sizes that `Layout` has, of which `data` counts the slices too."""
    slices, data, fsdp, tensor = (mesh.shape[axis] for axis in AXES)
    return {"data": slices * data, "fsdp": fsdp, "tensor": tensor}


def check_divides(mesh: Mesh, architecture: Architecture, owner: str = "config.model.") -> None:
    """Raises UserError if parameters cannot be split over the mesh.

    Args:
      mesh: mesh to split over.
      architecture: architecture of the model.
      owner: what the names of its fields begin with in the message.
    """
    vocab_size = architecture.padded_vocab_size
    for axis, name, size in (
        ("fsdp", "hidden_size", architecture.hidden_size),
        ("tensor", "num_heads", architecture.num_heads),
        ("tensor", "intermediate_size", architecture.intermediate_size),
        ("tensor", "vocab_size", vocab_size),
    ):
        if size % mesh.shape[axis]:
            raise UserError(
                f"config.mesh.{axis}={mesh.shape[axis]} must divide {owner}{name}, {size}"
                + (" with its padding" if name == "vocab_size" else "")
            )


def num_slices(devices: Iterable[jax.Device]) -> int:
    """How many groups of devices have a fast network within, and a slow one in between."""
    return len({getattr(device, "slice_index", 0) for device in devices})


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh over all devices that follows the links between them.

    If the devices form several slices, with a slow network in between, the first axis, `slice`, is
    that of the slices, and the others lie within one.

    Args:
      data, fsdp, tensor: sizes; one of them may be -1 to take the remaining devices. `data` is the
        product of the axes `slice` and `data`.
      devices: devices to use, such as those of a topology description; default: those of all
        processes.

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
    slices = num_slices(devices)
    if shape[0] % slices:
        raise UserError(
            f"config.mesh ({wanted}) gives data={shape[0]}, which must be a multiple of the "
            f"{slices} slices: fsdp and tensor must fit into one slice of {count // slices} devices"
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
    grid = grid.reshape(slices, shape[0] // slices, *shape[1:])
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))
