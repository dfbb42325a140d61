"""Documented commands do what they say, on small files; or a table says why they are not run.

What they name is made here, small: a store, a run of three layers, a fine-tuned model, and texts.
So every command is run as it is written, but for sizes, which are added. Commands of other programs
are not run, and a second table says why.
"""

import gzip
import json
import re
import shutil
from pathlib import Path

import pytest
from test_documentation import ALL, OURS, as_verb

from bert_jax.__main__ import main
from bert_jax.data.manifest import MANIFEST

# Why some are not run: what a command has -> the reason, and the test of what it does.
NOT_RUN = {
    r"gs://": "object storage: test_storage.py",
    r"\bhf:|tfds:": "downloads, or needs a built dataset: test_tables.py, test_documents.py",
    r"^plan ": "minutes of the TPU compiler: test_plan.py",
    r"^sweep ": "many runs: test_sweep.py",
    r"^pretrain ": "each compiles a step of its own: test_training.py, and test_recipes.py builds "
    "every recipe; test_documentation.py makes the config of each command",
    r"^finetune ": "each compiles a step of its own: test_finetune.py",
    r"blimp:|zorro:|cola:": "published suites: test_suites.py",
    r"bert-base-uncased|roberta-base|uncased_L-2|MiniLM|minilm|mnli|downloaded-": "published "
    "models: test_interop.py, test_interop_google.py, test_predict.py",
    r"models/tiny": "TensorFlow: test_interop_google.py",
    r"runs/(squad|sst2|reviews|ner|summaries|extracts|en-de)": "another task: test_predict.py, "
    "test_attributions.py, test_perturbations.py, test_generation.py, test_extraction.py",
    r"--weights=|--step=20000|runs/decay": "checkpoints of a longer run: test_averages.py, "
    "test_branches.py",
    r"--upload": "the Hub: test_cli.py",
    r"--runner=": "Apache Beam: test_beam.py",
    r"--append": "a store before it: test_shards.py",
    r"my_package": "the reader's own code: test_extensions.py",
    r"features --model=runs/base --skip-bad-lines": "reads standard input: test_predict.py",
    r"features --model=runs/mine": "the same with another model",
    r"--filter=language": "a model of languages: test_filters.py",
    r"--tokenizer=bpe": "minutes of learning a vocabulary: test_tokenizers.py",
    r"^export ": "compiles for two platforms: test_export.py",
}
OTHERS = {
    r"pip install|python -m venv|bin/activate|^export |^cat$|^(zcat|head|ls|cp)\b": "the reader's "
    "shell and environment; launch/environment.sh is run by test_launch.py",
    r"^(hf|tfds) ": "downloads: data of both are read by test_tables.py and test_documents.py",
    r"^(gcloud|xpk|docker|sbatch|curl|projects) |^(FROM|COPY|RUN) |^EOF$": "a cloud, a cluster or "
    "a container: test_launch.py runs the scripts with stand-ins for these programs",
    r"^bash launch/|^python launch/serve.py": "test_launch.py, test_serve.py, test_multihost.py",
    r"python benchmarks/": "measurements of minutes; no test depends on speed",
    r"^(make|bash .ci/run|python -m pytest)\b": "the tests themselves",
    r"bert_jax.config.reference": "test_config.py",
    r"^\S+\.(md|json|jsonl|gz|txt|Dockerfile)$|^Dockerfile$": "a file that output goes to",
}
SMALL = {"prepare": ["--vocab-size=300", "--workers=1"]}
RUN = {
    name: argv for name, argv in OURS.items() if not any(re.search(each, name) for each in NOT_RUN)
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which there is what the commands name."""
    folder = tmp_path_factory.mktemp("documented")
    text = "The president spoke to the nation. He asked every citizen to defend it.\n"
    years = (f"{text} In {year} the year ended well. It was over." for year in range(1790, 2026))
    rows = [json.dumps({"text": year}) for year in years]
    for name, content in (("corpus/a.txt", f"{text}\n"), ("texts.txt", text)):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content * 20)
    (folder / "sentences.txt").write_text(text * 20)
    for name in ("law.jsonl", "papers.jsonl", "medicine/a.jsonl", "web.jsonl"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("\n".join(rows) + "\n")
    (folder / "corpus" / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    (folder / "pairs.tsv").write_text("text_a\ttext_b\nWe are at peace.\tLet it last.\n")
    (folder / "mine.tsv").write_text("good\tbad\nThe man speaks.\tThe man speak.\n")
    (folder / "notes.csv").write_text("body\n" + f'"{text}"\n' * 20)
    case = {"test": "mood", "type": "MFT", "text": "The people are glad.", "label": "glad"}
    (folder / "tests.jsonl").write_text(json.dumps(case) + "\n")
    labelled = [f"The people are {label}.\t{label}" for label in ("glad", "sad")] * 8
    for name in ("train", "dev", "test", "unlabelled"):
        (folder / f"{name}.tsv").write_text("\n".join(["text\tlabel", *labelled]) + "\n")
    store = folder / "stores" / "mine"
    command = ["prepare", str(folder / "corpus" / "b.jsonl.gz"), f"--output={store}"]
    assert main([*command, *SMALL["prepare"]]) == 0
    for name in ("web", "books", "law", "news", "medicine", "general", "wikipedia"):
        (folder / "stores" / name).symlink_to(store)
    base = folder / "runs" / "base"
    small = {
        "steps": 2,
        "data.store": store,
        "data.batch_size": 8,
        "data.max_seq_length": 64,
        "model.vocab_size": len((store / "vocab.txt").read_text().split()),
        "model.num_layers": 3,
        "model.hidden_size": 32,
        "model.intermediate_size": 64,
        "eval_batches": 2,
    }
    flags = [f"--config.{field}={value}" for field, value in small.items()]
    assert main(["pretrain", "--config=bert:tiny", f"--workdir={base}", *flags]) == 0
    tuned = {
        "init_from": base,
        "task.train": folder / "train.tsv",
        "task.dev": folder / "dev.tsv",
        "task.max_seq_length": 32,
        "batch_size": 8,
        "epochs": 1,
        "packing": False,
    }
    flags = [f"--config.{field}={value}" for field, value in tuned.items()]
    recipe = "--config=finetune:classification"
    assert main(["finetune", recipe, f"--workdir={folder / 'runs' / 'mine'}", *flags]) == 0
    rounded = [str(folder / "runs" / "mine" / "best"), str(folder / "models" / "sst2-int8")]
    assert main(["convert", *rounded, "--to=bert_jax", "--quantize=int8"]) == 0
    for name in ("runs/another", "runs/a", "runs/b", "runs/medicine", "runs/span", "models/base"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(base)
    (folder / "workdir" / "quickstart").mkdir(parents=True)
    (folder / "workdir" / "quickstart" / "run").symlink_to(base)
    return folder


@pytest.mark.parametrize("name", RUN)
def test_documented_command_does_it(name, place, monkeypatch, tmp_path):
    monkeypatch.chdir(place)
    argv = list(RUN[name])
    written = [word.partition("=")[2] for word in argv if word.startswith("--output=")]
    if argv[0] == "prepare":  # the stores that other commands read stay as they are
        argv = [word.replace("--output=stores/", f"--output={tmp_path}/") for word in argv]
        written = [tmp_path / written[0].removeprefix("stores/") / MANIFEST]
        argv = [word for word in argv if not word.startswith("--vocab-size=")]
        has_vocab = any(word.startswith(("--vocab=", "--tokenizer=")) for word in argv)
        argv += SMALL["prepare"][has_vocab:]
    if argv[0] in ("convert", "publish"):
        written = [argv[2]]
        shutil.rmtree(argv[2], ignore_errors=True)
    assert main(argv) == 0
    assert [path for path in written if not (place / path).exists()] == []


def test_every_reason_is_of_a_command():
    assert [each for each in NOT_RUN if not any(re.search(each, name) for name in OURS)] == []
    assert len(RUN) > 20


def test_commands_of_other_programs_have_a_reason():
    others = {" ".join(words) for _, words in ALL if as_verb(words) is None}
    reasons = {name: [each for each in OTHERS if re.search(each, name)] for name in others}
    assert [name for name, found in reasons.items() if not found] == []
    assert set(OTHERS) == {each for found in reasons.values() for each in found}


def test_tests_that_are_named_exist():
    text = " ".join((*NOT_RUN.values(), *OTHERS.values()))
    named = set(re.findall(r"test_\w+\.py", text))
    assert [name for name in named if not (Path(__file__).parent / name).exists()] == []
