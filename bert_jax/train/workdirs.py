"""The directory of a run: whether a run may start or go on there, and what it is made of."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from bert_jax.config import differences
from bert_jax.data.wordpiece import CONFIG_FILE, VOCAB_FILE, WordPiece
from bert_jax.errors import UserError
from bert_jax.train.checkpoints import latest_step

# What a start that was cut short may leave in a workdir.
CLAIM = (VOCAB_FILE, CONFIG_FILE, "data.json", "config.json.tmp")


def check_workdir(
    workdir: epath.Path,
    config: Mapping[str, Any],
    data: Mapping[str, str],
    free: Sequence[str],
    read: Callable[[epath.Path], Mapping[str, Any]],
) -> None:
    """Checks that the workdir is new, or that its run can go on with this config and these data.

    A run without a checkpoint has nothing to lose, so any other may take its place: after a start
    that failed, the same command with the mistake corrected works.

    Args:
      workdir: of the run.
      config: what `config.json` is to hold.
      data: what tells the data of a run from other data.
      free: beginnings of what may change.
      read: reads and checks a `config.json`.

    Raises:
      UserError: the workdir holds a run of another model or other data, whose differences it lists,
        or something else than a run.
    """
    config_path = workdir / "config.json"
    if not config_path.exists():
        if workdir.exists() and any(path.name not in CLAIM for path in workdir.iterdir()):
            raise UserError(f"{workdir} is not empty and holds no run: choose another --workdir")
        return
    if latest_step(workdir) is None:
        return
    changed = differences(read(config_path), config)
    changed += differences(json.loads((workdir / "data.json").read_text()), data)
    refused = [line for line in changed if not line.startswith(tuple(free))]
    if refused:
        raise UserError(
            f"{workdir} holds a run of another model or other data: {'; '.join(refused)}. "
            f"Choose another --workdir, or give the old values to go on"
        )
    for line in changed:
        print(f"changed since the last start: {line}", flush=True)


def claim_workdir(
    workdir: epath.Path, config: Mapping[str, Any], data: Mapping[str, str], wordpiece: WordPiece
) -> None:
    """Writes into the workdir what its run is made of.

    `config.json` holds the config, `data.json` what its data are; the vocabulary is copied, so that
    a workdir is enough to use the model. `config.json` comes last and whole: a workdir without it
    holds no run.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    wordpiece.save(workdir)
    (workdir / "data.json").write_text(json.dumps(data, indent=2) + "\n")
    unfinished = workdir / "config.json.tmp"
    unfinished.write_text(json.dumps(config, indent=2) + "\n")
    unfinished.replace(workdir / "config.json")
