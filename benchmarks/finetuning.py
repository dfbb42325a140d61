"""Prints scores of fine-tuning on public data from trained and from random weights, over seeds.

    python benchmarks/finetuning.py DATA MODEL WORKDIR [--tasks sst2,trec] [--seeds 3] [OVERRIDES]

DATA holds the files of `TASKS` (SST-2, TREC, MRPC, STS, CoLA, WNUT17, wikigold, XQuAD); MODEL is
what `config.init_from` takes; OVERRIDES such as --config.epochs=5 apply to all runs. Finished runs
are not repeated. The table is Markdown: for each task the scores of guessing, of the same
architecture from random weights, and of MODEL, as mean and standard deviation over the seeds on the
test split at the best step on dev.
"""

import argparse
import json
import sys
from pathlib import Path

from bert_jax.__main__ import main as bert_jax

CONFIG = Path(__file__).parents[1] / "configs" / "finetune.py"
PAIRS = {"metric_names": ("accuracy", "f1"), "text_a": "#1 String", "text_b": "#2 String"}
SCORES = {"regression": True, "metric_names": ("pearson", "spearman"), "label": "1"}
# name: task, files or pieces of them, options, other fields.
TASKS = {
    "sst2": (
        "classification",
        ["sst2/stsa.binary.train", "sst2/stsa.binary.dev", "sst2/stsa.binary.test"],
        {"format": "label_first"},
        {},
    ),
    "trec": (
        "classification",
        [
            ("trec/raw_TREC.train", 0, 4952),
            ("trec/raw_TREC.train", 4952, None),
            "trec/raw_TREC.test",
        ],
        {"format": "label_first", "label": "coarse_label", "encoding": "latin-1"},
        {"task.max_seq_length": 64},
    ),
    "mrpc": (
        "classification",
        ["mrpc/msr-para-train.tsv", "mrpc/msr-para-val.tsv", "mrpc/msr-para-test.tsv"],
        PAIRS | {"label": "Quality", "labels": ("0", "1"), "encoding": "utf-8-sig"},
        {"epochs": 2.0},
    ),
    "sts": (
        "classification",
        [
            ("sts/2015.train.tsv", 0, 2500),
            ("sts/2015.train.tsv", 2500, None),
            "sts/2015.test.tsv",
        ],
        SCORES | {"text_a": "2", "text_b": "3", "format": "tsv"},
        {},
    ),
    "cola": (
        "classification",
        ["cola/in_domain_train.tsv", "cola/in_domain_dev.tsv", "cola/out_of_domain_dev.tsv"],
        {"format": "tsv", "text_a": "4", "label": "2", "metric_names": ("matthews", "accuracy")},
        {},
    ),
    "wnut17": (
        "tagging",
        ["wnut17/wnut17train.conll", "wnut17/emerging.dev.conll", "wnut17/emerging.test.annotated"],
        {},
        {"epochs": 4.0},
    ),
    "wikigold": (
        "tagging",
        [
            ("wikigold/wikigold.conll.txt", first, last)
            for first, last in ((0, 1200), (1200, 1448), (1448, None))
        ],
        {"repair": True},
        {"epochs": 5.0},
    ),
    "xquad": (
        "answering",
        [("xquad/xquad.en.json", first, last) for first, last in ((0, 30), (30, 35), (35, None))],
        {},
        {"batch_size": 8},
    ),
}


def piece(data: Path, workdir: Path, source: str | tuple) -> str:
    """Path of a file, or of a file with some of its articles (JSON), sentences (CoNLL) or lines."""
    if isinstance(source, str):
        return str(data / source)
    name, first, last = source
    path = data / name
    target = workdir / "data" / f"{path.stem}-{first}{path.suffix}"
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        articles = json.loads(path.read_text())["data"][first:last]
        target.write_text(json.dumps({"version": "1.1", "data": articles}))
        return str(target)
    between = b"\n\n" if "conll" in name else b"\n"
    parts = path.read_bytes().replace(b"\r\n", b"\n").strip(b"\n").split(between)
    target.write_bytes(between.join(parts[first:last]) + b"\n")
    return str(target)


def run(arguments: argparse.Namespace, name: str, arm: str, changes: dict) -> dict:
    """The results of all seeds of a task; trains unless they exist."""
    task, sources, options, fields = TASKS[name]
    workdir = Path(arguments.workdir)
    runs = workdir / name / arm
    if not (runs / "results.json").exists():
        train, dev, test = (piece(Path(arguments.data), workdir, source) for source in sources)
        fields = {
            "init_from": arguments.model,
            "seeds": arguments.seeds,
            "numerics.compute_dtype": "float32",
            "optimizer.learning_rate": 5e-5,
            "task.train": train,
            "task.dev": dev,
            "task.test": test,
            **{f"task.{option}": value for option, value in options.items()},
            **fields,
            **changes,
        }
        overrides = [f"--config.{field}={value}" for field, value in fields.items()]
        overrides += arguments.overrides
        command = ["finetune", f"--config={CONFIG}:{task}", f"--workdir={runs}", *overrides]
        if bert_jax(command):
            sys.exit(f"failed: {' '.join(command)}")
    return json.loads((runs / "results.json").read_text())["test"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data")
    parser.add_argument("model")
    parser.add_argument("workdir")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    arguments, arguments.overrides = parser.parse_known_args()
    if arguments.seeds < 2:
        parser.error("--seeds: must be at least 2, for a standard deviation")
    rows = [
        "| task | metric | guessing | random weights | trained weights |",
        "|---|---|---|---|---|",
    ]
    for name in arguments.tasks.split(","):
        trained = run(arguments, name, "trained", {})
        random = run(arguments, name, "random", {"random_weights": True})
        first = Path(arguments.workdir) / name / "trained" / "seed0" / "results.json"
        baseline = json.loads(first.read_text())["test"]["baseline"]
        for metric in [metric for metric in trained if metric in baseline]:
            cells = [
                f"{100 * of[metric]['mean']:.1f} ± {100 * of[metric]['std']:.1f}"
                for of in (random, trained)
            ]
            rows.append(
                f"| {name} | {metric} | {100 * baseline[metric]:.1f} | {' | '.join(cells)} |"
            )
        print("\n".join(rows), flush=True)


if __name__ == "__main__":
    main()
