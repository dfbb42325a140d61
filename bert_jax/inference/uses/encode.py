"""Vectors of texts, and the attention between their tokens."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from bert_jax.data.packing import Batch, Example
from bert_jax.errors import UserError
from bert_jax.inference import programs
from bert_jax.inference.choices import POOLINGS
from bert_jax.inference.runner import Runner
from bert_jax.inference.texts import Text, checked


def encode(
    runner: Runner, texts: Iterable[Text], pooling: str | None, layers: Sequence[int]
) -> Iterator[np.ndarray]:
    """fp32 [layers, hidden_size] of each text, or [tokens, layers, hidden_size] for "tokens".

    See `TrainedBert.encode`.
    """
    normalize, settings = False, runner.model.vectors
    if pooling is None and settings is not None:
        pooling, normalize = settings.pooling, settings.normalize
        if pooling not in POOLINGS:
            raise UserError(
                f"the model's own pooling is {pooling}, which is not available: choose a "
                f"pooling, one of {', '.join(POOLINGS)}"
            )
    pooling = pooling or "mean"
    chosen = _layers(runner, layers)
    if pooling not in POOLINGS:
        raise UserError(f"pooling={pooling!r}: use one of {', '.join(POOLINGS)}")
    options: dict[str, Any] = {"layers": chosen}
    if pooling == "pooled":
        runner.require("pooler")
        if chosen != (runner.architecture.num_layers,):
            raise UserError("pooling='pooled' takes only the last layer: leave layers at -1")
        options["pooling"] = runner.architecture.pooling
    program = runner.program(programs.VECTORS[pooling], *options)

    def start(batch: Batch) -> jax.Array:
        return program(runner.params, runner.devices.put(batch), **options)

    def finish(batch: Batch, found: np.ndarray) -> Iterable[np.ndarray]:
        if pooling == "tokens":
            return [found[r, i:j] for r, i, j in zip(batch.row, batch.start, batch.stop)]
        vectors = found[batch.row, batch.slot]
        if normalize:
            norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
            vectors = vectors / np.maximum(norms, 1e-12)
        return vectors

    examples = runner.tokenized(checked(texts), encoded_tokens(runner))
    return runner.devices.run(examples, start, finish)


def tokens_of(runner: Runner, text: Text) -> Example:
    """A text or pair as `encode` takes it."""
    return runner.tokenize(text, encoded_tokens(runner))[0]


def attention(runner: Runner, text: Text) -> np.ndarray:
    """fp32 [num_layers, heads, query, key] of a text or pair."""
    examples = runner.tokenized(checked([text]), encoded_tokens(runner))
    (batch,) = runner.devices.batches([*examples])
    found = runner.program(programs.attention)(runner.params, runner.devices.put(batch))
    (row,), (length,) = batch.row, batch.stop
    return jax.device_get(found[:, row])[..., :length, :length]


def encoded_tokens(runner: Runner) -> int:
    """Tokens of a text that `encode` uses."""
    settings = runner.model.vectors
    return min(runner.limit, (settings and settings.max_seq_length) or runner.limit)


def _layers(runner: Runner, layers: Sequence[int]) -> tuple[int, ...]:
    """The layers, counted from 0."""
    count = runner.architecture.num_layers + 1
    if wrong := [layer for layer in layers if not -count <= layer < count]:
        raise UserError(f"layer {wrong[0]}: there are 0 (embeddings) to {count - 1}")
    return tuple(layer % count for layer in layers)
