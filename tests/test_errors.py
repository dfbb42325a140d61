"""Mistakes of a user: one line that names what is wrong, exit code 2, and nothing is changed."""

import io
import lzma
import os
import re
import shutil
from pathlib import Path

import jax
import pytest
from etils import epath

import bert_jax
from bert_jax.__main__ import main
from bert_jax.api.plan import planned_step
from bert_jax.config.pretraining import PretrainConfig
from bert_jax.config.recipes import load_config
from bert_jax.data.stores import open_store
from bert_jax.parallel.mesh import make_mesh
from bert_jax.pretraining.data import identity
from bert_jax.train.checkpoints import Checkpoints
from bert_jax.train.workdirs import claim_workdir

pytestmark = pytest.mark.core

CONFIGS = Path(__file__).parents[1] / "configs"
SMALL = [
    "--config.steps=2",
    "--config.model.vocab_size=1000",
    "--config.model.num_layers=1",
    "--config.model.hidden_size=32",
    "--config.model.intermediate_size=64",
    "--config.model.max_position_embeddings=64",
    "--config.data.batch_size=8",
    "--config.data.max_seq_length=32",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a dozen addresses, the store of them and a run with a checkpoint."""
    folder = tmp_path_factory.mktemp("made")
    with lzma.open(Path(bert_jax.__file__).parent / "corpora" / "sotu.jsonl.xz", "rt") as lines:
        shortest = sorted(lines, key=len)[:12]
    (folder / "text.jsonl").write_text("".join(shortest))
    source, store = str(folder / "text.jsonl"), folder / "store"
    assert main(["prepare", source, f"--output={store}", "--vocab-size=1000", "--workers=1"]) == 0
    for name, text in {"one": "Fellow citizens.\nHere is one document.\n", "empty": "\n\n"}.items():
        (folder / f"{name}.txt").write_text(text)
    one = [str(folder / "one.txt"), f"--output={folder / 'one'}", "--workers=1"]
    assert main(["prepare", *one, f"--vocab={store}"]) == 0

    config = load_config(PretrainConfig, pretrain(folder)[2:])
    run = epath.Path(folder / "run")
    opened = open_store(store)
    claim_workdir(run, config.to_dict(), identity(opened), opened.tokenizer)
    init_state = planned_step(config, make_mesh()).init
    with Checkpoints(run) as checkpoints:
        checkpoints.save(2, init_state(jax.random.key(0)), {"unlogged": {}})
    return folder


@pytest.fixture
def fails(made, tmp_path, capsys):
    """Runs a command that must fail and leave everything as it was; returns its message."""

    def run(*arguments) -> str:
        before = snapshot(made), snapshot(tmp_path)
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as exit_:  # argparse shows the usage before the message
            code = exit_.code
        assert code == 2
        written = capsys.readouterr().err.replace("\r", "\n")
        bars_and_usage = r"(?m)^((vocabulary|tokens): .*B/s.*\n|usage: .*\n(  .*\n)*)"
        lines = re.sub(bars_and_usage, "", written).strip().splitlines()
        assert len(lines) == 1, written
        assert snapshot(made) == before[0]
        assert snapshot(tmp_path) == before[1]
        return lines[0]

    return run


@pytest.fixture
def no_devices(monkeypatch):
    """Fails the test as soon as training goes on to the devices."""
    monkeypatch.setattr(
        "bert_jax.pretraining.parts.Part.build", lambda *_: pytest.fail("went too far")
    )


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


def pretrain(made, *changes, workdir="run", config="bert.py:tiny"):
    command = ["pretrain", f"--workdir={made / workdir}", f"--config={CONFIGS / config}"]
    return [*command, f"--config.data.store={made / 'store'}", *SMALL, *changes]


FIELDS = {
    # names
    "modle.num_layers=2": r"config\.modle: no such field; did you mean config\.model\?",
    "model.num_layer=2": r"config\.model\.num_layer: .* mean config\.model\.num_layers\?",
    "learning_rate=9": r"config\.learning_rate: .* mean config\.optimizer\.learning_rate\?",
    "model.batch_size=9": r"config\.model\.batch_size: .* mean config\.data\.batch_size\?",
    "warmup=9": r"config\.warmup: .* mean config\.optimizer\.warmup_steps\?",
    "train.batch_size=9": r"config\.train: .* mean config\.data\.batch_size\?",
    "lr=9": r"config\.lr: no such field; docs/config\.md lists all fields",
    "step=9": r"config\.step: .* mean config\.steps\?",
    "steps.more=9": r"config\.steps\.more: no such field",
    "model=tiny": r"config\.model is a group: set its fields, attention_bias, ",
    # types
    "steps=1.5": r"config\.steps must be int, not '1\.5'",
    "steps=ten": r"config\.steps must be int, not 'ten'",
    "optimizer.learning_rate=fast": r"config\.optimizer\.learning_rate must be float, not 'fast'",
    "data.packing=maybe": r"config\.data\.packing must be bool, not 'maybe'",
    "steps": r"[Mm]issing value for flag --config\.steps",
    # ranges
    "steps=-1": r"config\.steps must be positive, not -1",
    "seed=-1": r"config\.seed must not be negative",
    "seed=4294967296": r"config\.seed=4294967296 must be below 2\*\*32",
    "model.hidden_dropout=1.0": r"config\.numerics\.hidden_dropout must be in \[0, 0\.99\], not 1",
    "optimizer.learning_rate=inf": r"config\.optimizer\.learning_rate must be a finite number",
    "optimizer.learning_rate=nan": r"config\.optimizer\.learning_rate must be a finite number",
    "data.masked_lm_prob=0.0": r"config\.masking\.masked_lm_prob must be above 0",
    # choices
    "optimizer.name=adm": r"config\.optimizer\.name='adm': use one of adamw",
    "optimizer.schedule=liner": r"config\.optimizer\.schedule\.name='liner': use one of linear",
    "data.pairs=": r"config\.data\.pairs='': use one of nsp, sop, none",
    # fields that do not fit together
    "model.num_heads=5": r"hidden_size=32 is not a multiple of config\.model\.num_heads=5",
    "data.max_seq_length=65": r"max_seq_length=65 exceeds .*max_position_embeddings=64",
    "data.max_seq_length=7": r"config\.data\.max_seq_length=7 is too short: at least 8",
    "model.type_vocab_size=1": r"config\.model\.type_vocab_size=1: pairs need 2 token types",
    "optimizer.gradient_accumulation=3": r"batch_size=8 is not a multiple of .*accumulation=3",
    "optimizer.warmup_steps=3": r"config\.optimizer\.warmup_steps=3 exceeds config\.steps=2",
    "mesh.data=0": r"config\.mesh sizes must be positive",
    "mesh.fsdp=-1": r"config\.mesh sizes must be positive, at most one of them -1",
    "optimizer.name=nowhere:Lion": (
        r"config\.optimizer\.name='nowhere:Lion': cannot be imported "
        r"\(No module named 'nowhere'\); PYTHONPATH must name its folder"
    ),
    "optimizer.name=os:path": r"config\.optimizer\.name='os:path': must be a class derived from Op",
    "optimizer.power=2": r"config\.optimizer\.power: no such field",
    "masking.max_words=2": r"config\.masking\.max_words: no such field",
    "phases[0].steps=9": r"config\.phases\[0\]: config\.phases has 0 items",
    "target_mlm_accuracy=72": r"config\.target_mlm_accuracy must be in \[0, 1\), not 72",
    # the store
    "model.vocab_size=999": r"store has a vocabulary of 1000: set --config\.model\.vocab_size=1000",
    "data.store=": r"config\.data\.store is empty: name the directory",
    "data.store=nowhere": r"nowhere: no token store there; make one with `bert-jax prepare`",
    f"data.store={__file__}": r"test_errors\.py: no token store there",
}


@pytest.mark.usefixtures("no_devices")
@pytest.mark.parametrize("override", FIELDS)
def test_field(override, made, tmp_path, fails):
    message = fails(*pretrain(made, f"--config.{override}", workdir=tmp_path / "new"))
    assert re.match(rf"bert-jax pretrain: error: .*{FIELDS[override]}", message)


PHASES = {
    "phases[2].steps=9": r"config\.phases\[2\]: config\.phases has 2 items",
    "phases[x].steps=9": r"config\.phases\[x\]: config\.phases has 2 items",
    "phases[0].step=9": r"config\.phases\[0\]\.step: .* mean config\.phases\[0\]\.steps\?",
    "phases[0]=9": r"config\.phases\[0\] is a group: set its fields, data, ",
    "phases.steps=9": r"config\.phases\.steps: no such field",
    "phases[1].steps=ten": r"config\.phases\[1\]\.steps must be int, not 'ten'",
    "phases[1].batch_size=0": r"config\.phases\[1\]\.data\.batch_size must be positive, not 0",
    "phases[1].max_seq_length=513": r"config\.phases\[1\]\.data\.max_seq_length=513 exceeds ",
    "phases[0].warmup_steps=900001": r"\.optimizer\.warmup_steps=900001 .*\[0\]\.steps=900000",
    "data.batch_size=9": r"config\.data\.batch_size: every phase has its own: .*\[0\]\.data",
    "steps=9": r"config\.steps: every phase has its own: set config\.phases\[0\]\.steps",
    "budget_hours=2": r"config\.budget_hours=2\.0 does not go with config\.phases: set it to 0",
}


@pytest.mark.parametrize("override", PHASES)
def test_field_of_a_phase(override, tmp_path, fails):
    command = ["pretrain", f"--config={CONFIGS / 'bert_base.py'}", f"--workdir={tmp_path / 'new'}"]
    assert re.search(PHASES[override], fails(*command, f"--config.{override}"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.batch_size=12", r"batch_size=12 .* 12 rows, which 8 devices .* cannot share"),
        ("mesh.data=3", r"config\.mesh \(data=3, .*\) does not fit 8 devices: .* to -1"),
        ("mesh.fsdp=16", r"config\.mesh .*fsdp=16.* does not fit 8 devices"),
    ],
)
def test_devices(override, message, made, tmp_path, fails):
    command = pretrain(made, f"--config.{override}", workdir=tmp_path / "new")
    assert re.search(message, fails(*command))
    assert not (tmp_path / "new" / "checkpoints").exists()


RECIPES = {
    "def get_config(:\n": r"recipe\.py: SyntaxError: invalid syntax \(recipe\.py, line 1\)",
    "a = {\n\n": r"recipe\.py: SyntaxError: '\{' was never closed",
    "steps = 1000\n": r"recipe\.py: AttributeError: .*get_config",
    "def get_config():\n  pass\n": r"recipe\.py: get_config\(\) must return a ConfigDict, not None",
    "import nowhere\n": r"recipe\.py: ModuleNotFoundError: No module named 'nowhere'",
    "def get_config():\n  raise ValueError('no')\n": r"recipe\.py: ValueError: no",
    '{"steps": true}\n': r"recipe\.py: NameError",
    "from ml_collections import ConfigDict\nget_config = lambda: ConfigDict({'model': 3})\n": (
        r"config\.model must be a group of fields, not 3"
    ),
    "from bert_base import get_config as base\n"
    "def get_config():\n  config = base()\n  config.steps = 9\n  return config\n": (
        r"config\.steps=9, but the steps of config\.phases sum to 1000000: change those of a phase"
    ),
    "from bert import get_config as base\n"
    "def get_config():\n  config = base()\n  config.data.stroe = ''\n  return config\n": (
        r"config\.data\.stroe: no such field; did you mean config\.data\.store\?"
    ),
}


@pytest.mark.usefixtures("no_devices")
@pytest.mark.parametrize("text", RECIPES)
def test_config_file(text, tmp_path, fails):
    (tmp_path / "recipe.py").write_text(text)
    command = ["pretrain", f"--config={tmp_path / 'recipe.py'}", f"--workdir={tmp_path / 'new'}"]
    assert re.search(RECIPES[text], fails(*command))


COMMANDS = {
    "pretan --config=x": r"bert-jax: unknown verb 'pretan': use one of prepare, inspect, ",
    "pretrain --workdir={tmp}/new": r"required: --config",
    "pretrain --config={configs}/bert.py": r"required: --workdir",
    "pretrain --config={configs}/brt.py --workdir={tmp}/new": r"brt\.py: no such file; recipes are",
    "pretrain --config={tmp}/bert.py --workdir={tmp}/new": r"did you mean --config=bert\?",
    "pretrain --config=brt:base --workdir={tmp}/new": r"no such recipe; did you mean --config=b",
    "pretrain --config=finetune:tagging --workdir={tmp}/new": (
        r"--config=finetune:tagging: a recipe for `bert-jax finetune`"
    ),
    "finetune --config=bert:tiny --workdir={tmp}/new": r"a recipe for `bert-jax pretrain`",
    "plan --config=finetune --topology=v5e:2x4": r"a recipe for `bert-jax finetune`",
    "pretrain --config=bert:huge --workdir={tmp}/new": r"bert:huge: ValueError: unknown size",
    "pretrain --config={configs}/bert.py:huge --workdir={tmp}/new": (
        r"bert\.py:huge: ValueError: unknown size 'huge': use one of tiny, "
    ),
    "pretrain --config={configs}/neobert.py:x --workdir={tmp}/new": r"takes 0 positional arg",
    "pretrain --config={configs}/bert.py --workdir={tmp}/new --steps=3": (
        r"unknown flag --steps: overrides look like --config\.steps=1000"
    ),
    "pretrain --config={configs}/bert.py --workdir={tmp}/new 3": r"unexpected argument '3'",
    # a workdir that is not one, or lacks the step
    "evaluate --workdir={tmp}/new": (
        r"new/config\.json: no such file; is .*/new the directory of a run or model\?"
    ),
    "evaluate --workdir={made}/store": r"store/config\.json: no such file",
    "evaluate --workdir={made}/run --step=1": r"no checkpoint of step 1; there are \[2\]",
    "evaluate --workdir={made}/run --store={tmp}": r"no token store there; make one",
    "predict fill-mask --model={tmp} [MASK]": r": no model there, neither config\.json .* nor",
    "predict fill-mask --model=owner/bert [MASK]": (
        r"owner/bert: no model there, .*hf download owner/bert --include .* --local-dir owner/bert"
    ),
    "predict fill-mask --model={made}/run Peace.": r"no \[MASK\] in 'Peace\.': put one where",
    "predict fill-mask --model={made}/run [MASK]" + 63 * ",": r"has 66 tokens, .* 64 positions: s",
    "predict fill-mask --model={made}/run --top-k=1001 [MASK]": r"top_k=1001: must be from 1 to",
    "predict translate": r"invalid choice: 'translate' \(choose from '?fill-mask",
    "plot {made}/run": r"run/metrics\.jsonl: no such file; is .*/run the directory",
    # sources
    "prepare {tmp}/gone.txt --output={tmp}/new": r"gone\.txt: no such file or folder",
    "prepare {made}/store/manifest.json --output={tmp}/new": (
        r"manifest\.json, line 1: not JSON .*goes on"
    ),
    "prepare {tmp} --output={tmp}/new": r": no file with documents there: \.txt, \.jsonl",
    "prepare {made}/empty.txt --output={tmp}/new": r"no text .*: check the sources",
    "prepare {made}/empty.txt --vocab={made}/store --output={tmp}/new": (
        r"no document with text: check the sources"
    ),
    "prepare corpus:shakespeare --output={tmp}/new": r"no such corpus .* there is corpus:sotu",
    "prepare {made}/text.jsonl --text-field=body --output={tmp}/new": (
        r"text\.jsonl, line 1: no text field 'body' in \[.*text.*\]; pass --text-field"
    ),
    "prepare {made}/text.jsonl --output={made}/store": (
        r"store: a store of other --vocab-size \(1000 there, 30522 now\); choose another --output"
    ),
    "prepare {made}/text.jsonl --vocab={made}/store --output={made}/run": (
        r"run: exists and is not empty; choose another folder"
    ),
    "prepare {made}/text.jsonl --vocab={made}/store --output={made}/one.txt/new": (
        r"one\.txt/new\.unfinished\.lock: Not a directory"
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command, made, tmp_path, fails):
    arguments = [a.format(made=made, tmp=tmp_path, configs=CONFIGS) for a in command.split()]
    assert re.search(COMMANDS[command], fails(*arguments))


def test_fill_mask_without_text(made, fails, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    message = fails("predict", "fill-mask", f"--model={made / 'run'}")
    assert message.endswith("error: standard input: no text to read")


SOURCES = {
    "latin1.txt": (
        "Café\n\nau lait\n".encode("latin-1"),
        r"latin1\.txt, line 1: byte 4 .*not UTF-8",
    ),
    "plain.jsonl": (
        b"Fellow citizens.\n",
        r"plain\.jsonl, line 1: not JSON",
    ),
    "number.jsonl": (b'{"text": 5}\n', r"number\.jsonl, line 1: field 'text' is int, not text"),
    "named.txt.gz": (b"Fellow citizens.\n", r"named\.txt\.gz: damaged or cut short"),
    "cut.txt.xz": (
        lzma.compress(b"Fellow citizens.\n")[:-9],
        r"cut\.txt\.xz: damaged or cut short",
    ),
    "speech.pdf": (b"%PDF-1.7\n", r"speech\.pdf: documents come as \.txt, \.jsonl, \.csv, "),
}


@pytest.mark.parametrize("name", SOURCES)
def test_source(name, tmp_path, fails):
    content, message = SOURCES[name]
    (tmp_path / name).write_bytes(content)
    assert re.search(message, fails("prepare", tmp_path / name, f"--output={tmp_path / 'new'}"))


VOCABULARIES = {
    "[PAD] [UNK] [CLS] [SEP] the": r"vocab\.txt: vocabulary: \[MASK\] missing",
    "": r"vocab\.txt: vocabulary: \[PAD\], .* missing; is this a BERT vocabulary\?",
}


@pytest.mark.parametrize("vocab", VOCABULARIES)
def test_vocabulary(vocab, made, tmp_path, fails):
    (tmp_path / "vocab.txt").write_text(vocab.replace(" ", "\n"))
    command = ["prepare", made / "text.jsonl", "--uncased", f"--vocab={tmp_path / 'vocab.txt'}"]
    message = fails(*command, f"--output={tmp_path / 'new'}")
    assert re.search(VOCABULARIES[vocab], message)


def replace(name: str, old: str, new: str):
    def change(store: Path) -> None:
        text = (store / name).read_text()
        assert old in text
        (store / name).write_text(text.replace(old, new))

    return change


DAMAGES = {
    "cut short": (
        lambda store: os.truncate(store / "train" / "tokens.bin", 1000),
        r"tokens\.bin: has 1,000 bytes; the manifest says [\d,]+\. Restore the file, or",
    ),
    "incomplete": (
        lambda store: (store / "heldout" / "documents.bin").unlink(),
        r"heldout/documents\.bin: is missing; the manifest says",
    ),
    "without manifest": (
        lambda store: (store / "manifest.json").unlink(),
        r"store: no token store there; make one with `bert-jax prepare`",
    ),
    "unfinished": (
        lambda store: store.rename(f"{store}.unfinished"),
        r"store: not finished; run the same `bert-jax prepare` again",
    ),
    "of a newer version": (
        replace("manifest.json", '"version": 1', '"version": 3'),
        r"store: format version 3, this bert_jax reads 2; update bert_jax, or prepare",
    ),
    "of another format": (
        replace("manifest.json", '"format": "bert_jax', '"format": "another'),
        r"manifest\.json: not the manifest of a token store",
    ),
    "damaged manifest": (
        replace("manifest.json", "}", ""),
        r"manifest\.json: not JSON .*; prepare the store again",
    ),
    "without [MASK]": (
        replace("vocab.txt", "[MASK]\n", ""),
        r"vocab\.txt: vocabulary: \[MASK\] missing",
    ),
    "vocabulary edited": (
        replace("vocab.txt", "\nthe\n", "\nteh\n"),
        r"store: the vocabulary is not the one that the tokens were made with",
    ),
}


@pytest.mark.usefixtures("no_devices")
@pytest.mark.parametrize("name", DAMAGES)
def test_store(name, made, tmp_path, fails):
    damage, message = DAMAGES[name]
    shutil.copytree(made / "store", tmp_path / "store")
    damage(tmp_path / "store")
    store = f"--config.data.store={tmp_path / 'store'}"
    assert re.search(message, fails(*pretrain(made, store, workdir=tmp_path / "new")))


@pytest.mark.usefixtures("no_devices")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["model.num_layers=2"], r"run of another model .*: model\.num_layers: 1 -> 2\. Choose"),
        (
            ["seed=1", "data.masking=span"],
            r": seed: 0 -> 1; masking\.name: 'token' -> 'span'; masking",
        ),
        (["data.store={made}/one"], r"other data: store_fingerprint: '\w+' -> '\w+'\. Choose"),
    ],
)
def test_workdir_of_another_run(changes, message, made, fails):
    overrides = [f"--config.{change.format(made=made)}" for change in changes]
    assert re.search(message, fails(*pretrain(made, *overrides)))


@pytest.mark.usefixtures("no_devices")
def test_workdir_that_is_none(made, fails):
    message = fails(*pretrain(made, workdir="store"))
    assert "store is not empty and holds no run: choose another --workdir" in message
    assert "one.txt: Not a directory" in fails(*pretrain(made, workdir="one.txt"))


def test_damaged_run(made, tmp_path, fails):
    shutil.copytree(made / "run", tmp_path / "run")
    config = tmp_path / "run" / "config.json"
    complete = config.read_text()
    for text, message in {
        complete[:99]: r"run/config\.json: not JSON .*; cut short or damaged",
        "[]": r"run/config\.json: expected object, got array",
        complete.replace('"seed"', '"sed"'): r"config\.json: config\.sed: .* mean config\.seed\?",
    }.items():
        config.write_text(text)
        assert re.search(message, fails(*pretrain(made, workdir=tmp_path / "run")))
    config.write_text(complete.replace('"hidden_size": 32', '"hidden_size": 64'))
    message = fails("evaluate", f"--workdir={tmp_path / 'run'}")
    assert re.search(r"checkpoints/2: cannot be restored into this model", message)


def test_store_of_another_vocabulary(made, tmp_path, fails):
    other = [made / "text.jsonl", f"--output={tmp_path / 'other'}", "--vocab-size=900"]
    assert main(["prepare", *map(str, other), "--workers=1"]) == 0
    message = fails("evaluate", f"--workdir={made / 'run'}", f"--store={tmp_path / 'other'}")
    assert message.endswith(f"prepare it with `bert-jax prepare --vocab={made / 'run'}`")


def test_a_store_that_has_moved_is_asked_for(made, tmp_path, fails):
    run = shutil.copytree(made / "run", tmp_path / "run")
    config = (run / "config.json").read_text()
    (run / "config.json").write_text(config.replace(str(made / "store"), "elsewhere"))
    message = fails("evaluate", f"--workdir={run}")
    assert message.endswith("error: elsewhere, the store of the run, is not there: pass --store")


def test_one_document_has_no_pairs_and_the_mistake_can_be_corrected(made, tmp_path, fails):
    """A start that failed does not keep its workdir from the next."""
    store = f"--config.data.store={made / 'one'}"
    command = pretrain(made, store, workdir=tmp_path / "new")
    message = fails(*command)
    assert re.search(r"train split: pairs='nsp' .* there is only one: add documents, or", message)
    assert main([*map(str, command), "--config.data.pairs=none"]) == 0


def test_plot_before_the_first_metrics(tmp_path, fails):
    (tmp_path / "metrics.jsonl").write_text("")
    message = fails("plot", tmp_path)
    assert message.endswith(f"{tmp_path}/metrics.jsonl: no metrics yet; wait for the first ones")
