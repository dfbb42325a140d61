"""Devices of TPU slices to compile for; the slices need not exist."""

import importlib.util
import os
from typing import Any

from jax.experimental import topologies

from bert_jax.errors import UserError

# Slices that Google Cloud offers, https://cloud.google.com/tpu/docs/system-architecture-tpu-vm
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_DEEP = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")
SHAPES = {
    "v4": (*_DEEP, "8x16x16"),
    "v5e": _FLAT,
    "v5p": (*_DEEP, "8x16x16", "16x16x16", "16x16x24"),
    "v6e": _FLAT,
    "tpu7x": (*_DEEP, "8x16x16"),
}


def topology_devices(name: str, num_slices: int = 1) -> list[Any]:
    """The devices of TPU slices, for a mesh to compile on; no TPU is needed.

    Args:
      name: "GENERATION:SHAPE" of one slice, for example "v5e:4x8" or "v5p:4x4x4"; see `SHAPES`.
      num_slices: number of slices, joined by a data-center network.

    Raises:
      UserError: there is no such slice, or libtpu, which holds the compiler, is not installed.
    """
    generation, _, shape = name.partition(":")
    if generation not in SHAPES:
        raise UserError(
            f"--topology={name}: no such TPU; write GENERATION:SHAPE with a generation of "
            f"{', '.join(SHAPES)}, for example v5e:2x4 or v5p:4x4x4"
        )
    if shape not in SHAPES[generation]:
        raise UserError(
            f"--topology={name}: no such slice; {generation} has "
            f"{', '.join(f'{generation}:{shape}' for shape in SHAPES[generation])}"
        )
    if num_slices < 1:
        raise UserError(f"--slices must be at least 1, not {num_slices}")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("compiling for TPUs needs libtpu: pip install 'jax[tpu]'")
    # libtpu reads these when it is loaded. They stop it from looking for a TPU or a metadata
    # server, and let it run while another process uses it.
    os.environ.update(
        TPU_SKIP_MDS_QUERY="1",
        TPU_ACCELERATOR_TYPE="v5litepod-8",
        TPU_WORKER_HOSTNAMES="localhost",
        TPU_WORKER_ID="0",
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    )
    options = {"num_slices": num_slices, "wrap": _wrap(shape)}
    if generation == "v4":
        options["chip_config_name"] = "megacore"  # one device per chip
    if shape in ("1x1", "2x4"):  # on one host; larger slices have 4 chips per host
        options["chips_per_host_bounds"] = (*map(int, shape.split("x")), 1)
    return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices


def _wrap(shape: str) -> tuple[bool, bool, bool]:
    """Which dimensions wrap around: in 3D all if each is a multiple of 4, in 2D those of 16."""
    sizes = [int(size) for size in shape.split("x")]
    if len(sizes) == 3:
        return (all(size % 4 == 0 for size in sizes),) * 3
    return (sizes[0] == 16, sizes[1] == 16, False)
