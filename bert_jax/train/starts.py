"""Where and with what a run was started: a line of `starts.jsonl` in its workdir for each start."""

import datetime
import platform
import shlex
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

import jax
from etils import epath

from bert_jax.json_values import parse_json, typed
from bert_jax.storage import write_text
from bert_jax.terminal import json_line

STARTS = "starts.jsonl"
_LIBRARIES = ("bert-jax", "jax", "jaxlib", "libtpu", "flax", "optax", "numpy")


def record_start(workdir: epath.Path, step: int) -> None:
    """Adds the start of a run at a step; one process does it."""
    start = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "step": step,
        "command": shlex.join(sys.argv),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "devices": f"{jax.device_count()} {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
        "libraries": dict(_versions()),
    }
    path = workdir / STARTS
    before = path.read_text() if path.exists() else ""
    write_text(path, f"{before}{json_line(start)}\n")


def read_starts(workdir: epath.PathLike) -> list[Mapping[str, Any]]:
    """The starts of a run, in order; none if an older version wrote it."""
    path = epath.Path(workdir) / STARTS
    lines = path.read_text().splitlines() if path.exists() else []
    return [
        typed(parse_json(line, place), dict[str, Any], place)
        for number, line in enumerate(lines, 1)
        for place in [f"{path}, line {number}"]
    ]


def _versions() -> Iterator[tuple[str, str]]:
    for library in _LIBRARIES:
        try:
            yield library, metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
