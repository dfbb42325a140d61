"""Measures pretraining steps on a GPU beside transformers in PyTorch, same shapes, in one run.

    python benchmarks/gpu.py [--sizes base,large] [--lengths 128,512] [--peak-tflops 989]

Both compute in bf16 (PyTorch by autocast), with dropout, AdamW and full rows of random tokens with
a sentence pair each. PyTorch has scaled_dot_product_attention, a fused optimizer and torch.compile;
it computes logits at all positions, as BertForPreTraining does, and this code at those to predict.
The two take turns, and ratios are those of neighbouring turns, so that drift of the machine's speed
favours neither. `--sizes mini --dtype float32` tries it on a CPU.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs memory, too

import jax
import numpy as np
import torch
import transformers
from training_step import PREDICTED, Steps, ours, recipe

from bert_jax.config.pretraining import PretrainConfig
from bert_jax.pretraining.stages import flops_per_row

TOKENS = 32_768  # of a step on a GPU


def theirs(config: PretrainConfig) -> Steps:
    device, size = "cuda" if torch.cuda.is_available() else "cpu", config.model
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    model = transformers.BertForPreTraining._from_config(
        transformers.BertConfig(
            vocab_size=size.vocab_size,
            hidden_size=size.hidden_size,
            num_hidden_layers=size.num_layers,
            num_attention_heads=size.num_heads,
            intermediate_size=size.intermediate_size,
        ),
        attn_implementation="sdpa",
    ).to(device)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device == "cuda")
    rows, length = config.data.batch_size, config.data.max_seq_length
    random = np.random.default_rng(0)
    ids = random.integers(999, 20_000, (rows, length))
    labels = np.where(random.random((rows, length)) < PREDICTED, ids, -100)
    types = np.zeros((rows, length), np.int64)
    types[:, length // 2 :] = 1
    batch = {
        name: torch.from_numpy(array).to(device)
        for name, array in {
            "input_ids": ids,
            "token_type_ids": types,
            "labels": labels,
            "next_sentence_label": random.integers(0, 2, rows),
        }.items()
    }
    dtype = getattr(torch, config.numerics.compute_dtype)

    def step() -> None:
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    compiled = torch.compile(step) if device == "cuda" else step

    def run(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            compiled()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return run


def peak_gib() -> tuple[float, float]:
    """Peak memory of each, GiB; 0 where it is not known."""
    stats = jax.devices()[0].memory_stats() or {}
    other = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return stats.get("peak_bytes_in_use", 0) / 2**30, other / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="base,large", help="of configs/bert.py")
    parser.add_argument("--lengths", default="128,512", help="tokens of a row")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of a step")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--steps", type=int, default=20, help="of a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--peak-tflops", type=float, default=0, help="of the device, for MFU")
    arguments = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}; jax {jax.__version__}, torch {torch.__version__}")
    print("| size | rows | bert_jax, tokens/s | transformers | ratio | MFU | peak GiB, so far |")
    print("|---|---|---|---|---|---|---|")
    for size in arguments.sizes.split(","):
        for length in map(int, arguments.lengths.split(",")):
            config = recipe(size, length, arguments.tokens // length, arguments.dtype)
            tokens = arguments.steps * config.data.batch_size * length
            runs = ours(config), theirs(config)
            for run in runs:
                run(3)  # compiles
            seconds = [[run(arguments.steps) for run in runs] for _ in range(arguments.turns)]
            own, other = map(statistics.median, zip(*seconds))
            ratio = statistics.median(there / here for here, there in seconds)
            flops = flops_per_row(config) * config.data.batch_size * arguments.steps / own
            peak = arguments.peak_tflops * 1e12
            mfu = f"{flops / peak:.1%}" if peak else "-"
            memory = " / ".join(f"{each:.1f}" for each in peak_gib())
            shape = f"{config.data.batch_size} x {length}"
            print(
                f"| {size} | {shape} | {tokens / own:,.0f} | {tokens / other:,.0f} "
                f"| {ratio:.2f} | {mfu} | {memory} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
