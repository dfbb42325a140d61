"""Replaced-token detection, against its formulas, and from a run to transformers."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import plain_bert
import pytest
from configured import configured
from etils import epath
from test_training import assert_same_run
from tiny import ARCHITECTURE, NUMERICS, VOCAB_SIZE, make_batch, make_masking

import bert_jax
from bert_jax.__main__ import main
from bert_jax.api.convert import convert
from bert_jax.api.pretrain import pretrain
from bert_jax.data.tokenizer_json import load_tokenizer
from bert_jax.errors import UserError
from bert_jax.fields import build
from bert_jax.interop.formats import read
from bert_jax.interop.initial import initial_params
from bert_jax.model.architecture import Parallel
from bert_jax.model.generator import join_generator, split_generator
from bert_jax.objective.protocol import Objective
from bert_jax.objective.replaced_token import replaced
from bert_jax.parallel import rules
from bert_jax.parallel.mesh import make_mesh
from bert_jax.parallel.parallelism import parallelism
from bert_jax.report.metrics_file import read_metrics
from bert_jax.train.metrics import means

PACKED = make_batch([[24, 10], [10, 10, 10], [24, 24], [10], [24, 10], [24], [10, 24], [10]])
ALONE = make_batch([[int(n)] for row in PACKED["segment_ids"] for n in np.bincount(row)[1:]])
ONE_LAYER = dataclasses.replace(ARCHITECTURE, num_layers=1)
SHARING = ("shared", "decoupled")
WEIGHT = 50.0


def objective_of(embeddings):
    fields = {"name": "replaced_token", "generator_size": 0.5, "embeddings": embeddings}
    return build(Objective, fields)


@functools.cache
def bound(embeddings, parallel=None):
    """The objective of a model, and the initial parameters."""
    objective = objective_of(embeddings)
    parts = objective.parts
    model = objective.model(ONE_LAYER, NUMERICS, parallel or Parallel(), parts)
    masking = make_masking(slots=16)
    return objective.bind(model.graphdef, masking, seed=3), jax.jit(model.init)(jax.random.key(0))


@functools.cache
def trained(embeddings):
    """Initial parameters whose differences from the generator's tables are not 0."""
    params = bound(embeddings)[1]
    noise = {"word": 1, "position": 2}
    tables = params["bert"]["embeddings"]
    for name, seed in noise.items():
        table = tables[name]["embedding"]
        tables = tables | {
            name: {"embedding": table + 0.1 * jax.random.normal(jax.random.key(seed), table.shape)}
        }
    return params | {"bert": params["bert"] | {"embeddings": tables}}


def losses_and_gradients(objective, params, batch):
    @jax.jit
    def compute(params, batch):
        prepared = objective.prepare(batch, jnp.int32(0))
        counts = {head: jnp.sum(w) for head, w in objective.weights(prepared).items()}

        def loss(params):
            sums = objective.sums(params, prepared)
            factors = objective.factors
            losses = {head: sums[f"{head}_loss"] / counts[head] for head in counts}
            return sum(factors.get(head, 1) * x for head, x in losses.items()), sums

        (total, sums), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        return gradients, sums, total, prepared

    return compute(params, batch)


@functools.cache
def of_single_examples(embeddings):
    return losses_and_gradients(bound(embeddings)[0], trained(embeddings), ALONE)


