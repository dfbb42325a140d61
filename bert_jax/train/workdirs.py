"""The directory of a run: whether a run may start or go on there, and what it is made of."""

from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from bert_jax.data.wordpiece import CONFIG_FILE, VOCAB_FILE, WordPiece
from bert_jax.errors import UserError
from bert_jax.storage import UNFINISHED, read_json, write_json
from bert_jax.train.checkpoints import latest_step

# What a start that was cut short may leave in a workdir, beside files with `UNFINISHED` names.
CLAIM = (VOCAB_FILE, CONFIG_FILE, "data.json")


def has_run(workdir: epath.Path) -> bool:
    """Whether a workdir holds a run that has something to lose: one with a checkpoint.

    Any other run may take the place of one without: after a start that failed, the same command
    with the mistake corrected works.

    Raises:
      UserError: the workdir holds something else than a run.
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
    """Checks that the run in a workdir can go on with other settings and these data.

    Args:
      workdir: of the run.
      changed: lines "field: old -> new".
      data: what tells the data of a run from other data.
      free: beginnings of the lines about what may change.

    Raises:
      UserError: the run is one of another model or other data; it lists the differences.
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
    write_json(workdir / "data.json", data)
    write_json(workdir / "config.json", config)
