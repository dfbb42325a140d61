"""Fine-tunes with transformers and PyTorch, on the data and hyperparameters of finetuning.py.

    python benchmarks/finetuning_peer.py WORKDIR [--tasks sst2,wnut17]

Run benchmarks/finetuning.py first: this reads the configs of its runs. It prints both sides' test
scores (mean and standard deviation over the seeds, at the best epoch on dev) and time per step.
Batches are of similar length and padded to their longest example. Classification and tagging only.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from etils import epath

from bert_jax.config.saved import read_finetune_config
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.interop.formats import read
from bert_jax.model.heads import SEQUENCE_CLASSIFIER, TOKEN_CLASSIFIER
from bert_jax.report.metrics_file import read_metrics
from bert_jax.tasks.features import Features

CLASSES = {
    SEQUENCE_CLASSIFIER: transformers.BertForSequenceClassification,
    TOKEN_CLASSIFIER: transformers.BertForTokenClassification,
}


def inputs(features: Features, examples: np.ndarray, tokenizer: Tokenizer) -> dict:
    """A batch, padded to its longest example."""
    length = max(len(features.input_ids[example]) for example in examples)
    ids = np.full((len(examples), length), tokenizer.pad_id)
    types, mask = np.zeros_like(ids), np.zeros_like(ids)
    for row, example in enumerate(examples):
        size = len(features.input_ids[example])
        ids[row, :size] = features.input_ids[example]
        types[row, features.b_start[example] : size] = 1
        mask[row, :size] = 1
    arrays = {"input_ids": ids, "token_type_ids": types, "attention_mask": mask}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def labels_of(features: Features, examples: np.ndarray) -> torch.Tensor:
    """Classes; -100, which PyTorch ignores, where there is none."""
    if not isinstance(features.labels, list):
        return torch.from_numpy(features.labels[examples]).long()
    chosen = [features.labels[example] for example in examples]
    labels = np.full((len(chosen), max(map(len, chosen))), -100)
    for row, values in enumerate(chosen):
        labels[row, : len(values)] = np.where(values < 0, -100, values)
    return torch.from_numpy(labels).long()


def batches(features: Features, size: int, rng: np.random.Generator) -> np.ndarray:
    """An epoch in random order, but sorted by length within every 50 batches.

    The loaders of transformers do the same with `group_by_length`, to save padding.
    """
    order = rng.permutation(len(features))
    lengths = np.array([len(ids) for ids in features.input_ids])
    parts = np.split(order, range(50 * size, len(order), 50 * size))
    order = np.concatenate([part[np.argsort(-lengths[part], kind="stable")] for part in parts])
    return rng.permutation(order[: len(order) // size * size].reshape(-1, size))


def train(config, source, task, data: dict) -> tuple[dict, float]:
    """Test metrics at the best epoch on dev, and the median seconds per step."""
    torch.manual_seed(config.seed)
    model = CLASSES[task.head].from_pretrained(config.init_from, num_labels=task.num_labels)
    decayed = [p for name, p in model.named_parameters() if p.ndim > 1]
    plain = [p for name, p in model.named_parameters() if p.ndim <= 1]
    settings = config.optimizer
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": settings.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ],
        betas=(settings.b1, settings.b2),
        eps=settings.eps,
    )
    _, features = data["train"]
    steps_per_epoch = len(features) // config.batch_size
    steps = round(config.epochs * steps_per_epoch)
    warmup = round(config.warmup_share * steps)
    best, result, seconds = -np.inf, {}, []
    for step in range(steps):
        epoch, index = divmod(step, steps_per_epoch)
        if index == 0:
            rng = np.random.default_rng((config.seed, epoch))
            groups = batches(features, config.batch_size, rng)
        chosen = groups[index]
        started = time.perf_counter()
        model.train()
        rate = settings.learning_rate * (step / warmup if step < warmup else 1 - step / steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = model(
            **inputs(features, chosen, source.tokenizer), labels=labels_of(features, chosen)
        ).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        optimizer.step()
        seconds.append(time.perf_counter() - started)
        if index == steps_per_epoch - 1:
            dev = score(model, task, data["dev"], source.tokenizer)
            print(f"seed {config.seed} epoch {epoch + 1}: {dev}", flush=True)
            if next(iter(dev.values())) > best:
                best = next(iter(dev.values()))
                result = score(model, task, data["test"], source.tokenizer)
    return result, statistics.median(seconds)


@torch.inference_mode()
def score(model, task, split: tuple, tokenizer: Tokenizer) -> dict:
    examples, features = split
    model.eval()
    logits = []
    for first in range(0, len(features), 64):
        chosen = np.arange(first, min(first + 64, len(features)))
        found = model(**inputs(features, chosen, tokenizer)).logits.numpy()
        for row, example in enumerate(chosen):
            size = len(features.input_ids[example])
            logits.append(found[row] if found.ndim == 2 else found[row, :size])
    return task.metrics(task.predictions(logits, features, examples), examples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("workdir")
    parser.add_argument("--tasks", default="sst2,wnut17")
    arguments = parser.parse_args()
    for name in arguments.tasks.split(","):
        runs = sorted((Path(arguments.workdir) / name / "trained").glob("seed*"))
        peers, ours, times, our_times = [], [], [], []
        for run in runs:
            config = read_finetune_config(epath.Path(run) / "config.json")
            source = read(config.init_from)
            task = config.task.with_labels(read(run).labels)
            data = {}
            for split in ("train", "dev", "test"):
                examples = task.read(getattr(task, split))
                data[split] = (
                    examples,
                    task.features(examples, source.tokenizer, task.max_seq_length),
                )
            metrics, seconds = train(config, source, task, data)
            print(f"{name} seed {config.seed}, test: {metrics}", flush=True)
            peers.append(metrics)
            times.append(seconds)
            ours.append(json.loads((run / "results.json").read_text())["test"]["metrics"])
            lines = [x for x in read_metrics(epath.Path(run)) if x["split"] == "train"]
            our_times += [1 / x["steps_per_second"] for x in lines[1:]]  # the first compiles
        for metric in peers[0]:
            cells = [
                f"{100 * np.mean(values):.1f} ± {100 * np.std(values, ddof=1):.1f}"
                for values in ([run[metric] for run in side] for side in (ours, peers))
            ]
            print(f"| {name} | {metric} | {' | '.join(cells)} |", flush=True)
        ms = [1000 * statistics.median(side) for side in (our_times, times)]
        print(f"| {name} | ms per step | {ms[0]:.0f} | {ms[1]:.0f} |", flush=True)


if __name__ == "__main__":
    main()
