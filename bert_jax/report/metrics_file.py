"""Reads the metrics that a run has written to `metrics.jsonl`."""

import json
from typing import Any

from etils import epath

from bert_jax.errors import UserError


def read_metrics(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; a last line cut short by a crash is left out.

    Raises:
      UserError: there is no such file.
    """
    path = epath.Path(workdir) / "metrics.jsonl"
    if not path.exists():
        raise UserError(f"{path}: no such file; is {workdir} the directory of a training run?")
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
