"""The training loop: steps, hooks in between, and an orderly stop."""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import jax
from jax.experimental import multihost_utils

from bert_jax.errors import TrainingDiverged
from bert_jax.parallel.hosts import print_once, waiting
from bert_jax.train.checkpoints import Checkpoints
from bert_jax.train.metrics import Stopwatch, Sums, add_sums
from bert_jax.train.state import TrainState
from bert_jax.train.step import Batch, Metrics

# A step that changes the parameters by more than this multiple of their norm has destroyed them.
# Real recipes change them by less than a tenth.
MOST_UPDATE = 100.0

Hook = Callable[["Trainer"], None]


class StopSignal:
    """Records SIGTERM and SIGINT so that the loop can save and stop. A second one acts at once.

    Several processes must stop together. For them, JAX's coordination service listens for SIGTERM,
    with a handler below Python's that must stay in place, and finds a step that no process has
    passed yet; SIGINT is turned into SIGTERM.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._alone = jax.process_count() == 1

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT) if self._alone else (signal.SIGINT,):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def reached(self, step: int) -> bool:
        """Whether to stop after this step, the same on all processes; call it after every step."""
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


class Clock(Protocol):
    """Ends training after a given time; see `bert_jax.train.budget.Budget`."""

    @property
    def steps(self) -> int:
        """Estimated steps of the whole run."""

    def update(self, done: int) -> None:
        """Reads the clock after `done` steps."""

    def progress(self) -> dict[str, float]:
        """Numbers to keep in a checkpoint."""


class _Due(NamedTuple):
    """When a hook is called: see `Trainer.every`."""

    steps: int
    hook: Hook
    at_end: bool
    when_stopped: bool

    def at(self, done: int, *, last: bool) -> bool:
        return (self.at_end and last) or (self.steps > 0 and done % self.steps == 0)


class Trainer:
    """Runs optimizer steps and, after some of them, hooks.

    Metrics are read while the next step already runs, so the device never waits for them.

    Attributes:
      state: the training state; donated to the next step.
      done: number of steps done.
      sums: sums of the metrics of all steps not reported yet, kept across a resume.
      stopwatch: speed since the last report.
      checkpoints: where `save` writes.
      stopped_by: signal that ended `fit`, or None.
    """

    def __init__(self, state: TrainState, checkpoints: Checkpoints, progress: Mapping[str, Any]):
        """Starts from a state.

        Args:
          state: fresh, or restored from a checkpoint.
          checkpoints: where to save.
          progress: what the checkpoint keeps besides the state; empty at the start of a run.
        """
        self.state = state
        self.done = int(state.step)
        self.sums: Sums = dict(progress.get("unlogged", {}))
        self.stopwatch = Stopwatch()
        self.checkpoints = checkpoints
        self.stopped_by: signal.Signals | None = None
        self._pending: list[Metrics] = []  # of steps that may still run
        self._stage_end = self.done
        self._clock: Clock | None = None
        self._carried: list[Callable[[], Mapping[str, float]]] = []
        self._clear()

    def _clear(self) -> None:
        self._hooks: list[_Due] = []
        self._reports: list[_Due] = []
        self._after_step: list[Callable[[int, Metrics], None]] = []
        self._conditions: list[Callable[[], bool]] = []
        self._ran: dict[_Due, int] = {}  # the step after which a hook last ran

    def every(
        self, steps: int, hook: Hook, *, at_end: bool = True, when_stopped: bool = False
    ) -> None:
        """Calls a hook after every `steps` steps; hooks due together run in the order added.

        Args:
          steps: steps of the run between calls; 0 for never.
          hook: what to call.
          at_end: also after the last step.
          when_stopped: also when training ends earlier.
        """
        self._hooks.append(_Due(steps, hook, at_end, when_stopped))

    def report_every(self, steps: int, hook: Hook) -> None:
        """Calls a hook as `every` does, but while the next step already runs.

        If another hook is due after the same step, the call does not wait for the next step.
        """
        self._reports.append(_Due(steps, hook, at_end=True, when_stopped=False))

    def after_every_step(self, hook: Callable[[int, Metrics], None]) -> None:
        """Calls a hook after each step with the steps done and its metrics, still on devices."""
        self._after_step.append(hook)

    def stop_when(self, condition: Callable[[], bool]) -> None:
        """Ends training as soon as a condition holds."""
        self._conditions.append(condition)

    def stop_by(self, clock: Clock) -> None:
        """Ends training when the time is up."""
        self._clock = clock
        self.carry(clock.progress)

    def carry(self, progress: Callable[[], Mapping[str, float]]) -> None:
        """Keeps numbers in every checkpoint, besides the state."""
        self._carried.append(progress)

    @property
    def last_step(self) -> int:
        """The step of the run after which `fit` ends, as currently estimated."""
        return min(self._stage_end, self._clock.steps) if self._clock else self._stage_end

    def look_at_clock(self) -> None:
        """Updates the estimate of how many steps the time allows."""
        if self._clock:
            self._clock.update(self.done)

    def fit(
        self,
        step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
        batches: Iterator[Batch],
        last_step: int,
    ) -> None:
        """Trains to `last_step`, or until time is up, a condition holds or a signal arrives.

        Hooks and conditions are removed at the end of the call.

        Args:
          step: compiled train step.
          batches: batches of the next steps, on devices.
          last_step: total steps of the run at which to stop.

        Raises:
          TrainingDiverged: a gradient is not finite, an update is larger than the parameters by
            far, or the guard has skipped too many steps. The state is not saved.
        """
        self._stage_end = last_step
        self.stopwatch = Stopwatch()
        self._ran = dict.fromkeys(self._hooks, self.done)
        reports: list[_Due] = []  # due as soon as the next step has started
        stopping = False
        compiled: set[Any] = set()  # shapes of the batches
        with StopSignal() as stop:
            while self.done < self.last_step and not stopping and not self._is_over():
                began = time.monotonic()
                batch = next(batches)
                self.stopwatch.add_wait(time.monotonic() - began)
                shapes = tuple(each.shape for each in batch.values())
                if shapes in compiled:
                    self.state, metrics = step(self.state, batch)
                else:
                    metrics = self._compile(step, batch, first=not compiled)
                    compiled.add(shapes)
                self._call(reports)
                self._pending.append(metrics)
                self.done += 1
                for watch in self._after_step:
                    watch(self.done, metrics)

                stopping = stop.reached(self.done)
                last = self.done >= self.last_step
                reports = self._due(self._reports, last)
                if last or stopping or self._due(self._hooks, last):
                    self._call(reports)
                    reports = []
                    last = self.done >= self.last_step  # the clock may allow more steps now
                self._call(self._due(self._hooks, last))
            self._call(reports)
            self._call(
                [due for due in self._hooks if due.when_stopped and self._ran[due] < self.done]
            )
        self.stopped_by = stop.received
        self._clear()

    def collect(self) -> None:
        """Adds the metrics of the latest steps to `sums`; waits for these steps to finish.

        Raises:
          TrainingDiverged: as `fit`.
        """
        fresh = [metrics | {"steps": 1} for metrics in jax.device_get(self._pending)]
        if not fresh:
            return
        self._pending.clear()
        for step, metrics in enumerate(fresh, start=self.done - len(fresh) + 1):
            self._check(step, metrics)
        self.stopwatch.count(add_sums(fresh))
        self.sums = add_sums([self.sums, *fresh])
        self.sums["learning_rate"] = float(fresh[-1]["learning_rate"])

    def save(self) -> None:
        """Starts to write a checkpoint of the current state."""
        self.collect()
        progress: dict[str, Any] = {"unlogged": self.sums}
        for carried in self._carried:
            progress |= carried()
        self.checkpoints.save(self.done, self.state, progress)

    def _compile(
        self,
        step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
        batch: Batch,
        *,
        first: bool,
    ) -> Metrics:
        """Does the first step of a shape, whose compilation is not counted as training."""
        began = time.monotonic()
        with waiting("compiling the training step") if first else contextlib.nullcontext():
            self.state, metrics = step(self.state, batch)
        seconds = time.monotonic() - began
        if first:
            print_once(f"compiled in {seconds:.0f} s")
        elif seconds > 1:
            print_once(f"compiled for {len(batch['input_ids'])} rows in {seconds:.0f} s")
        self.stopwatch.skip(seconds)
        return metrics

    def _check(self, step: int, metrics: dict[str, Any]) -> None:
        """Checks a step, and takes from its metrics what no one else needs."""
        update, params = (float(metrics.pop(name)) for name in ("update_norm", "param_norm"))
        skips, left = (int(metrics.pop(name, 1)) for name in ("skips", "skips_left"))
        good = step - 1  # the newest state that is known to be good
        if metrics.get("skipped"):
            if left > 0:
                return
            why = (
                f"{skips} steps in a row, up to step {step}, were skipped: their gradients are "
                "infinite, NaN or spikes"
            )
            good -= skips  # all of them have the parameters of the last state before them
        elif not math.isfinite(metrics["grad_norm"]):
            why = f"the gradient of step {step} is infinite or NaN"
            good -= 1  # that state has this gradient
        elif not update <= MOST_UPDATE * params < math.inf:
            why = f"step {step} changes the parameters of norm {params:.4g} by {update:.4g}"
        else:
            return
        back = max((s for s in self.checkpoints.finished_steps() if s <= good), default=0)
        place = f"the last good checkpoint, of step {back}" if back else "step 0"
        raise TrainingDiverged(
            f"{why}. Lower config.optimizer.learning_rate or raise config.optimizer.warmup_steps "
            f"and give --config.resume_from={back}: the run goes on from {place}"
        )

    def _is_over(self) -> bool:
        return any(condition() for condition in self._conditions)

    def _due(self, hooks: list[_Due], last: bool) -> list[_Due]:
        return [due for due in hooks if due.at(self.done, last=last)]

    def _call(self, hooks: list[_Due]) -> None:
        for due in hooks:
            due.hook(self)
            self._ran[due] = self.done
