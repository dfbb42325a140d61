"""The directory of a run: whether a run may start or resume there, and what describes it."""

from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from bert_jax.data.wordpiece import CONFIG_FILE, VOCAB_FILE, WordPiece
from bert_jax.errors import UserError
from bert_jax.parallel import hosts
from bert_jax.storage import UNFINISHED, read_json, write_json
from bert_jax.train.checkpoints import latest_step

# What an interrupted start may leave in a workdir, besides files with `UNFINISHED` names.
CLAIM = (VOCAB_FILE, CONFIG_FILE, "data.json")


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


def _is_claim(name: str) -> bool:
    return name in CLAIM or name.endswith(UNFINISHED)


def check_same_run(
    workdir: epath.Path, changed: Iterable[str], data: Mapping[str, str], free: Iterable[str]
) -> None:
    """Checks that the run in a workdir can resume with changed settings and these data.

    Args:
      workdir: directory of the run.
      changed: lines "field: old -> new".
      data: values that identify the data.
      free: beginnings of lines about fields that may change.

    Raises:
      UserError: the run is of another model or other data; the message lists the differences.
    """
    known = read_json(workdir / "data.json")
    changed = [
        *changed,
        *(f"{k}: {known.get(k)!r} -> {v!r}" for k, v in data.items() if known.get(k) != v),
    ]
    refused = [line for line in changed if not line.startswith(tuple(free))]
    if refused:
        raise UserError(
            f"{workdir} holds a run of another model or other data: {'; '.join(refused)}. "
            f"Choose another --workdir, or give the old values to resume"
        )
    for line in changed:
        hosts.print_here(f"changed since the last start: {line}")


def claim_workdir(
    workdir: epath.Path, config: Mapping[str, Any], data: Mapping[str, str], wordpiece: WordPiece
) -> None:
    """Writes the files that describe a run into its workdir.

    `config.json` holds the config, `data.json` identifies the data; the vocabulary is copied, so
    that a workdir is enough to use the model. `config.json` is written last and atomically: a
    workdir without it holds no run.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    wordpiece.save(workdir)
    write_json(workdir / "data.json", data)
    write_json(workdir / "config.json", config)
