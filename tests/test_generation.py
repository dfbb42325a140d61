"""Generation: what is read, packing and layouts, what is learned, resumed, scored and written."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from configured import CONFIGS
from etils import epath
from flax import nnx
from tiny import CLS_ID, NUMERICS, PAD_ID, SEP_ID, VOCAB_SIZE, make_model
from words import WORDPIECE

from bert_jax import load
from bert_jax.__main__ import main
from bert_jax.api.finetune import finetune
from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.config.recipes import load_config
from bert_jax.errors import UserError
from bert_jax.interop.workdir import read_workdir
from bert_jax.model.architecture import Architecture
from bert_jax.model.decoder import Generation, with_decoder
from bert_jax.model.model import build_model
from bert_jax.model.positions import Alibi, Relative, Rope
from bert_jax.model.search import Ids, Search, write_texts
from bert_jax.objective.finetuning import FineTuning
from bert_jax.parallel import rules
from bert_jax.parallel.mesh import make_mesh
from bert_jax.parallel.parallelism import parallelism
from bert_jax.report.metrics_file import read_metrics
from bert_jax.tasks import GenerationTask
from bert_jax.tasks.batches import ExampleBatches
from bert_jax.tasks.generation import metrics
from bert_jax.tasks.generation.features import GenerationFeatures
from bert_jax.train import trainer
from bert_jax.train.program import loader

HEADS = [Generation("cross_attention", shared=shared) for shared in (True, False)]


def write_pairs(path, count, seed, separator="\t"):
    """Each word of a source has another name in its target."""
    random, lines = np.random.default_rng(seed), []
    for _ in range(count):
        numbers = random.integers(0, 20, random.integers(2, 6))
        source, target = (" ".join(f"w{n + first}" for n in numbers) for first in (0, 20))
        lines.append(f"{source}{separator}{target}")
    path.write_text("\n".join(["source\ttarget"] * (separator == "\t") + lines) + "\n")
    return str(path)


@pytest.mark.parametrize(
    ("name", "text", "fields"),
    [
        ("a.tsv", "source\ttarget\nw1 w2\tw3\nw4\tw5\n", {}),
        ("a.tsv", "w1 w2\tw3\nw4\tw5\n", {"source": "1", "target": "2"}),
        ("a.csv", "document,summary\nw1 w2,w3\nw4,w5\n", {}),
        (
            "a.jsonl",
            '{"document": "w1 w2", "summary": "w3"}\n{"document": "w4", "summary": "w5"}\n',
            {},
        ),
    ],
)
def test_files_of_pairs_are_read(tmp_path, name, text, fields):
    (tmp_path / name).write_text(text)
    if "summary" in text:
        fields = {"source": "document", "target": "summary"}
    task = GenerationTask(**fields)
    examples = task.read(str(tmp_path / name))
    assert [(e.text_a, e.label) for e in examples] == [("w1 w2", "w3"), ("w4", "w5")]
    features = task.features(examples, WORDPIECE, 16)
    cls, sep = WORDPIECE.cls_id, WORDPIECE.sep_id
    ids = WORDPIECE.encode(["w1 w2", "w3"])
    assert features.input_ids[0].tolist() == [cls, *ids[0], sep]
    assert features.labels[0, :4].tolist() == [cls, *ids[1], sep, -1]
    unlabelled = task.read(str(tmp_path / name), labelled=False)
    assert (task.features(unlabelled, WORDPIECE, 16).labels == -1).all()


def test_a_target_that_is_no_text_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"source": "w1", "target": 3}\n')
    with pytest.raises(UserError, match=r"a\.jsonl, line 1: the target is int, not text"):
        GenerationTask().read(str(tmp_path / "a.jsonl"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"metric_names": ("blue",)}, "metric_names: no 'blue', only token_accuracy, bleu"),
        ({"metric_names": ()}, "metric_names is empty"),
    ],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(UserError, match=message):
        GenerationTask(**fields)


def make_features(count=24, seed=0):
    random = np.random.default_rng(seed)
    labels = np.full((count, 33), -1, np.int32)
    for row in labels[1:]:  # the first target is not known
        length = random.integers(1, 20)
        row[: length + 1] = random.integers(5, VOCAB_SIZE, length + 1)
    sources = [random.integers(5, VOCAB_SIZE, random.integers(3, 30)) for _ in range(count)]
    sources = [ids.astype(np.int32) for ids in sources]
    lengths = np.array([len(ids) for ids in sources], np.int32)
    return GenerationFeatures(
        input_ids=sources, b_start=lengths, labels=labels, tokenizer=WORDPIECE
    )


def loss_of(head, network, batch, load=lambda params: params):
    objective = FineTuning(network.graphdef, head)

    def loss(params):
        sums = objective.sums(load(params), batch)
        return sums["task_loss"] / sums["task_count"], sums

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.mark.parametrize("head", HEADS, ids=["shared", "own"])
@pytest.mark.parametrize(
    "blocks",
    [
        {},
        {
            "position_embedding": Rope(),
            "norm_position": "pre",
            "final_norm": True,
            "feed_forward": "glu",
            "global_every": 2,
            "local_window": 4,
        },
    ],
    ids=["bert", "modernbert"],
)
def test_packing_changes_nothing(head, blocks):
    network = make_model(parts=head.parts(Architecture()), **blocks)
    params = network.init(jax.random.key(0))
    results = []
    for packing in (True, False):
        batches = ExampleBatches(
            make_features(), head, pad_id=0, batch_size=24, seed=3, packing=packing
        )
        batch = batches.batch(0)
        assert batch["labels"].shape[1:] == (32, 3)
        results.append((*loss_of(head, network, batch)(params), len(batch["input_ids"])))
    ((_, packed), first, few), ((_, unpacked), second, many) = results
    assert few < many == 24
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), packed, unpacked)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=3e-6), first, second)


@pytest.mark.parametrize(
    "blocks",
    [
        {"position_embedding": Rope(), "norm_position": "pre", "final_norm": True},
        {"position_embedding": Alibi(), "feed_forward": "glu", "norm": "rms_norm"},
        {"position_embedding": Relative(buckets=4, max_distance=16), "global_every": 2},
        {"norm_position": "pre", "first_norm": False, "inner_norm": True, "value_gate": True},
    ],
    ids=["rope", "alibi", "relative", "gated"],
)
def test_a_text_is_what_the_decoder_finds_likeliest(blocks):
    """The keys and values of written tokens are those of all tokens at once, in all blocks."""
    head, length = HEADS[0], 8
    network = make_model(parts=head.parts(Architecture()), local_window=4, **blocks)
    params = network.init(jax.random.key(0))
    batches = ExampleBatches(
        make_features(8), head, pad_id=PAD_ID, batch_size=8, seed=None, packing=False
    )
    batch = jax.tree.map(jnp.asarray, batches.batch(0))
    search, ids = Search(beams=1, max_length=length), Ids(CLS_ID, SEP_ID, PAD_ID)

    @jax.jit
    def likeliest(params, tokens):
        labels = jnp.stack([tokens, tokens, jnp.ones_like(tokens)], axis=-1)
        objective = FineTuning(network.graphdef, head)
        return jnp.argmax(objective.logits(params, batch | {"labels": labels}), axis=-1)

    expected = np.full((8, length + 1), PAD_ID, np.int32)
    expected[:, 0] = CLS_ID
    for place in range(length):
        goes_on = ~np.any(expected == SEP_ID, axis=1)
        found = np.array(likeliest(params, expected[:, :-1]))[:, place]
        expected[goes_on, place + 1] = found[goes_on]
    write = jax.jit(lambda p: write_texts(nnx.merge(network.graphdef, p), batch, search, ids))
    np.testing.assert_array_equal(write(params), expected[:, 1:])
    assert len(np.unique(expected)) > 5  # no word over and over


@pytest.mark.parametrize("head", HEADS, ids=["shared", "own"])
def test_layouts_compute_the_same(head):
    batch = ExampleBatches(
        make_features(), head, pad_id=0, batch_size=24, seed=3, row_multiple=8
    ).batch(0)
    architecture = Architecture(
        vocab_size=VOCAB_SIZE, num_layers=2, hidden_size=64, num_heads=4, intermediate_size=128
    )
    results = []
    for sizes in ({"data": 1}, {"data": 2, "fsdp": 2, "tensor": 2}):
        count = int(np.prod(list(sizes.values())))
        mesh = make_mesh(**sizes, devices=jax.devices()[:count])
        network = build_model(
            architecture,
            NUMERICS,
            parallelism(mesh, NUMERICS),
            parts=head.parts(architecture),
        )
        params = jax.device_get(network.init(jax.random.key(0)))
        params = rules.put_params(params, mesh, network.axes)
        load = loader(mesh, network.axes, NUMERICS)
        found = loss_of(head, network, rules.put_batch(batch, mesh), load)(params)
        results.append(jax.device_get(found))
    ((one, _), first), ((other, _), second) = results
    assert one == pytest.approx(other, rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5), first, second)


def recipe(model, folder, **changes):
    data = {
        f"task.{split}": write_pairs(folder / f"{split}.tsv", count, seed)
        for split, count, seed in (("train", 256, 0), ("dev", 24, 1), ("test", 24, 2))
    }
    changes = {
        "init_from": str(model),
        "task.max_seq_length": 32,
        "task.search.max_length": 16,
        "task.search.beams": 2,
        "numerics.compute_dtype": "float32",
        "batch_size": 32,
        "epochs": 2.0,
        "log_every": 10,
        "optimizer.learning_rate": 5e-3,
        **data,
    } | changes
    overrides = [f"--config.{name}={value}" for name, value in changes.items()]
    return load_config(
        FinetuneConfig, [f"--config={CONFIGS / 'finetune.py'}:generation", *overrides]
    )


def test_a_translation_is_learned(model, tmp_path, capsys):
    pytest.importorskip("sacrebleu")
    run, test = tmp_path / "run", str(tmp_path / "test.tsv")
    config = recipe(model, tmp_path, epochs=12.0)
    assert finetune(config, run)
    printed = capsys.readouterr().out
    assert f"decoder: starts as a copy of {model}\n" in printed
    assert "starts at random: cross_attention\n" in printed
    results = json.loads((run / "results.json").read_text())
    for split in ("dev", "test"):
        assert results[split]["metrics"]["bleu"] > 30 > 5 > results[split]["baseline"]["bleu"]
    (line,) = (
        x for x in read_metrics(run) if x["step"] == results["step"] and x["split"] == "heldout"
    )
    assert line["token_accuracy"] == results["dev"]["metrics"]["token_accuracy"]
    assert "bleu" not in line  # no texts were written in training

    assert main(["evaluate", f"--workdir={run}", f"--data={test}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])[test]
    assert found == pytest.approx(results["test"]["metrics"], rel=1e-4)
    texts = (run / "test_predictions.txt").read_text().splitlines()
    said = tmp_path / "said.jsonl"
    assert main(["evaluate", f"--workdir={run}", f"--data={test}", f"--predictions={said}"]) == 0
    assert [json.loads(x)["text"] for x in said.read_text().splitlines()] == texts
    capsys.readouterr()
    assert main(["predict", "generate", f"--model={run / 'best'}", test]) == 0
    lines = [json.loads(x) for x in capsys.readouterr().out.splitlines()]
    assert [x["generated"] for x in lines] == texts

    sources = [x["source"] for x in lines]
    bert = load(run / "best")
    assert list(bert.generate(iter(sources))) == texts
    assert all(len(x.split()) <= 2 for x in bert.generate(sources, max_length=2, beams=1))
    target = str(tmp_path / "theirs")
    assert main(["convert", str(run / "best"), target, "--to=huggingface"]) == 0
    assert load(target).generate(sources, beams=2, max_length=16) == texts
    written = json.loads((tmp_path / "theirs" / "generation_config.json").read_text())
    assert (written["num_beams"], written["max_new_tokens"]) == (2, 16)
    # A run may start from such a model, too: nothing of it starts at random.
    capsys.readouterr()
    again = recipe(target, tmp_path, epochs=0.1)
    assert finetune(again, tmp_path / "again")
    assert "at random" not in capsys.readouterr().out

    assert main(["publish", str(run), str(tmp_path / "published")]) == 0
    card = (tmp_path / "published" / "main" / "README.md").read_text()
    assert "A decoder writes a text" in card
    # The search is that of the run in transformers, too.
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(target)
    tokenizer = transformers.AutoTokenizer.from_pretrained(target)
    for source, text in list(zip(sources, texts))[:5]:
        ids = theirs.generate(tokenizer(source, return_tensors="pt").input_ids)
        assert tokenizer.decode(ids[0], skip_special_tokens=True) == text


def test_an_interrupted_run_ends_as_if_it_had_not_been(model, tmp_path, monkeypatch):
    config = recipe(model, tmp_path, **{"task.metric_names": "('token_accuracy',)"})
    once, twice = epath.Path(tmp_path / "once"), epath.Path(tmp_path / "twice")
    assert finetune(config, once)

    class Killed(Exception):
        pass

    class Clock(trainer.StopSignal):
        def reached(self, step):
            if step == 13:
                raise Killed
            return False

    monkeypatch.setattr(trainer, "StopSignal", Clock)
    with pytest.raises(Killed):
        finetune(config, twice)
    monkeypatch.undo()
    assert finetune(config, twice)
    for name in ("results.json", "test_predictions.txt"):
        assert (once / name).read_text() == (twice / name).read_text()
    first, second = read_workdir(once).params, read_workdir(twice).params
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_a_decoder_begins_as_the_encoder(model):
    params = read_workdir(model).params
    made = with_decoder(params)
    assert {*made} == {"bert", "decoder"}
    assert made["decoder"]["masked_lm"] is params["masked_lm"]
    assert {*made["decoder"]["bert"]} == {"embeddings", "encoder"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"task.search.max_length": 65},
            "config.task.search.max_length=65: the model has 64 positions",
        ),
        (
            {"task.search.min_length": 16},
            "config.task.search.min_length=16 must be less than config.task.search.max_length=16",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes, message, model, tmp_path):
    with pytest.raises(UserError, match=message):
        finetune(recipe(model, tmp_path, **changes), tmp_path / "run")


def test_a_model_without_decoder_writes_nothing(model, capsys):
    assert main(["predict", "generate", f"--model={model}", "w1"]) == 2
    error = capsys.readouterr().err
    assert "no cross_attention: fine-tune it with `bert-jax finetune --config=finetune:gen" in error


def test_a_missing_library_is_named(monkeypatch):
    for module in ("sacrebleu", "rouge_score.rouge_scorer"):
        monkeypatch.setitem(sys.modules, module, None)
    for name, library in (("bleu", "sacrebleu"), ("rougeL", "rouge-score")):
        with pytest.raises(
            UserError, match=f"{name} needs {library}: pip install {library}, or leave it out"
        ):
            GenerationTask(metric_names=(name,)).check_model("task", Architecture())


def test_metrics_are_those_of_the_libraries():
    sacrebleu = pytest.importorskip("sacrebleu")
    scorer = pytest.importorskip("rouge_score.rouge_scorer")
    texts, targets = ["A cat sat on the mat .", "dogs ran"], ["the cat sat on a mat .", "Dogs run"]
    names = [*metrics.SCORES]
    found = metrics.text_metrics(names, texts, targets, lowercase=True)
    assert found["bleu"] == sacrebleu.corpus_bleu(texts, [targets], lowercase=True).score
    assert found["chrf"] == pytest.approx(
        sacrebleu.metrics.CHRF(lowercase=True).corpus_score(texts, [targets]).score
    )
    rouge = scorer.RougeScorer(["rouge1"], use_stemmer=True)
    means = [rouge.score(b, a)["rouge1"].fmeasure for a, b in zip(texts, targets)]
    assert found["rouge1"] == pytest.approx(50 * sum(means))
    assert metrics.text_metrics(names, texts, targets, lowercase=False)["bleu"] < found["bleu"]
