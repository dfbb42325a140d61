"""Scores parameters on the examples of a task."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from bert_jax.config import ModelConfig
from bert_jax.objective.finetuning import FineTuning
from bert_jax.parallel import hosts, rules
from bert_jax.tasks.batches import ExampleBatches
from bert_jax.tasks.features import Features
from bert_jax.tasks.protocol import AnyTask
from bert_jax.train.build import load_params, put_batch
from bert_jax.train.metrics import add_sums, means
from bert_jax.train.state import Params
from bert_jax.train.step import count_positions


class Examples(NamedTuple):
    """Examples of a task, what they become for the model, and whether their labels are known."""

    examples: list[Any]
    features: Features
    labelled: bool


class Scores(NamedTuple):
    """Loss and metrics of a split, and the predictions that they are of."""

    metrics: dict[str, float]
    predictions: Any


class Scoring:
    """Runs a model on fixed examples, in their order."""

    def __init__(
        self,
        task: AnyTask,
        data: Examples,
        objective: FineTuning,
        model: ModelConfig,
        mesh: Mesh,
        *,
        pad_id: int,
        batch_size: int,
    ):
        """Compiles at the first call.

        Args:
          task: whose metrics.
          data: what to score on.
          objective: of the training.
          model: of the parameters.
          mesh: where to compute.
          pad_id: id of [PAD].
          batch_size: examples at a time.
        """
        self._task, self._data, self._mesh = task, data, mesh
        devices = mesh.shape["data"] * mesh.shape["fsdp"]
        self._batches = ExampleBatches(
            data.features, pad_id=pad_id, batch_size=batch_size, seed=None, row_multiple=devices
        )
        load = load_params(model, mesh)

        def step(params: Params, batch: dict[str, jax.Array]) -> tuple[jax.Array, dict]:
            logits = objective.logits(load(params), batch)
            return logits, objective.sums_of(logits, batch) | count_positions(batch)

        self._step = jax.jit(step, out_shardings=rules.replicated(mesh))

    def __call__(self, params: Params) -> Scores:
        """The metrics are the task's own, then "loss"; none of them where no label is known."""
        logits: list[Any] = [None] * len(self._data.features)
        sums = []
        for batch, (batch_logits, batch_sums) in self._results(params):
            sums.append(batch_sums)
            for index, found in _by_example(batch, np.asarray(batch_logits)):
                logits[index] = found
        examples, features, labelled = self._data
        predictions = self._task.predictions(logits, features, examples)
        if not labelled:
            return Scores({}, predictions)
        loss = means(add_sums(jax.device_get(sums)), FineTuning.heads)["loss"]
        return Scores(self._task.metrics(predictions, examples) | {"loss": loss}, predictions)

    def _results(self, params: Params) -> Iterable[Any]:
        sharding = rules.batch_sharding(self._mesh)
        for step in range(self._batches.steps_per_epoch):
            batch = self._batches.batch(step)
            rows = hosts.local_rows(sharding, len(batch["input_ids"]))
            local = put_batch({name: array[rows] for name, array in batch.items()}, self._mesh)
            yield batch, self._step(params, local)


def _by_example(batch: dict[str, np.ndarray], logits: np.ndarray) -> Iterable[tuple[int, Any]]:
    """(index, logits) of each example of a batch: [classes], or [length, classes] of tokens."""
    of_tokens = logits.shape[1] == batch["segment_ids"].shape[1]
    for row, example in np.argwhere(batch["example_ids"] >= 0):
        found = batch["segment_ids"][row] == example + 1 if of_tokens else example
        yield int(batch["example_ids"][row, example]), logits[row, found]
