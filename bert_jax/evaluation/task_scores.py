"""Scores parameters on the examples of a task."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from bert_jax.data.packing import Batch
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.model.architecture import Numerics
from bert_jax.model.model import Model
from bert_jax.model.parameters import Params
from bert_jax.model.search import Ids, write_texts
from bert_jax.objective.finetuning import FineTuning
from bert_jax.parallel import hosts, rules
from bert_jax.parallel.mesh import row_devices
from bert_jax.tasks.batches import ExampleBatches
from bert_jax.tasks.features import Features
from bert_jax.tasks.protocol import TOKEN_ACCURACY, AnyTask
from bert_jax.train.metrics import add_sums, means
from bert_jax.train.program import loader
from bert_jax.train.step import Metrics, count_positions

T = TypeVar("T")
Arrays = dict[str, jax.Array]


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
      logits: outputs of the head for each sequence of the features, or the tokens of its text.
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
        tokenizer: Tokenizer,
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
          tokenizer: vocabulary of the model.
          batch_size: examples in a batch.
          fit: whether the task takes what it fits, such as thresholds, from these examples.
        """
        self._task, self._data, self._mesh, self._fit = task, data, mesh, fit
        head, search = task.head.for_scores(), task.search
        batches = functools.partial(
            ExampleBatches,
            data.features,
            head,
            pad_id=tokenizer.pad_id,
            batch_size=batch_size,
            seed=None,
            row_multiple=row_devices(mesh),
        )
        self._batches = batches()
        objective = FineTuning(model.graphdef, head)
        self._heads = objective.heads
        load = loader(mesh, model.axes, numerics)

        def step(params: Params, batch: Arrays) -> tuple[jax.Array | None, Metrics]:
            logits = objective.logits(load(params), batch)
            sums = objective.sums_of(logits, batch) | count_positions(batch)
            return (logits if search is None else None), sums

        self._step = jax.jit(step, out_shardings=rules.replicated(mesh))
        if search is None:
            return
        ids = Ids(tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id)

        def write(params: Params, batch: Arrays) -> jax.Array:
            return write_texts(nnx.merge(model.graphdef, load(params)), batch, search, ids)

        self._sources = batches(packing=False)
        self._write = jax.jit(write, out_shardings=rules.replicated(mesh))

    def __call__(
        self, params: Params, fitted: AnyTask | None = None, *, quick: bool = False
    ) -> Scores:
        """Scores the examples: the task's metrics, then "loss"; none if labels are unknown.

        Args:
          params: parameters of the model.
          fitted: the task with what it has fitted to other examples; None for the task as it is.
          quick: write no texts, if the best model is picked without them; predictions are then
            None.
        """
        examples, features, labelled = self._data
        task = fitted or self._task
        writes = task.search is not None
        outputs: list[Any] = [None] * len(features)
        sums = []
        if labelled or not writes:
            for batch, (logits, batch_sums) in self._results(self._step, self._batches, params):
                sums.append(batch_sums)
                if logits is not None:
                    found = task.head.by_example(np.asarray(logits), batch)
                    for index, output in zip(batch.examples.tolist(), found):
                        outputs[index] = output
        line = means(add_sums(jax.device_get(sums)), self._heads) if labelled else {}
        metrics = {TOKEN_ACCURACY: line["task_accuracy"]} if writes and labelled else {}
        if quick and task.best_by == TOKEN_ACCURACY:
            return Scores(metrics | {"loss": line["loss"]}, None, outputs, task)
        if writes:
            for batch, tokens in self._results(self._write, self._sources, params):
                for index, text in zip(batch.examples.tolist(), np.asarray(tokens)[batch.row]):
                    outputs[index] = text
        if self._fit:
            task = task.fitted(outputs, features, examples)
        predictions = task.predictions(outputs, features, examples)
        if not labelled:
            return Scores({}, predictions, outputs, task)
        metrics |= task.metrics(predictions, examples) | {"loss": line["loss"]}
        return Scores(metrics, predictions, outputs, task)

    def _results(
        self, function: Callable[..., T], batches: ExampleBatches, params: Params
    ) -> Iterator[tuple[Batch, T]]:
        """Batches with what a function of parameters and arrays finds for them."""
        sharding = rules.batch_sharding(self._mesh)
        for step in range(batches.steps_per_epoch):
            batch = batches.packed(step)
            rows = hosts.local_rows(sharding, len(batch.rows["input_ids"]))
            local = {name: array[rows] for name, array in batch.rows.items()}
            yield batch, function(params, rules.put_batch(local, self._mesh))
