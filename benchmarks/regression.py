"""Records what a checkout computes, bit for bit, and compares two records.

    python benchmarks/regression.py record --repository=BEFORE --data=DATA --output=before.json
    python benchmarks/regression.py record --repository=AFTER --data=DATA --output=after.json
    python benchmarks/regression.py compare before.json after.json

A refactoring should change nothing: record before and after it, on one machine. Every case runs a
few `bert-jax` commands with the code of the checkout and keeps their results as numbers, texts and
checksums. `compare` prints a line for each case and fails if one differs. The compiler's estimates
of cycles and bytes may differ by half a percent; everything else must be equal.

DATA is a folder with sst2/, wnut17/ and xquad/ as their authors publish them; without it, the
fine-tuning cases are skipped. `--only NAME ...` records only the named cases.
"""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

TIMES = {"tokens_per_second", "sequences_per_second", "steps_per_second", "input_stall", "mfu"}
TOLERANCE = 0.005  # of estimates
PYTHON_OF_CHECKPOINTS = """
import hashlib, json, sys
import jax, numpy as np, orbax.checkpoint as ocp
found = {}
with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
    tree = reader.metadata(sys.argv[1]).item_metadata.tree
    options = jax.tree.map(lambda _: ocp.RestoreArgs(np.ndarray), tree)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    state = reader.restore(sys.argv[1], args=ocp.args.PyTreeRestore(shapes, options))
for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    data = np.ascontiguousarray(np.asarray(leaf))
    found[jax.tree_util.keystr(path)] = hashlib.sha256(data.tobytes()).hexdigest()[:16]
print(json.dumps(found))
"""
PYTHON_OF_EXPORTS = """
import hashlib, json, sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from load_bert import load
bert = load(sys.argv[1])
ids = np.arange(2, 50).reshape(2, 24)
states = np.asarray(bert.encoder(ids))
found = {"encoder": states, "masked_lm": np.asarray(bert.masked_lm(states[-1, :, :3]))}
print(json.dumps({k: hashlib.sha256(v.tobytes()).hexdigest()[:16] for k, v in found.items()}))
"""
TINY = [
    "--config.model.compute_dtype=float32",
    "--config.model.vocab_size=1000",
    "--config.log_every=4",
    "--config.eval_every=0",
    "--config.eval_batches=2",
    "--config.checkpoint_every=8",
]


class Checkout:
    """The code in a folder, and a folder to work in."""

    def __init__(self, repository: Path, work: Path, data: Path | None):
        self.repository, self.work, self.data = repository, work, data

    def python(self, *arguments: str, devices: int = 1, text: str = "") -> str:
        """Runs Python with this code; returns what it prints."""
        environment = os.environ | {
            "PYTHONPATH": str(self.repository),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "JAX_COMPILATION_CACHE_DIR": str(self.work / "compiled"),
            "XDG_CACHE_HOME": str(self.work / "cache"),
        }
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.repository,
            env=environment,
            input=text,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(arguments)}\n{done.stdout}\n{done.stderr[-3000:]}")
        return done.stdout

    def verb(self, *arguments: str, devices: int = 1, text: str = "") -> str:
        """Runs a verb of `bert-jax`."""
        return self.python("-m", "bert_jax", *arguments, devices=devices, text=text)

    def path(self, name: str) -> str:
        """A path in the folder to work in."""
        return str(self.work / name)

    def run(self, name: str) -> dict[str, Any]:
        """Metrics and newest checkpoint of a training run."""
        folder = self.work / name
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        lines = [{k: v for k, v in line.items() if k not in TIMES} for line in lines]
        return {"metrics": lines, "checkpoint": self.checkpoint(name)}

    def checkpoint(self, name: str) -> dict[str, str]:
        """A checksum of each leaf of the newest checkpoint."""
        steps = [int(path.name) for path in (self.work / name / "checkpoints").iterdir()]
        state = self.work / name / "checkpoints" / str(max(steps)) / "state"
        return json.loads(self.python("-c", PYTHON_OF_CHECKPOINTS, str(state), devices=8))

    def store(self, name: str, size: int) -> str:
        """A token store of the bundled corpus."""
        if not (self.work / name / "manifest.json").exists():
            size_of = f"--vocab-size={size}"
            self.verb("prepare", "corpus:sotu", size_of, f"--output={self.path(name)}")
        return self.path(name)


