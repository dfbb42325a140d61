"""The processes of a run, one on each host: how they find each other and what they agree on."""

import argparse
import contextlib
import os
import re
import socket
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from bert_jax.errors import UserError

HINT_AFTER_SECONDS = 60
HINT = (
    f"still waiting for the other processes after {HINT_AFTER_SECONDS} s: has the same command "
    "been started on every host (on a TPU pod: gcloud ... ssh --worker=all)?"
)
# How jax.distributed.initialize says that there is nobody to join: no cluster is in sight, or JAX
# has been in use before, as in a notebook.
ALONE = ("coordinator_address should be defined", "must be called before any JAX calls")
TPU_DEVICE = re.compile(r"/dev/(accel|vfio/)\d+")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that `connect` reads."""
    group = parser.add_argument_group(
        "several hosts",
        "Give the same command on every host. On TPU VMs, Slurm and Open MPI the processes find "
        "each other; elsewhere the first three flags tell them.",
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    group.add_argument("--num-processes", type=int, metavar="N", help="how many there are")
    group.add_argument("--process-id", type=int, metavar="I", help="which this is, from 0")
    group.add_argument(
        "--heartbeat-timeout",
        type=int,
        default=100,
        metavar="SECONDS",
        help="end with an error when nothing was heard of a process for so long (default: 100)",
    )
    group.add_argument(
        "--platform",
        choices=("tpu", "gpu", "cpu"),
        help="refuse to run on any other (default: any)",
    )


def connect(arguments: argparse.Namespace) -> None:
    """Joins the other processes of the run, if there are any. Comes before any use of a device.

    Raises:
      UserError: the flags are incomplete or wrong, the platform is not the one asked for, or the
        TPU is in use by another process, which it names.
    """
    address = (arguments.coordinator, arguments.num_processes, arguments.process_id)
    if None in address and address != (None, None, None):
        raise UserError("--coordinator, --num-processes and --process-id belong together: give all")
    if arguments.process_id is not None and not 0 <= arguments.process_id < arguments.num_processes:
        raise UserError(
            f"--process-id={arguments.process_id}: from 0 to --num-processes - 1 = "
            f"{arguments.num_processes - 1}"
        )
    hint = threading.Timer(HINT_AFTER_SECONDS, print, [HINT], {"file": sys.stderr, "flush": True})
    hint.daemon = True
    hint.start()
    try:
        jax.distributed.initialize(
            *address,
            heartbeat_timeout_seconds=arguments.heartbeat_timeout,
            shutdown_timeout_seconds=arguments.heartbeat_timeout,
        )
    except (ValueError, RuntimeError) as error:
        if arguments.coordinator or not any(reason in str(error) for reason in ALONE):
            raise
    try:
        platform = jax.default_backend()
    except RuntimeError:  # where JAX_PLATFORMS asks for a TPU
        check_tpu_is_free()
        raise
    finally:
        hint.cancel()
    if arguments.platform not in (None, platform):
        if arguments.platform == "tpu":
            check_tpu_is_free()
        raise UserError(f"--platform={arguments.platform}, but JAX found only {platform} devices")
    if jax.process_count() > 1:
        print(
            f"process {jax.process_index()} of {jax.process_count()} on {socket.gethostname()}: "
            f"{jax.local_device_count()} of {jax.device_count()} {platform} devices",
            flush=True,
        )


def check_tpu_is_free(proc: Path = Path("/proc")) -> None:
    """Checks that no other process has the device files of a TPU open: only one at a time can.

    Processes of other users are visible to root only.

    Raises:
      UserError: names the process.
    """
    for process in proc.glob("[0-9]*"):
        if process.name == str(os.getpid()):
            continue
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if any(map(TPU_DEVICE.fullmatch, _open_files(process))):
                command = (process / "cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ")
                raise UserError(
                    f"the TPU is in use by process {process.name} ({command.decode()}): wait for "
                    f"it, or end it with  kill {process.name}"
                )


def _open_files(process: Path) -> Iterator[str]:
    for descriptor in (process / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            yield os.readlink(descriptor)


def is_primary() -> bool:
    """Whether this is process 0, the one that writes and prints."""
    return jax.process_index() == 0


def print_once(line: str) -> None:
    """Prints on process 0 only."""
    if is_primary():
        print(line, flush=True)


def gather(text: str) -> list[str]:
    """The texts of all processes, in their order, on all of them. Also a barrier."""
    if jax.process_count() == 1:
        return [text]
    mine = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(mine.size))
    padded = np.zeros(max(1, sizes.max()), np.uint8)
    padded[: mine.size] = mine
    rows = multihost_utils.process_allgather(padded)
    return [row[:size].tobytes().decode() for row, size in zip(rows, sizes)]


@contextlib.contextmanager
def agreement() -> Iterator[None]:
    """What one process cannot do, none does: an error inside is raised on every process.

    Without this the others would wait for the one that has left. What is inside must not wait for
    other processes. Also a barrier.

    Raises:
      UserError, OSError: as raised inside; UserError on the processes where all was well.
    """
    failure = None
    try:
        yield
    except (UserError, OSError) as error:
        failure = error
    failures = gather("" if failure is None else str(failure))
    if failure is not None:
        raise failure
    for process, message in enumerate(failures):
        if message:
            raise UserError(f"process {process}: {message}")


def check_shared(directory: epath.Path) -> None:
    """Checks that all processes see the same directory; creates it.

    Raises:
      UserError: some process does not see what process 0 wrote there.
    """
    if jax.process_count() == 1:
        return
    # A name that nobody has looked for before: network file systems remember what was not there.
    probe = directory / f".seen-by-all-{gather(uuid.uuid4().hex)[0]}"
    with agreement():
        if is_primary():
            directory.mkdir(parents=True, exist_ok=True)
            probe.write_text("")
    blind = [host for host in gather("" if probe.exists() else socket.gethostname()) if host]
    if is_primary():
        probe.unlink()
    if blind:
        raise UserError(
            f"{directory} is not shared: {len(blind)} of {jax.process_count()} processes (on "
            f"{', '.join(sorted(set(blind))[:3])}) do not see what process 0 writes there; give a "
            f"directory that all hosts share, such as gs://BUCKET/RUN"
        )


def local_rows(sharding: Sharding, num_rows: int) -> np.ndarray:
    """Which of `num_rows` rows the devices of this process hold.

    Processes may hold the same rows (when the tensor axis spans them) and rows that don't follow
    one another (a host of a TPU pod is a block of the torus, the mesh goes along its lines).

    Args:
      sharding: of the rows, on the first axis.
      num_rows: of all processes together.

    Returns:
      int64 [rows of this process], ascending: what `jax.make_array_from_process_local_data` wants.

    Raises:
      UserError: two processes share some rows, but not all of theirs.
    """
    held: dict[int, set[int]] = {}
    for device, index in sharding.devices_indices_map((num_rows,)).items():
        held.setdefault(device.process_index, set()).update(range(num_rows)[index[0]])
    if sum(map(len, {frozenset(rows) for rows in held.values()})) != num_rows:
        raise UserError(
            "config.mesh splits rows across processes unequally: let config.mesh.tensor divide, or "
            "be a multiple of, the devices of a process"
        )
    return np.array(sorted(held[jax.process_index()]))
