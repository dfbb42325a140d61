"""The processes of a run, one on each host: how they connect and how they agree."""

import contextlib
import itertools
import os
import re
import socket
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from bert_jax.background import in_background
from bert_jax.errors import UserError
from bert_jax.terminal import is_quiet, say, say_progress

HINT_AFTER_SECONDS = 60
HINT = (
    f"still waiting for the other processes after {HINT_AFTER_SECONDS} s: has the same command "
    "been started on every host (on a TPU pod: gcloud ... ssh --worker=all)?"
)
# Errors of jax.distributed.initialize if there are no processes to join: it finds no cluster, or
# JAX has been in use before, as in a notebook.
ALONE = ("coordinator_address should be defined", "must be called before any JAX calls")
TPU_DEVICE = re.compile(r"/dev/(accel|vfio/)\d+")


def connect(
    *,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    heartbeat_timeout: int = 100,
    platform: str | None = None,
) -> None:
    """Joins the other processes of the run, if there are any. Call it before any use of a device.

    Args:
      coordinator, num_processes, process_id: "HOST:PORT" of process 0, the number of processes and
        the index of this one; all None if the processes find each other, or if there is only one.
      heartbeat_timeout: seconds without a heartbeat of one process after which the others end.
      platform: platform to require, "tpu", "gpu" or "cpu"; None for any.

    Raises:
      UserError: the platform is not the required one, or the TPU is in use by another process,
        which the message names.
    """
    hint = threading.Timer(HINT_AFTER_SECONDS, print, [HINT], {"file": sys.stderr, "flush": True})
    hint.daemon = True
    hint.start()
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=heartbeat_timeout,
            shutdown_timeout_seconds=heartbeat_timeout,
        )
    except (ValueError, RuntimeError) as error:
        if coordinator or not any(reason in str(error) for reason in ALONE):
            raise
    try:
        found = jax.default_backend()
    except RuntimeError:  # if JAX_PLATFORMS requires a TPU
        check_tpu_is_free()
        raise
    finally:
        hint.cancel()
    if platform not in (None, found):
        if platform == "tpu":
            check_tpu_is_free()
        raise UserError(f"--platform={platform}, but JAX found only {found} devices")
    if jax.process_count() > 1:
        if found == "cpu":
            _keep_output_to_python()
        print_here(
            f"process {jax.process_index()} of {jax.process_count()} on {socket.gethostname()}: "
            f"{jax.local_device_count()} of {jax.device_count()} {found} devices"
        )


def _keep_output_to_python() -> None:
    """Lets only Python write to standard output: Gloo, which connects CPUs, prints there, too."""
    sys.stdout.flush()
    mine = os.dup(sys.stdout.fileno())
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
    encoding, errors = sys.stdout.encoding, sys.stdout.errors
    sys.stdout = open(mine, "w", encoding=encoding, errors=errors)  # noqa: SIM115 (to the end)


def check_tpu_is_free(proc: Path = Path("/proc")) -> None:
    """Checks that no other process has the device files of a TPU open: only one at a time can.

    Processes of other users are visible to root only.

    Raises:
      UserError: another process has them open; the message names it.
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


def print_once(line: str, *, result: bool = False) -> None:
    """Prints a line about a run on process 0 only; see `print_here`."""
    if is_primary():
        print_here(line, result=result)


def print_here(line: str, *, result: bool = False) -> None:
    """Prints a line about a run; the run goes on if nobody reads it any more.

    Args:
      line: what to say.
      result: whether it is said even if progress is not wanted: a result or a warning.
    """
    try:
        (say if result else say_progress)(line)
    except BrokenPipeError:
        with contextlib.suppress(OSError):
            print("standard output was closed; the run goes on", file=sys.stderr)


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """Says on process 0 that the block takes long; a terminal also counts the seconds.

    Args:
      what: what the block does, such as "compiling the training step".
    """
    if not is_primary() or is_quiet():
        yield
        return
    if not sys.stdout.isatty():
        print_here(f"{what} ...")
        yield
        return

    def count(over: threading.Event) -> None:
        for seconds in itertools.count():
            with contextlib.suppress(OSError):
                print(f"\r{what} ... {seconds} s", end="", flush=True)
            if over.wait(1):
                return

    try:
        with in_background(count):
            yield
    finally:
        print_here("")


def gather(text: str) -> list[str]:
    """The texts of all processes, in order, on every process. Also a barrier."""
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
    """If the block fails on one process, an error is raised on every process.

    Otherwise the others would wait for the one that failed. The block must not wait for other
    processes. Also a barrier.

    Raises:
      UserError, OSError: as raised in the block; UserError on processes where it succeeded.
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
    # A new name: network file systems remember which files they did not find.
    probe = directory / f".seen-by-all-{gather(uuid.uuid4().hex)[0]}"
    with agreement():
        if is_primary():
            directory.mkdir(parents=True, exist_ok=True)
            probe.write_text("")
    blind = [host for host in gather("" if probe.exists() else socket.gethostname()) if host]
    with agreement():  # no process may look into the directory while the probe is there
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

    Processes may hold the same rows (if the tensor axis spans them) and rows that are not
    contiguous (a host of a TPU pod is a block of the torus, the mesh follows its lines).

    Args:
      sharding: sharding of the rows, on the first axis.
      num_rows: number of rows of all processes together.

    Returns:
      int64 [rows of this process], ascending: what `jax.make_array_from_process_local_data` takes.

    Raises:
      UserError: two processes share some rows, but not all of theirs.
    """
    held: dict[int, set[int]] = {}
    rows_of: Mapping[jax.Device, tuple[slice, ...]] = sharding.devices_indices_map((num_rows,))
    for device, index in rows_of.items():
        held.setdefault(device.process_index, set()).update(range(num_rows)[index[0]])
    if sum(map(len, {frozenset(rows) for rows in held.values()})) != num_rows:
        raise UserError(
            "config.mesh splits rows across processes unequally: let config.mesh.tensor divide, or "
            "be a multiple of, the devices of a process"
        )
    return np.array(sorted(held[jax.process_index()]))
