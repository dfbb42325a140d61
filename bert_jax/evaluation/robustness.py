"""How much perturbations of the texts lower a task's metric."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bert_jax.tasks.perturbations import Perturbation, edits_of
from bert_jax.tasks.protocol import AnyTask

RESAMPLES = 1000
LEVEL = 95  # percent of the resamples that an interval holds


@dataclass(frozen=True)
class Perturbed:
    """Examples, and what has become of them.

    Attributes:
      examples: all examples, in their order.
      changed: how many differ from what they were.
      kept: how many are as they were because their labels cannot follow.
    """

    examples: list[Any]
    changed: int
    kept: int


def perturb(
    task: AnyTask, examples: Sequence[Any], kind: str, perturbation: Perturbation, seed: int
) -> Perturbed:
    """Changes the texts of examples; see `edits_of`.

    Raises:
      UserError: the task's examples cannot be perturbed.
    """
    found, kept = [], 0
    for example in examples:
        new = task.perturbed(example, lambda text: edits_of(kind, perturbation, text, seed))
        kept += new is None
        found.append(example if new is None or new == example else new)
    changed = sum(new is not old for new, old in zip(found, examples))
    return Perturbed(found, changed, kept)


@dataclass(frozen=True)
class Drop:
    """The metric on perturbed examples.

    Attributes:
      score: the metric.
      drop: by how much it is lower than on the examples as they are.
      low, high: bounds of the drop that hold `LEVEL` percent of `RESAMPLES` bootstrap samples, of
        the same examples before and after.
      changed, kept: see `Perturbed`.
    """

    score: float
    drop: float
    low: float
    high: float
    changed: int
    kept: int


@dataclass(frozen=True)
class Robustness:
    """The metric on examples as they are, and under each perturbation.

    Attributes:
      metric: name of the metric.
      score: its value on the examples as they are.
      examples: number of examples.
      seed: seed of the perturbations and of the bootstrap.
      by_perturbation: name -> drop.
    """

    metric: str
    score: float
    examples: int
    seed: int
    by_perturbation: Mapping[str, Drop]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self) | {"level": LEVEL, "resamples": RESAMPLES}


class Comparison:
    """The examples of all perturbations, each once, to be predicted together."""

    def __init__(self, examples: Sequence[Any], perturbed: Mapping[str, Perturbed], seed: int):
        self._given, self._perturbed, self._seed = list(examples), perturbed, seed
        self.examples = list(examples)
        self._indices = {}
        for kind, found in perturbed.items():
            indices = np.arange(len(self._given))
            for place, (new, old) in enumerate(zip(found.examples, examples)):
                if new is not old:
                    indices[place] = len(self.examples)
                    self.examples.append(new)
            self._indices[kind] = indices

    def robustness(self, task: AnyTask, predictions: Any) -> Robustness:
        """What perturbations do.

        Args:
          task: the task.
          predictions: of `examples`.
        """
        count = len(self._given)
        random = np.random.default_rng(self._seed)
        samples = random.integers(count, size=(RESAMPLES, count))
        metrics, before = _scored(task, predictions, self._given, np.arange(count), samples)
        metric, score = next(iter(metrics.items()))
        drops = {}
        for kind, found in self._perturbed.items():
            indices = self._indices[kind]
            metrics, after = _scored(task, predictions, found.examples, indices, samples)
            low, high = np.percentile(before - after, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
            drop = score - metrics[metric]
            drops[kind] = Drop(
                metrics[metric], drop, float(low), float(high), found.changed, found.kept
            )
        return Robustness(metric, score, count, self._seed, drops)


def _scored(
    task: AnyTask,
    predictions: Any,
    examples: Sequence[Any],
    indices: np.ndarray,
    samples: np.ndarray,
) -> tuple[dict[str, float], np.ndarray]:
    """The metrics of examples by the predictions at `indices`, and those of samples of them."""
    if isinstance(predictions, np.ndarray):
        chosen: Any = predictions[indices]
    else:
        chosen = [predictions[index] for index in indices]
    return task.metrics(chosen, examples), task.resampled(chosen, examples, samples)
