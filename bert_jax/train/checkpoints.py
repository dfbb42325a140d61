"""Checkpoints of a training run: written asynchronously, pruned, restored into any mesh, checked.

A checkpoint holds a checksum of every array, and every reader compares them. This is the only
module that uses Orbax.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import os
import re
import sys
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar, cast

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.future import CommitFutureAwaitingContractedSignals

from bert_jax.errors import TrainingDiverged, UserError
from bert_jax.parallel import hosts
from bert_jax.storage import is_remote
from bert_jax.train.checksums import Summary, named_leaves, start_summary, summarize
from bert_jax.train.weights import TRAINED, parse_weights

S = TypeVar("S")
T = TypeVar("T")


def _tells_the_user(record: logging.LogRecord) -> bool:
    """False for what no user can act on, and for what is raised as well.

    The first are warnings about Orbax's own options and about files of other versions, the second
    errors of its background threads, with tracebacks. True for all that `be_verbose` asks for.
    """
    if logging.getLogger("absl").isEnabledFor(logging.INFO):
        return True
    if "orbax" not in record.pathname:
        return True
    is_raised = record.filename in ("future.py", "async_checkpointer.py")
    return record.levelno >= logging.ERROR and not is_raised


logging.getLogger("absl").addFilter(_tells_the_user)
_ERROR_NUMBER = re.compile(r"os_error_code='(\d+)'")

ATTEMPTS = 10  # of a reader while a running training removes old checkpoints
_STATE = "state"
_PROGRESS = "metadata"  # file in the directory "progress"
_COMMITTED = "commit_success.txt"  # Orbax's mark of a complete checkpoint in object storage


class DamagedCheckpoint(UserError):
    """A checkpoint does not hold what was saved.

    Attributes:
      fact: what is wrong and which other checkpoints are whole, without advice.
      step: step of the damaged one.
      whole: steps of the other checkpoints that are whole, ascending.
    """

    def __init__(self, fact: str, step: int, whole: list[int]):
        self.step, self.whole = step, whole
        self.fact = f"{fact}; whole are the checkpoints of steps {whole or 'none'}"
        advice = f": read another with --step={whole[-1]}" if whole else ""
        super().__init__(self.fact + advice)


class _Damage(Exception):
    """What is wrong with a checkpoint, in words that follow its path."""


class _Array(NamedTuple):
    """What a checkpoint records of an array."""

    shape: tuple[int, ...]
    dtype: str
    checksum: int | None = None

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


_Arrays = Mapping[str, _Array]  # by path, as in "params/bert/pooler/kernel"


def saved_steps(workdir: epath.PathLike) -> list[int]:
    """The steps of a run's complete checkpoints, ascending; creates and opens nothing."""
    directory = epath.Path(workdir) / "checkpoints"
    for _ in range(ATTEMPTS):
        # A running training may remove one while they are listed.
        with contextlib.suppress(FileNotFoundError, ValueError):
            return sorted(ocp.utils.checkpoint_steps(directory))
    return sorted(ocp.utils.checkpoint_steps(directory))


def latest_step(workdir: epath.PathLike) -> int | None:
    """The step of a run's newest complete checkpoint, or None; creates and opens nothing."""
    return max(saved_steps(workdir), default=None)


class _ProgressHandler(ocp.AsyncCheckpointHandler):  # type: ignore[misc]  # Orbax has no types
    """Writes `progress` in the background."""

    async def async_save(self, directory: epath.Path, args: "_ProgressSave") -> list[ocp.Future]:
        async def write() -> None:
            record = args.record()
            if hosts.is_primary():
                (directory / _PROGRESS).write_text(json.dumps(record))

        # It waits until Orbax has made the directory.
        return [CommitFutureAwaitingContractedSignals(write(), name="progress")]

    def save(self, directory: epath.Path, args: "_ProgressSave") -> None:
        raise NotImplementedError("Orbax calls async_save")

    def restore(self, directory: epath.Path, args: object = None) -> None:
        raise NotImplementedError("it is read without Orbax")