def pretrain(checkout: Checkout, name: str, recipe: str, *flags: str, devices: int = 1) -> dict:
    """Trains a recipe on the small store, with the overrides of TINY and `flags`."""
    store = checkout.store("store1000", 1000)
    checkout.verb(
        "pretrain",
        f"--config=configs/{recipe}",
        f"--workdir={checkout.path(name)}",
        f"--config.data.store={store}",
        *TINY,
        *flags,
        devices=devices,
    )
    return checkout.run(name)


def quickstart(checkout: Checkout) -> dict[str, Any]:
    """300 steps of the quickstart's recipe, its evaluation, and filled masks."""
    store = checkout.store("store8192", 8192)
    workdir = checkout.path("quickstart")
    if not (checkout.work / "quickstart" / "checkpoints" / "300").exists():
        checkout.verb(
            "pretrain",
            "--config=configs/quickstart.py",
            f"--workdir={workdir}",
            f"--config.data.store={store}",
            "--config.steps=300",
        )
    masks = ["The president of the [MASK] States.", "We must keep the [MASK] of the world."]
    return checkout.run("quickstart") | {
        "evaluate": json.loads(checkout.verb("evaluate", f"--workdir={workdir}", "--json")),
        "fill-mask": checkout.verb("predict", "fill-mask", f"--model={workdir}", *masks),
    }


def layouts(checkout: Checkout) -> dict[str, Any]:
    """20 steps in each layout, with dropout and packing, over eight devices."""
    small = ["--config.steps=20", "--config.data.batch_size=16", "--config.data.max_seq_length=64"]
    return {
        "x".join(map(str, sizes)): pretrain(
            checkout,
            f"layout{'x'.join(map(str, sizes))}",
            "bert.py:tiny",
            *small,
            *(f"--config.mesh.{axis}={n}" for axis, n in zip(("data", "fsdp", "tensor"), sizes)),
            devices=8,
        )
        for sizes in ((8, 1, 1), (2, 2, 2), (1, 8, 1))
    }


def lamb_accumulation(checkout: Checkout) -> dict[str, Any]:
    """LAMB with a power schedule and four microbatches."""
    lamb = ["--config.optimizer.name=lamb", "--config.optimizer.schedule=poly"]
    # Older checkouts have one set of fields for all optimizers, and LAMB requires this one.
    if "bias_correction" in (checkout.repository / "configs" / "bert.py").read_text():
        lamb.append("--config.optimizer.bias_correction=True")
    return pretrain(
        checkout,
        "lamb",
        "bert.py:tiny",
        *lamb,
        "--config.optimizer.poly_power=0.5",
        "--config.optimizer.gradient_accumulation=4",
        "--config.steps=12",
        "--config.data.batch_size=16",
        "--config.data.max_seq_length=64",
        "--config.data.masking=whole_word",
    )


def two_phases(checkout: Checkout) -> dict[str, Any]:
    """Rows of 128 tokens, then of 512."""
    return pretrain(
        checkout,
        "phases",
        "bert_base.py:tiny",
        "--config.phases[0].steps=6",
        "--config.phases[1].steps=4",
        "--config.phases[0].batch_size=8",
        "--config.phases[1].batch_size=4",
    )


def packing_512(checkout: Checkout) -> dict[str, Any]:
    """Many examples per row, masked in spans."""
    return pretrain(
        checkout,
        "packing",
        "bert.py:tiny",
        "--config.steps=6",
        "--config.data.batch_size=4",
        "--config.data.max_seq_length=512",
        "--config.data.masking=span",
        "--config.data.short_seq_prob=0.9",
    )


def _start(lines: list[str], number: int, ends: str = "") -> list[str]:
    """The first `number` lines, and on to a blank one if `ends` is "blank"."""
    stop = number
    while ends == "blank" and stop < len(lines) and lines[stop].strip():
        stop += 1
    return lines[:stop]


