"""Texts that a decoder writes."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator

import jax
import numpy as np

from bert_jax.data.packing import Batch
from bert_jax.fields import build, to_plain
from bert_jax.inference import programs
from bert_jax.inference.fine_tuned import task_as
from bert_jax.inference.runner import Runner
from bert_jax.inference.texts import checked
from bert_jax.model.heads import CROSS_ATTENTION
from bert_jax.model.search import Search
from bert_jax.tasks import GenerationTask
from bert_jax.tasks.generation.features import text_of


def generate(
    runner: Runner, texts: Iterable[str], max_seq_length: int | None, **search: float | None
) -> Iterator[str]:
    """A text for each one; see `TrainedBert.generate`."""
    runner.require(CROSS_ATTENTION)
    task = task_as(runner.model, GenerationTask, max_seq_length=max_seq_length)
    given = {name: value for name, value in search.items() if value is not None}
    chosen = build(Search, to_plain(task.search) | given, "search")
    dataclasses.replace(task, search=chosen).check_positions("task", runner.architecture)
    write = runner.program(programs.write, "mesh", "search")

    def start(batch: Batch) -> jax.Array:
        rows = runner.devices.put(batch)
        return write(runner.params, rows, mesh=runner.devices.mesh, search=chosen)

    def finish(batch: Batch, tokens: np.ndarray) -> Iterable[str]:
        return [text_of(tokens[row].tolist(), runner.tokenizer) for row in batch.row]

    pack = functools.partial(runner.devices.batches, packing=False)
    examples = runner.tokenized(checked(texts, pair=False), runner.task_limit(task))
    return runner.devices.run_packed(examples, pack, start, finish)
