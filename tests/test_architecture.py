"""Imports point one way."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import bert_jax
from bert_jax.__main__ import VERBS

pytestmark = pytest.mark.core

ROOT = Path(__file__).parents[1]
# From the bottom up. A module imports from rooms of lower layers and from its own room.
LAYERS = (
    {"", "errors"},
    {"background", "freed_memory", "json_values"},
    {"fields", "storage", "terminal"},
    {"locks"},
    {"model", "data", "corpora"},
    {"objective", "parallel"},
    {"tasks"},
    {"report"},
    {"train"},
    {"config"},
    {"evaluation", "interop"},
    {"inference", "pretraining", "finetuning"},
    {"api"},
    {"cli"},
    {"__main__"},
)
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}
# Rooms with less freedom than their layer: what they may import of ours, and of others' beside it.
OWN = {
    "fields": {"fields", "errors"},
    "model": {"model", "fields", "errors"},
    "objective": {"objective", "model", "fields", "errors"},
    "data": {"data", "errors", "fields", "json_values", "locks", "storage", "terminal"},
    "corpora": set(),
    "tasks": {"tasks", "data", "errors", "fields", "json_values", "model", "storage"},
    "parallel": {
        *("parallel", "model", "background", "freed_memory", "fields", "errors", "terminal"),
    },
    "report": {"report", "model", "background", "errors", "json_values", "storage", "terminal"},
}
OTHERS = {room: {"jax", "flax", "numpy"} for room in ("model", "objective")}
ONLY_IN = {
    "orbax": {"bert_jax.train.checkpoints"},
    "grain": {"bert_jax.data.batches"},
    "google": {"bert_jax.data.tfrecords"},  # google.protobuf
    "google_crc32c": {"bert_jax.data.tfrecords"},
    "tensorflow_datasets": {"bert_jax.data.tfds", "bert_jax.corpora.sotu"},
    "huggingface_hub": {"bert_jax.data.hub", "bert_jax.api.publish"},
    "datasets": {"bert_jax.data.hub"},
    "tokenizers": {
        "bert_jax.data.wordpiece",
        "bert_jax.data.tokenizer_json",
        "bert_jax.data.train_tokenizer",
        "bert_jax.data.store_writer",
        "bert_jax.interop.tokenizer",
    },
    "matplotlib": {
        f"bert_jax.report.{name}"
        for name in (
            *(
                "curves",
                "attention_maps",
                "attributions",
                "confusion",
                "figures",
                "reliability",
                "robustness",
                "suites",
                "sweeps",
                "stores",
                "pruning",
            ),
        )
    },
    "seqeval": {"bert_jax.tasks.tagging.metrics"},
    "sklearn": {"bert_jax.tasks.classification.metrics"},
    "scipy": {"bert_jax.tasks.classification.metrics", "bert_jax.tasks.classification.calibration"},
    "sacrebleu": {"bert_jax.tasks.generation.metrics"},
    "rouge_score": {"bert_jax.tasks.generation.metrics"},
    "safetensors": {"bert_jax.interop.huggingface"},
    "apache_beam": {"bert_jax.data.beam"},
    "pyarrow": {"bert_jax.data.columnar"},
    "datasketch": {"bert_jax.data.filters"},
    "py3langid": {"bert_jax.data.filters"},
    "jieba": {"bert_jax.data.words"},
    "tensorflow": {"bert_jax.interop.google_tf"},
    "torch": {"bert_jax.interop.huggingface", "bert_jax.inference.onnx"},
    "transformers": {"bert_jax.inference.onnx"},
    "onnxruntime": {"bert_jax.inference.onnx"},
}


def imports(file: Path) -> set[str]:
    """Dotted names of the modules, or of things in them, that a file imports anywhere."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: write absolute imports"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room(module: str) -> str:
    """Second part of a dotted name; nothing for the package itself and its version."""
    part = module.partition(".")[2].partition(".")[0]
    return "" if part == "__version__" else part


def outside(names: set[str]) -> set[str]:
    """Top-level packages that are neither ours nor of Python."""
    return {name.partition(".")[0] for name in names} - {"bert_jax", *sys.stdlib_module_names}


IMPORTS = {module_name(file): imports(file) for file in (ROOT / "bert_jax").rglob("*.py")}
OURS = {
    module: {room(name) for name in names if name.partition(".")[0] == "bert_jax"}
    for module, names in IMPORTS.items()
}


def test_every_room_has_its_layer():
    assert {room(module) for module in IMPORTS} == set(RANK)


@pytest.mark.parametrize("module", sorted(IMPORTS))
def test_arrows(module):
    here = room(module)
    for there in OURS[module] - {here}:
        assert RANK[there] < RANK[here], f"{module} must not import {there}"
    assert OURS[module] <= OWN.get(here, OURS[module])
    assert outside(IMPORTS[module]) <= OTHERS.get(here, outside(IMPORTS[module]))
    if here in ("data", "tasks"):
        assert not outside(IMPORTS[module]) & {"jax", "flax", "optax", "orbax"}


@pytest.mark.parametrize("library", ONLY_IN)
def test_library_has_one_door(library):
    found = {module for module, names in IMPORTS.items() if library in outside(names)}
    assert found == ONLY_IN[library]


def test_configs_import_their_siblings_only():
    recipes = list((ROOT / "configs").glob("*.py"))
    assert recipes
    for recipe in recipes:
        siblings = {sibling.stem for sibling in recipes} - {recipe.stem}
        assert outside(imports(recipe)) <= {"ml_collections", *siblings}, recipe


