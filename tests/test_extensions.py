"""Code from outside of the package: trained, killed, resumed, planned for TPUs and scored.

The extensions are in tests/extensions, one a file, and named by recipes as `extensions.lion:Lion`.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from extensions.blocks import Blocks
from extensions.partial_rope import PartialRope
from extensions.trapezoid import Trapezoid

from bert_jax.__main__ import main
from bert_jax.api.evaluate import load_trained
from bert_jax.config.saved import read_pretrain_config
from bert_jax.data.stores import open_store
from bert_jax.parallel.mesh import make_mesh
from bert_jax.report.metrics_file import read_metrics

ROOT = Path(__file__).parents[1]
SETTINGS = [
    "--config.model.vocab_size=128",
    "--config.model.hidden_size=32",
    "--config.model.intermediate_size=64",
    "--config.model.max_position_embeddings=64",
    "--config.model.position_embedding=extensions.partial_rope:PartialRope",
    "--config.model.position_embedding.theta=500",
    "--config.numerics.compute_dtype=float32",
    "--config.data.batch_size=16",
    "--config.data.max_seq_length=48",
    "--config.masking=extensions.blocks:Blocks",
    "--config.masking.size=2",
    "--config.objective=extensions.z_loss:ZLoss",
    "--config.objective.weight=0.001",
    "--config.optimizer=extensions.lion:Lion",
    "--config.optimizer.interpolation=0.8",
    "--config.optimizer.learning_rate=3e-4",
    "--config.optimizer.schedule=extensions.trapezoid:Trapezoid",
    "--config.optimizer.schedule.decay_share=0.5",
    "--config.steps=12",
    "--config.log_every=4",
    "--config.eval_every=6",
    "--config.checkpoint_every=4",
]


def pretrain(store: Path, workdir: Path) -> list[str]:
    recipe = f"--config={ROOT / 'configs' / 'bert.py'}:tiny"
    return ["pretrain", recipe, f"--workdir={workdir}", f"--config.data.store={store}", *SETTINGS]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Of a document source from outside."""
    path = tmp_path_factory.mktemp("extensions") / "store"
    source = "extensions.fables:Fables"
    assert main(["prepare", source, f"--output={path}", "--vocab-size=128", "--workers=1"]) == 0
    return path


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    """A run with every other extension of pretraining."""
    workdir = tmp_path_factory.mktemp("extensions") / "run"
    assert main(pretrain(store, workdir)) == 0
    return workdir


def test_the_documents_come_from_outside(store):
    opened = open_store(store)
    assert opened.manifest["sources"] == [{"name": "fables", "version": 1}]
    assert opened.manifest["splits"]["train"]["documents"] > 80


def test_a_run_names_the_code_that_it_uses(run):
    fields = json.loads((run / "config.json").read_text())
    assert fields["optimizer"]["name"] == "extensions.lion:Lion"
    assert fields["optimizer"]["interpolation"] == 0.8
    config = read_pretrain_config(run / "config.json")
    assert config.masking == Blocks(max_predictions_per_seq=7, size=2)
    assert config.model.position_embedding == PartialRope(theta=500.0)
    assert config.optimizer.schedule == Trapezoid(decay_share=0.5)


def test_it_learns_by_its_own_schedule(run):
    lines = [line for line in read_metrics(run) if line["split"] == "train"]
    assert lines[-1]["mlm_loss"] < lines[0]["mlm_loss"]
    assert "nsp_loss" not in lines[0]
    # Of the last step, counted from 0: 7 of 12 steps are over, and the decay takes the second half.
    assert [line["learning_rate"] for line in lines] == pytest.approx(
        [3e-4, 3e-4 * (1 - 7 / 12) / 0.5, 3e-4 * (1 - 11 / 12) / 0.5], rel=1e-5
    )


def test_killed_and_resumed_is_the_same_run(run, store, tmp_path):
    workdir = tmp_path / "run"
    script = (
        "import os, signal\n"
        "from bert_jax.__main__ import main\n"
        "from bert_jax.train import hooks\n"
        "line = hooks.progress_line\n"
        "def die(step, *rest):\n"
        "    if step == 8: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return line(step, *rest)\n"
        "hooks.progress_line = die\n"
        f"main({pretrain(store, workdir)!r})\n"
    )
    path = f"{ROOT}:{ROOT / 'tests'}"
    environment = os.environ | {"PYTHONPATH": path}
    died = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    assert main(pretrain(store, workdir)) == 0
    params = [load_trained(path, make_mesh(), 12).params for path in (run, workdir)]
    jax.tree.map(np.testing.assert_array_equal, *params)


def test_scored_and_used(run, capsys):
    assert main(["evaluate", f"--workdir={run}", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["heldout"]["mlm_loss"] == read_metrics(run)[-1]["mlm_loss"]
    assert main(["predict", "fill-mask", f"--model={run}", "The fox met the [MASK]."]) == 0
    assert "%" in capsys.readouterr().out


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu is not installed")
def test_planned_for_a_tpu(capsys):
    recipe = f"--config={ROOT / 'configs' / 'bert.py'}:tiny"
    assert main(["plan", recipe, "--topology=v5e:1x1", *SETTINGS]) == 0
    assert "cycles" in capsys.readouterr().out


def test_a_task_from_outside(run, tmp_path):
    statements = [f"The fox met the crow in wood {number}." for number in range(40)]
    questions = [
        line.replace("The fox met", "Who has met").replace(".", "?") for line in statements
    ]
    lines = [line for pair in zip(statements, questions) for line in pair]
    for name, some in {"train": lines[:64], "dev": lines[64:]}.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(some) + "\n")
    command = [
        "finetune",
        f"--config={ROOT / 'configs' / 'finetune.py'}:extensions.questions:Questions",
        f"--workdir={tmp_path / 'run'}",
        f"--config.init_from={run}",
        f"--config.task.train={tmp_path / 'train.txt'}",
        f"--config.task.dev={tmp_path / 'dev.txt'}",
        "--config.task.max_seq_length=32",
        "--config.numerics.compute_dtype=float32",
        "--config.optimizer.learning_rate=3e-3",
        "--config.epochs=5",
    ]
    assert main(command) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["dev"]["baseline"] == {"share_right": 0.5}
    assert results["dev"]["metrics"]["share_right"] > 0.9


def test_the_guide_shows_these_files():
    guide = (ROOT / "docs" / "extending.md").read_text()
    for file in (ROOT / "tests" / "extensions").glob("[!_]*.py"):
        assert f"```python\n{file.read_text()}```" in guide, file.name


def test_rope_depends_on_distances_alone():
    """Scores of a pair of positions are those of another pair as far apart."""
    x = jax.random.normal(jax.random.key(0), (1, 1, 2, 8))
    rope = PartialRope(theta=100.0, share=0.5)

    def score(query: int, key: int) -> jax.Array:
        turned = [rope.rotate(x, jnp.array([[position]])) for position in (query, key)]
        return jnp.einsum("blhd,blhd->h", *turned)

    np.testing.assert_allclose(score(9, 4), score(25, 20), rtol=1e-4)
    assert not np.allclose(score(9, 4), score(9, 5), rtol=1e-3)
