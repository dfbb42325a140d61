"""The training loop: steps, metrics, evaluation, checkpoints and an orderly stop."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.experimental import multihost_utils

from bert_jax.errors import TrainingDiverged
from bert_jax.parallel.hosts import print_once
from bert_jax.train.budget import Budget
from bert_jax.train.checkpoints import Checkpoints
from bert_jax.train.metrics import (
    MetricsWriter,
    Stopwatch,
    Sums,
    add_sums,
    format_seconds,
    means,
    progress_line,
)
from bert_jax.train.profiling import Profiler
from bert_jax.train.state import TrainState


class StopSignal:
    """Notes SIGTERM and SIGINT so that the loop can save and leave. A second one acts at once.

    Of several processes none may leave alone. There JAX's coordination service listens for SIGTERM,
    with a handler below Python's that must stay in place, and finds a step which no process has
    passed yet; SIGINT is turned into SIGTERM.
    """

    def __init__(self):
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._alone = jax.process_count() == 1

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT) if self._alone else (signal.SIGINT,):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def reached(self, step: int) -> bool:
        """Whether to stop after this step, the same on all processes; ask after every step."""
        if not self._alone and multihost_utils.reached_preemption_sync_point(step):
            self.received = signal.SIGTERM
        return self.received is not None

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def _note(self, number: int, frame: Any) -> None:
        self._restore()
        if self._alone:
            self.received = signal.Signals(number)
        else:
            signal.raise_signal(signal.SIGTERM)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()


class Outcome(NamedTuple):
    """How `train` ended.

    Attributes:
      state: after the last step.
      stopped_by: the signal that came, if one did.
      mlm_accuracy: of the last evaluation, 0 without one.
    """

    state: TrainState
    stopped_by: signal.Signals | None
    mlm_accuracy: float


def train(
    state: TrainState,
    train_step: Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]],
    batches: Iterator[Any],
    evaluate: Callable[[TrainState], dict[str, float]],
    checkpoints: Checkpoints,
    writer: MetricsWriter,
    profiler: Profiler,
    *,
    heads: tuple[str, ...],
    first_step: int,
    steps: int,
    log_every: int,
    eval_every: int,
    checkpoint_every: int,
    flops_per_token: float,
    peak_flops: float | None,
    budget: Budget,
    target_mlm_accuracy: float,
    unlogged: Sums,
) -> Outcome:
    """Runs optimizer steps `first_step` to `steps`.

    Metrics are read while the next step already runs, so the device never waits for them.

    Args:
      state: at `first_step`; donated.
      train_step: (state, batch) -> (state, metrics), compiled.
      batches: device batches from `first_step` on.
      evaluate: state -> means on held-out documents.
      checkpoints: where to save, after every `checkpoint_every` steps, at the end, and when told to
        stop.
      writer: of metrics.
      profiler: asked after every step.
      heads: of the objective.
      first_step: steps done before.
      steps: of the run when to end.
      log_every: steps between lines of metrics, which are means over all steps since the last line.
      eval_every: steps between evaluations; 0 for one at the end.
      checkpoint_every: steps between checkpoints.
      flops_per_token: forward and backward.
      peak_flops: of all devices together, per second, or None where it is not known.
      budget: ends training earlier.
      target_mlm_accuracy: an evaluation that reaches it ends training too; 0 is off.
      unlogged: sums of the steps before `first_step` that no line has reported yet.

    Raises:
      TrainingDiverged: a gradient is not finite. It is not saved.
    """
    stopwatch = Stopwatch()
    pending: list[dict[str, jax.Array]] = []  # of steps that may still run
    sums = dict(unlogged)
    accuracy = 0.0

    def end() -> int:
        return min(steps, budget.steps)

    def reached() -> bool:
        return 0 < target_mlm_accuracy <= accuracy

    def collect() -> None:
        """Adds the pending steps to the sums; waits for them to finish."""
        nonlocal sums
        fresh = [metrics | {"steps": 1} for metrics in jax.device_get(pending)]
        if not fresh:
            return
        pending.clear()
        stopwatch.count(add_sums(fresh))
        sums = add_sums([sums, *fresh])
        sums["learning_rate"] = float(fresh[-1]["learning_rate"])
        if not math.isfinite(sums["grad_norm"]):
            raise TrainingDiverged(
                f"the gradient became infinite or NaN by step {done}. Lower "
                f"config.optimizer.learning_rate or raise config.optimizer.warmup_steps and run "
                f"again: the run goes on from its last checkpoint "
                f"({checkpoints.latest_step() or 'none yet'})"
            )

    def log(step: int) -> None:
        nonlocal sums
        collect()
        line = means(sums, heads)
        line["grad_norm"] = sums["grad_norm"] / sums["steps"]
        line["learning_rate"] = sums["learning_rate"]
        line |= stopwatch.read()
        if peak_flops:
            line["mfu"] = line["tokens_per_second"] * flops_per_token / peak_flops
        writer.write(step, "train", line)
        budget.update(step)
        print_once(progress_line(step, max(step, end()), line))
        sums = {}

    def evaluate_and_log(step: int) -> None:
        nonlocal accuracy
        collect()
        started = time.monotonic()
        line = evaluate(state)
        accuracy = line.get("mlm_accuracy", 0.0)
        writer.write(step, "heldout", line)
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in line.items())
        seconds = time.monotonic() - started
        print_once(f"held-out at step {step}: {numbers}  ({format_seconds(seconds)})")
        stopwatch.skip(seconds)

    def save(step: int) -> None:
        collect()
        progress = {"unlogged": sums, "mlm_accuracy": accuracy} | budget.progress()
        checkpoints.save(step, state, progress)

    done = saved = first_step
    due: int | None = None
    stopping = False
    with StopSignal() as stop:
        while done < end() and not stopping and not reached():
            waiting = time.monotonic()
            batch = next(batches)
            stopwatch.add_wait(time.monotonic() - waiting)
            state, metrics = train_step(state, batch)
            if due is not None:
                log(due)
                due = None
            pending.append(metrics)
            done += 1
            profiler.after_step(done, metrics)

            stopping = stop.reached(done)
            last = done >= end()
            evaluate_now = eval_every > 0 and done % eval_every == 0
            save_now = done % checkpoint_every == 0
            if done % log_every == 0 or last:
                due = done
            if due is not None and (last or evaluate_now or save_now or stopping):
                log(due)
                due = None
                last = done >= end()  # there may be time left for more
            if last or evaluate_now:
                evaluate_and_log(done)
            if last or save_now:
                save(done)
                saved = done
        if due is not None:
            log(due)
        if saved != done:
            save(done)
    return Outcome(state, stop.received, accuracy)
