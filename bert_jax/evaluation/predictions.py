"""Files of predictions: JSON lines and CSV with probabilities, and the formats of benchmarks."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from bert_jax.errors import UserError
from bert_jax.fields import Plain
from bert_jax.storage import is_remote, write_text
from bert_jax.tasks.features import Features
from bert_jax.tasks.protocol import AnyTask
from bert_jax.terminal import json_line


class Predicted(NamedTuple):
    """Outputs of a model's head, for the sequences of a task's examples."""

    logits: Sequence[np.ndarray]
    features: Features
    examples: Sequence[Any]


def check_path(path: epath.Path) -> None:
    """Raises UserError if predictions cannot be written to `path`, before they are computed."""
    if is_remote(path):
        return
    if not path.absolute().parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.absolute().parent}")
    if path.suffix and path.is_dir():
        raise UserError(f"{path}: is a folder")


def write(path: epath.Path, task: AnyTask, predicted: Predicted) -> None:
    """Writes the predictions of a task; the suffix of the file sets the format.

    - .jsonl: a JSON object for each example, as `Task.records` says.
    - .csv: the same as a table. The values of an object in it, such as `probabilities`, have a
      column each, such as `probabilities.NAME`; a list is JSON.
    - any other: the format of the task's benchmark, as `Task.write_predictions` says.
    """
    if path.suffix == ".jsonl":
        write_text(path, "".join(json_line(x) + "\n" for x in task.records(*predicted)))
    elif path.suffix == ".csv":
        write_text(path, _table([*map(_flat, task.records(*predicted))]))
    else:
        task.write_predictions(path, predicted.examples, task.predictions(*predicted))


def _flat(record: Plain) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            columns |= {f"{name}.{inner}": value[inner] for inner in sorted(value)}
        elif isinstance(value, list):
            columns[name] = json_line(value)
        else:
            columns[name] = value
    return columns


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
