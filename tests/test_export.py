"""Exported models: the same numbers, without the code that made them."""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

from bert_jax.__main__ import main
from bert_jax.config import ModelConfig
from bert_jax.data.wordpiece import load_wordpiece
from bert_jax.errors import UserError
from bert_jax.inference import load_bert
from bert_jax.inference.exported import read_exported, write_exported
from bert_jax.inference.functions import part_functions
from bert_jax.interop.formats import read
from bert_jax.interop.portable import Portable
from bert_jax.interop.workdir import write_workdir
from bert_jax.model.heads import PARTS
from bert_jax.parallel import rules
from bert_jax.parallel.mesh import make_mesh
from bert_jax.train.build import build_model

pytestmark = pytest.mark.core

CONFIG = ModelConfig(
    vocab_size=1000,
    num_layers=2,
    hidden_size=32,
    num_heads=4,
    intermediate_size=64,
    max_position_embeddings=64,
    type_vocab_size=2,
    hidden_act="gelu",
    position_embedding="learned",
    hidden_dropout=0.1,
    attention_dropout=0.1,
    layer_norm_eps=1e-12,
    initializer_range=0.2,
    compute_dtype="float32",
    attention="auto",
    scan_layers=True,
    remat="dots",
)
LABELS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def source(sotu_store, tmp_path_factory):
    """Directory of a model with every head."""
    path = epath.Path(tmp_path_factory.mktemp("source"))
    init = build_model(CONFIG, None, PARTS, len(LABELS)).init
    params = jax.device_get(init(jax.random.key(0)))
    params["masked_lm"]["bias"] = np.linspace(-1, 1, 1024, dtype=np.float32)  # of the padding, too
    write_workdir(path, Portable(CONFIG, load_wordpiece(sotu_store), params, LABELS))
    return path


@pytest.fixture(scope="module")
def exported(source, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "model"
    assert main(["export", f"--model={source}", f"--output={path}"]) == 0
    return path


def make_rows(batch: int, length: int) -> dict[str, np.ndarray]:
    """Random tokens; every row but the first is padded."""
    random = np.random.default_rng(length)
    used = np.arange(length) < np.linspace(length, length / 2, batch).astype(int)[:, None]
    return {
        "input_ids": np.where(used, random.integers(5, 1000, used.shape), 0),
        "token_type_ids": random.integers(0, 2, used.shape),
    }


def live_results(source, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What every function of the model gives, by name."""
    model = read(source)
    graphdef = build_model(model.config, None, PARTS, len(LABELS)).graphdef
    functions = {name: jax.jit(f) for name, f in part_functions(graphdef, PARTS).items()}
    ids = rows["input_ids"]
    positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    mask = (ids != 0).astype(np.int32)
    params = model.params
    states = functions["encoder"](params, ids, rows["token_type_ids"], positions, mask)
    results = {"encoder": states, "attention": functions["attention"](params, states, mask)}
    results["pooler"] = functions["pooler"](params, states[-1, :, 0])
    for name in ("next_sentence", "sequence_classifier"):
        results[name] = functions[name](params, results["pooler"])
    for name in ("masked_lm", "token_classifier", "answer_span"):
        results[name] = functions[name](params, states[-1].reshape(-1, 32))
        results[name] = results[name].reshape(*ids.shape, -1)
    results["masked_lm"] = results["masked_lm"][..., :1000]
    return jax.device_get(results)


ALONE = """
import sys
import numpy as np

directory, rows, output = sys.argv[1:]
sys.path[:0] = [directory]
from load_bert import load

for name in ("bert_jax", "flax", "orbax", "optax", "etils", "tokenizers"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise AssertionError(f"{name} can be imported")
import flatbuffers
assert flatbuffers.__file__.startswith(directory)

bert = load(directory)
assert bert.labels == ["red", "green", "blue"]
results = {}
rows = np.load(rows)
for size in "small", "large":
    ids = rows[f"{size}/input_ids"]
    states = bert.encoder(ids, rows[f"{size}/token_type_ids"])
    found = {"encoder": states, "attention": bert.attention(states, ids != 0)}
    found["pooler"] = bert.pooler(states[-1, :, 0])
    for name in "next_sentence", "sequence_classifier":
        found[name] = getattr(bert, name)(found["pooler"])
    for name in "masked_lm", "token_classifier", "answer_span":
        found[name] = getattr(bert, name)(states[-1])
    results |= {f"{size}/{name}": array for name, array in found.items()}
np.savez(output, **results)
"""


def only_jax_and_numpy(directory: Path) -> None:
    """Fills a directory with links to the two and what they require, as installed."""
    for name in ("jax", "jaxlib", "numpy", "ml_dtypes", "opt_einsum", "scipy"):
        distribution = importlib.metadata.distribution(name)
        for part in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            if not (directory / part).exists():
                (directory / part).symlink_to(distribution.locate_file(part))


def test_runs_with_jax_and_numpy_alone(source, exported, tmp_path):
    rows = {"small": make_rows(2, 11), "large": make_rows(5, 64)}
    flat = {f"{size}/{k}": v for size, arrays in rows.items() for k, v in arrays.items()}
    np.savez(tmp_path / "rows.npz", **flat)
    (tmp_path / "alone.py").write_text(ALONE)
    packages = tmp_path / "packages"
    packages.mkdir()
    only_jax_and_numpy(packages)
    start = f"import sys, runpy; sys.path.append({str(packages)!r}); del sys.argv[0]; "
    start += "runpy.run_path(sys.argv[0])"
    arguments = [tmp_path / "alone.py", exported, tmp_path / "rows.npz", tmp_path / "results.npz"]
    command = [sys.executable, "-I", "-S", "-c", start, *map(str, arguments)]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr

    results = np.load(tmp_path / "results.npz")
    for size, arrays in rows.items():
        for name, expected in live_results(source, arrays).items():
            found = results[f"{size}/{name}"]
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5, err_msg=name)
