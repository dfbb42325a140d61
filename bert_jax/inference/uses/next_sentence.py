"""Whether one text follows another."""

from collections.abc import Iterable, Iterator

import jax
import numpy as np

from bert_jax.data.packing import Batch
from bert_jax.inference import programs
from bert_jax.inference.runner import Runner
from bert_jax.inference.texts import checked
from bert_jax.model.heads import NEXT_SENTENCE


def next_sentence(runner: Runner, pairs: Iterable[tuple[str, str]]) -> Iterator[float]:
    """The probability that B follows A; see `TrainedBert.next_sentence`."""
    runner.require(*NEXT_SENTENCE.parts(runner.architecture))
    program = runner.program(programs.follows, "architecture")

    def start(batch: Batch) -> jax.Array:
        rows = runner.devices.put(batch)
        return program(runner.params, rows, architecture=runner.architecture)

    def finish(batch: Batch, found: np.ndarray) -> Iterable[float]:
        return found[batch.row, batch.slot].tolist()

    examples = runner.tokenized(checked(pairs, text=False), runner.limit)
    return runner.devices.run(examples, start, finish)
