"""What happens between training steps: logging, evaluation, keeping the best model, a target.

These are hooks of `bert_jax.train.trainer.Trainer`, and listeners of the evaluation.
"""

import contextlib
import math
import operator
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from etils import epath

from bert_jax.model.parameters import Params
from bert_jax.parallel.hosts import print_once, waiting
from bert_jax.report.curves import SPLITS
from bert_jax.report.metrics_file import read_metrics
from bert_jax.report.units import duration
from bert_jax.train.checkpoints import Checkpoints
from bert_jax.train.metrics import MetricsWriter, means, progress_line, scores_line
from bert_jax.train.state import TrainState
from bert_jax.train.trainer import Trainer

Scores = Mapping[str, float]


class Log:
    """Writes and prints a line of training metrics, means over all steps since the last one."""

    def __init__(
        self,
        writer: MetricsWriter,
        heads: Sequence[str],
        factors: Mapping[str, float] | None = None,
        *,
        more: Callable[[int], Mapping[str, float]] = lambda step: {},
        first_row: Callable[[int], float] = float,
        flops_per_token: float = 0.0,
        peak_flops: float | None = None,
    ):
        """Args:
        writer: where to write.
        heads: heads of the objective.
        factors: factors of its losses.
        more: steps of the run -> metrics that follow from them.
        first_row: steps of the run -> rows of all of these steps, up to a constant: steps take as
          long as they have rows. By default all have the same number.
        flops_per_token: FLOPs of the forward and backward pass.
        peak_flops: peak of all devices together, per second; None if it is not known.
        """
        self._writer, self._heads, self._factors = writer, heads, factors
        self._more, self._first_row = more, first_row
        self._flops_per_token, self._peak_flops = flops_per_token, peak_flops

    def __call__(self, trainer: Trainer) -> None:
        trainer.collect()
        sums = trainer.sums
        line = means(sums, self._heads, self._factors)
        skipped = sums.get("skipped", 0.0)
        if accepted := sums["steps"] - skipped:
            line["grad_norm"] = sums["grad_norm"] / accepted
        if "skipped" in sums:
            line["skipped"] = skipped
        line["learning_rate"] = sums["learning_rate"]
        line |= trainer.stopwatch.read()
        if self._peak_flops:
            line["mfu"] = line["tokens_per_second"] * self._flops_per_token / self._peak_flops
        line |= self._more(trainer.done)
        self._writer.write(trainer.done, "train", line)
        trainer.look_at_clock()
        last_step, before = max(trainer.done, trainer.last_step), trainer.done - int(sums["steps"])
        row, first, last = map(self._first_row, (trainer.done, before, last_step))
        left = (last - row) / (row - first) * sums["steps"] / line["steps_per_second"]
        print_once(progress_line(trainer.done, last_step, line, left))
        if skipped:
            count = f"{skipped:.0f} of {sums['steps']:.0f} steps"
            print_once(f"skipped {count}: not finite or spikes", result=True)
        trainer.sums = {}


class Evaluate:
    """Writes and prints a line of scores."""

    def __init__(
        self,
        score: Callable[[Params], Scores],
        writer: MetricsWriter,
        listeners: Iterable[Callable[[Trainer, Scores], None]] = (),
        *,
        split: str = "heldout",
        params: Callable[[TrainState], Params] = operator.attrgetter("params"),
    ):
        """Args:
        score: parameters -> scores.
        writer: where to write.
        listeners: called with the scores before their line is written.
        split: "split" of the line: "heldout", "heldout_ema" or "suites".
        params: state -> what to score.
        """
        self._score, self._writer, self._listeners = score, writer, tuple(listeners)
        self._split, self._params = split, params
        self._compiled = False
        self.line = ""  # the last one

    def __call__(self, trainer: Trainer) -> None:
        trainer.collect()
        started = time.monotonic()
        first = waiting("compiling the evaluation")
        with contextlib.nullcontext() if self._compiled else first:
            scores = self._score(self._params(trainer.state))
        self._compiled = True
        for listener in self._listeners:
            listener(trainer, scores)
        self._writer.write(trainer.done, self._split, scores)
        seconds = time.monotonic() - started
        name = SPLITS.get(self._split, self._split)
        start, end = f"step {trainer.done} {name}", duration(seconds)
        numbers = scores_line(scores, 80 - len(start) - len(end) - 4)
        self.line = f"{start}  {numbers}  {end}"
        print_once(self.line)
        trainer.stopwatch.skip(seconds)


class Target:
    """Ends training at the first evaluation that reaches a score."""

    def __init__(self, metric: str, goal: float, progress: Mapping[str, float]):
        """Args:
        metric: name of the score.
        goal: score at which to stop; 0 for none.
        progress: `progress` of the checkpoint to resume from.
        """
        self.metric, self.goal = metric, goal
        self.value: float = progress.get(metric, 0.0)

    def __call__(self, trainer: Trainer, scores: Scores) -> None:
        self.value = scores.get(self.metric, 0.0)

    def reached(self) -> bool:
        """Whether the last evaluation reached the goal."""
        return 0 < self.goal <= self.value

    def progress(self) -> dict[str, float]:
        """Numbers to keep in a checkpoint."""
        return {self.metric: self.value}


class Patience:
    """Ends training when the evaluations of a run have not become better for some time."""

    def __init__(self, metric: str, evaluations: int, workdir: epath.Path, done: int):
        """Args:
        metric: name of the score; higher is better.
        evaluations: how many in a row without a better score end it; 0 never ends it.
        workdir: directory of the run, whose metrics hold the earlier evaluations.
        done: steps that the run has done.
        """
        self._metric, self._evaluations = metric, evaluations
        lines = read_metrics(workdir) if done else []
        of_dev = [line for line in lines if line["split"] == "heldout" and line["step"] <= done]
        self._scores = [line.get(metric, -math.inf) for line in of_dev]

    def __call__(self, trainer: Trainer, scores: Scores) -> None:
        self._scores.append(scores[self._metric])

    def ended(self) -> bool:
        """Whether it has ended."""
        if not self._evaluations or not self._scores:
            return False
        best = self._scores.index(max(self._scores))
        return len(self._scores) - 1 - best >= self._evaluations


class KeepBest:
    """Saves the parameters of the best evaluation so far."""

    def __init__(
        self,
        best: Checkpoints,
        metric: str,
        workdir: epath.Path,
        params: Callable[[TrainState], Params],
    ):
        """Args:
        best: where to save.
        metric: name of the score; higher is better.
        workdir: directory of the run, whose metrics hold the earlier evaluations.
        params: gives the parameters to save.
        """
        self._best, self._metric, self._workdir, self._params = best, metric, workdir, params

    def __call__(self, trainer: Trainer, scores: Scores) -> None:
        lines = read_metrics(self._workdir)
        earlier = [x[self._metric] for x in lines if x["split"] == "heldout" and self._metric in x]
        # Of equal ones the latest, which has seen the most.
        if scores[self._metric] >= max(earlier, default=-math.inf):
            self._best.save(trainer.done, {"params": self._params(trainer.state)}, dict(scores))


def save(trainer: Trainer) -> None:
    """Saves the state of a trainer."""
    trainer.save()
