"""Locks: one process at a time works in a place, and the others learn which one.

On a disk the operating system holds the lock, so that of a killed process is free at once. Object
storage has no locks: there the holder writes an object, renews it, and is taken for dead when it
stops doing so.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from etils import epath

from bert_jax.background import in_background
from bert_jax.errors import UserError
from bert_jax.storage import errors_name, is_remote

RENEWED_EVERY = 15.0  # seconds between two writes of a lease
DEAD_AFTER = 60.0  # seconds without a new one


@contextlib.contextmanager
def locked(path: epath.PathLike, what: str, *, wait: bool = False) -> Iterator[None]:
    """Holds a lock during the block.

    Args:
      path: file of the lock, local or gs://; its folder is made, and both are removed in the end,
        the folder only if it is new and empty.
      what: what the lock protects, for messages.
      wait: wait for another holder, on a disk.

    Raises:
      UserError: another process holds it; the message names host and process.
    """
    path = epath.Path(path)
    with _leased(path, what) if is_remote(path) else _flocked(pathlib.Path(path), what, wait):
        yield


def _me() -> dict[str, Any]:
    return {"host": socket.gethostname(), "process": os.getpid()}


def _in_use(what: str, holder: dict[str, Any]) -> UserError:
    name = "another process"
    if holder:
        name = f"process {holder.get('process')} on {holder.get('host')}"
    return UserError(f"{what}: in use by {name}; wait for it, or end it")


def _holder(text: str | bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        holder = json.loads(text)
        if isinstance(holder, dict):
            return holder
    return {}


@contextlib.contextmanager
def _flocked(path: pathlib.Path, what: str, wait: bool) -> Iterator[None]:
    is_new = not path.parent.exists()
    file = _acquired(path, what, wait)
    try:
        with errors_name(path):
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps(_me()).encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held, so that no one holds a removed file
        os.close(file)
        if is_new:
            with contextlib.suppress(OSError):
                path.parent.rmdir()


def _acquired(path: pathlib.Path, what: str, wait: bool) -> int:
    """Opens and locks a file, and makes sure that it is still the one with this name."""
    while True:
        with contextlib.suppress(FileExistsError):  # `open` says that it is not a folder
            path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            holder = _holder(os.pread(file, 1000, 0))
            os.close(file)
            raise _in_use(what, holder) from None
        except OSError as error:  # a network file system without locks
            print(
                f"warning: {path.parent} cannot be locked ({error.strerror}): start no second "
                "process there",
                file=sys.stderr,
            )
            return file
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), os.stat(path)):
                return file
        os.close(file)


@contextlib.contextmanager
def _leased(path: epath.Path, what: str) -> Iterator[None]:
    import fsspec

    storage = fsspec.filesystem("gs")
    mine = {**_me(), "lease": uuid.uuid4().hex}

    def write(count: int, mode: str) -> None:
        text = json.dumps({**mine, "renewed": count}).encode()
        storage.pipe_file(str(path), text, mode=mode)

    def renew(over: threading.Event) -> None:
        count = 0
        while not over.wait(RENEWED_EVERY):
            count += 1
            # If storage fails, the next time may succeed, or the run fails at its own writes.
            with contextlib.suppress(OSError):
                if _holder(storage.cat_file(str(path))).get("lease") != mine["lease"]:
                    print(f"warning: {what} was taken over: end this run", file=sys.stderr)
                    return
                write(count, "overwrite")

    while not _created(write):
        _wait_for_its_end(storage, path, what)
    try:
        with in_background(renew):
            yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            if _holder(storage.cat_file(str(path))).get("lease") == mine["lease"]:
                storage.rm_file(str(path))


def _created(write: Any) -> bool:
    """Whether the object did not exist before."""
    try:
        write(0, "create")
    except FileExistsError:
        return False
    return True


def _wait_for_its_end(storage: Any, path: epath.Path, what: str) -> None:
    """Removes the lease of a dead holder.

    Clocks of hosts differ, so the holder lives if the lease is renewed while one looks at it.

    Raises:
      UserError: it was renewed.
    """
    try:
        first = storage.info(str(path), refresh=True)["generation"]
        holder = _holder(storage.cat_file(str(path)))
    except FileNotFoundError:
        return
    if not _is_dead_here(holder):
        name = f"process {holder.get('process')} on {holder.get('host')}"
        print(
            f"{what}: in use by {name}, if that still runs: waiting up to {DEAD_AFTER:.0f} s",
            file=sys.stderr,
            flush=True,
        )
        deadline = time.monotonic() + DEAD_AFTER
        while time.monotonic() < deadline:
            time.sleep(RENEWED_EVERY / 10)
            try:
                now = storage.info(str(path), refresh=True)["generation"]
            except FileNotFoundError:
                return
            if now != first:
                raise _in_use(what, holder)
    bucket, _, key = str(path).partition("://")[2].partition("/")
    # Only that very object: another process may have taken it over at the same moment.
    with contextlib.suppress(FileNotFoundError, OSError):
        storage.call("DELETE", "b/{}/o/{}", bucket, key, ifGenerationMatch=first)


def _is_dead_here(holder: dict[str, Any]) -> bool:
    """Whether the holder was a process of this host that is no more."""
    if holder.get("host") != socket.gethostname() or not isinstance(holder.get("process"), int):
        return False
    try:
        os.kill(holder["process"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
