"""Memory that a process frees stays with it, which makes XLA's steps on a CPU faster.

XLA allocates its buffers anew in every step. The GNU C library gives large ones, and those of
threads, back to the system as soon as they are free, and the system clears each page before a
process has it again: up to half of the time of a step of a small model.
"""

import ctypes
import os
import sys
from pathlib import Path

# mallopt(3): all threads share one heap, of which large buffers are a part too, and which shrinks
# when 2 GiB at its end are free.
OPTIONS = {"ARENA_MAX": (-8, 1), "MMAP_MAX": (-4, 0), "TRIM_THRESHOLD": (-1, 2**31 - 1)}
# TPUs, NVIDIA's and AMD's GPUs.
ACCELERATORS = ("accel[0-9]*", "vfio/[0-9]*", "nvidia[0-9]*", "kfd", "dxg")

_kept = False


def keep(devices: Path = Path("/dev")) -> None:
    """Keeps what is freed, on Linux without an accelerator, unless the user set such options.

    Call it before there are other threads: each that has allocated something has its own heap.

    Args:
      devices: directory of the device files.
    """
    global _kept
    platforms = os.environ.get("JAX_PLATFORMS", "")
    on_cpu = platforms == "cpu" or not (
        platforms or any(any(devices.glob(name)) for name in ACCELERATORS)
    )
    if sys.platform != "linux" or not on_cpu or _is_chosen():
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    _kept = mallopt is not None and all(mallopt(*option) for option in OPTIONS.values())


def is_kept() -> bool:
    """Whether `keep` had an effect."""
    return _kept


def _is_chosen() -> bool:
    """Whether the user set one of the options in the environment."""
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    return any(
        f"glibc.malloc.{name.lower()}=" in tunables
        or {f"MALLOC_{name}", f"MALLOC_{name}_"} & os.environ.keys()
        for name in OPTIONS
    )
