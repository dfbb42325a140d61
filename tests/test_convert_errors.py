"""Broken inputs of `convert`: one line that names what is wrong, exit code 2, nothing written."""

import json
import re
import shutil

import numpy as np
import pytest
from etils import epath
from portables import make_portable
from safetensors.numpy import load_file, save_file

from bert_jax.__main__ import main
from bert_jax.data.wordpiece import SPECIAL_TOKENS, WordPiece
from bert_jax.interop.formats import read
from bert_jax.interop.huggingface import ARCHITECTURES, write_huggingface
from bert_jax.interop.workdir import write_workdir

pytestmark = pytest.mark.core

WEIGHTS = "model.safetensors"
TABLE = "bert.embeddings.word_embeddings.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A directory of Hugging Face that converts."""
    words = tuple(f"word{number}" for number in range(95))
    wordpiece = WordPiece((*SPECIAL_TOKENS, *words), lowercase=True)
    model = make_portable(wordpiece, ARCHITECTURES["BertForPreTraining"])
    path = tmp_path_factory.mktemp("whole")
    write_huggingface(epath.Path(path), model, report=pytest.fail)
    return path


@pytest.fixture
def source(whole, tmp_path):
    """A copy of it, to break."""
    return shutil.copytree(whole, tmp_path / "source")


@pytest.fixture
def fails(source, capsys):
    """Runs a conversion that must fail and leave everything as it was; returns its message."""

    def run(*flags, source=source, target=source.parent / "target", to="bert_jax") -> str:
        capsys.readouterr()
        before = {path: path.stat().st_mtime_ns for path in source.parent.rglob("*")}
        try:
            code = main(["convert", str(source), str(target), f"--to={to}", *flags])
        except SystemExit as exit_:
            code = exit_.code
        assert code == 2
        written = capsys.readouterr().err
        (line,) = re.sub(r"(?m)^usage: .*\n(  .*\n)*", "", written).splitlines()
        assert {path: path.stat().st_mtime_ns for path in source.parent.rglob("*")} == before
        return line

    return run


def fields(name: str, **changes):
    """Changes fields of a JSON file; None takes one away."""

    def change(source):
        values = json.loads((source / name).read_text()) | changes
        values = {field: value for field, value in values.items() if value is not None}
        (source / name).write_text(json.dumps(values))

    return change


def tensors(change):
    """Changes the tensors, in place or by what it returns."""

    def rewrite(source):
        values = load_file(source / WEIGHTS)
        save_file(change(values) or values, source / WEIGHTS)

    return rewrite


def setitem(name, value):
    return tensors(lambda values: values.__setitem__(name, value))


def without(*names):
    return lambda source: [(source / name).unlink() for name in names]


def write(name, content: bytes):
    return lambda source: (source / name).write_bytes(content)


def both(*changes):
    return lambda source: [change(source) for change in changes]


def truncate(source):
    content = (source / WEIGHTS).read_bytes()
    (source / WEIGHTS).write_bytes(content[:-1000])


def duplicate_word(source):
    lines = (source / "vocab.txt").read_text().splitlines()
    (source / "vocab.txt").write_text("\n".join([*lines[:-1], lines[-2], ""]))


def not_a_number(values):
    values[TABLE][3, 3] = np.nan


def shards(*names):
    """An index of one shard for each name, the first of which is there."""

    def split(source):
        (source / WEIGHTS).rename(source / names[0])
        weight_map = dict.fromkeys(load_file(source / names[0]), names[0])
        weight_map |= {TABLE: names[-1]}
        index = source / f"{WEIGHTS}.index.json"
        index.write_text(json.dumps({"weight_map": weight_map}))

    return split


