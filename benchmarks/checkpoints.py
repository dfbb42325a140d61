"""Measures what the checksums of a checkpoint cost, as a share of its save and of its restore.

    python benchmarks/checkpoints.py [SIZE]

Makes the training state of configs/bert.py:SIZE with AdamW (default: small, 29 M parameters),
saves it and reads it back several times, and prints what takes how long: the checksums alone; the
start of a save, for which training waits; the whole save, to the last byte; the whole restore.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
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
    times: dict[str, list[float]] = {"checksums": [], "start": [], "save": [], "restore": []}
    with tempfile.TemporaryDirectory() as workdir, Checkpoints(workdir) as checkpoints:
        for step in range(ROUNDS + 1):
            found = {"checksums": seconds(lambda: summarize(state))}
            found["start"] = seconds(partial(checkpoints.save, step, state, {}))
            found["save"] = found["start"] + seconds(checkpoints.finished_steps)
            found["restore"] = seconds(lambda: checkpoints.restore(program.abstract_state)[0])
            for name in times if step else ():  # the first round compiles
                times[name].append(found[name])
    size_mb = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e6
    checksums, start, save, restore = (statistics.median(values) for values in times.values())
    print(f"state of {size_mb:,.0f} MB, medians of {ROUNDS} rounds")
    print(f"checksums {checksums:.3f} s, on their own")
    print(f"save      {save:.3f} s; training waits {start:.3f} s")
    print(f"restore   {restore:.3f} s, {checksums / restore:.0%} of it checksums")


if __name__ == "__main__":
    main(*sys.argv[1:])
