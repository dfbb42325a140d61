"""Training steps of configs/bert.py on rows of random words, for the benchmarks of steps."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bert_jax.api.plan import planned_step
from bert_jax.config.pretraining import PretrainConfig
from bert_jax.config.recipes import load_config
from bert_jax.data.batches import batch_shapes
from bert_jax.parallel.mesh import make_mesh

RECIPE = Path(__file__).parents[1] / "configs" / "bert.py"
PREDICTED = 0.15
Steps = Callable[[int], float]  # number of steps -> seconds


def recipe(size: str, length: int, rows: int, dtype: str) -> PretrainConfig:
    return load_config(
        PretrainConfig,
        [
            f"--config={RECIPE}:{size}",
            f"--config.data.max_seq_length={length}",
            f"--config.data.batch_size={rows}",
            "--config.data.packing=False",
            f"--config.masking.max_predictions_per_seq={round(PREDICTED * length)}",
            f"--config.numerics.compute_dtype={dtype}",
            "--config.numerics.remat=none",
            "--config.numerics.scan_layers=False",
        ],
    )


def ours(config: PretrainConfig) -> Steps:
    program = planned_step(config, make_mesh(1, 1, 1, devices=jax.devices()[:1]))
    state, key = program.init(jax.random.key(config.seed)), program.dropout_key(config.seed)
    shapes = batch_shapes(config.data)
    batch: dict[str, Any] = {name: np.zeros(shape, np.int32) for name, shape in shapes.items()}
    rows, length = batch["input_ids"].shape
    batch["input_ids"][:] = np.random.default_rng(0).integers(999, 20_000, (rows, length))
    batch["segment_ids"][:] = 1
    batch["position_ids"][:] = np.arange(length)
    batch["token_type_ids"][:, length // 2 :] = 1

    def run(steps: int) -> float:
        nonlocal state
        start = time.perf_counter()
        for _ in range(steps):
            state, metrics = program.step(state, batch, key)
        jax.block_until_ready(metrics)
        return time.perf_counter() - start

    return run
