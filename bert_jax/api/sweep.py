"""Runs a recipe with every combination of some values, and compares the results."""

import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from etils import epath

from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.config.pretraining import PretrainConfig
from bert_jax.config.recipes import load_config, verb_of
from bert_jax.errors import EXIT_STOPPED, UserError
from bert_jax.report.metrics_file import read_metrics
from bert_jax.report.sweeps import Group, draw_sweep, table
from bert_jax.report.units import duration, shown
from bert_jax.storage import read_json, write_json
from bert_jax.terminal import say, say_progress

T = TypeVar("T")
Grid = Mapping[str, Sequence[str]]
# Devlin et al. 2019, https://arxiv.org/abs/1810.04805, appendix A.3.
GRIDS: Mapping[str, Grid] = {
    "bert": {
        "batch_size": ("16", "32"),
        "optimizer.learning_rate": ("5e-5", "3e-5", "2e-5"),
        "epochs": ("2", "3", "4"),
    }
}
# A field whose values are no choices: runs with all of them are compared as one, as all seeds are.
REPEATED = "fold"
PROGRAM = (sys.executable, "-m", "bert_jax")


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
      fields: field -> value, of the grid.
      seed: its seed.
      workdir: its directory.
    """

    fields: Mapping[str, str]
    seed: int
    workdir: str


def sweep(
    config: Sequence[str],
    workdir: epath.PathLike,
    grid: Grid,
    *,
    seeds: int = 1,
    gpus: int = 0,
) -> bool:
    """Runs every combination with every seed, each in a directory of its own.

    A run that is there goes on or is over, so the same call resumes a sweep. A run that fails is
    told and left out. Runs that differ in their seed or `fold` are compared as one. The
    results are in `sweep.json` and `sweep.png`.

    Args:
      config: "--config=RECIPE[:ARGUMENT]" and overrides, "--config.FIELD=VALUE".
      workdir: directory of the sweep.
      grid: field -> its values.
      seeds: runs of each combination, with the seed of the config and those after it.
      gpus: runs at a time, each with one GPU; 0 for one run at a time, with all devices.

    Returns:
      True: all runs are over. False: a signal stopped the sweep; what ran is saved.

    Raises:
      UserError: a combination is invalid, or no run has results.
    """
    workdir = epath.Path(workdir)
    verb = verb_of(config)
    cls = PretrainConfig if verb == "pretrain" else FinetuneConfig
    trials = list(_trials(config, cls, workdir, grid, seeds))
    workdir.mkdir(parents=True, exist_ok=True)
    results = _Runs(config, verb, trials, gpus).run()
    if results is None:
        return False
    found = [(trial, results[trial.workdir]) for trial in trials if trial.workdir in results]
    if not found:
        raise UserError(f"{workdir}: no run has results; see its .log files")
    metric = found[0][1][0]
    groups = [
        Group(fields, [value for trial, (_, value) in found if _choices(trial.fields) == fields])
        for fields in _combinations(_choices(grid))
    ]
    groups = [group for group in groups if group.values]
    write_json(
        workdir / "sweep.json",
        [asdict(trial) | {metric: value} for trial, (_, value) in found],
    )
    for line in table(groups, metric):
        say(line)
    draw_sweep(groups, metric, workdir / "sweep.png")
    return True


def _choices(fields: Mapping[str, T]) -> dict[str, T]:
    """Those fields of a trial, or of a grid, whose values are compared."""
    return {name: value for name, value in fields.items() if name != REPEATED}


def _combinations(grid: Grid) -> list[dict[str, str]]:
    return [dict(zip(grid, values)) for values in itertools.product(*grid.values())]


def _trials(
    config: Sequence[str], cls: type[Any], workdir: epath.Path, grid: Grid, seeds: int
) -> Iterator[Trial]:
    """All runs; an invalid combination is an error before any starts."""
    for fields in _combinations(grid):
        given = [f"--config.{name}={value}" for name, value in fields.items()]
        first = load_config(cls, [*config, *given]).seed
        name = ",".join(f"{name.rpartition('.')[2]}={value}" for name, value in fields.items())
        name = re.sub(r"[^\w=.,+-]", "_", name) or "runs"
        for seed in range(first, first + seeds):
            yield Trial(fields, seed, str(workdir / name / f"seed{seed}"))


def _result(trial: Trial, verb: str) -> tuple[str, float]:
    """The metric by which runs are compared, and its value."""
    workdir = epath.Path(trial.workdir)
    if verb == "finetune":
        return next(iter(read_json(workdir / "results.json")["dev"]["metrics"].items()))
    last = [line for line in read_metrics(workdir) if line["split"] == "heldout"][-1]
    return next((name, last[name]) for name in last if name.endswith("_loss"))


class _Runs:
    """Runs trials as processes, so that each has its memory and its devices."""

    def __init__(self, config: Sequence[str], verb: str, trials: Sequence[Trial], gpus: int):
        self._config, self._verb, self._trials = config, verb, trials
        self._places: list[str | None] = [str(i) for i in range(gpus)] or [None]
        self._running: dict[subprocess.Popen[bytes], tuple[Trial, str | None, float]] = {}
        self._stopping = False

    def run(self) -> dict[str, tuple[str, float]] | None:
        """Workdir -> metric and value of the runs that did not fail; None if a signal stopped."""
        waiting, free = list(self._trials), list(self._places)
        results = {}
        with self._signals():
            while (waiting and not self._stopping) or self._running:
                while waiting and free and not self._stopping:
                    self._start(waiting.pop(0), free.pop(0))
                time.sleep(0.1)
                for process in [each for each in self._running if each.poll() is not None]:
                    trial, place, start = self._running.pop(process)
                    free.append(place)
                    if process.returncode == EXIT_STOPPED:
                        self._stopping = True
                    elif process.returncode:
                        say(f"{trial.workdir}: exit code {process.returncode}, see {_log(trial)}")
                    else:
                        name, value = results[trial.workdir] = _result(trial, self._verb)
                        took = duration(time.monotonic() - start)
                        done = len(self._trials) - len(waiting) - len(self._running)
                        count, score = f"{done}/{len(self._trials)}", shown(name, value)
                        say_progress(f"{count} {trial.workdir}: {name} {score}, {took}")
        return None if self._stopping else results

    def _start(self, trial: Trial, gpu: str | None) -> None:
        epath.Path(trial.workdir).parent.mkdir(parents=True, exist_ok=True)
        fields = {**trial.fields, "seed": trial.seed}
        command = [
            *(*PROGRAM, self._verb, *self._config),
            *(f"--config.{name}={value}" for name, value in fields.items()),
            f"--workdir={trial.workdir}",
        ]
        devices = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
        with open(_log(trial), "ab") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, **devices}
            )
        self._running[process] = (trial, gpu, time.monotonic())

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Passes SIGTERM and SIGINT on to the runs, which save."""

        def stop(number: int, frame: Any) -> None:
            self._stopping = True
            for process in self._running:
                process.send_signal(signal.SIGTERM)

        before = {each: signal.signal(each, stop) for each in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)


def _log(trial: Trial) -> str:
    return f"{trial.workdir}.log"
