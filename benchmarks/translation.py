"""Prints scores of translation from trained and from random weights, over seeds.

    python benchmarks/translation.py DATA MODEL WORKDIR [--seeds 3] [--examples N] [OVERRIDES]

DATA holds Multi30k (Elliott et al. 2016, https://arxiv.org/abs/1605.00459) as train.en.gz,
train.de.gz, val.*.gz and test_2016_flickr.*.gz, a sentence a line; English is translated into
German. MODEL is what `config.init_from` takes; its vocabulary should have the letters of both.
--examples takes the first N pairs of each split. OVERRIDES such as --config.epochs=20 apply to all
runs. Finished runs are not repeated. The table is Markdown: BLEU, chrF, the accuracy of the next
token and the loss on the test split at the best step on dev, as mean and standard deviation over
the seeds, and the scores of the source itself.
"""

import argparse
import gzip
import json
import sys
from pathlib import Path

from bert_jax.__main__ import main as bert_jax

CONFIG = Path(__file__).parents[1] / "configs" / "finetune.py"
SPLITS = {"train": "train", "dev": "val", "test": "test_2016_flickr"}
FIELDS = {
    "epochs": 10.0,
    "batch_size": 64,
    "numerics.compute_dtype": "float32",
    "task.max_seq_length": 64,
    "task.search.max_length": 64,
    "task.search.beams": 5,
}


def pairs(data: Path, workdir: Path, split: str, examples: int | None) -> str:
    """Path of a JSONL file with the pairs of a split."""
    sides = []
    for language in ("en", "de"):
        with gzip.open(data / f"{SPLITS[split]}.{language}.gz", "rt", encoding="utf-8") as file:
            sides.append(file.read().rstrip("\n").split("\n")[:examples])
    path = workdir / f"{split}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for source, target in zip(*sides, strict=True):
            file.write(json.dumps({"source": source, "target": target}) + "\n")
    return str(path)


def run(arguments: argparse.Namespace, arm: str, changes: dict) -> dict:
    """The results of all seeds; trains unless they exist."""
    workdir = Path(arguments.workdir)
    runs = workdir / arm
    if not (runs / "results.json").exists():
        data = Path(arguments.data)
        fields = {
            "init_from": arguments.model,
            "seeds": arguments.seeds,
            **{f"task.{x}": pairs(data, workdir, x, arguments.examples) for x in SPLITS},
            **FIELDS,
            **changes,
        }
        overrides = [f"--config.{field}={value}" for field, value in fields.items()]
        command = ["finetune", f"--config={CONFIG}:generation", f"--workdir={runs}", *overrides]
        if bert_jax([*command, *arguments.overrides]):
            sys.exit(f"failed: {' '.join(command)}")
    return json.loads((runs / "results.json").read_text())["test"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data")
    parser.add_argument("model")
    parser.add_argument("workdir")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--examples", type=int)
    arguments, arguments.overrides = parser.parse_known_args()
    if arguments.seeds < 2:
        parser.error("--seeds: must be at least 2, for a standard deviation")
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
