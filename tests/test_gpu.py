"""What a GPU computes, beside a CPU: `pytest -m gpu`, skipped where there is no GPU.

Every test starts the program as users do, since the other tests' process sees CPUs only.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

STEPS = 6
TIMES = ("tokens_per_second", "sequences_per_second", "steps_per_second", "input_stall")
FIELDS = {
    "steps": STEPS,
    "log_every": 1,
    "eval_every": STEPS,
    "checkpoint_every": 3,
    "keep_checkpoints": 5,
    "data.batch_size": 16,
    "data.max_seq_length": 64,
    "model.vocab_size": 1000,
    "numerics.compute_dtype": "float32",
    "optimizer.warmup_steps": 0,
}


def has_gpu():
    plugins = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin")
    return bool(shutil.which("nvidia-smi") or shutil.which("rocm-smi")) and any(
        importlib.util.find_spec(name) for name in plugins
    )


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not has_gpu(), reason="no GPU, or no plugin of JAX for it"),
]


def run(platform, *arguments):
    """Runs a verb on a platform, with exact products and sums in a fixed order."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    if platform == "gpu":
        environment["XLA_FLAGS"] = "--xla_gpu_deterministic_ops=true"
    environment |= {
        "JAX_PLATFORMS": {"gpu": "cuda,cpu", "cpu": "cpu"}[platform],
        "JAX_DEFAULT_MATMUL_PRECISION": "float32",
    }
    command = [sys.executable, "-m", "bert_jax", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def pretrain(platform, store, workdir, **changes):
    """The lines of metrics of a run, without times."""
    fields = FIELDS | {"data.store": store} | changes
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    recipe = ["--config=bert:tiny", f"--workdir={workdir}", f"--platform={platform}"]
    run(platform, "pretrain", *recipe, *flags)
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{name: x for name, x in line.items() if name not in TIMES} for line in lines]


@pytest.fixture(scope="module")
def trained(sotu_store, tmp_path_factory):
    """A run on a GPU, and its metrics."""
    workdir = tmp_path_factory.mktemp("gpu") / "run"
    return workdir, pretrain("gpu", sotu_store, workdir)


def test_losses_are_those_of_a_cpu(trained, sotu_store, tmp_path):
    """With dropout: threefry draws the same bits everywhere."""
    expected = pretrain("cpu", sotu_store, tmp_path / "run")
    assert [line["step"] for line in trained[1]] == [line["step"] for line in expected]
    for found, line in zip(trained[1], expected, strict=True):
        np.testing.assert_allclose(found["mlm_loss"], line["mlm_loss"], rtol=1e-4)


def test_a_resume_is_bit_for_bit(trained, sotu_store, tmp_path):
    workdir, metrics = trained
    shutil.copytree(workdir, tmp_path / "run")
    assert pretrain("gpu", sotu_store, tmp_path / "run", resume_from=3) == metrics


@pytest.mark.parametrize(
    "layout", [{"mesh.zero1": False}, {"mesh.data": 1, "mesh.fsdp": -1}], ids=["replicated", "fsdp"]
)
def test_layouts_agree(layout, trained, sotu_store, tmp_path):
    found = pretrain("gpu", sotu_store, tmp_path / "run", **layout)
    for line, expected in zip(found, trained[1], strict=True):
        np.testing.assert_allclose(line["mlm_loss"], expected["mlm_loss"], rtol=1e-4)


def test_an_export_runs_there(trained, tmp_path):
    (tmp_path / "texts.txt").write_text("The state of the union is strong.\nWe are at peace.\n")
    export = tmp_path / "export"
    run("cpu", "export", f"--model={trained[0]}", f"--output={export}", "--platforms=cpu,cuda")
    vectors = []
    for platform in ("cpu", "gpu"):
        output = tmp_path / f"{platform}.npy"
        given = [f"--model={export}", f"--output={output}", tmp_path / "texts.txt"]
        run(platform, "predict", "features", *given)
        vectors.append(np.load(output))
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-4)
