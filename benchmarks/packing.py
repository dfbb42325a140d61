"""Measures padding and real tokens per second with and without packing.

    python benchmarks/packing.py STORE [--config.FIELD=VALUE ...]

Trains a few steps of configs/bert.py:tiny on the same documents, unpacked and packed, at 128 and
512 tokens per row, with the same number of positions per step, and prints the share of padding,
both rates and their ratio. The two alternate several times and the median is taken, so that drift
of the machine's speed favours neither.
"""

import statistics
import sys
import tempfile
from pathlib import Path

from etils import epath

from bert_jax.api.pretrain import pretrain
from bert_jax.config.pretraining import PretrainConfig
from bert_jax.config.recipes import load_config
from bert_jax.data.stores import open_store
from bert_jax.report.metrics_file import read_metrics

RECIPE = Path(__file__).parents[1] / "configs" / "bert.py"
ROUNDS, STEPS, LOG_EVERY = 2, 40, 10


def measure(store: str, length: int, packing: bool, overrides: list[str]) -> tuple[float, float]:
    """Padding share and median real tokens/s of the steps after compilation."""
    config = load_config(
        PretrainConfig,
        [
            f"--config={RECIPE}:tiny",
            f"--config.data.store={store}",
            f"--config.model.vocab_size={len(open_store(store).tokenizer.vocab)}",
            f"--config.data.max_seq_length={length}",
            f"--config.data.batch_size={4096 // length}",
            f"--config.data.packing={packing}",
            "--config.numerics.compute_dtype=float32",
            f"--config.steps={STEPS}",
            f"--config.log_every={LOG_EVERY}",
            "--config.eval_batches=1",
            *overrides,
        ],
    )
    with tempfile.TemporaryDirectory() as workdir:
        pretrain(config, epath.Path(workdir) / "run")
        lines = [x for x in read_metrics(Path(workdir) / "run") if x["split"] == "train"][1:]
    tokens = statistics.median(line["tokens_per_second"] for line in lines)
    return statistics.mean(line["padding"] for line in lines), tokens


def main(store: str, *overrides: str) -> None:
    rows = []
    for length in (128, 512):
        results = {False: [], True: []}
        for _ in range(ROUNDS):
            for packing in results:
                results[packing].append(measure(store, length, packing, list(overrides)))
        (padding, tokens), (packed_padding, packed_tokens) = (
            map(statistics.median, zip(*results[packing])) for packing in (False, True)
        )
        rows.append(
            f"{length:>6} {padding:>10.1%} {packed_padding:>8.1%} {tokens:>18,.0f} "
            f"{packed_tokens:>8,.0f} {packed_tokens / tokens:>7.2f}"
        )
    print("        padding           real tokens/s")
    print("length   unpacked   packed          unpacked   packed   ratio", *rows, sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
