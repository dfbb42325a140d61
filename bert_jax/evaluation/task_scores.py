"""Scores parameters on the examples of a task."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from bert_jax.data.packing import Batch
from bert_jax.model.architecture import Numerics
from bert_jax.model.model import Model
from bert_jax.model.parameters import Params
from bert_jax.objective.finetuning import FineTuning
from bert_jax.parallel import hosts, rules
from bert_jax.parallel.mesh import row_devices
from bert_jax.tasks.batches import ExampleBatches
from bert_jax.tasks.features import Features
from bert_jax.tasks.protocol import AnyTask
from bert_jax.train.metrics import add_sums, means
from bert_jax.train.program import loader
from bert_jax.train.step import Metrics, count_positions


class Examples(NamedTuple):
    """Examples of a task, their features, and whether their labels are known."""

    examples: list[Any]
    features: Features
    labelled: bool


class Scores(NamedTuple):
    """Scores of a split.

    Attributes:
      metrics: metrics of the task, and loss.
      predictions: as from `Task.predictions`.
      logits: outputs of the head for each sequence of the features.
      task: the task, with what it has fitted to them.
    """

    metrics: dict[str, float]
    predictions: Any
    logits: list[np.ndarray]
    task: AnyTask


class TaskScores:
    """Runs a model on fixed examples, in their order."""

    def __init__(
        self,
        task: AnyTask,
        data: Examples,
        model: Model,
        numerics: Numerics,
        mesh: Mesh,
        *,
        pad_id: int,
        batch_size: int,
        fit: bool = False,
    ):
        """Compiles at the first call.

        Args:
          task: task whose metrics to compute.
          data: examples to score on.
          model: model whose parameters are scored, with the head of the task.
          numerics: numerics of the model.
          mesh: devices to compute on.
          pad_id: id of [PAD].
          batch_size: examples in a batch.
          fit: whether the task takes what it fits, such as thresholds, from these examples.
        """
        self._task, self._data, self._mesh, self._fit = task, data, mesh, fit
        self._batches = ExampleBatches(
            data.features,
            task.head,
            pad_id=pad_id,
            batch_size=batch_size,
            seed=None,
            row_multiple=row_devices(mesh),
        )
        objective = FineTuning(model.graphdef, task.head)
        self._heads = objective.heads
        load = loader(mesh, model.axes, numerics)

        def step(params: Params, batch: dict[str, jax.Array]) -> tuple[jax.Array, Metrics]:
            logits = objective.logits(load(params), batch)
            return logits, objective.sums_of(logits, batch) | count_positions(batch)

        self._step = jax.jit(step, out_shardings=rules.replicated(mesh))

    def __call__(self, params: Params, fitted: AnyTask | None = None) -> Scores:
        """Scores the examples: the task's metrics, then "loss"; none if labels are unknown.

        Args:
          params: parameters of the model.
          fitted: the task with what it has fitted to other examples; None for the task as it is.
        """
        outputs: list[Any] = [None] * len(self._data.features)
        sums = []
        for batch, (logits, batch_sums) in self._results(params):
            sums.append(batch_sums)
            found = self._task.head.by_example(np.asarray(logits), batch)
            for index, output in zip(batch.examples.tolist(), found):
                outputs[index] = output
        examples, features, labelled = self._data
        task = fitted or self._task
        if self._fit:
            task = task.fitted(outputs, features, examples)
        predictions = task.predictions(outputs, features, examples)
        if not labelled:
            return Scores({}, predictions, outputs, task)
        loss = means(add_sums(jax.device_get(sums)), self._heads)["loss"]
        metrics = task.metrics(predictions, examples) | {"loss": loss}
        return Scores(metrics, predictions, outputs, task)

    def _results(self, params: Params) -> Iterator[tuple[Batch, tuple[jax.Array, Metrics]]]:
        sharding = rules.batch_sharding(self._mesh)
        for step in range(self._batches.steps_per_epoch):
            batch = self._batches.packed(step)
            rows = hosts.local_rows(sharding, len(batch.rows["input_ids"]))
            local = {name: array[rows] for name, array in batch.rows.items()}
            yield batch, self._step(params, rules.put_batch(local, self._mesh))
