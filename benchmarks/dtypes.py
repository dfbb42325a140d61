"""Compares training steps in bf16 and in fp32 on this machine.

    python benchmarks/dtypes.py [--size mini] [--length 128] [--rows 8] [--rounds 6]

Both take the same rows, in turns; the ratio of each round is that of their times.
"""

import argparse
import statistics

import jax
from training_step import ours, recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="mini", help="of configs/bert.py")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=6)
    given = parser.parse_args()
    steps = {
        dtype: ours(recipe(given.size, given.length, given.rows, dtype))
        for dtype in ("float32", "bfloat16")
    }
    for run in steps.values():
        run(1)  # compiles
    rounds = [{dtype: run(3) / 3 for dtype, run in steps.items()} for _ in range(given.rounds)]
    ratios = sorted(each["bfloat16"] / each["float32"] for each in rounds)
    milliseconds = statistics.median(each["float32"] for each in rounds) * 1e3
    print(
        f"jax {jax.__version__}, {jax.devices()[0].device_kind}: a step in fp32 takes "
        f"{milliseconds:.0f} ms, in bf16 {statistics.median(ratios):.2f} times as long "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
    )


if __name__ == "__main__":
    main()
