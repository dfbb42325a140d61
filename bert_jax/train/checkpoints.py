"""Checkpoints of a training run: written asynchronously, pruned, restored into any mesh.

The only module that uses Orbax.
"""

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from bert_jax.errors import UserError

# Warnings about its own options and about files of other versions, which no user can act on.
logging.getLogger("absl").addFilter(
    lambda record: "orbax" not in record.pathname or record.levelno >= logging.ERROR
)
_ERROR_NUMBER = re.compile(r"os_error_code='(\d+)'")


def latest_step(workdir: epath.PathLike) -> int | None:
    """The step of a run's newest complete checkpoint, or None; creates and opens nothing."""
    return max(ocp.utils.checkpoint_steps(epath.Path(workdir) / "checkpoints"), default=None)


class Checkpoints:
    """The checkpoints below `workdir`/checkpoints, one directory per step.

    Besides the training state, each holds a small JSON object, `progress`: what the loop needs to
    resume as if it had not stopped.
    """

    def __init__(self, workdir: epath.PathLike, *, keep: int = 1, read_only: bool = False):
        """Opens the checkpoints of a run.

        Args:
          workdir: directory of the run.
          keep: how many of the newest to keep.
          read_only: neither create nor delete anything.
        """
        self.directory = epath.Path(workdir) / "checkpoints"
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else keep,
            create=not read_only,
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
        )
        if read_only and not self.directory.exists():
            raise UserError(f"{self.directory}: no checkpoints; is {workdir} a training workdir?")
        # `resolve` would take gs:// for a local folder.
        is_absolute = self.directory.is_absolute()
        self._absolute = self.directory if is_absolute else self.directory.resolve()
        with _disk_errors(self.directory):
            self._manager = ocp.CheckpointManager(self._absolute, options=options)

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, progress: dict[str, Any]) -> None:
        """Starts to write a checkpoint; the state may be donated as soon as this returns.

        Raises:
          OSError: this or the last checkpoint cannot be written, such as to a full disk. Those
            before it are whole.
        """
        items = {"state": ocp.args.StandardSave(state), "progress": ocp.args.JsonSave(progress)}
        with _disk_errors(self.directory):
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def restore(self, abstract_state: Any, step: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Reads a state directly into the given shardings.

        Args:
          abstract_state: tree of `jax.ShapeDtypeStruct`s with shardings on this run's mesh.
          step: checkpoint to read; None for the newest.

        Returns:
          The state and its `progress`.

        Raises:
          UserError: there is no such checkpoint, or it holds a state of other shapes.
        """
        step = self._existing(step)
        items = {
            "state": ocp.args.StandardRestore(abstract_state),
            "progress": ocp.args.JsonRestore(),
        }
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        except ValueError as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{self.directory / str(step)}: cannot be restored into this model: {reason}"
            ) from error
        return restored["state"], restored["progress"]

    def read_params(self, step: int | None = None) -> tuple[dict[str, Any], int]:
        """Reads only the parameters, of any model.

        Args:
          step: checkpoint to read; None for the newest.

        Returns:
          Nested dict of numpy arrays, and the step.

        Raises:
          UserError: there is no such checkpoint.
        """
        step = self._existing(step)
        path = self._absolute / str(step) / "state"
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            saved = {"params": checkpointer.metadata(path).item_metadata.tree["params"]}
            arguments = ocp.args.PyTreeRestore(
                item=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), saved),
                restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(np.ndarray), saved),
                partial_restore=True,
            )
            return checkpointer.restore(path, args=arguments)["params"], step

    def _existing(self, step: int | None) -> int:
        """The step, or the newest; raises UserError if there is none."""
        steps = sorted(self._manager.all_steps())
        if not steps or (step is not None and step not in steps):
            wanted = "no checkpoint" if step is None else f"no checkpoint of step {step}"
            raise UserError(f"{self.directory}: {wanted}; there are {steps or 'none'}")
        return steps[-1] if step is None else step

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        """Waits until everything is written, also when training ends with an error."""
        with _disk_errors(self.directory):
            self._manager.wait_until_finished()
            self._manager.close()


@contextlib.contextmanager
def _disk_errors(directory: epath.Path) -> Iterator[None]:
    """Raises an error of the disk, which TensorStore reports as ValueError, as OSError."""
    try:
        yield
    except ValueError as error:
        if not (found := _ERROR_NUMBER.search(str(error))):
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), os.fspath(directory)) from error
