"""Reads the metrics that a run has written to `metrics.jsonl`."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import msgspec
from etils import epath

from bert_jax.errors import UserError
from bert_jax.json_values import parse_json, typed

_log = logging.getLogger(__name__)

Line = dict[str, Any]


@dataclass(frozen=True)
class _Key:
    """The fields of every line."""

    step: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    split: str
    run: str = ""  # in the line of a branch: where it begins


class BadLine(NamedTuple):
    """A line that holds no metrics.

    Attributes:
      text: the line, without its end.
      reason: what is wrong, with the file and the number of the line.
    """

    text: bytes
    reason: str


@dataclass
class History:
    """The content of a `metrics.jsonl`.

    Attributes:
      lines: "step", "split" and the metrics, which are finite numbers; other numbers, which older
        versions wrote as NaN, are left out. The line of a branch has "run".
      bad: lines that are damaged. A last line without its end, cut short by a crash, is in neither.
    """

    lines: list[Line] = field(default_factory=list)
    bad: list[BadLine] = field(default_factory=list)


def read_history(path: epath.Path) -> History:
    """Reads a `metrics.jsonl`, damaged or not."""
    history = History()
    content = path.read_bytes()
    texts = content.split(b"\n")
    for number, text in enumerate(texts, 1):
        if not text.strip():
            continue
        try:
            history.lines.append(_parse(text, f"{path}, line {number}"))
        except UserError as error:
            if number < len(texts):
                history.bad.append(BadLine(text, str(error)))
    return history


def read_metrics(workdir: epath.PathLike) -> list[Line]:
    """The lines of a run's metrics.jsonl; damaged ones are left out, with a warning.

    Raises:
      UserError: there is no such file.
    """
    path = epath.Path(workdir) / "metrics.jsonl"
    if not path.exists():
        raise UserError(f"{path}: no such file; is {workdir} the directory of a training run?")
    history = read_history(path)
    if history.bad:
        _log.warning("left out %d damaged line(s): %s", len(history.bad), history.bad[0].reason)
    return history.lines


def finite(metrics: Mapping[str, float | None]) -> dict[str, float]:
    """The metrics that are finite numbers: JSON has no NaN and no infinity."""
    return {name: x for name, x in metrics.items() if x is not None and math.isfinite(x)}


def _parse(text: bytes, place: str) -> Line:
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: byte {error.start + 1} is not UTF-8") from error
    line = typed(parse_json(decoded, place), dict[str, Any], place)
    key = typed(line, _Key, place)
    metrics = {name: value for name, value in line.items() if name not in ("step", "split", "run")}
    typed(metrics, dict[str, float | None], place)
    run = {"run": key.run} if key.run else {}
    return {"step": key.step, "split": key.split} | run | finite(metrics)
