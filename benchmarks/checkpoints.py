"""Measures what the checksums of a checkpoint cost, as a share of its save and of its restore.

    python benchmarks/checkpoints.py [SIZE]

Makes the training state of configs/bert.py:SIZE with AdamW (default: small, 29 M parameters),
saves it and reads it back several times, and prints the time of the checksums beside that of the
whole save, from its start to the last byte, and of the whole restore. Training waits for the
checksums; the rest of a save runs beside it.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax

from bert_jax.api.plan import planned_step
from bert_jax.config.pretraining import PretrainConfig
from bert_jax.config.recipes import load_config
from bert_jax.train.checkpoints import Checkpoints
from bert_jax.train.checksums import summarize

RECIPE = Path(__file__).parents[1] / "configs" / "bert.py"
ROUNDS = 5


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(action())
    return time.perf_counter() - start


def main(size: str = "small") -> None:
    config = load_config(PretrainConfig, [f"--config={RECIPE}:{size}"])
    program = planned_step(config, config.mesh.mesh())
    state = jax.tree.map(
        lambda x: jax.device_put(jax.numpy.ones(x.shape, x.dtype), x.sharding),
        program.abstract_state,
    )
    times: dict[str, list[float]] = {"checksums": [], "save": [], "restore": []}
    with tempfile.TemporaryDirectory() as workdir, Checkpoints(workdir) as checkpoints:
        for step in range(ROUNDS + 1):

            def save(step: int = step) -> list[int]:
                checkpoints.save(step, state, {})
                return checkpoints.finished_steps()

            found = {
                "checksums": seconds(lambda: summarize(state)),
                "save": seconds(save),
                "restore": seconds(lambda: checkpoints.restore(program.abstract_state)[0]),
            }
            for name in times if step else ():  # the first round compiles
                times[name].append(found[name])
    size_mb = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e6
    checksums, save, restore = (statistics.median(values) for values in times.values())
    print(f"state of {size_mb:,.0f} MB, medians of {ROUNDS} rounds")
    print(f"checksums {checksums:.3f} s")
    print(f"save      {save:.3f} s, {checksums / save:.0%} of it checksums")
    print(f"restore   {restore:.3f} s, {checksums / restore:.0%} of it checksums")


if __name__ == "__main__":
    main(*sys.argv[1:])