def _task_data(checkout: Checkout) -> None:
    """A few hundred examples of each task."""
    assert checkout.data
    for split, number in (("train", 256), ("dev", 64)):
        lines = (checkout.data / "sst2" / f"stsa.binary.{split}").read_text().splitlines()
        rows = [line.replace(" ", "\t", 1) for line in _start(lines, number)]
        (checkout.work / f"sst2.{split}.tsv").write_text("\n".join(["label\ttext", *rows]) + "\n")
    for split, name, number in (("train", "wnut17train", 4000), ("dev", "emerging.dev", 1500)):
        lines = (checkout.data / "wnut17" / f"{name}.conll").read_text().splitlines()
        rows = _start(lines, number, "blank")
        (checkout.work / f"wnut.{split}.conll").write_text("\n".join(rows) + "\n")
    squad = json.loads((checkout.data / "xquad" / "xquad.en.json").read_text())
    for split, articles in (("train", squad["data"][:6]), ("dev", squad["data"][6:8])):
        (checkout.work / f"xquad.{split}.json").write_text(json.dumps({"data": articles}))


def finetune(checkout: Checkout, task: str, suffix: str, *flags: str) -> dict[str, Any]:
    """One epoch from the quickstart's weights: metrics, results, predictions and the best model."""
    quickstart(checkout)
    _task_data(checkout)
    name = f"finetune_{task}"
    checkout.verb(
        "finetune",
        f"--config=configs/finetune.py:{task}",
        f"--workdir={checkout.path(name)}",
        f"--config.init_from={checkout.path('quickstart')}",
        *(f"--config.task.{split}={checkout.path(suffix.format(split))}" for split in SPLITS),
        "--config.model.compute_dtype=float32",
        "--config.epochs=1",
        "--config.optimizer.learning_rate=5e-4",
        *flags,
    )
    folder = checkout.work / name
    predictions = [p for p in sorted(folder.rglob("*predictions*")) if p.is_file()]
    return checkout.run(name) | {
        "results": json.loads((folder / "results.json").read_text()),
        "predictions": {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in predictions},
        "best": checkout.checkpoint(f"{name}/best"),
        "evaluate": json.loads(checkout.verb("evaluate", f"--workdir={folder}", "--json")),
    }


SPLITS = ("train", "dev")
TEXTS = "The country is at peace.\nWhat a terrible, tedious year it was.\nA great joy.\n"


def classification(checkout: Checkout) -> dict[str, Any]:
    found = finetune(checkout, "classification", "sst2.{}.tsv", "--config.task.max_seq_length=64")
    model = f"--model={checkout.path('finetune_classification/best')}"
    return found | {"predict": checkout.verb("predict", "classify", model, text=TEXTS)}


def tagging(checkout: Checkout) -> dict[str, Any]:
    found = finetune(checkout, "tagging", "wnut.{}.conll", "--config.task.max_seq_length=64")
    model = f"--model={checkout.path('finetune_tagging/best')}"
    return found | {"predict": checkout.verb("predict", "tag", model, text=TEXTS)}


def answering(checkout: Checkout) -> dict[str, Any]:
    found = finetune(
        checkout,
        "answering",
        "xquad.{}.json",
        "--config.task.max_seq_length=128",
        "--config.task.options.max_query_length=32",
        "--config.task.options.doc_stride=64",
    )
    model = f"--model={checkout.path('finetune_answering/best')}"
    pairs = "Who spoke?\tThe president spoke to the Congress.\n"
    flags = ["--max-seq-length=128"]
    return found | {"predict": checkout.verb("predict", "answer", model, *flags, text=pairs)}


def encode(checkout: Checkout) -> dict[str, Any]:
    """Checksums of the vectors of 50 sentences, by pooling."""
    quickstart(checkout)
    corpus = checkout.repository / "bert_jax" / "corpora" / "sotu.jsonl.xz"
    text = checkout.python(
        "-c",
        "import json, lzma, sys\n"
        "for line in list(lzma.open(sys.argv[1], 'rt'))[:50]:\n"
        "    print(json.loads(line)['text'].split('. ')[1].replace('\\n', ' ')[:200])",
        str(corpus),
    )
    (checkout.work / "texts.txt").write_text(text)
    found = {}
    for pooling in ("mean", "cls", "pooled"):
        output = checkout.work / f"{pooling}.npy"
        checkout.verb(
            "predict",
            "features",
            f"--model={checkout.path('quickstart')}",
            checkout.path("texts.txt"),
            f"--output={output}",
            f"--pooling={pooling}",
        )
        found[pooling] = hashlib.sha256(np.load(output).tobytes()).hexdigest()
    return found


