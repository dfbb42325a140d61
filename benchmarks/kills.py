"""Kills a run over a mixture at random moments, again and again, and compares it with a whole one.

    python benchmarks/kills.py [--kills 50] [--processes 1 2 4] [--steps 120] [OVERRIDES]

Three stores, one of them in shards, with weights that change, batches that grow and two phases. All
processes of the run get SIGKILL a random time after a start has trained its first step. In the end
its metrics and every array of its state must be those of a run that nobody killed, bit for bit.
OVERRIDES such as --config.optimizer=muon change the run.
"""

import argparse
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from etils import epath

from bert_jax.data.documents import find_sources, read_documents
from bert_jax.data.store_writer import write_store
from bert_jax.data.wordpiece import train_wordpiece

DEVICES = 4
TIMES = ("tokens_per_second", "sequences_per_second", "steps_per_second", "input_stall")
RECIPE = """
from bert import get_config as bert
from ml_collections import ConfigDict

def get_config():
    config = bert("tiny")
    config.steps = {steps}
    config.log_every, config.eval_every, config.checkpoint_every = 1, 40, 3
    config.eval_batches = 1
    config.model.vocab_size = 1000
    config.model.hidden_size, config.model.intermediate_size = 32, 64
    config.optimizer.warmup_steps = 0
    config.data.batch_size, config.data.max_seq_length = 32, 64
    stores = [f"{folder}/{{name}}" for name in ("long", "notes", "few")]
    weights = ((0.6, 0.3, 0.1), (0.2, 0.3, 0.5))
    first, second = (
        tuple({{"store": store, "weight": weight}} for store, weight in zip(stores, each))
        for each in weights
    )
    config.phases = (
        ConfigDict({{"steps": {half}, "data": {{"mixture": first, "start_batch_size": 8,
                                              "growth_steps": {half} // 2, "growth_rows": 24}}}}),
        ConfigDict({{"steps": {steps} - {half}, "data": {{"mixture": second, "temperature": 0.3,
                                                        "batch_size": 16}}}}),
    )
    return config
"""


def prepare(folder):
    texts = list(read_documents(find_sources(["corpus:sotu"])))[:75]
    tokenizer = train_wordpiece(texts, vocab_size=1000)
    kinds = {
        "long": [text[:20_000] for text in texts[:40]],
        "notes": [text[i : i + 300] for text in texts[40:60] for i in range(0, 6000, 300)],
        "few": [text[:4000] for text in texts[60:75]],
    }
    for name, documents in kinds.items():
        write_store(
            folder / name, documents, tokenizer,
            heldout_bound=0.2, provenance={}, shard_tokens=20_000,
        )  # fmt: skip


def start(folder, workdir, count, overrides):
    """The processes of a run."""
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={DEVICES // count}"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{flags} --xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    command = [sys.executable, "-m", "bert_jax", "pretrain", f"--config={folder / 'mixed.py'}"]
    command += [f"--workdir={workdir}", *overrides]
    together = [f"--coordinator=127.0.0.1:{port}", f"--num-processes={count}"]
    return [
        subprocess.Popen(
            [*command, *(together if count > 1 else ())]
            + ([f"--process-id={number}", "--heartbeat-timeout=30"] if count > 1 else []),
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=(folder / "errors.txt").open("a"),
        )
        for number in range(count)
    ]


def lines(workdir):
    file = workdir / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def last_step(workdir):
    try:
        return max((line["step"] for line in lines(workdir)), default=0)
    except ValueError:  # a line that is being written
        return -1


def killed_run(folder, workdir, count, overrides, kills, chance):
    """How often the run was killed until it was over."""
    for killed in range(kills + 1):
        before, processes = last_step(workdir), start(folder, workdir, count, overrides)
        if killed < kills:
            while last_step(workdir) <= before and any(p.poll() is None for p in processes):
                time.sleep(0.02)
            time.sleep(chance.expovariate(2.0))
            for process in processes:
                process.kill()
        codes = [process.wait() for process in processes]
        if killed == kills or not any(codes):
            assert not any(codes), (folder / "errors.txt").read_text()[-2000:]
            return killed
    raise AssertionError


def saved_arrays(workdir, step):
    """The shape, type and checksum of every array of the state; reading the state compares them."""
    from bert_jax.train.checkpoints import Checkpoints

    with Checkpoints(epath.Path(workdir), read_only=True) as checkpoints:
        checkpoints.read_params(step, "trained")
    return json.loads((workdir / "checkpoints" / str(step) / "progress" / "metadata").read_text())


def is_same(left, right, step):
    metrics = [
        [{name: x for name, x in line.items() if name not in TIMES} for line in lines(each)]
        for each in (left, right)
    ]
    return metrics[0] == metrics[1] and saved_arrays(left, step) == saved_arrays(right, step)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=120)
    arguments, overrides = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        halves = {"steps": arguments.steps, "half": arguments.steps // 2, "folder": folder}
        (folder / "mixed.py").write_text(RECIPE.format(**halves))
        for count in arguments.processes:
            began = time.monotonic()
            whole, workdir = folder / f"whole{count}", folder / f"killed{count}"
            killed_run(folder, whole, count, overrides, 0, random.Random(0))
            chance = random.Random(count)
            done = killed_run(folder, workdir, count, overrides, arguments.kills, chance)
            result = "equal" if is_same(whole, workdir, arguments.steps) else "DIFFERENT"
            minutes = (time.monotonic() - began) / 60
            times = f"killed {done} times: {result} ({minutes:.0f} min)"
            print(f"{count} processes, {times}", flush=True)
            shutil.rmtree(workdir)


if __name__ == "__main__":
    main()