NORMALIZER = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True}
CONFIG = "config.json"
BROKEN = {
    # files
    "no config": (without(CONFIG), r"source: no model there, neither config\.json .* nor bert_con"),
    "config is no JSON": (write(CONFIG, b"{"), r"source/config\.json: not JSON"),
    "config is a list": (write(CONFIG, b"[]"), r"config\.json: expected object, got array"),
    "config is binary": (write(CONFIG, b"\xff\xfe"), r"config\.json: not JSON"),
    "no weights": (without(WEIGHTS), r"source: neither model\.safetensors nor pytorch_model\.bin"),
    "weights cut short": (truncate, r"source: model\.safetensors is damaged or cut short"),
    "weights empty": (write(WEIGHTS, b""), r"model\.safetensors is damaged or cut short"),
    "weights of Git LFS": (
        write(WEIGHTS, b"version https://git-lfs.github.com/spec/v1\n"),
        r"model\.safetensors is damaged or cut short",
    ),
    "a shard is missing": (shards("a.safetensors", "b.safetensors"), r"b\.safetensors is missing"),
    "a shard elsewhere": (shards("a.safetensors", "../b"), r"source: \.\./b is missing"),
    "index without map": (
        both(without(WEIGHTS), write(f"{WEIGHTS}.index.json", b"{}")),
        r"index\.json: object missing required field weight_map",
    ),
    "no vocabulary": (without("vocab.txt", "tokenizer.json"), r"vocab\.txt: no such vocabulary"),
    # config
    "DeBERTa": (fields(CONFIG, model_type="deberta"), r"model_type is 'deberta'; only bert, ro"),
    "decoder": (fields(CONFIG, is_decoder=True), r"is_decoder is True; only False can be read"),
    "relative positions": (
        fields(CONFIG, position_embedding_type="relative_key"),
        r"position_embedding_type is 'relative_key'",
    ),
    "activation": (fields(CONFIG, hidden_act="relu"), r"hidden_act is 'relu'; only gelu_pyt"),
    "no size": (fields(CONFIG, hidden_size=None), r"config\.json: hidden_size is missing"),
    "size is text": (fields(CONFIG, hidden_size="128"), r"hidden_size must be int, not '128'"),
    "odd heads": (
        fields(CONFIG, num_attention_heads=3),
        r"config\.json: hidden_size=128 is not a multiple of num_attention_heads=3",
    ),
    "dropout": (
        fields(CONFIG, hidden_dropout_prob=1.0),
        r"hidden_dropout_prob must be in \[0, 0\.99\]",
    ),
    "other size": (
        fields(CONFIG, hidden_size=64),
        rf"source: {TABLE} has shape \(100, 128\); the config asks for \(100, 64\)",
    ),
    "fewer layers": (fields(CONFIG, num_hidden_layers=1), r"have 2 layers; the config has 1$"),
    "more layers": (fields(CONFIG, num_hidden_layers=3), r"have 2 layers; the config has 3$"),
    # tensors
    "wrong shape": (
        setitem("bert.pooler.dense.weight", np.zeros((128, 127), np.float32)),
        r"bert\.pooler\.dense\.weight has shape \(128, 127\); the config asks for \(128, 128\)",
    ),
    "missing tensor": (
        tensors(
            lambda v: {name: x for name, x in v.items() if name != "cls.seq_relationship.bias"}
        ),
        r"source: cls\.seq_relationship\.bias is missing$",
    ),
    "missing layer": (
        tensors(lambda v: {name: x for name, x in v.items() if "encoder.layer.0." not in name}),
        r"layer\.0\.attention\.self\.query\.weight, .*\.\.\. \(16 tensors\) are missing$",
    ),
    "extra tensor": (
        setitem("bert.embeddings.extra", np.zeros(3, np.float32)),
        r"embeddings\.extra is unknown: `bert-jax convert --no-strict` leaves such tensors out$",
    ),
    "not tied": (
        setitem("cls.predictions.decoder.weight", np.zeros((100, 128), np.float32)),
        rf"decoder\.weight differs from {TABLE}; bert ties them",
    ),
    "twice": (
        setitem("bert.embeddings.LayerNorm.gamma", np.zeros(128, np.float32)),
        r"bert\.embeddings\.LayerNorm\.weight is there twice",
    ),
    "integers": (
        setitem("bert.pooler.dense.bias", np.zeros(128, np.int8)),
        r"bert\.pooler\.dense\.bias holds I8; only float64, float32, ",
    ),
    "not a number": (tensors(not_a_number), rf"{TABLE} has values that are not finite numbers"),
    "no name of the classifier": (
        setitem("classifier.bias", np.zeros(2, np.float32)),
        r"architectures of config\.json name neither BertForSequenceClassification nor",
    ),
    "labels": (
        both(
            fields(CONFIG, architectures=["BertForSequenceClassification"], id2label={"0": "no"}),
            setitem("classifier.bias", np.zeros(2, np.float32)),
            setitem("classifier.weight", np.zeros((2, 128), np.float32)),
        ),
        r"source: id2label does not name the 2 classes of the classifier$",
    ),
    # vocabulary
    "vocabulary of another size": (
        fields(CONFIG, vocab_size=99),
        r"config\.json: vocab_size is 99, but the vocabulary beside it has 100 tokens$",
    ),
    "two vocabularies": (
        duplicate_word,
        r"source: vocab\.txt and tokenizer\.json differ in vocabulary",
    ),
    "vocabularies in other orders": (
        write(
            "vocab.txt",
            "\n".join([*SPECIAL_TOKENS, *(f"word{n}" for n in range(94, -1, -1))]).encode(),
        ),
        r"source: vocab\.txt and tokenizer\.json differ in vocabulary",
    ),
    "cased and uncased": (
        fields("tokenizer_config.json", do_lower_case=False),
        r"do_lower_case is False in tokenizer_config\.json, but True in tokenizer\.json",
    ),
    "casing unknown": (
        without("tokenizer.json", "tokenizer_config.json"),
        r"vocab\.txt: cased or uncased\? .* `bert-jax convert` also take --uncased or --cased",
    ),
    "BPE": (
        fields("tokenizer.json", model={"type": "BPE", "vocab": {}, "merges": []}),
        r"source: vocab\.txt and tokenizer\.json differ in vocabulary",
    ),
    "no normalizer": (
        fields("tokenizer.json", normalizer=None),
        r"do_lower_case is True in tokenizer_config\.json, but tokenizer\.json keeps the case",
    ),
    "tokenizer of another kind": (write("tokenizer.json", b"{}"), r"tokenizer\.json: not a token"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_directory(name, source, fails):
    change, message = BROKEN[name]
    change(source)
    assert re.search(message, fails())


@pytest.mark.parametrize("to", ["bert_jax", "huggingface"])
def test_a_token_twice(source, tmp_path, caplog, to):
    """The last one is used, before and after the conversion."""
    both(without("tokenizer.json"), duplicate_word)(source)
    assert main(["convert", str(source), str(tmp_path / "target"), f"--to={to}"]) == 0
    assert "vocab.txt: 'word93' stands in lines 99 and 100" in caplog.text
    assert read(tmp_path / "target").tokenizer.encode(["word93 word92"]) == [[99, 97]]


def test_nothing_of_a_pickle_is_executed(source, fails, tmp_path):
    """In a directory that would be fine otherwise, in the old and in the new format of PyTorch."""
    torch = pytest.importorskip("torch")
    witness = tmp_path / "executed"

    class Code:
        def __reduce__(self):
            return open, (str(witness), "w")

    state = {name: torch.from_numpy(x) for name, x in load_file(source / WEIGHTS).items()}
    (source / WEIGHTS).unlink()
    for new_format in (True, False):
        with open(source / "pytorch_model.bin", "wb") as file:
            content = state | {"bert.embeddings.extra": Code()}
            torch.save(content, file, _use_new_zipfile_serialization=new_format)
        assert re.search(r"holds more than tensors, which is not loaded", fails())
        assert not witness.exists()
    with open(source / "pytorch_model.bin", "wb") as file:
        torch.save([1, 2], file)
    assert re.search(r"pytorch_model\.bin is not a state_dict", fails())


def test_pickle_without_pytorch(source, fails, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    (source / WEIGHTS).rename(source / "pytorch_model.bin")
    assert re.search(r"pytorch_model\.bin needs PyTorch: pip install torch, or save", fails())


FLAGS = {
    "--architecture=BertForQuestionAnswering": (
        r"SOURCE has no answer_span, which BertForQuestionAnswering has: create it with "
        r"--initialise=answer_span$"
    ),
    "--architecture=BertForTokenClassification": (
        r"no token_classifier, which BertForTokenClassification has: create it with fine-tuning$"
    ),
    "--architecture=BertForCausalLM": r"invalid choice: 'BertForCausalLM'",
    "--initialise=pooler": r"--initialise=pooler: SOURCE has it already",
    "--initialise=sequence_classifier": r"--initialise=sequence_classifier: use one of pooler, ",
    "--architecture=BertModel --initialise=answer_span": r"answer_span: BertModel has none",
    "--cased": r"do_lower_case is true; the flag says the opposite",
    "--step=3": r"source: not a training workdir, so there is no step 3",
    "--seed=-1": r"--seed=-1 must be from 0",
}


@pytest.mark.parametrize("flags", FLAGS)
def test_flags(flags, fails):
    assert re.search(FLAGS[flags], fails(*flags.split()))


def test_places(source, fails, tmp_path):
    (tmp_path / "empty").mkdir()
    assert re.search(r"empty: no model there, neither", fails(source=tmp_path / "empty"))
    assert re.search(r"nowhere: no model there, neither", fails(source=tmp_path / "nowhere"))
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    for target in (full, full / "notes.txt", source):
        assert re.search(r": exists and is not empty; choose another TARGET", fails(target=target))
    assert re.search(r"TARGET must be on a local disk", fails(target="gs://bucket/model"))
    assert main(["convert", str(source), str(tmp_path / "empty"), "--to=bert_jax"]) == 0


def test_a_changed_weight_of_a_model_that_we_wrote(source, fails, tmp_path):
    """safetensors has no checksums, so we write ours into its metadata; others' files have none."""
    written = tmp_path / "written"
    for target, to in ((tmp_path / "ours", "bert_jax"), (written, "huggingface")):
        assert main(["convert", str(source), str(target), f"--to={to}"]) == 0
        source = target
    tensors = load_file(written / WEIGHTS)
    content = bytearray((written / WEIGHTS).read_bytes())
    content[content.index(tensors["bert.pooler.dense.weight"].tobytes()) + 2] ^= 1
    (written / WEIGHTS).write_bytes(content)
    message = fails(source=written)
    assert (
        "model.safetensors is damaged: bert.pooler.dense.weight is not what was written" in message
    )
    save_file(load_file(written / WEIGHTS), written / WEIGHTS)
    assert main(["convert", str(written), str(tmp_path / "again"), "--to=bert_jax"]) == 0


def test_no_class_has_these_parts(source, fails, tmp_path):
    model = make_portable(WordPiece(SPECIAL_TOKENS, lowercase=True), ("pooler", "masked_lm"))
    write_workdir(epath.Path(tmp_path / "ours"), model)
    message = fails(source=tmp_path / "ours", to="huggingface")
    assert re.search(r"no class of transformers has just pooler, masked_lm: choose one", message)


def test_damaged_workdir(source, fails, tmp_path):
    ours, config = tmp_path / "ours", tmp_path / "ours" / CONFIG
    assert main(["convert", str(source), str(ours), "--to=bert_jax"]) == 0
    whole = config.read_text()
    for old, new, message in (
        (
            '"hidden_size": 128',
            '"hidden_size": 64',
            r"ours: cannot be restored into this model: bert/.* is .*128\S*, but must be ",
        ),
        ('"num_layers": 2', '"num_layers": 2.5', r"config\.json: config\.model\.num_layers must"),
        ('"vocab_size": 100', '"vocab_size": 101', r"vocab_size is 101, but the vocabulary beside"),
        ('"model"', '"modle"', r"model_type|hidden_size is missing|vocab_size is missing"),
    ):
        assert old in whole
        config.write_text(whole.replace(old, new))
        assert re.search(message, fails(source=ours, to="huggingface"))
    config.write_text(whole)
    assert re.search(r"no checkpoint of step 7; there are \[0\]", fails("--step=7", source=ours))