def export(checkout: Checkout) -> dict[str, Any]:
    """Parameters of an exported model, its functions, and what its loader computes."""
    quickstart(checkout)
    output = checkout.path("export")
    checkout.verb("export", f"--model={checkout.path('quickstart')}", f"--output={output}")
    with np.load(checkout.work / "export" / "params.npz") as arrays:
        params = {
            name: hashlib.sha256(arrays[name].tobytes()).hexdigest()[:16] for name in arrays.files
        }
    manifest = json.loads((checkout.work / "export" / "export.json").read_text())
    return {
        "params": params,
        "functions": manifest["functions"],
        "computes": json.loads(checkout.python("-c", PYTHON_OF_EXPORTS, output)),
    }


def convert(checkout: Checkout) -> dict[str, Any]:
    """The files of a Hugging Face directory."""
    quickstart(checkout)
    output = checkout.work / "converted"
    checkout.verb("convert", checkout.path("quickstart"), str(output), "--to=huggingface")
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(output.iterdir())
    }


def plan(checkout: Checkout) -> dict[str, Any]:
    """The TPU compiler's estimates for base on eight chips."""
    output = checkout.path("plan.json")
    recipe = "--config=configs/bert.py:base"
    checkout.verb("plan", recipe, "--topology=v5e:2x4", f"--output={output}")
    (found,) = json.loads(Path(output).read_text())
    return {"estimates": found}


CASES: dict[str, Callable[[Checkout], dict[str, Any]]] = {
    case.__name__: case
    for case in (
        quickstart,
        layouts,
        lamb_accumulation,
        two_phases,
        packing_512,
        classification,
        tagging,
        answering,
        encode,
        export,
        convert,
        plan,
    )
}
NEED_DATA = {"classification", "tagging", "answering"}


def record(arguments: argparse.Namespace) -> int:
    """Runs the cases and writes their results."""
    repository = Path(arguments.repository).absolute()
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=repository, capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(arguments.work or scratch).absolute()
        work.mkdir(parents=True, exist_ok=True)
        checkout = Checkout(repository, work, arguments.data and Path(arguments.data).absolute())
        for name in arguments.only or CASES:
            if name in NEED_DATA and not checkout.data:
                print(f"{name}: skipped, needs --data", flush=True)
                continue
            print(name, flush=True)
            found[name] = CASES[name](checkout)
    about = {"commit": commit.stdout.strip(), "machine": platform.processor() or platform.machine()}
    text = json.dumps({"about": about, "cases": found}, indent=1, sort_keys=True) + "\n"
    Path(arguments.output).write_text(text)
    return 0


def differences(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """A line for each value that differs."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted(before.keys() | after.keys()):
            yield from differences(before.get(name), after.get(name), f"{path}/{name}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (one, other) in enumerate(zip(before, after)):
            yield from differences(one, other, f"{path}[{index}]")
    elif "/estimates/" in path and isinstance(before, int | float) and before and after:
        if abs(after / before - 1) > TOLERANCE:
            yield f"{path}: {before} -> {after}"
    elif before != after:
        yield f"{path}: {str(before)[:80]} -> {str(after)[:80]}"


def compare(arguments: argparse.Namespace) -> int:
    """Prints which cases differ, and where; 1 if any does, else 0."""
    before, after = (
        json.loads(Path(path).read_text()) for path in (arguments.before, arguments.after)
    )
    print(f"{before['about']['commit'][:10]} -> {after['about']['commit'][:10]}")
    failed = False
    for name in sorted(before["cases"].keys() | after["cases"].keys()):
        changed = list(differences(before["cases"].get(name), after["cases"].get(name)))
        failed |= bool(changed)
        print(f"{name}: {f'{len(changed)} differ' if changed else 'equal'}")
        for line in changed[:5]:
            print(f"   {line}")
    return int(failed)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    actions = parser.add_subparsers(required=True)
    recording = actions.add_parser("record", help="run the cases with a checkout")
    recording.add_argument("--repository", required=True, metavar="DIR")
    recording.add_argument("--output", required=True, metavar="FILE.json")
    recording.add_argument("--data", metavar="DIR", help="data of the fine-tuning tasks")
    recording.add_argument("--work", metavar="DIR", help="keep what the commands write here")
    recording.add_argument("--only", nargs="+", choices=CASES, metavar="CASE")
    recording.set_defaults(action=record)
    comparing = actions.add_parser("compare", help="compare two records")
    comparing.add_argument("before")
    comparing.add_argument("after")
    comparing.set_defaults(action=compare)
    arguments = parser.parse_args()
    return arguments.action(arguments)


if __name__ == "__main__":
    sys.exit(main())
