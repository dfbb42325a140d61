"""Measures tokens per second of a small ModernBERT in rows of 1,024 and of 8,192 tokens.

    python benchmarks/long_rows.py

Trains configs/ettin.py:17m in fp32 on random tokens, 8,192 of them a step: in rows of 1,024 tokens,
in one row that is one example, and in one row of examples of 1,024 tokens. They alternate, and
ratios are those of neighbouring steps, so that drift of the machine's speed favours none.
"""

import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bert_jax.api.plan import planned_step
from bert_jax.config.pretraining import PretrainConfig
from bert_jax.config.recipes import load_config
from bert_jax.data.batches import batch_shapes
from bert_jax.parallel.mesh import make_mesh

RECIPE = Path(__file__).parents[1] / "configs" / "ettin.py"
TOKENS, ROUNDS = 8_192, 5
KINDS = {  # tokens of a row, of an example
    "rows of 1,024 tokens": (1_024, 1_024),
    "rows of 8,192 tokens, one example": (8_192, 8_192),
    "rows of 8,192 tokens, eight examples": (8_192, 1_024),
}


class Run:
    """A training run whose steps are called one by one."""

    def __init__(self, length: int, example: int):
        first, second, _ = load_config(
            PretrainConfig,
            [
                f"--config={RECIPE}:17m",
                "--config.model.vocab_size=8192",
                "--config.numerics.compute_dtype=float32",
                "--config.rng=threefry",
                *(
                    f"--config.phases[{phase}].data.{field}={value}"
                    for phase, rows in enumerate((1_024, 8_192))
                    for field, value in (("batch_size", TOKENS // rows), ("packing", False))
                ),
            ],
        ).stages()
        config = (first if length == 1_024 else second).config
        assert config.data.max_seq_length == length
        program = planned_step(config, make_mesh(1, 1, 1))
        self.step, self.state = program.step, program.init(jax.random.key(0))
        self.key = program.dropout_key(0)
        self.batch: dict[str, Any] = {
            name: np.zeros(shape, np.int32) for name, shape in batch_shapes(config.data).items()
        }
        ids = self.batch["input_ids"]
        ids[:] = np.random.default_rng(0).integers(5, 8_192, ids.shape)
        self.batch["position_ids"][:] = np.arange(length) % example
        self.batch["segment_ids"][:] = np.arange(length) // example + 1

    def seconds(self) -> float:
        """Seconds of one step."""
        start = time.monotonic()
        self.state, metrics = self.step(self.state, self.batch, self.key)
        jax.block_until_ready((self.state, metrics))
        return time.monotonic() - start


def main() -> None:
    runs = [Run(*kind) for kind in KINDS.values()]
    for run in runs:
        run.seconds()  # compiles
    times = [[run.seconds() for run in runs] for _ in range(ROUNDS)]
    for index, (name, seconds) in enumerate(zip(KINDS, zip(*times))):
        ratios = sorted(round_[0] / round_[index] for round_ in times)
        print(
            f"{name:<36} {TOKENS / statistics.median(seconds):>8,.0f} tokens/s  "
            f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


if __name__ == "__main__":
    main()
