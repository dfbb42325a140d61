"""The wheel holds all that runs outside a clone of the repository."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("setuptools")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with what pip would install."""
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("bert_jax", "configs"):
        unwanted = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=unwanted)
    build = [sys.executable, "setup.py", "--quiet", "bdist_wheel"]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    (wheel,) = (source / "dist").iterdir()
    site = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(site)
    return site


def files(folder: Path) -> set[str]:
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(path) for path in found if "__pycache__" not in path.parts}


def test_wheel_holds_the_package_and_its_recipes(site):
    recipes = {f"configs/{name}" for name in files(ROOT / "configs")}
    assert files(site / "bert_jax") == files(ROOT / "bert_jax") | recipes


PROGRAM = """
from bert_jax.config.arguments import find_recipe
from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.config.pretraining import PretrainConfig
from bert_jax.config.recipes import load_config

print(find_recipe("quickstart"))
print(load_config(PretrainConfig, ["--config=bert:tiny"]).model.num_layers)
print(load_config(PretrainConfig, ["--config=own.py"]).model.num_layers)
data = [f"--config.task.{split}=x.tsv" for split in ("train", "dev")]
given = ["--config=finetune:tagging", "--config.init_from=x", *data]
print(load_config(FinetuneConfig, given).task.called())
"""
OWN = "from bert import get_config as bert\n\ndef get_config():\n    return bert('mini')\n"


def test_recipes_are_found_by_name_outside_the_repository(site, tmp_path):
    """So are those that a recipe of one's own imports."""
    (tmp_path / "own.py").write_text(OWN)
    environment = os.environ | {"PYTHONPATH": str(site)}
    command = [sys.executable, "-c", PROGRAM]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    recipe = site / "bert_jax" / "configs" / "quickstart.py"
    assert run.stdout.split() == [str(recipe), "2", "4", "tagging"]
