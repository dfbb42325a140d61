"""Metrics of a run: sums and means, `metrics.jsonl`, TensorBoard, and the progress line."""

import json
import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath
from tensorboardX import SummaryWriter

from bert_jax.parallel import hosts
from bert_jax.report.metrics_file import read_metrics
from bert_jax.storage import is_remote

Sums = dict[str, float]
Line = dict[str, Any]


def add_sums(parts: Iterable[Mapping[str, Any]]) -> Sums:
    """Adds dicts of scalars key by key in float64."""
    total: Sums = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + float(np.asarray(value, np.float64))
    return total


def means(sums: Mapping[str, float], heads: Iterable[str]) -> Line:
    """Means: for each head with labels, "<head>_loss" in nats and "<head>_accuracy" in [0, 1].

    "loss" is the sum over heads. "mlm_perplexity" is exp of the masked LM loss in nats. "padding"
    is the share of positions that hold no token.
    """
    line: Line = {}
    present = [head for head in heads if sums[f"{head}_count"]]
    line["loss"] = sum(sums[f"{head}_loss"] / sums[f"{head}_count"] for head in present)
    for head in present:
        line[f"{head}_loss"] = sums[f"{head}_loss"] / sums[f"{head}_count"]
        if f"{head}_correct" in sums:
            line[f"{head}_accuracy"] = sums[f"{head}_correct"] / sums[f"{head}_count"]
    if "mlm_loss" in line:
        line["mlm_perplexity"] = math.exp(min(line["mlm_loss"], 700.0))
    line["padding"] = 1.0 - sums["tokens"] / sums["positions"]
    return line


class MetricsWriter:
    """Appends to `workdir`/metrics.jsonl and to TensorBoard events in `workdir`/tensorboard.

    Only process 0 writes.
    """

    def __init__(self, workdir: epath.PathLike, first_step: int):
        """Opens the files; lines after `first_step`, left by an interrupted run, are dropped.

        Baselines of `first_step`, where a stage begins, are dropped too, and written again.
        """
        self._writes = hosts.is_primary()
        if not self._writes:
            return
        self._path = epath.Path(workdir) / "metrics.jsonl"
        lines = read_metrics(workdir) if first_step and self._path.exists() else []
        kept = [x for x in lines if (x["step"], x["split"] == "baseline") < (first_step, True)]
        self._text = "".join(json.dumps(line) + "\n" for line in kept)
        self._path.write_text(self._text)
        self._tensorboard = SummaryWriter(
            str(epath.Path(workdir) / "tensorboard"), purge_step=first_step + 1
        )

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Writes one line: step, split ("train", "heldout", "baseline") and the metrics."""
        if not self._writes:
            return
        text = json.dumps({"step": step, "split": split, **metrics}) + "\n"
        if is_remote(self._path):  # remote files cannot be appended to
            self._text += text
            self._path.write_text(self._text)
        else:
            with self._path.open("a") as file:
                file.write(text)
        for name, value in metrics.items():
            self._tensorboard.add_scalar(f"{split}/{name}", value, step)
        self._tensorboard.flush()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._writes:
            self._tensorboard.close()


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


def progress_line(step: int, steps: int, line: Line) -> str:
    """The line to print: percent, loss, accuracies, speed, time left."""
    parts = [
        f"step {step:>{len(str(steps))}}/{steps} {step / steps:4.0%}",
        f"loss {line['loss']:.3f}",
    ]
    for name, value in line.items():
        if name.endswith("_accuracy"):
            parts.append(f"{name.removesuffix('_accuracy')} {value:.1%}")
    parts.append(f"{line['tokens_per_second']:,.0f} tokens/s")
    left = (steps - step) / line["steps_per_second"]
    return "  ".join([*parts, f"ETA {format_seconds(left)}"])


def format_seconds(seconds: float) -> str:
    """h:mm:ss or m:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
