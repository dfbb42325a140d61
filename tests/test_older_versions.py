"""What older versions wrote is opened, goes on, and gives the same results; see tests/older."""

import dataclasses
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from etils import epath
from flax.traverse_util import flatten_dict

from bert_jax.__main__ import main
from bert_jax.api.evaluate import evaluate
from bert_jax.api.finetune import finetune
from bert_jax.api.pretrain import pretrain
from bert_jax.config.saved import read_finetune_config, read_pretrain_config
from bert_jax.errors import UserError
from bert_jax.inference.trained import load
from bert_jax.interop.formats import read

pytestmark = pytest.mark.core

ARCHIVE = Path(__file__).parent / "older" / "v0.1.tar.xz"


@pytest.fixture
def old(tmp_path, monkeypatch):
    """The unpacked archive, as the working directory."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def facts(old):
    return json.loads((old / "expected.json").read_text())


@pytest.fixture
def arrays(old):
    with np.load(old / "expected.npz") as file:
        return dict(file)


def assert_same_params(arrays: dict[str, np.ndarray], run: str, path: str) -> None:
    """Bit for bit on the processor that made the archive; others round differently.

    Another mask, dropout, order or learning rate changes all parameters by about the learning rate,
    1e-3; rounding moves few of them so far, those whose gradients are nearly 0.
    """
    params = flatten_dict(read(epath.Path(path)).params, sep=".")
    expected = {n.partition("/")[2]: a for n, a in arrays.items() if n.startswith(f"{run}/")}
    assert params.keys() == expected.keys()
    differences = np.concatenate([np.abs(params[n] - expected[n]).ravel() for n in expected])
    assert differences.mean() < 1e-6
    assert differences.max() < 1e-3


@pytest.mark.parametrize("run", ["pretraining", "phases"])
def test_a_killed_pretraining_goes_on(old, arrays, run):
    assert pretrain(read_pretrain_config(epath.Path(run) / "config.json"), run)
    assert_same_params(arrays, run, run)


def test_a_killed_finetuning_goes_on(old, arrays):
    config = read_finetune_config(epath.Path("finetuning_killed") / "config.json")
    assert finetune(config, "finetuning_killed")
    assert_same_params(arrays, "finetuning", "finetuning_killed")


def test_scores(old, facts):
    for run in ("pretraining", "phases", "finetuning"):
        expected = facts[f"evaluate {run}"]
        found = evaluate(run)
        assert found.step == expected.pop("step")
        baselines = expected.pop("baseline")
        assert {found.split: pytest.approx(found.scores, rel=1e-5)} == expected
        assert found.baselines == pytest.approx(baselines, rel=1e-5)


def test_vectors_and_classes(old, facts, arrays):
    texts = facts["texts"]
    for name, path in (("", "pretraining"), (" export", "export"), (" converted", "converted")):
        np.testing.assert_allclose(load(path).encode(texts), arrays[f"encode{name}"], atol=1e-5)
    for classes, expected in zip(load("finetuning/best").classify(texts), facts["classes"]):
        assert dict(classes) == pytest.approx(expected, abs=1e-5)


def test_written_again(old):
    assert main(["convert", "finetuning/best", "again", "--to=huggingface"]) == 0
    written, again = (
        {path.name: path.read_bytes() for path in Path(name).iterdir()}
        for name in ("converted", "again")
    )
    # The file has checksums in its metadata now; its tensors are the same, bit for bit.
    tensors, same = (
        safetensors.numpy.load(files.pop("model.safetensors")) for files in (written, again)
    )
    assert again == written
    assert {name: x.tobytes() for name, x in same.items()} == {
        name: x.tobytes() for name, x in tensors.items()
    }


def test_a_killed_finetuning_goes_on_with_moved_data(old, arrays, capsys):
    """The examples are compared, not the names of their files."""
    (old / "moved").mkdir()
    for name in ("train.tsv", "dev.tsv"):
        (old / name).rename(old / "moved" / name)
    config = read_finetune_config(epath.Path("finetuning_killed") / "config.json")
    moved = dataclasses.replace(config.task, train="moved/train.tsv", dev="moved/dev.tsv")
    exchanged = dataclasses.replace(config.task, train="moved/dev.tsv", dev="moved/dev.tsv")
    with pytest.raises(UserError, match=r"other data: train: '64e5.*' -> '33c5"):
        finetune(dataclasses.replace(config, task=exchanged), "finetuning_killed")
    assert finetune(dataclasses.replace(config, task=moved), "finetuning_killed")
    assert "changed since the last start: finetune.task.train: " in capsys.readouterr().out
    assert_same_params(arrays, "finetuning", "finetuning_killed")


def test_described(old, capsys):
    """A page about runs that have no record of their starts, one of them of fine-tuning."""
    assert main(["report", "phases", "finetuning", "--output=page.html", "--text=the [MASK]"]) == 0
    page = (old / "page.html").read_text()
    assert "<h1>2 runs</h1>" in page
    assert "Environment" not in page
    dev = json.loads((old / "finetuning/results.json").read_text())["dev"]["metrics"]
    assert f'<th scope="row">accuracy</th><td>{dev["accuracy"]:.1%}</td>' in page
    assert "<td>&quot;lamb&quot;</td><td>&quot;adamw&quot;</td>" in page  # a field that differs
    assert "Masks filled: phases" in page
    assert "Masks filled: finetuning" not in page
    assert main(["report", "store"]) == 2
    assert "store/metrics.jsonl: no such file" in capsys.readouterr().err
