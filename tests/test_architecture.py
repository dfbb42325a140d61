"""Imports point one way."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.core

ROOT = Path(__file__).parents[1]
# From the bottom up. A module imports from rooms of lower layers and from its own room.
LAYERS = (
    {"", "errors"},
    {"fields", "storage"},
    {"config"},
    {"model", "objective", "data", "parallel", "corpora"},
    {"tasks"},
    {"report"},
    {"train"},
    {"interop"},
    {"inference"},
    {"prepare", "pretrain", "evaluate", "finetune", "predict", "convert", "export"}
    | {"plan", "plot", "__main__"},
)
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}
# Rooms with less freedom than their layer: what they may import of ours, and of others' beside it.
OWN = {
    "model": {"model"},
    "objective": {"objective"},
    "data": {"data", "errors", "storage"},
    "corpora": set(),
    "tasks": {"tasks", "data", "errors", "fields", "storage"},
    "parallel": {"parallel", "errors"},
    "report": {"report", "errors"},
}
OTHERS = {room: {"jax", "flax", "numpy"} for room in ("model", "objective")}
ONLY_IN = {
    "orbax": {"bert_jax.train.checkpoints"},
    "grain": {"bert_jax.data.batches"},
    "google": {"bert_jax.data.tfrecords"},  # google.protobuf
    "google_crc32c": {"bert_jax.data.tfrecords"},
    "tensorflow_datasets": {"bert_jax.data.documents", "bert_jax.corpora.sotu"},
    "tokenizers": {
        "bert_jax.data.wordpiece",
        "bert_jax.data.store",
        "bert_jax.interop.tokenizer",
    },
    "matplotlib": {f"bert_jax.report.{name}" for name in ("curves", "attention_maps", "confusion")},
    "seqeval": {"bert_jax.tasks.tagging.metrics"},
    "sklearn": {"bert_jax.tasks.classification.metrics"},
    "scipy": {"bert_jax.tasks.classification.metrics"},
    "safetensors": {"bert_jax.interop.huggingface"},
    "pyarrow": {"bert_jax.inference.vector_files"},
    "tensorflow": {"bert_jax.interop.google_tf"},
    "torch": {"bert_jax.interop.huggingface"},
    "transformers": set(),
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


# tensorboardX takes a look at PyTorch where it is installed; the rest must do without it.
WITHOUT_TORCH = """
import importlib, sys
class NoTorch:
    def find_spec(name, path=None, target=None):
        if name == "torch":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, NoTorch)
"""


def loaded(modules: list[str]) -> set[str]:
    """What a new process has loaded after it imported the modules."""
    lines = [WITHOUT_TORCH, *(f"importlib.import_module({module!r})" for module in modules)]
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


def test_tasks_load_no_library_of_metrics():
    found = loaded(["bert_jax.tasks"])
    assert "bert_jax.tasks.classification.metrics" in found
    assert not found & {"sklearn", "scipy", "seqeval", "jax", "tensorflow_datasets"}


def test_prepare_loads_no_jax():
    """So that its worker processes start at once and take no accelerator."""
    found = loaded(["bert_jax.prepare"])
    assert "bert_jax.data.store" in found
    assert not found & {"jax", "flax", "grain", "matplotlib"}