@ocp.args.register_with_handler(_ProgressHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class _ProgressSave(ocp.args.CheckpointArgs):  # type: ignore[misc]
    """What Orbax is given to save `progress`.

    Attributes:
      record: waits for the checksums and gives the JSON object to write.
    """

    record: Callable[[], dict[str, Any]]


class Checkpoints:
    """The checkpoints below `workdir`/checkpoints, one directory per step.

    Besides the training state, each holds a small JSON object, `progress`: what the loop needs to
    resume as if it had not stopped, and shape, type and checksum of every array.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        *,
        keep: int = 1,
        last: int | None = None,
        read_only: bool = False,
    ):
        """Opens the checkpoints of a run.

        Args:
          workdir: directory of the run.
          keep: how many of the newest to keep.
          last: remove those of later steps, from which the run does not go on; None for none.
          read_only: neither create nor delete anything.
        """
        self._workdir = epath.Path(workdir)
        self.directory = self._workdir / "checkpoints"
        self._manager: ocp.CheckpointManager | None = None
        if read_only:
            if not self.directory.exists():
                raise UserError(
                    f"{self.directory}: no checkpoints; is {workdir} a training workdir, and has "
                    "its run saved one yet?"
                )
            return
        if last is not None:
            with hosts.agreement():
                if hosts.is_primary():
                    self._remove_after(last)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=True, cleanup_tmp_directories=True
        )
        with _disk_errors(self.directory):
            self._manager = ocp.CheckpointManager(self._absolute, options=options)

    @property
    def _absolute(self) -> epath.Path:
        """The directory as Orbax takes it; `resolve` would take gs:// for a local folder."""
        is_absolute = self.directory.is_absolute()
        return self.directory if is_absolute else self.directory.resolve()

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint, or None."""
        return latest_step(self._workdir)

    def finished_steps(self) -> list[int]:
        """The steps of all complete checkpoints, ascending; waits for the one being written.

        Raises:
          OSError, TrainingDiverged: that one cannot be written; see `save`.
        """
        if self._manager:
            with _disk_errors(self.directory):
                self._manager.wait_until_finished()
        return saved_steps(self._workdir)

    def save(self, step: int, state: Any, progress: Mapping[str, Any]) -> None:
        """Starts to write a checkpoint; the state may be donated as soon as this returns.

        The devices begin to sum up the checksums here. They are awaited and written in the
        background, beside the state, and a checkpoint is complete only with both.

        Raises:
          OSError: this or the last checkpoint cannot be written, such as to a full disk. Those
            before it are whole. Of this one it may be raised by the next call that waits for it.
          TrainingDiverged: a parameter of the last checkpoint was not finite, so that one was not
            kept. Every call that waits for a checkpoint raises it.
        """
        finish = start_summary(state)
        arrays = {
            name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in named_leaves(state).items()
        }

        def record() -> dict[str, Any]:
            summaries = finish()
            if bad := _not_finite(summaries):
                raise TrainingDiverged(
                    f"{bad} holds values that are not finite numbers after step {step}: not saved"
                )
            described = {name: [*arrays[name], summaries[name].checksum] for name in arrays}
            found = {**progress, "arrays": described}
            return {**found, "crc32": _crc32(found)}

        items = {"state": ocp.args.StandardSave(_members(state)), "progress": _ProgressSave(record)}
        assert self._manager, "opened to read only"
        with _disk_errors(self.directory):
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def restore(self, abstract_state: Any, step: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Reads a state directly into the given shardings.

        Args:
          abstract_state: dataclass of trees of `jax.ShapeDtypeStruct`s with shardings on this
            run's mesh. Members that may be None are left out if they are None in it, and are None
            in the result if the checkpoint lacks them.
          step: checkpoint to read; None for the newest.

        Returns:
          The state and its `progress`.

        Raises:
          UserError: there is no such checkpoint, or it holds a state of other shapes.
          DamagedCheckpoint: it does not hold what was saved, or a parameter is not finite.
        """

        optional = {x.name for x in dataclasses.fields(abstract_state) if x.default is None}

        def read(path: epath.Path) -> tuple[Any, dict[str, Any], _Arrays]:
            progress, arrays = _read_progress(path)
            stored = _stored_arrays(path, arrays)
            missing = dict.fromkeys(optional - stored.keys())
            wanted = dataclasses.replace(abstract_state, **missing)
            members = _members(wanted)
            unused = optional - members.keys()
            _check_fits(path, {x: stored[x] for x in stored if x not in unused}, wanted)
            with _reading(), contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
                arguments = ocp.args.PyTreeRestore(
                    item=members,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(members),
                    partial_restore=True,
                )
                found = handler.restore(path / _STATE, args=arguments)
            return dataclasses.replace(wanted, **found), progress, arrays

        def check(found: tuple[Any, dict[str, Any], _Arrays]) -> None:
            state, _, arrays = found
            _check_values(arrays, summarize(state))

        (state, progress, _), _ = self._read(step, read, check)
        return state, progress

    def read_params(
        self, step: int | None = None, weights: str = TRAINED
    ) -> tuple[dict[str, Any], int]:
        """Reads only the parameters, of any model.

        Args:
          step: checkpoint to read; None for the newest.
          weights: which, see `bert_jax.train.weights`.

        Returns:
          Nested dict of numpy arrays, and the step.

        Raises:
          UserError: there is no such checkpoint, or it has no running average.
          DamagedCheckpoint: it does not hold what was saved, or a parameter is not finite.
        """
        chosen = parse_weights(weights)
        if chosen.checkpoints == 1:
            return self._read(step, functools.partial(_read_group, name=chosen.member))
        return self._read_mean(step, chosen.checkpoints)

    def _read_mean(self, step: int | None, count: int) -> tuple[dict[str, Any], int]:
        """The mean of the parameters of a checkpoint and of those before it, `count` in all."""
        newest = self._existing(step)
        steps = [each for each in saved_steps(self._workdir) if each <= newest][-count:]
        if len(steps) < count:
            raise UserError(
                f"{self.directory}: an average of {count} checkpoints, but up to step {newest} "
                f"there are only {steps}: config.keep_checkpoints says how many a run keeps"
            )
        total: Any = None
        for each in steps:
            try:
                params, _ = self._read(each, functools.partial(_read_group, name="params"))
            except DamagedCheckpoint as error:
                raise UserError(
                    f"{error.fact}: average fewer checkpoints, or take those up to another --step"
                ) from error
            params = jax.tree.map(lambda x: x.astype(np.float64) / count, params)
            total = params if total is None else jax.tree.map(np.add, total, params)
        return jax.tree.map(lambda x: x.astype(np.float32), total), newest

    def _read(
        self,
        step: int | None,
        read: Callable[[epath.Path], T],
        check: Callable[[T], None] = lambda found: None,
    ) -> tuple[T, int]:
        """Reads a checkpoint; the next one if a running training removes the newest meanwhile.

        Args:
          step: checkpoint to read; None for the newest.
          read: reads the directory of a checkpoint, without waiting for other processes.
          check: checks what was read, on all processes together.

        Returns:
          What was read, and the step.
        """
        for attempt in range(ATTEMPTS):
            with hosts.agreement():
                existing = self._existing(step)
            chosen = int(hosts.gather(str(existing))[0])
            found, damage = _attempt(read, self._absolute / str(chosen))
            damage = next(filter(None, hosts.gather(damage)), "")
            if not damage:
                _, damage = _attempt(check, cast(T, found))
            if not damage:
                return cast(T, found), chosen
            newest = hosts.gather(str(self.latest_step()))[0]
            attempts = ATTEMPTS if step is None else 2
            if newest == str(chosen) or attempt == attempts - 1:
                break
            time.sleep(0.1 * attempt)  # it may be half removed
        others = [step for step in saved_steps(self._workdir) if step != chosen]
        whole = [
            step for step in others if not _attempt(_read_state, self._absolute / str(step))[1]
        ]
        path = self.directory / str(chosen)
        raise DamagedCheckpoint(f"{path}: damaged: {damage}", chosen, whole)

    def params_tree(self, step: int) -> dict[str, Any]:
        """The nested dict of a checkpoint's parameters, with metadata in their places.

        Raises:
          UserError: there is no such checkpoint.
          DamagedCheckpoint: it does not hold what was saved.
        """
        tree: dict[str, Any] = self._read(step, _read_tree)[0]["params"]
        return tree

    def _existing(self, step: int | None) -> int:
        """The step, or the newest; raises UserError if there is none."""
        steps = saved_steps(self._workdir)
        if not steps or (step is not None and step not in steps):
            wanted = "no checkpoint yet" if step is None else f"no checkpoint of step {step}"
            raise UserError(f"{self.directory}: {wanted}; there are {steps or 'none'}")
        return steps[-1] if step is None else step

    def _remove_after(self, step: int) -> None:
        for later in reversed(saved_steps(self._workdir)):
            if later > step:
                path = self._absolute / str(later)
                if is_remote(path):
                    (path / _COMMITTED).unlink()
                else:  # under a name that Orbax takes for unfinished
                    path = path.rename(path.with_name(f"{later}.orbax-checkpoint-tmp"))
                path.rmtree()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        """Waits until everything is written, also when training ends with an error."""
        if self._manager:
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


def _attempt(action: Callable[[S], T], argument: S) -> tuple[T | None, str]:
    """The result of an action, and what it found damaged."""
    try:
        return action(argument), ""
    except _Damage as damage:
        return None, str(damage)


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Turns what Orbax and JSON raise on damaged files, which may be anything, into `_Damage`."""
    _silence_what_is_left()
    try:
        yield
    except Exception as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise _Damage(f"cannot be read ({lines[0][:200]})") from error


@functools.cache
def _silence_what_is_left() -> None:
    """Keeps quiet what Orbax leaves behind when it cannot read one of many arrays.

    The other reads go on, and each complains that the event loop is closed.
    """
    report = sys.unraisablehook

    def hook(ignored: Any) -> None:
        code = getattr(ignored.object, "cr_code", None)
        is_orbax = code is not None and "orbax" in code.co_filename
        if not is_orbax and str(ignored.exc_value) != "Event loop is closed":
            report(ignored)

    sys.unraisablehook = hook


def _read_progress(path: epath.Path) -> tuple[dict[str, Any], _Arrays]:
    """`progress` of a checkpoint, and its arrays; none if an older version wrote it."""
    with _reading():
        progress = json.loads((path / "progress" / _PROGRESS).read_text())
    checksum = progress.pop("crc32", None)
    if checksum is None and _is_of_older_version(progress):
        return progress, {}
    if checksum != _crc32(progress):
        raise _Damage("progress is not what was saved")
    arrays = progress.pop("arrays")
    return progress, {
        name: _Array(tuple(shape), dtype, checksum)
        for name, (shape, dtype, checksum) in arrays.items()
    }


def _is_of_older_version(progress: Mapping[str, Any]) -> bool:
    """Whether it holds just numbers, and those that were not logged: without any checksum."""
    unlogged = progress.get("unlogged", {})
    numbers = [progress[key] for key in progress if key != "unlogged"]
    return isinstance(unlogged, Mapping) and all(
        isinstance(number, int | float) for number in (*numbers, *unlogged.values())
    )


def _crc32(progress: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(progress, sort_keys=True).encode())


def _stored_arrays(path: epath.Path, arrays: _Arrays) -> Any:
    """Orbax's metadata of the stored arrays, which must be those that were saved."""
    with _reading(), contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
        tree = handler.metadata(path / _STATE).tree
        stored = {
            name: _Array(tuple(leaf.shape), str(leaf.dtype))
            for name, leaf in named_leaves(tree).items()
        }
    for name in {**arrays, **stored} if arrays else ():
        saved, found = arrays.get(name), stored.get(name)
        if saved is None or found is None or saved[:2] != found[:2]:
            raise _Damage(f"{name} is {found or 'missing'}, but {saved or 'nothing'} was saved")
    return tree


def _members(state: Any) -> Any:
    """The members of a state that it has, as a dict: Orbax would note those that are None."""
    if not dataclasses.is_dataclass(state):
        return state
    members = {each.name: getattr(state, each.name) for each in dataclasses.fields(state)}
    return {name: value for name, value in members.items() if value is not None}


def _check_fits(path: epath.Path, stored: Any, abstract_state: Any) -> None:
    """Raises UserError if a state of these shapes is not what is stored."""
    found, wanted = (
        {name: tuple(leaf.shape) for name, leaf in named_leaves(tree).items()}
        for tree in (stored, abstract_state)
    )
    for name in {**wanted, **found}:
        here, there = (shapes.get(name, "nothing") for shapes in (found, wanted))
        if here != there:
            raise UserError(
                f"{path}: cannot be restored into this model: {name} is {here}, but must be {there}"
            )


def _read_state(path: epath.Path, groups: Collection[str] = ()) -> dict[str, Any]:
    """All of a state, or some groups of it, as numpy arrays, checked."""
    _, arrays = _read_progress(path)
    tree = _stored_arrays(path, arrays)
    if missing := [group for group in groups if group not in tree]:
        raise UserError(
            f"{path}: has no {missing[0]}: a run keeps a running average of its weights if "
            "config.optimizer.ema_decay is set"
        )
    with _reading(), contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
        tree = {group: tree[group] for group in groups or tree}
        arguments = ocp.args.PyTreeRestore(
            item=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree),
            restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(np.ndarray), tree),
            partial_restore=True,
        )
        state: dict[str, Any] = handler.restore(path / _STATE, args=arguments)
    _check_values(arrays, summarize(state))
    return state


def _read_tree(path: epath.Path) -> Any:
    """Metadata of all arrays of a state, without their values."""
    _, arrays = _read_progress(path)
    return _stored_arrays(path, arrays)


def _read_group(path: epath.Path, name: str) -> dict[str, Any]:
    params: dict[str, Any] = _read_state(path, [name])[name]
    return params


def _check_values(arrays: _Arrays, summaries: Mapping[str, Summary]) -> None:
    for name, summary in summaries.items():
        if arrays and summary.checksum != arrays[name].checksum:
            raise _Damage(f"{name} is not what was saved")
    if bad := _not_finite(summaries):
        raise _Damage(f"{bad} holds values that are not finite numbers")


def _not_finite(summaries: Mapping[str, Summary]) -> str | None:
    """The first parameter, or average of it, that holds NaN or infinity."""
    names = (name for name, summary in summaries.items() if not summary.finite)
    return next((name for name in names if name.startswith(("params/", "ema/"))), None)
