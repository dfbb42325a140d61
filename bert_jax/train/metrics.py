"""Metrics of a run: sums and means, `metrics.jsonl`, TensorBoard, and the progress line."""

import json
import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from bert_jax.parallel import hosts
from bert_jax.report.metrics_file import BadLine, History, finite, read_history
from bert_jax.report.units import compact, duration, shown
from bert_jax.storage import errors_name, is_remote, whole_file, write_text
from bert_jax.train.trackers import Trackers

# tensorboardX imports PyTorch where it is installed, which takes seconds; it is not needed here.
_torch = sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
from tensorboardX.event_file_writer import EventsWriter, directory_check  # noqa: E402
from tensorboardX.proto.event_pb2 import Event, SessionLog  # noqa: E402
from tensorboardX.proto.summary_pb2 import Summary  # noqa: E402

if _torch is None:
    del sys.modules["torch"]

Sums = dict[str, float]
Line = dict[str, Any]


def add_sums(parts: Iterable[Mapping[str, Any]]) -> Sums:
    """Adds dicts of scalars key by key in float64."""
    total: Sums = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + float(np.asarray(value, np.float64))
    return total


def means(
    sums: Mapping[str, float], heads: Iterable[str], factors: Mapping[str, float] | None = None
) -> Line:
    """Means: for each head that had labels, "<head>_loss" in nats and "<head>_accuracy" in [0, 1].

    "loss" is the sum over heads. "<head>_perplexity" is exp of the loss of words in nats. "padding"
    is the share of positions that hold no token. Where tokens are replaced,
    "<head>_majority_accuracy" is that of always giving the more frequent answer, "<head>_precision"
    the share of replaced tokens among those said to be, "<head>_recall" the opposite.

    Args:
      sums: sums and counts by name.
      heads: the objective's heads.
      factors: what some losses are multiplied by in "loss"; the others by 1.
    """
    line: Line = {}
    present = [head for head in heads if sums[f"{head}_count"]]
    losses = {head: sums[f"{head}_loss"] / sums[f"{head}_count"] for head in present}
    if present:
        line["loss"] = sum((factors or {}).get(head, 1) * loss for head, loss in losses.items())
    for head in present:
        line[f"{head}_loss"] = losses[head]
        if f"{head}_correct" in sums:
            line[f"{head}_accuracy"] = sums[f"{head}_correct"] / sums[f"{head}_count"]
        if f"{head}_replaced" in sums:
            replaced, flagged, found = (
                sums[f"{head}_{name}"] for name in ("replaced", "flagged", "found")
            )
            share = replaced / sums[f"{head}_count"]
            line[f"{head}_majority_accuracy"] = max(share, 1 - share)
            line[f"{head}_precision"] = found / max(flagged, 1)
            line[f"{head}_recall"] = found / max(replaced, 1)
    for head in ("mlm", "mntp", "clm"):
        if head in losses:
            line[f"{head}_perplexity"] = math.exp(min(losses[head], 700.0))
    line["padding"] = 1.0 - sums["tokens"] / sums["positions"]
    return line


class MetricsWriter:
    """Appends to `workdir`/metrics.jsonl and to TensorBoard events in `workdir`/tensorboard.

    Only process 0 writes. Metrics that are not finite numbers are left out.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        first_step: int,
        *,
        anew: bool = False,
        trackers: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
    ):
        """Opens the files; lines after `first_step`, left by an interrupted run, are dropped.

        All are, if the run begins `anew`. Baselines of `first_step`, where a stage begins, are
        dropped too, and written again. Damaged lines are moved to `workdir`/metrics.bad.jsonl and
        reported. Trackers (`bert_jax.train.trackers`) get the config and all metrics, too.
        """
        self._writes = hosts.is_primary()
        if not self._writes:
            return
        workdir = epath.Path(workdir)
        self._path = workdir / "metrics.jsonl"
        there = self._path.exists()
        resumes = first_step and there and not anew
        history = read_history(self._path) if resumes else History()
        if history.bad:
            _set_aside(history.bad, workdir / "metrics.bad.jsonl")
        lines = history.lines
        kept = [x for x in lines if (x["step"], x["split"] == "baseline") < (first_step, True)]
        self._text = "".join(json.dumps(line) + "\n" for line in kept)
        if not there or self._path.read_bytes() != self._text.encode():
            write_text(self._path, self._text)
        self._events = _Events(workdir / "tensorboard", first_step + 1)
        self._trackers = Trackers(trackers, workdir, config or {}, anew=not resumes)

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Writes a line: step, split ("train", "heldout", "suites", "baseline") and the metrics."""
        if not self._writes:
            return
        metrics = finite(metrics)
        self._append({"step": step, "split": split, **metrics})
        named = {f"{split}/{name}": value for name, value in metrics.items()}
        self._events.write(step, named)
        self._trackers.log(step, named)

    def write_origin(self, step: int, run: str) -> None:
        """Writes the line of a branch that begins with the state of a run after `step` steps."""
        if self._writes:
            self._append({"step": step, "split": "branch", "run": run})

    def _append(self, line: Line) -> None:
        text = json.dumps(line) + "\n"
        if is_remote(self._path):  # remote files cannot be appended to
            self._text += text
            write_text(self._path, self._text)
        else:
            with errors_name(self._path), self._path.open("a") as file:
                file.write(text)

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._writes:
            self._events.close()
            self._trackers.close()