def plain_sums(params, row, n, decoupled):
    """[4]: losses and counts of the generator's and the model's predictions in one example."""
    ours, generator = params["bert"], params["generator"]
    tables, theirs = ours["embeddings"], generator["bert"]["embeddings"]
    if decoupled:
        both = {
            name: {"embedding": jax.lax.stop_gradient(theirs[name]["embedding"]) + own["embedding"]}
            for name, own in tables.items()
            if name in ("word", "position")
        }
        ours = ours | {"embeddings": tables | both}
    else:
        theirs = tables | theirs
    types, original = row["token_type_ids"][:n], row["original_ids"][:n]
    smaller = generator["bert"] | {"embeddings": theirs}
    hidden = plain_bert.encode(smaller, row["input_ids"][:n], types, False, heads=2)
    places, used = row["masked_lm_positions"], row["masked_lm_weights"]
    logits = plain_bert.words(generator, hidden[places], theirs["word"]["embedding"], VOCAB_SIZE)
    chances = jax.nn.log_softmax(logits)
    nats = -jnp.take_along_axis(chances, row["masked_lm_ids"][:, None], axis=1)[:, 0]

    keys = jax.random.wrap_key_data(row["sampling_keys"], impl="threefry2x32")
    noise = jax.vmap(lambda key: jax.random.gumbel(key, (384,)))(keys)[:, :VOCAB_SIZE]
    samples = jnp.argmax(logits + noise, axis=1)
    here = (places[:, None] == jnp.arange(n)) & (used[:, None] > 0)  # [slots, n]
    seen = jnp.where(here.any(axis=0), samples @ here, original)
    is_replaced = seen != original
    x = plain_bert.encode(ours, seen, types, False, heads=4)
    head = params["replaced_token"]
    score = plain_bert.dense(plain_bert.gelu(plain_bert.dense(x, head["dense"])), head["output"])
    chance = jax.nn.sigmoid(score[:, 0])
    losses = -jnp.log(jnp.where(is_replaced, chance, 1 - chance))
    return jnp.array([jnp.sum(nats * used), jnp.sum(used), jnp.sum(losses), n])


@pytest.mark.parametrize("embeddings", SHARING)
def test_losses_and_gradients_are_those_of_the_formulas(embeddings):
    gradients, sums, total, prepared = of_single_examples(embeddings)
    lengths = (ALONE["segment_ids"] > 0).sum(axis=1)

    @jax.jit
    @jax.value_and_grad
    def plain(params):
        totals = jnp.zeros(4)
        for n in (10, 24):
            rows = jax.tree.map(lambda x, n=n: x[lengths == n], prepared)
            decoupled = embeddings == "decoupled"
            found = jax.vmap(functools.partial(plain_sums, params, n=n, decoupled=decoupled))(rows)
            totals += found.sum(axis=0)
        return totals[0] / totals[1] + WEIGHT * totals[2] / totals[3]

    expected, expected_gradients = plain(trained(embeddings))
    assert 0 < sums["rtd_replaced"] <= sums["mlm_count"]
    assert float(total) == pytest.approx(float(expected), rel=1e-5)
    assert_close(gradients, expected_gradients, rtol=1e-3, atol=1e-4)


def assert_close(left, right, rtol=1e-4, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), left, right)


def test_packed_rows_and_layouts_compute_the_same():
    """Masks and samples follow from the example, not from its row or the mesh."""
    embeddings = "shared"
    gradients, sums, total, _ = of_single_examples(embeddings)
    mesh = make_mesh(2, 2, 2)
    objective, _ = bound(embeddings, parallelism(mesh, NUMERICS))
    placed = jax.device_put(PACKED, rules.batch_sharding(mesh))
    found = losses_and_gradients(objective, trained(embeddings), placed)
    assert_close((gradients, sums, total), found[:3])


def test_samples_follow_the_softmax():
    words = jnp.broadcast_to(jnp.log(jnp.array([0.5, 0.3, 0.2])), (2, 1000, 3))
    shape = (2, 1000)
    batch = {
        "original_ids": jnp.full((2, 1001), 7),
        "masked_lm_positions": jnp.broadcast_to(jnp.arange(1000), shape),
        "masked_lm_weights": jnp.ones(shape).at[1].set(0.0),
        "sampling_keys": jax.random.key_data(jax.random.split(jax.random.key(1), shape)),
    }
    drawn, unused = np.asarray(jax.jit(replaced)(batch, words))
    assert np.bincount(drawn[:1000]) / 1000 == pytest.approx([0.5, 0.3, 0.2], abs=0.05)
    assert drawn[1000] == 7
    assert (unused == 7).all()


def test_precision_and_recall_beside_the_majority():
    sums = {"rtd_loss": 30.0, "rtd_count": 100.0, "rtd_correct": 91.0, "rtd_replaced": 10.0}
    sums |= {"rtd_flagged": 7.0, "rtd_found": 4.0, "mlm_loss": 20.0, "mlm_count": 10.0}
    line = means(sums | {"tokens": 1, "positions": 1}, ("mlm", "rtd"), {"rtd": 50.0})
    assert line["loss"] == pytest.approx(2 + 50 * 0.3)
    assert line["rtd_loss"] == pytest.approx(0.3)
    assert line["rtd_accuracy"] == 0.91
    assert line["rtd_majority_accuracy"] == 0.9
    assert line["rtd_precision"] == pytest.approx(4 / 7)
    assert line["rtd_recall"] == pytest.approx(0.4)
    nothing = dict.fromkeys(sums, 0.0) | {"rtd_count": 5.0, "rtd_correct": 5.0, "mlm_count": 1.0}
    line = means(nothing | {"tokens": 1, "positions": 1}, ("mlm", "rtd"))
    assert line["rtd_precision"] == line["rtd_recall"] == 0