def loaded(modules: list[str]) -> set[str]:
    """What a new process has loaded after it imported the modules."""
    lines = ["import importlib, sys"]
    lines += [f"importlib.import_module({module!r})" for module in modules]
    lines += ["print(*(name for name, module in sys.modules.items() if module))"]
    process = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    return set(process.stdout.split())


def test_main_path_loads_no_other_framework():
    modules = [module for module in IMPORTS if room(module) != "corpora"]
    found = loaded(sorted(modules))
    assert set(modules) <= found
    assert not found & {"tensorflow", "tensorflow_datasets", "torch", "transformers"}


HEAVY = {
    "jax",
    "flax",
    "orbax",
    "grain",
    "numba",
    "matplotlib",
    "tokenizers",
    "tensorflow_datasets",
}


def test_tasks_load_no_library_of_metrics():
    found = loaded(["bert_jax.tasks"])
    assert "bert_jax.tasks.classification.metrics" in found
    assert not found & {"sklearn", "scipy", "seqeval", "tensorflow_datasets"}


def test_prepare_loads_no_jax():
    """So that its worker processes start at once and take no accelerator."""
    found = loaded(["bert_jax.cli.prepare", "bert_jax.api.prepare"])
    assert "bert_jax.data.store" in found
    assert not found & {"jax", "flax", "grain", "matplotlib"}


def test_only_main_imports_the_command_line():
    text = (ROOT / "bert_jax" / "__main__.py").read_text(encoding="utf-8")
    assert 'import_module(f"bert_jax.cli.{' in text
    importers = {room(module) for module, rooms in OURS.items() if "cli" in rooms}
    assert importers == {"__main__", "cli"}


def test_every_verb_has_a_page():
    assert {f"bert_jax.cli.{verb}" for verb in VERBS} <= set(IMPORTS)


def test_functions_of_the_package_are_those_of_the_api():
    functions = set(bert_jax.__all__) - {"__version__", "load"}
    modules = {module for module in IMPORTS if module.startswith("bert_jax.api.")}
    assert {f"bert_jax.api.{name}" for name in functions} == modules
    assert set(bert_jax.__all__) <= set(dir(bert_jax))
    for name in (*functions, "load"):
        assert getattr(bert_jax, name).__name__ == name
    with pytest.raises(AttributeError, match="'nothing'"):
        _ = bert_jax.nothing


def test_command_line_loads_nothing_heavy():
    pages = {module for module in IMPORTS if room(module) in ("cli", "__main__")}
    found = loaded(sorted(pages))
    assert pages <= found
    assert not found & HEAVY


COMMANDS = f"""
import contextlib, io, sys
from bert_jax.__main__ import VERBS, main

HEAVY = {HEAVY}
"""
COMMANDS += """
def check_loaded(command):
    assert not (loaded := HEAVY & sys.modules.keys()), (command, loaded)

def told(*argv):
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        try:
            code = main(argv)
        except SystemExit as exit_:
            code = exit_.code
    return code, errors.getvalue()

for verb in VERBS:
    assert told(verb, "--help")[0] == 0, verb
    check_loaded(verb)
no_config = "--config=none.py: no such file"
train = "--config=bert --workdir=none"
tune = "--config=finetune --workdir=none"
no_run = "none/config.json: no such file"
no_model = "none: no model there"
for command, message in {
    "prepare none --output=none --heldout=2": "--heldout: 2.0 is not between",
    "prepare none --output=none --workers=0": "--workers: 0",
    "pretrain --config=none.py --workdir=none": no_config,
    "finetune --config=none.py --workdir=none": no_config,
    "pretrain --config=brt --workdir=none": "no such recipe; did you mean --config=bert?",
    f"pretrain {train} --steps=5": "unknown flag --steps",
    f"pretrain {train} --config.data.store=none": "none: no token store there",
    f"pretrain {train} --config.init_from=none": no_model,
    f"finetune {tune} --config.init_from=none": no_model,
    f"finetune {tune} --config.task.train=none.tsv": "none.tsv: no such file",
    f"finetune {tune} --config.task.dev=none.tsv": "none.tsv: no such file",
    "evaluate --workdir=none --process-id=0": "belong together",
    "evaluate --workdir=none": no_run,
    "evaluate --workdir=none --step=first": "invalid int value",
    "predict classify --model=none none.txt": "none.txt: no such file",
    "predict classify --model=none README.md": no_model,
    "predict fill-mask --model=none [MASK]": no_model,
    "predict attention --model=none a --output=x.html": no_model,
    "predict features --model=none --output=x.gif": "--output=x.gif",
    "predict attention --model=none a --output=x.gif": "--output=x.gif",
    "convert none none --to=google --initialise=eyes": "--initialise=eyes",
    "convert none none --to=google --seed=-1": "--seed=-1",
    "convert none none --to=onnx": "invalid choice",
    "convert none new --to=google": no_model,
    "export --model=none --output=new": no_model,
    "plot none": "none/metrics.jsonl: no such file",
    "export --model=none --output=none --platforms=abacus": "no platform 'abacus'",
    "plan --config=none.py --topology=v5e:2x4": no_config,
    "plot": "required: WORKDIR",
}.items():
    code, errors = told(*command.split())
    assert code == 2 and message in errors, (command, code, errors)
    check_loaded(command)
"""


def test_help_and_mistakes_are_told_before_anything_heavy_is_loaded():
    process = subprocess.run(
        [sys.executable, "-c", COMMANDS], cwd=ROOT, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