def _set_aside(bad: Sequence[BadLine], path: epath.Path) -> None:
    before = path.read_bytes() if path.exists() else b""
    with whole_file(path) as file:
        file.write_bytes(before + b"".join(line.text + b"\n" for line in bad))
    for line in bad:
        hosts.print_here(f"{line.reason}; moved to {path.name}", result=True)


class _Events:
    """A file of TensorBoard events.

    `SummaryWriter` would write it in a thread of its own, whose errors nobody could catch.
    """

    def __init__(self, directory: epath.Path, first_step: int):
        """Hides the events of earlier files from `first_step` on."""
        directory_check(str(directory))
        self._directory = directory
        with errors_name(directory):
            self._writer = EventsWriter(str(directory / "events"))
            start = SessionLog(status=SessionLog.START)
            now = time.time()
            self._writer.write_event(Event(wall_time=now, step=first_step, session_log=start))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        event = Event(wall_time=time.time(), step=step, summary=Summary(value=values))
        with errors_name(self._directory):
            self._writer.write_event(event)
            self._writer.flush()

    def close(self) -> None:
        with errors_name(self._directory):
            self._writer.close()


class Stopwatch:
    """Measures the speed since the last reading."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._waited = 0.0
        self._sums: Sums = {}

    def count(self, sums: Sums) -> None:
        """Adds finished work: "steps", "tokens" and "examples"."""
        self._sums = add_sums([self._sums, sums])

    def add_wait(self, seconds: float) -> None:
        """Adds time in which the step waited for input."""
        self._waited += seconds

    def skip(self, seconds: float) -> None:
        """Leaves out time that was not spent on training, such as an evaluation."""
        self._since += seconds

    def read(self) -> Line:
        """Real tokens, sequences and steps per second, and the share of time spent waiting."""
        now = time.monotonic()
        seconds = max(now - self._since, 1e-9)
        line = {
            "tokens_per_second": self._sums["tokens"] / seconds,
            "sequences_per_second": self._sums["examples"] / seconds,
            "steps_per_second": self._sums["steps"] / seconds,
            "input_stall": min(self._waited / seconds, 1.0),
        }
        self._since, self._waited, self._sums = now, 0.0, {}
        return line


def progress_line(step: int, steps: int, line: Line, seconds: float) -> str:
    """The line to print: loss, accuracies, speed, time left; at most 80 characters."""
    scores = {x: line[x] for x in line if x == "loss" or x.endswith("_accuracy")}
    rate = compact(line["tokens_per_second"])
    place = f"step {step:>{len(str(steps))}}/{steps}"
    return f"{place}  {scores_line(scores)}  {rate} tok/s  ETA {duration(seconds)}"


def scores_line(scores: Mapping[str, float], width: int = 80) -> str:
    """The scores of a line of metrics that are not derived from others, as many as fit.

    Args:
      scores: metrics by name, such as "loss" and "mlm_accuracy".
      width: most characters.
    """
    texts = []
    for name, value in scores.items():
        if "/" in name:  # a part of another one
            continue
        if name == "loss" or not name.endswith(("_loss", "_perplexity", "padding")):
            texts.append(f"{name.removesuffix('_accuracy')} {shown(name, value)}")
    while len("  ".join(texts)) > width:
        texts.pop()
    return "  ".join(texts)
