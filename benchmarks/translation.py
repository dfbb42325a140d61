"""Prints scores of translation from trained and from random weights, over seeds.

    python benchmarks/translation.py DATA WORKDIR [--model MODEL] [--seeds 3] [OVERRIDES]

DATA holds Multi30k (Elliott et al. 2016, https://arxiv.org/abs/1605.00459) as train.en.gz,
train.de.gz, val.*.gz and test_2016_flickr.*.gz, a sentence a line; English is translated into
German. --model is what `config.init_from` takes; its vocabulary should have the letters of both.
Without it, a small encoder is pretrained first on the training pairs: a document is a sentence and
its translation, in both orders, so masks are filled from either language (translation language
modelling, Conneau and Lample 2019, https://arxiv.org/abs/1901.07291). --examples takes the first N
pairs of each split. OVERRIDES such as --config.epochs=20 apply to all fine-tuning. Finished runs
are not repeated. The table is Markdown: BLEU, chrF, the accuracy of the next token and the loss on
the test split at the best step on dev, as mean and standard deviation over the seeds, and the
scores of the source itself.
"""

import argparse
import gzip
import json
import sys
from pathlib import Path

from bert_jax.__main__ import main as bert_jax

CONFIGS = Path(__file__).parents[1] / "configs"
SPLITS = {"train": "train", "dev": "val", "test": "test_2016_flickr"}
PRETRAINING = {
    "steps": 8_000,
    "model.vocab_size": 6_000,
    "model.num_layers": 3,
    "data.pairs": "none",
    "data.packing": True,
    "data.short_seq_prob": 0.0,
    "data.max_seq_length": 64,
    "data.batch_size": 32,
    "masking.max_predictions_per_seq": 20,
}
FIELDS = {
    "epochs": 5.0,
    "optimizer.learning_rate": 3e-3,
    "batch_size": 64,
    "numerics.compute_dtype": "float32",
    "task.max_seq_length": 64,
    "task.search.max_length": 64,
    "task.search.beams": 5,
}


def read_pairs(arguments: argparse.Namespace, split: str) -> list[tuple[str, str]]:
    """The English and German sentences of a split."""
    sides = []
    for language in ("en", "de"):
        path = Path(arguments.data) / f"{SPLITS[split]}.{language}.gz"
        with gzip.open(path, "rt", encoding="utf-8") as file:
            sides.append(file.read().rstrip("\n").split("\n")[: arguments.examples])
    return list(zip(*sides, strict=True))


def write_pairs(arguments: argparse.Namespace, split: str) -> str:
    """Path of a JSONL file with the pairs of a split."""
    path = Path(arguments.workdir) / f"{split}.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for source, target in read_pairs(arguments, split):
            file.write(json.dumps({"source": source, "target": target}) + "\n")
    return str(path)


def command(*arguments: str) -> None:
    """Runs a verb; ends the script if it fails."""
    if bert_jax(list(arguments)):
        sys.exit(f"failed: {' '.join(arguments)}")


def pretrain(arguments: argparse.Namespace) -> str:
    """Path of an encoder of both languages; goes on with an interrupted run."""
    workdir = Path(arguments.workdir)
    text, store = workdir / "pairs.txt", workdir / "store"
    with text.open("w", encoding="utf-8") as file:
        for pair in read_pairs(arguments, "train"):
            for first, second in (pair, pair[::-1]):
                file.write(f"{first}\n{second}\n\n")
    size = f"--vocab-size={PRETRAINING['model.vocab_size']}"
    command("prepare", str(text), "--tokenizer=bpe", size, f"--output={store}")
    run = str(workdir / "encoder")
    fields = {"data.store": str(store), **PRETRAINING}
    overrides = [f"--config.{field}={value}" for field, value in fields.items()]
    config = f"--config={CONFIGS / 'quickstart.py'}:modern"
    command("pretrain", config, f"--workdir={run}", *overrides)
    return run


def run(arguments: argparse.Namespace, arm: str, changes: dict) -> dict:
    """The results of all seeds; trains unless they exist."""
    runs = Path(arguments.workdir) / arm
    if not (runs / "results.json").exists():
        fields = {
            "init_from": arguments.model,
            "seeds": arguments.seeds,
            **{f"task.{x}": write_pairs(arguments, x) for x in SPLITS},
            **FIELDS,
            **changes,
        }
        overrides = [f"--config.{field}={value}" for field, value in fields.items()]
        config = f"--config={CONFIGS / 'finetune.py'}:generation"
        command("finetune", config, f"--workdir={runs}", *overrides, *arguments.overrides)
    return json.loads((runs / "results.json").read_text())["test"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data")
    parser.add_argument("workdir")
    parser.add_argument("--model")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--examples", type=int)
    arguments, arguments.overrides = parser.parse_known_args()
    if arguments.seeds < 2:
        parser.error("--seeds: must be at least 2, for a standard deviation")
    Path(arguments.workdir).mkdir(parents=True, exist_ok=True)
    arguments.model = arguments.model or pretrain(arguments)
    trained = run(arguments, "trained", {})
    random = run(arguments, "random", {"random_weights": True})
    first = Path(arguments.workdir) / "trained" / "seed0" / "results.json"
    baseline = json.loads(first.read_text())["test"]["baseline"]
    print("| metric | the source | random weights | trained weights |\n|---|---|---|---|")
    for metric, scale in (("bleu", 1), ("chrf", 1), ("token_accuracy", 100), ("loss", 1)):
        guess = f"{baseline[metric]:.1f}" if metric in baseline else ""
        cells = [
            f"{scale * of[metric]['mean']:.2f} ± {scale * of[metric]['std']:.2f}"
            for of in (random, trained)
        ]
        print(f"| {metric} | {guess} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
