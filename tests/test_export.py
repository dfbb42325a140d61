"""Exported models: the same numbers, without the code that made them."""

import hashlib
import importlib.metadata
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from portables import in_one_group, make_portable

import bert_jax
from bert_jax.__main__ import main
from bert_jax.data.wordpiece import SPECIAL_TOKENS, WordPiece
from bert_jax.errors import UserError
from bert_jax.inference import load_bert
from bert_jax.inference.exported import read_exported, write_exported
from bert_jax.inference.functions import part_functions
from bert_jax.interop.formats import read
from bert_jax.interop.workdir import write_workdir
from bert_jax.model.heads import PARTS
from bert_jax.model.model import build_model
from bert_jax.parallel import rules
from bert_jax.parallel.mesh import make_mesh
from bert_jax.parallel.topologies import topology_devices

pytestmark = pytest.mark.core

WORDPIECE = WordPiece((*SPECIAL_TOKENS, *(f"word{n}" for n in range(995))), lowercase=True)
HIDDEN, POSITIONS = 128, 128


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Directory of a model with every head."""
    path = epath.Path(tmp_path_factory.mktemp("source"))
    write_workdir(path, make_portable(WORDPIECE, PARTS))
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
    graphdef = build_model(
        model.architecture, model.numerics, parts=PARTS, outputs=len(model.labels)
    ).graphdef
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
        results[name] = functions[name](params, states[-1].reshape(-1, HIDDEN))
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
assert bert.labels == ["negative", "neutral", "positive"]
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
    rows = {"small": make_rows(2, 11), "large": make_rows(5, POSITIONS)}
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


def test_no_padding_of_the_vocabulary_is_left(exported):
    arrays = np.load(exported / "params.npz")
    assert arrays["bert/embeddings/word/embedding"].shape == (1000, HIDDEN)
    assert not [name for name in arrays.files if 1024 in arrays[name].shape]
    assert load_bert.load(exported).masked_lm(np.zeros((3, HIDDEN), np.float32)).shape == (3, 1000)


def test_what_an_older_version_exported_opens(exported, tmp_path):
    """Its manifest had all fields of the model in one group."""
    directory = tmp_path / "model"
    shutil.copytree(exported, directory)
    manifest = as_version_1(json.loads((directory / "export.json").read_text()))
    (directory / "export.json").write_text(json.dumps(in_one_group(manifest)))
    (model, functions), (expected, _) = map(read_exported, map(epath.Path, (directory, exported)))
    assert (model.architecture, model.numerics) == (expected.architecture, expected.numerics)
    found = functions["pooler"](model.params, np.ones((1, HIDDEN), np.float32))
    np.testing.assert_array_equal(
        load_bert.load(directory).pooler(np.ones((1, HIDDEN), np.float32)), found
    )


def test_nothing_tells_where_it_was_made(exported, source):
    for file in exported.iterdir():
        if file.is_file():
            content = file.read_bytes()
            places = (Path(__file__).parents[1], sys.prefix, source)
            assert not [place for place in places if str(place).encode() in content], file


def test_rows_are_shared_by_devices(exported):
    """No device is named in an exported function: layouts follow from the arguments."""
    mesh = make_mesh()
    model, functions = read_exported(epath.Path(exported))
    params = jax.device_put(model.params, rules.replicated(mesh))
    ids = jax.device_put(np.full((16, 8), 7, np.int32), rules.batch_sharding(mesh))
    states = functions["encoder"](params, ids, ids * 0, ids * 0, ids)
    assert {shard.data.shape for shard in states.addressable_shards} == {(3, 2, 8, HIDDEN)}


def test_compiles_for_a_tpu(exported):
    pytest.importorskip("libtpu", reason="the compiler for TPUs is in libtpu")
    sharding = jax.sharding.SingleDeviceSharding(topology_devices("v5e:1x1")[0])

    def abstract(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    model, functions = read_exported(epath.Path(exported))
    params, hidden = jax.tree.map(abstract, (model.params, np.zeros((8, HIDDEN), np.float32)))
    program = functions["next_sentence"].lower(params, hidden).compile().as_text()
    assert "TPU" in program or ":T(" in program  # tiled layouts, which only TPUs have


def as_version_1(manifest: dict) -> dict:
    """Without the checksums that the first format did not have."""
    names = {"params.npz", *(f"{name}.stablehlo" for name in manifest["functions"])}
    files = {name: digest for name, digest in manifest["files"].items() if name in names}
    manifest = {name: value for name, value in manifest.items() if name != "sha256"}
    return manifest | {"version": 1, "files": files}


def rewrite(directory: Path, **changes) -> None:
    """Writes another manifest, with its checksum."""
    file = directory / "export.json"
    manifest = json.loads(file.read_text()) | changes
    manifest["sha256"] = load_bert.digest_of(manifest)
    file.write_text(json.dumps(manifest))


def rewrite_version_1(directory: Path, **changes) -> None:
    file = directory / "export.json"
    file.write_text(json.dumps(as_version_1(json.loads(file.read_text())) | changes))


def rewrite_params(directory: Path, change) -> None:
    """Writes other parameters, with their checksum."""
    with np.load(directory / "params.npz") as file:
        arrays = dict(file)
    change(arrays)
    np.savez_compressed(directory / "params.npz", **arrays)
    files = json.loads((directory / "export.json").read_text())["files"]
    digest = hashlib.sha256((directory / "params.npz").read_bytes()).hexdigest()
    rewrite(directory, files=files | {"params.npz": digest})


BROKEN = {
    "no manifest": (lambda d: (d / "export.json").unlink(), "export.json: no such file"),
    "half a manifest": (
        lambda d: (d / "export.json").write_text((d / "export.json").read_text()[:200]),
        r"export.json: not JSON \(.*\); copy or export",
    ),
    "another format": (lambda d: rewrite(d, format="other"), "not the manifest of an exported"),
    "newer": (lambda d: rewrite(d, version=3), "format version 3, this reads 1 to 2"),
    "changed manifest": (
        lambda d: (d / "export.json").write_text(
            (d / "export.json").read_text().replace('"neutral"', '"central"')
        ),
        "export.json: damaged or changed",
    ),
    "no checksums": (lambda d: rewrite(d, files={}), "no checksum of .*, vocab.txt$"),
    "no checksums in version 1": (
        lambda d: rewrite_version_1(d, files={}),
        "no checksum of answer_span.stablehlo, .*params.npz",
    ),
    "version 1 without its checksum": (
        lambda d: rewrite(d, version=1, files={}),
        "no checksum of answer_span.stablehlo, .*params.npz",
    ),
    "file elsewhere": (
        lambda d: rewrite_version_1(d, files={"a/../../params.npz": ""}),
        "field files: 'a/../../params.npz' is not a file of",
    ),
    "absolute file": (
        lambda d: rewrite_version_1(d, files={"/etc/passwd": ""}),
        "field files: '/etc/passwd' is not a file of",
    ),
    "function elsewhere": (
        lambda d: rewrite_version_1(d, functions={"../encoder": {}}),
        "functions: '../encoder' is not the name of a function",
    ),
    "no encoder": (lambda d: rewrite(d, functions={}), "functions: attention, encoder missing"),
    "labels of another type": (
        lambda d: rewrite_version_1(d, labels=["a", 1]),
        "field labels: 1 is not a name",
    ),
    "files of another type": (
        lambda d: rewrite_version_1(d, files=["params.npz"]),
        "field files: expected dict",
    ),
    "brackets": (lambda d: (d / "export.json").write_text("[" * 100_000), "export.json: not JSON"),
    "bytes": (lambda d: (d / "export.json").write_bytes(b"\xff{}"), "export.json: not JSON"),
    "an array that expands": (
        lambda d: rewrite_params(
            d, lambda arrays: arrays.update({"next_sentence/bias": np.zeros(10**7, np.float32)})
        ),
        r"params.npz: damaged \(next_sentence/bias is float32\(10000000,\), not float32\[2\]",
    ),
    "an array of objects": (
        lambda d: rewrite_params(
            d, lambda arrays: arrays.update({"next_sentence/bias": np.array([None, {}])})
        ),
        r"params.npz: damaged \(next_sentence/bias is object",
    ),
    "not finite": (
        lambda d: rewrite_params(
            d, lambda arrays: arrays["next_sentence/bias"].__setitem__(1, np.nan)
        ),
        "next_sentence/bias has values that are not finite numbers",
    ),
    "an array is missing": (
        lambda d: rewrite_params(d, lambda arrays: arrays.pop("next_sentence/bias")),
        "params.npz: damaged .*next_sentence/bias",
    ),
    "no model": (
        lambda d: rewrite(d, model={"vocab_size": 1000}),
        r"cannot be restored into this model: .* is \(.*128.*\), but must be \(.*768.*\)",
    ),
    "no fields": (
        lambda d: (d / "export.json").write_text('{"format": "bert_jax export", "version": 1}'),
        "export.json: files, functions, jax, labels, model, pad_id missing",
    ),
    "missing parameters": (lambda d: (d / "params.npz").unlink(), "params.npz: no such file"),
    "half of the parameters": (
        lambda d: (d / "params.npz").write_bytes((d / "params.npz").read_bytes()[:10_000]),
        "params.npz: damaged; copy or export",
    ),
    "missing function": (lambda d: (d / "pooler.stablehlo").unlink(), "pooler.stablehlo: no such"),
    "changed function": (
        lambda d: (d / "encoder.stablehlo").write_bytes((d / "pooler.stablehlo").read_bytes()),
        "encoder.stablehlo: damaged; copy or export",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken(exported, tmp_path, what):
    damage, message = BROKEN[what]
    directory = tmp_path / "model"
    shutil.copytree(exported, directory)
    damage(directory)
    with pytest.raises(UserError, match=message) as raised:
        read_exported(epath.Path(directory))
    assert "\n" not in str(raised.value)
    if what != "no model":  # whose fields only bert_jax checks
        with pytest.raises(ValueError, match=message):
            load_bert.load(directory)


def test_every_file_is_checked(exported, tmp_path):
    """Also the vocabulary, whose words could be swapped without another sign."""
    directory = tmp_path / "model"
    shutil.copytree(exported, directory)
    files = [
        path for path in exported.rglob("*") if path.is_file() and "__pycache__" not in str(path)
    ]
    names = {path.relative_to(exported).as_posix() for path in files}
    assert {"vocab.txt", "tokenizer_config.json", "load_bert.py", "export.json"} < names
    for name in names:
        whole = (directory / name).read_bytes()
        (directory / name).write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
        for read_it in (load_bert.load, lambda path: read_exported(epath.Path(path))):
            with pytest.raises((ValueError, UserError), match=f"{name}: (damaged|not JSON)"):
                read_it(directory)
        (directory / name).write_bytes(whole)
    assert load_bert.load(directory).labels == ["negative", "neutral", "positive"]


def test_program_of_another_jax(exported, tmp_path, monkeypatch):
    """What a JAX cannot read is said at once, and not when it is called."""
    directory = tmp_path / "model"
    shutil.copytree(exported, directory)
    rewrite(directory, jax="99.0")

    def fails(serialized):
        raise ValueError("unknown\nversion")

    monkeypatch.setattr(jax.export, "deserialize", fails)
    with pytest.raises(UserError, match=r"cannot read what jax 99.0 wrote \(unknown version\)"):
        read_exported(epath.Path(directory))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.zeros((1, 129)), "129 tokens, the model takes 128"),
        (np.zeros(5), r"must be \[batch, length\], not \[5\]"),
        (np.full((1, 5), 1000), "beyond the vocabulary, which has 1000 tokens"),
    ],
)
def test_bad_arguments(exported, ids, message):
    bert = load_bert.load(exported)
    with pytest.raises(ValueError, match=message):
        bert.encoder(ids)
    with pytest.raises(
        ValueError, match=r"token_type_ids: the model has 2 token type\(s\), from 0"
    ):
        bert.encoder(np.ones((1, 5)), np.full((1, 5), 2))


def test_missing_head(source, tmp_path):
    model = read(source)
    model = model._replace(params={"bert": model.params["bert"]})
    write_exported(tmp_path / "model", model, ["cpu"])
    bert = load_bert.load(tmp_path / "model")
    with pytest.raises(AttributeError, match="no masked_lm; this model has encoder, attention, po"):
        bert.masked_lm(np.zeros((1, HIDDEN)))


def test_nothing_is_half_written(source, tmp_path, monkeypatch, capsys):
    arguments = ["export", f"--model={source}", f"--output={tmp_path / 'model'}"]
    assert main([*arguments, "--platforms=cpu,gpu"]) == 2
    assert "no platform 'gpu' to export for; use cpu, tpu, cuda" in capsys.readouterr().err

    def fails(*_, **__):
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", fails)
        with pytest.raises(RuntimeError):
            main(arguments)
    assert not list(tmp_path.iterdir())

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes").touch()
    assert main(arguments) == 2
    assert f"{tmp_path / 'model'}: not empty" in capsys.readouterr().err
    assert [file.name for file in (tmp_path / "model").iterdir()] == ["notes"]


def test_fp32_stays_fp32_on_a_tpu(exported):
    """Whose matrix units would round the factors to bf16."""
    program = jax.export.deserialize(bytearray((exported / "encoder.stablehlo").read_bytes()))
    lines = program.mlir_module().splitlines()
    products = [line for line in lines if "stablehlo.dot_general" in line]
    assert len(products) >= 8
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)


def test_guesses_are_those_of_the_source(source, exported):
    texts = ["word1 word2 [MASK] word3", "word4 [MASK]", "[MASK] word5 [MASK] word6"]
    for found, expected in zip(
        bert_jax.load(exported).fill_mask(texts), bert_jax.load(source).fill_mask(texts)
    ):
        for guesses, others in zip(found, expected, strict=True):
            assert [guess.token for guess in guesses] == [guess.token for guess in others]
            probabilities = ([guess.probability for guess in x] for x in (guesses, others))
            np.testing.assert_allclose(*probabilities, rtol=1e-5)