@pytest.mark.parametrize("embeddings", SHARING)
def test_the_two_models_are_taken_apart_and_joined(embeddings):
    params = jax.device_get(trained(embeddings))
    model, generator = split_generator(params)
    decoupled = embeddings == "decoupled"
    assert_close(join_generator(model, generator, decoupled=decoupled), params, atol=1e-6)
    tables = model["bert"]["embeddings"]["word"], generator["bert"]["embeddings"]["word"]
    assert np.array_equal(*(table["embedding"] for table in tables)) != decoupled
    # With the weights of a model alone, both begin with its embeddings.
    begun = join_generator(model, None, decoupled=decoupled)
    again = begun["bert"]["embeddings"]["word"]["embedding"]
    assert np.array_equal(again, 0 * again if decoupled else tables[0]["embedding"])
    if decoupled:
        theirs = begun["generator"]["bert"]["embeddings"]["word"]["embedding"]
        assert np.array_equal(theirs, tables[0]["embedding"])


FIELDS = {
    "steps": 4,
    "log_every": 1,
    "eval_every": 4,
    "eval_batches": 1,
    "checkpoint_every": 2,
    "keep_checkpoints": 2,
    "model.vocab_size": 1000,
    "model.num_layers": 1,
    "model.hidden_size": 32,
    "model.num_heads": 4,
    "model.intermediate_size": 64,
    "model.embedding_size": 24,
    "model.max_position_embeddings": 32,
    "numerics.compute_dtype": "float32",
    "data.batch_size": 16,
    "data.max_seq_length": 32,
    "optimizer.warmup_steps": 1,
    "numerics.remat": "none",
}


@pytest.fixture(scope="module")
def run(sotu_store, tmp_path_factory):
    """Of the recipe, very small."""
    workdir = tmp_path_factory.mktemp("electra") / "run"
    changes = {"data.store": sotu_store, "optimizer.gradient_accumulation": 2}
    changes |= {"optimizer.ema_decay": 0.5, "optimizer.guard.max_skips": 3}
    config = configured("electra.py", **FIELDS, **changes)
    assert pretrain(config, epath.Path(workdir))
    return workdir, config


@pytest.fixture(scope="module")
def decoupled(run, tmp_path_factory):
    """A run that goes on from the other, on another mesh and with a rate of almost nothing."""
    workdir = tmp_path_factory.mktemp("electra") / "decoupled"
    changes = {"init_from": run[0], "data.store": run[1].data.store, "steps": 1, "eval_every": 1}
    changes |= {"optimizer.learning_rate": 1e-30, "mesh.data": 2, "mesh.fsdp": 4}
    config = configured("electra.py", **FIELDS | changes | {"objective.embeddings": "decoupled"})
    assert pretrain(config, epath.Path(workdir))
    return workdir


def test_a_run_resumes_bit_for_bit(run, tmp_path):
    workdir, config = run
    again = tmp_path / "again"
    shutil.copytree(workdir, again)
    shutil.rmtree(again / "checkpoints" / "4")
    assert pretrain(config, epath.Path(again))
    assert_same_run(workdir, again, 4)


