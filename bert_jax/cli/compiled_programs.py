"""Compiled programs are kept on the disk, so that seeds, resumes and evaluations share them.

Settings are JAX's own variables of the environment, which JAX reads when it is imported.
"""

import hashlib
import os
import platform
from pathlib import Path

import filelock

from bert_jax.storage import cache_folder, is_remote

FOLDER = "JAX_COMPILATION_CACHE_DIR"
MAX_BYTES = 4 * 2**30  # beyond it, JAX removes the programs that were not used for longest


def keep() -> None:
    """Lets JAX keep compiled programs in this user's cache, if the user names no other folder.

    Call it before JAX is imported.
    """
    folder = cache_folder("compiled") / _processor()
    if FOLDER in os.environ or is_remote(folder):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_unfinished(Path(folder))
    except (OSError, filelock.Timeout):
        return  # it is a convenience only, and programs are compiled without it
    os.environ[FOLDER] = os.fspath(folder)
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(MAX_BYTES))


def forget_on_gpus() -> None:
    """Gives up the folder of `keep` where several processes have GPUs.

    Only the first of them writes there. If the folder is not shared, it alone would find a program
    later, and the others would wait for its part in choosing their kernels.
    """
    import jax

    is_ours = os.environ.get(FOLDER) == os.fspath(cache_folder("compiled") / _processor())
    if is_ours and jax.process_count() > 1 and jax.default_backend() == "gpu":
        jax.config.update("jax_compilation_cache_dir", None)


def _processor() -> str:
    """A name for what programs for this CPU may use: homes are shared by unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    features = [line for line in lines if line.startswith(("flags", "Features"))]
    text = features[0] if features else platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _remove_unfinished(folder: Path) -> None:
    """Removes programs without the time of their last use, which JAX writes last.

    A process that was killed leaves one, and JAX could then remove none of the others.
    """
    with filelock.FileLock(folder / ".lockfile", timeout=10):
        for program in folder.glob("*-cache"):
            if not program.with_name(program.name.removesuffix("cache") + "atime").exists():
                program.unlink()
