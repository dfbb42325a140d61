"""The directory of a run: whether a run may start or resume there, and what describes it."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from etils import epath

from bert_jax.data.tokenizer import CONFIG_FILE, TOKENIZER_FILE, VOCAB_FILE, Tokenizer
from bert_jax.errors import UserError
from bert_jax.locks import locked
from bert_jax.parallel import hosts
from bert_jax.storage import UNFINISHED, read_json, write_json
from bert_jax.train.checkpoints import DamagedCheckpoint, latest_step, saved_steps
from bert_jax.train.starts import STARTS
from bert_jax.train.trackers import RUNS

# In data.json: what a run started from.
WEIGHTS = "initial_weights"  # fingerprint of those that `init_from` named
FIRST_ROW = "first_row"  # of a branch, row of the data with which its first batch begins
PASSED = "passed"  # of a branch, how often each source of a mixture was passed before its row 0
# What an interrupted start may leave in a workdir, besides files with `UNFINISHED` names.
CLAIM = (VOCAB_FILE, TOKENIZER_FILE, CONFIG_FILE, "data.json", STARTS, RUNS, "lock")


@contextlib.contextmanager
def held(workdir: epath.Path) -> Iterator[None]:
    """Keeps other runs out of a workdir during the block.

    Raises:
      UserError: another run is in it, or something other than a run.
    """
    with contextlib.ExitStack() as stack:
        with hosts.agreement():
            has_run(workdir)
            if hosts.is_primary():
                stack.enter_context(locked(workdir / "lock", str(workdir)))
        yield


def has_run(workdir: epath.Path) -> bool:
    """Whether a workdir holds a run with a checkpoint.

    A run without one may be replaced by any other, so that a corrected command works after a
    failed start.

    Raises:
      UserError: the workdir holds something other than a run.
    """
    if not (workdir / "config.json").exists():
        if workdir.exists() and any(not _is_claim(path.name) for path in workdir.iterdir()):
            raise UserError(f"{workdir} is not empty and holds no run: choose another --workdir")
        return False
    return latest_step(workdir) is not None


def starting_step(
    workdir: epath.Path, saved: Mapping[str, Any] | None, config: Mapping[str, Any], wanted: int
) -> int | None:
    """The step of the checkpoint that a run goes on from; None to begin.

    Args:
      workdir: directory of the run.
      saved: its `config.json`; None if it holds no run.
      config: what `config.json` will hold. If nothing changes, the command was given before, so
        that going back is done already.
      wanted: `resume_from` of the config.

    Raises:
      UserError: the checkpoint to go back to does not exist.
    """
    steps = saved_steps(workdir)
    if wanted < 0 or saved == config:
        return max(steps, default=None)
    if wanted and wanted not in steps:
        raise UserError(
            f"config.resume_from={wanted}: {workdir} has no such checkpoint; there are "
            f"{steps or 'none'}, and 0 begins anew"
        )
    return wanted or None


@contextlib.contextmanager
def way_back(wanted: int) -> Iterator[None]:
    """Adds to the error about a damaged checkpoint how the run can go on.

    Args:
      wanted: `resume_from` of the config.
    """
    try:
        yield
    except DamagedCheckpoint as error:
        other = max(error.whole, default=0)
        advice = f"go back with --config.resume_from={other}"
        if other == wanted:  # an option that does not change has no effect again
            advice = f"to go back to step {other}, delete the damaged one"
        raise UserError(f"{error.fact}: {advice}") from error


def _is_claim(name: str) -> bool:
    return name in CLAIM or name.endswith(UNFINISHED)


def check_same_run(
    workdir: epath.Path,
    changed: Iterable[str],
    data: Mapping[str, str],
    weights: Callable[[], str],
    free: Iterable[str],
) -> None:
    """Checks that the run in a workdir can resume with changed settings and these data.

    The weights that it started from may be elsewhere, if they are the same.

    Args:
      workdir: directory of the run.
      changed: lines "field: old -> new".
      data: values that identify the data.
      weights: gives the fingerprint of the weights that `init_from` names now. Only called if it
        names another path than before.
      free: beginnings of lines about fields that may change.

    Raises:
      UserError: the run is of another model or other data; the message lists the differences.
    """
    known, now, free = read_json(workdir / "data.json"), dict(data), [*free]
    changed = [*changed]
    moved = [line for line in changed if line.startswith(("init_from:", "finetune.init_from:"))]
    if moved and WEIGHTS in known:
        now[WEIGHTS] = weights()
        free += moved if now[WEIGHTS] == known[WEIGHTS] else []
    changed += other_data(known, now)
    refused = [line for line in changed if not line.startswith(tuple(free))]
    if refused:
        raise UserError(
            f"{workdir} holds a run of another model or other data: {'; '.join(refused)}. "
            f"Choose another --workdir, or give the old values to resume"
        )
    for line in changed:
        hosts.print_once(f"changed since the last start: {line}", result=True)


def other_data(known: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Lines "name: old -> new" of the entries of `now` that differ from those of a `data.json`."""
    return [f"{k}: {known.get(k)!r} -> {v!r}" for k, v in now.items() if known.get(k) != v]


def start_of(workdir: epath.Path) -> dict[str, Any]:
    """The entries of `data.json` about what the run in a workdir started from.

    It is empty if its weights were random, or if an older version wrote it.
    """
    known = read_json(workdir / "data.json")
    return {name: known[name] for name in (WEIGHTS, FIRST_ROW, PASSED) if name in known}


def claim_workdir(
    workdir: epath.Path, config: Mapping[str, Any], data: Mapping[str, Any], tokenizer: Tokenizer
) -> None:
    """Writes the files that describe a run into its workdir.

    `config.json` holds the config, `data.json` identifies the data; the vocabulary is copied, so
    that a workdir is enough to use the model. `config.json` is written last and atomically: a
    workdir without it holds no run.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    tokenizer.save(workdir)
    write_json(workdir / "data.json", data)
    write_json(workdir / "config.json", config)