def test_what_a_run_writes(run, capsys):
    workdir, _ = run
    heldout = [line for line in read_metrics(workdir) if line["split"] == "heldout"][-1]
    assert heldout["loss"] == pytest.approx(heldout["mlm_loss"] + 50 * heldout["rtd_loss"])
    assert 0.8 < heldout["rtd_majority_accuracy"] < 1
    assert 0 <= heldout["rtd_recall"] <= 1
    baseline = next(line for line in read_metrics(workdir) if line["split"] == "baseline")
    assert baseline.keys() == {"step", "split", "mlm_loss", "mlm_accuracy"}
    assert main(["evaluate", f"--workdir={workdir}", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)["heldout"]
    assert scores["rtd_loss"] == pytest.approx(heldout["rtd_loss"], rel=1e-5)


def test_a_run_continues_another(run, decoupled, tmp_path):
    """Embeddings that were shared may be decoupled from now on; the scores stay."""
    scores = [
        [line for line in read_metrics(workdir) if line["split"] == "heldout"][-1]
        for workdir in (run[0], decoupled)
    ]
    for name in ("mlm_loss", "rtd_loss"):
        assert scores[0][name] == pytest.approx(scores[1][name], rel=1e-4)
    changes = {"init_from": run[0], "data.store": run[1].data.store}
    changes |= {"objective.generator_size": 0.5}
    smaller = configured("electra.py", **FIELDS | changes)
    with pytest.raises(UserError, match="has hidden_size=8, where this run's has 16"):
        pretrain(smaller, epath.Path(tmp_path / "smaller"))


@pytest.mark.parametrize("sharing", SHARING)
def test_transformers_reads_model_and_generator(run, decoupled, sharing, tmp_path, capsys):
    import torch
    from transformers import AutoModelForMaskedLM, AutoModelForPreTraining

    workdir = run[0] if sharing == "shared" else decoupled
    target = tmp_path / "converted"
    assert main(["convert", str(workdir), str(target), "--to=huggingface"]) == 0
    assert f"in {target}/generator" in capsys.readouterr().out
    ours = read(workdir)
    ids = np.random.default_rng(0).integers(5, 1000, 12)
    for folder, kind, model, name in (
        (target, AutoModelForPreTraining, ours, "ElectraForPreTraining"),
        (target / "generator", AutoModelForMaskedLM, ours.generator, "ElectraForMaskedLM"),
    ):
        theirs = kind.from_pretrained(folder).eval()
        assert type(theirs).__name__ == name
        with torch.no_grad():
            expected = theirs(torch.tensor(ids[None])).logits.numpy()[0]
        params, heads = model.params, model.architecture.num_heads
        hidden = plain_bert.encode(params["bert"], ids, 0 * ids, False, heads)
        if name == "ElectraForMaskedLM":
            table = params["bert"]["embeddings"]["word"]["embedding"]
            found = plain_bert.words(params, hidden, table, 1000)
        else:
            inner = plain_bert.gelu(plain_bert.dense(hidden, params["replaced_token"]["dense"]))
            found = plain_bert.dense(inner, params["replaced_token"]["output"])[:, 0]
        np.testing.assert_allclose(found, expected, atol=2e-5)
    vectors = [bert_jax.load(path).encode(["of the union"]) for path in (workdir, target)]
    assert vectors[0].shape == (1, 32)
    np.testing.assert_allclose(*vectors, atol=1e-5)
    (guesses,) = bert_jax.load(target / "generator").fill_mask(["the [MASK] of"], top_k=3)
    assert len(guesses[0]) == 3


@pytest.mark.parametrize("to", ["huggingface", "bert_jax"])
def test_a_run_may_start_from_both_models(run, to, tmp_path):
    workdir, config = run
    target = tmp_path / "converted"
    convert(workdir, target, to=to, report=lambda line: None)
    tokenizer, parts = load_tokenizer(workdir), config.objective.parts
    expected, found = (
        initial_params(dataclasses.replace(config, init_from=str(path)), tokenizer, parts)[0]
        for path in (workdir, target)
    )
    assert jax.tree.structure(expected) == jax.tree.structure(found)
    for ours, theirs in zip(*map(jax.tree.leaves, (expected, found))):
        # Other formats have no padding of the vocabulary.
        np.testing.assert_array_equal(ours[:1000], theirs[:1000])
    assert "layers" in found["generator"]["bert"]["encoder"]


def test_suites_are_refused(run, tmp_path):
    changes = {"data.store": run[1].data.store, "eval_suites": ("blimp:nowhere",)}
    config = configured("electra.py", **FIELDS | changes)
    with pytest.raises(UserError, match="eval_suites: the model predicts no words"):
        pretrain(config, epath.Path(tmp_path / "run"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective.generator_size": 0.7}, "gives the generator 179 features, which its 3"),
        ({"objective.generator_size": 0.0}, r"generator_size must be in \(0, 1\]"),
        (
            {"objective.embeddings": "decoupled", "model.position_embedding": "relative"},
            "has no relative positions",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        configured("electra.py", **changes)
